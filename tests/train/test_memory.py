"""A policy that remembers its episode, in every loop that acts: it must be told where each one begins."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ctrlrl import BC, Flow, evaluate_policy
from ctrlrl.data.collect import collect
from ctrlrl.data.episodes import Facts
from ctrlrl.envs.classic import Pendulum
from ctrlrl.envs.sim import BatchedSim
from ctrlrl.judging import Acting, judged
from ctrlrl.train.evaluate import evaluate
from ctrlrl.types import EnvSpec, PolicyOutput, TimeStep


class Counting:
    """Acts with the number of steps that each environment's episode has had, in hundredths."""

    device, stochastic_eval = torch.device("cpu"), False

    def act_in_episode(
        self, obs: Tensor, memory: Any = None, begins: Tensor | None = None, *, deterministic: bool = False
    ) -> tuple[PolicyOutput, Tensor]:
        steps = torch.zeros(len(obs)) if memory is None else memory + 1
        if begins is not None:
            steps = torch.where(begins, 0.0, steps)
        return PolicyOutput(steps.unsqueeze(1) / 100.0, None, {}), steps


class Clocks:
    """Lane i has episodes of i + 2 steps; observed are the steps so far, in hundredths. Optional NEXT_STEP resets."""

    def __init__(self, n_envs: int, *, next_step: bool = False):
        self.spec = EnvSpec(1, 1, 0, 1, n_envs, 0, torch.device("cpu"))
        self.next_step, self.acted = next_step, list[tuple[Tensor, Tensor, Tensor]]()

    def reset(self, seed: int | None = None) -> Tensor:
        n = self.spec.n_envs
        self.length, self.clock = torch.arange(n) + 2, torch.zeros(n)
        self.resetting = torch.zeros(n, dtype=torch.bool)
        return self.clock.unsqueeze(1) / 100.0

    def step(self, action: Tensor) -> TimeStep:
        mask = ~self.resetting
        self.acted.append((self.clock.clone(), action.squeeze(1).clone(), mask))
        self.clock = torch.where(mask, self.clock + 1, 0.0)
        done = (self.clock == self.length) & mask
        final = self.clock.unsqueeze(1) / 100.0
        if self.next_step:
            self.resetting = done
        else:
            self.clock = torch.where(done, 0.0, self.clock)
        obs = self.clock.unsqueeze(1) / 100.0
        extras = {"mask": mask} if self.next_step else {}
        return TimeStep(obs, final, torch.zeros(len(obs)), done, torch.zeros_like(done), extras)

    def close(self) -> None:
        pass

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        pass


def assert_in_step(env: Clocks) -> None:
    """The policy's own count is the environment's wherever its action was executed."""
    assert len(env.acted) > 8
    for clock, action, mask in env.acted:
        torch.testing.assert_close(action[mask], clock[mask] / 100.0)


@pytest.mark.parametrize("next_step", [False, True])
def test_an_evaluation_tells_where_episodes_begin(next_step):
    env = Clocks(4, next_step=next_step)
    act = judged(Counting())  # type: ignore[arg-type]
    evaluate(act, env, episodes=12, seed=0)  # type: ignore[arg-type]
    assert_in_step(env)
    env.acted.clear()
    evaluate(act, env, episodes=12, seed=0)  # type: ignore[arg-type]
    assert_in_step(env)


@pytest.mark.parametrize("next_step", [False, True])
def test_collecting_tells_the_policy_and_its_sampling_form(next_step):
    env = Clocks(4, next_step=next_step)
    forms = [Acting(Counting(), deterministic=each) for each in (True, False)]  # type: ignore[arg-type]
    facts = Facts("rollouts", "made")
    collect(forms[0], env, facts, steps=60, seed=0, noise=(0.0, -1.0), sample=forms[1])  # type: ignore[arg-type]
    assert_in_step(env)


def test_policies_without_memory_act_as_before_to_the_bit():
    model = BC("MlpPolicy", "Pendulum-v1", seed=0, hidden=[16])
    obs = torch.randn(5, 3)
    act = judged(model.learner)
    for _ in range(3):
        assert torch.equal(act(obs), model.learner.act(obs, deterministic=True).action)
        act.forget(torch.tensor([True, False, False, True, False]))
    assert model.predict(obs.numpy(), state=None, episode_start=np.ones(5, bool))[1] is None


def flow(env: Any = "Pendulum-v1") -> Flow:
    settings: dict[str, Any] = {"hidden": [16, 16], "horizon": 8, "n_action_steps": 4, "stochastic_eval": False}
    return Flow("MlpPolicy", env, seed=0, **settings)


def test_predict_takes_and_gives_the_state_as_recurrent_policies_do():
    """Stable-Baselines3's protocol: state in, state out, episode_start where an environment began anew."""
    model = flow()
    rows = np.random.default_rng(0).standard_normal((12, 3, 3)).astype(np.float32)
    starts = np.zeros((12, 3), dtype=bool)
    starts[0] = True
    starts[5, 1] = starts[7] = True
    state, together = None, []
    for obs, start in zip(rows, starts, strict=True):
        action, state = model.predict(obs, state=state, episode_start=start, deterministic=True)
        together.append(action)
    for lane in range(3):
        state = None
        for t in range(12):
            begun = starts[t, lane : lane + 1] if t else None
            action, state = model.predict(rows[t, lane], state=state, episode_start=begun, deterministic=True)
            np.testing.assert_allclose(action, together[t][lane], atol=1e-6)


def test_predict_without_a_state_plans_anew_every_time():
    model, obs = flow(), np.zeros(3, dtype=np.float32)
    first, state = model.predict(obs, deterministic=True)
    assert np.array_equal(model.predict(obs, deterministic=True)[0], first)
    assert not np.array_equal(model.predict(obs, state=state, deterministic=True)[0], first)


def test_an_evaluation_acts_as_predict_with_its_state_does(tmp_path):
    """One path through the loops, one through the face; and the same after saving and loading."""
    model = flow()
    model.save(tmp_path / "flow")
    env = BatchedSim(Pendulum(), 3, seed=0, stagger=False, episode_length=20)
    returns = [
        evaluate(judged(m.learner), env, episodes=3, seed=1).returns for m in (model, Flow.load(tmp_path / "flow.zip"))
    ]
    assert torch.equal(*returns)
    obs, state, total = env.reset(1), None, torch.zeros(3, dtype=torch.float64)
    for _ in range(20):
        action, state = model.predict(obs.numpy(), state=state, deterministic=True)
        step = env.step(torch.from_numpy(action) / 2.0)
        obs, total = step.obs, total + step.reward.double()
    torch.testing.assert_close(returns[0], total, rtol=1e-4, atol=1e-3)


def test_a_watched_evaluation_keeps_the_state_too():
    """With a callback `evaluate_policy` goes through `predict`; without one, past it."""
    env = BatchedSim(Pendulum(), 2, seed=0, stagger=False, episode_length=20)
    model, seen = flow(env), []
    plain = evaluate_policy(model, env, 4, return_episode_rewards=True, seed=1)
    watched = evaluate_policy(
        model, env, 4, return_episode_rewards=True, seed=1, callback=lambda local, _: seen.append(local["states"].phase)
    )
    assert sorted(watched[0]) == pytest.approx(sorted(plain[0]), rel=1e-4)
    assert seen[:10:2] == [1, 2, 3, 4, 1]


class CountingModel:
    """`Counting` with Stable-Baselines3's `predict`."""

    def predict(self, observation: Any, state: Any, episode_start: Any, deterministic: bool) -> tuple[Any, Any]:
        steps = np.where(episode_start, 0.0, 0.0 if state is None else state + 1)
        return (steps / 100.0).astype(np.float32)[:, None], steps


@pytest.mark.parametrize("next_step", [False, True])
def test_evaluate_policy_tells_any_recurrent_model_where_episodes_begin(next_step):
    env = Clocks(4, next_step=next_step)
    evaluate_policy(CountingModel(), env, 12, warn=False)
    quota, ended = 3, torch.zeros(4)
    for clock, action, mask in env.acted:
        still = mask & (ended < quota)  # of the others Stable-Baselines3's rule tells no more
        torch.testing.assert_close(action[still], clock[still] / 100.0)
        ended += (clock + 1 == env.length) & mask
    assert bool((ended >= quota).all())

"""Evaluation: the same number of whole episodes from every lane, and no trace left in training's generators."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from ctrlrl.envs.classic import Pendulum
from ctrlrl.envs.gymnasium import GymnasiumEnv
from ctrlrl.envs.sim import BatchedSim
from ctrlrl.judging import judged
from ctrlrl.loops import make_learner
from ctrlrl.registry import ALGORITHMS, lookup
from ctrlrl.train.evaluate import evaluate, forked_rng
from ctrlrl.types import EnvSpec, TimeStep


class Metronome:
    """Lane i has episodes of i + 1 steps; its n-th episode pays 100 i + n a step. Optional NEXT_STEP resets."""

    def __init__(self, n_envs: int, *, next_step: bool = False, success: bool = False) -> None:
        self.spec = EnvSpec(1, 1, 0, 1, n_envs, 0, torch.device("cpu"))
        self.next_step, self.success = next_step, success

    def reset(self, seed: int | None = None) -> Tensor:
        n = self.spec.n_envs
        self.lane, self.clock, self.nth = torch.arange(n), torch.zeros(n), torch.zeros(n)
        self.resetting = torch.zeros(n, dtype=torch.bool)
        return torch.zeros(n, 1)

    def step(self, action: Tensor) -> TimeStep:
        mask = ~self.resetting
        self.clock += mask
        reward = (100.0 * self.lane + self.nth) * mask
        done = (self.clock == self.lane + 1) & mask
        extras = {"mask": mask} if self.next_step else {}
        if self.success:
            extras["success"] = torch.where(done, (self.lane % 2).float(), torch.nan)
        self.nth[done] += 1
        self.clock[done] = 0
        self.resetting = done if self.next_step else self.resetting
        obs = torch.zeros(self.spec.n_envs, 1)
        return TimeStep(obs, obs, reward, done, torch.zeros_like(done), extras)


def run(env: Metronome, episodes: int) -> tuple[list[float], list[int]]:
    found = evaluate(lambda obs: obs, env, episodes=episodes, seed=0)  # type: ignore[arg-type]
    return found.returns.tolist(), found.lengths.tolist()


@pytest.mark.parametrize("next_step", [False, True])
def test_short_episodes_weigh_no_more_than_long_ones(next_step):
    returns, lengths = run(Metronome(3, next_step=next_step), 6)
    assert lengths == [1, 1, 2, 2, 3, 3]  # counted as they finish, lane 0 would give nearly all
    assert returns == [0.0, 1.0, 200.0, 202.0, 600.0, 603.0]


@pytest.mark.parametrize("episodes", [1, 2, 4, 5, 7])
def test_the_asked_number_of_episodes_is_run(episodes):
    _, lengths = run(Metronome(3), episodes)
    assert len(lengths) == episodes
    per_lane = [lengths.count(k) for k in (1, 2, 3)]
    assert max(per_lane) - min(per_lane) <= 1


def test_success_is_reported_where_the_environment_tells_it():
    found = evaluate(lambda obs: obs, Metronome(4, success=True), episodes=4, seed=0)  # type: ignore[arg-type]
    assert found.success is not None
    assert found.success.tolist() == [0.0, 1.0, 0.0, 1.0]
    assert evaluate(lambda obs: obs, Metronome(4), episodes=4, seed=0).success is None  # type: ignore[arg-type]


def test_an_environment_without_an_end_is_refused_with_the_mend():
    with pytest.raises(ValueError, match="time limit"):
        evaluate(
            lambda obs: torch.zeros(2, 1),
            BatchedSim(Pendulum(), 2, seed=0, episode_length=0),
            episodes=2,
            seed=0,
            max_steps=50,
        )


def test_evaluation_leaves_the_generator_where_it_was_and_repeats_itself():
    env = BatchedSim(Pendulum(), 4, seed=0, stagger=False, episode_length=20)

    def noisy(obs: Tensor) -> Tensor:
        return torch.randn(4, 1)

    before = torch.get_rng_state()
    first = evaluate(noisy, env, episodes=4, seed=5).returns
    torch.randn(3)
    torch.set_rng_state(before)
    second = evaluate(noisy, env, episodes=4, seed=5).returns
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)
    assert not torch.equal(first, evaluate(noisy, env, episodes=4, seed=6).returns)


def test_a_forked_generator_is_given_back_after_an_error():
    before = torch.get_rng_state()

    def fail() -> None:
        with forked_rng(1):
            torch.randn(5)
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        fail()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("algo", ["ppo", "policyflow", "fpo", "fql"])
def test_an_evaluation_samples_where_the_learner_declares_it(algo):
    """As the authors of the flow policies evaluate them; `stochastic_eval=false` brings back the one action."""
    spec = EnvSpec(3, 2, 0, 1, 4, 0, torch.device("cpu"))
    config = lookup(ALGORITHMS, algo, "algorithm").config
    learner = make_learner(config(hidden=[8]), spec)
    obs, declared = torch.randn(4, 3), algo != "ppo"
    assert learner.stochastic_eval == declared
    assert torch.equal(judged(learner)(obs), judged(learner)(obs)) != declared
    if declared:
        still = make_learner(config(hidden=[8], stochastic_eval=False), spec)
        assert torch.equal(judged(still)(obs), judged(still)(obs))


def test_an_environment_that_tells_of_successes_alone_is_not_always_successful():
    class Told(gym.Env):
        observation_space, action_space = gym.spaces.Box(-1.0, 1.0, (1,)), gym.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.won = self.np_random.random() < 0.3
            return np.zeros(1, np.float32), {}

        def step(self, action):
            return np.zeros(1, np.float32), 0.0, True, False, {"is_success": True} if self.won else {}

    env = GymnasiumEnv(Told, n_envs=4)
    found = evaluate(lambda obs: torch.zeros(len(obs), dtype=torch.int64), env, episodes=100, seed=0)
    assert found.success.isfinite().all()
    assert 0.1 < found.success.mean() < 0.5

"""Collecting: every row is a transition that the environment made, in whole episodes, as many as asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ctrlrl.data.check import check
from ctrlrl.data.collect import collect
from ctrlrl.data.episodes import Episodes, Facts
from ctrlrl.envs.classic import CartPole, Pendulum
from ctrlrl.envs.sim import BatchedSim
from ctrlrl.types import EnvSpec, TimeStep

FACTS = Facts(format="rollouts", path="out.npz")


class Ledger:
    """Observations say where they come from: (lane, episode of the lane, clock).

    Lane i has episodes of i + 2 steps, and every third one terminates; a step pays what the action is. On request
    resets take a step, or a simulation breaks.
    """

    def __init__(self, n_envs: int, *, next_step: bool = False, breaks_at: int | None = None, success: bool = False):
        self.spec = EnvSpec(3, 1, 0, 1, n_envs, 0, torch.device("cpu"))
        self.next_step, self.breaks_at, self.success, self.steps = next_step, breaks_at, success, 0
        self.buffer = torch.zeros(n_envs, 3)

    def reset(self, seed: int | None = None) -> Tensor:
        n = self.spec.n_envs
        self.nth, self.clock, self.resetting = torch.zeros(n), torch.zeros(n), torch.zeros(n, dtype=torch.bool)
        return self.observe()

    def observe(self) -> Tensor:
        self.buffer.copy_(torch.stack((torch.arange(self.spec.n_envs), self.nth, self.clock), 1))
        return self.buffer  # overwritten by the next step, which VecEnv allows

    def step(self, action: Tensor) -> TimeStep:
        self.steps += 1
        mask = ~self.resetting
        self.clock += mask
        final = self.observe().clone()
        done = (self.clock == torch.arange(self.spec.n_envs) + 2) & mask
        terminated = done & (self.nth % 3 == 0)
        reward = action[:, 0] * mask
        if self.steps == self.breaks_at:
            reward, done = reward.masked_fill(torch.arange(len(done)) == 1, torch.nan), done.clone()
            done[1], terminated[1] = True, False
        self.nth += done
        self.clock[done] = 0
        extras = {"mask": mask} if self.next_step else {}
        if self.success:
            extras["success"] = torch.where(done, (self.nth % 2).float(), torch.nan)
        self.resetting = done if self.next_step else self.resetting
        return TimeStep(self.observe(), final, reward, terminated, done & ~terminated, extras)


def half(obs: Tensor) -> Tensor:
    return torch.full((len(obs), 1), 0.5)


def rolled(env: Ledger, steps: int, **kwargs: object) -> Episodes:
    return collect(half, env, FACTS, steps=steps, seed=0, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize("next_step", [False, True], ids=["same_step", "next_step"])
@pytest.mark.parametrize("n_envs", [1, 3, 8])
@pytest.mark.parametrize("steps", [1, 7, 24, 100])
def test_every_row_is_a_step_of_one_episode_and_there_are_as_many_as_asked_for(steps, n_envs, next_step):
    e = rolled(Ledger(n_envs, next_step=next_step), steps)
    assert e.n_rows == steps
    assert not [f for f in check(e) if f.name != "constant_column"]
    following = e.next_obs()
    np.testing.assert_array_equal(following[:, :2], e.obs[:, :2])  # the same lane, the same episode
    np.testing.assert_array_equal(following[:, 2], e.obs[:, 2] + 1)  # one step later
    first = e.starts()
    np.testing.assert_array_equal(e.obs[first, 2], 0)  # episodes begin at their beginning
    lane, nth = e.obs[first, 0], e.obs[first, 1]
    np.testing.assert_array_equal(e.episode_extras["episode_lane"], lane)
    np.testing.assert_array_equal(e.episode_extras["episode_in_lane"], nth)
    whole = e.lengths() == lane + 2
    np.testing.assert_array_equal(e.episode_extras["episode_complete"], whole)
    np.testing.assert_array_equal(e.terminated[e.ends - 1], whole & (nth % 3 == 0))
    assert e.terminated.sum() == e.terminated[e.ends - 1].sum()
    np.testing.assert_array_equal(np.flatnonzero(e.extras["timeouts"]), (e.ends - 1)[~e.terminated[e.ends - 1]])
    assert e.has_final.all()
    assert e.usable.all()


def test_a_row_in_which_the_simulation_broke_is_left_out_and_told():
    e = rolled(Ledger(3, breaks_at=5), 60)
    assert e.n_rows == 60
    assert np.isfinite(e.reward).all()
    following = e.next_obs()
    np.testing.assert_array_equal(following[:, :2], e.obs[:, :2])
    np.testing.assert_array_equal(following[:, 2], e.obs[:, 2] + 1)
    assert "1 rows left out" in e.facts.notices[0]


def test_an_environment_without_transitions_ends_collecting():
    class Broken(Ledger):
        def step(self, action: Tensor) -> TimeStep:
            return super().step(action * torch.nan)

    with pytest.raises(RuntimeError, match="gave no transition"):
        rolled(Broken(2), 10)


def test_success_is_kept_where_the_environment_tells_it():
    e = rolled(Ledger(3, success=True), 30)
    whole = e.episode_extras["episode_complete"]
    nth = e.episode_extras["episode_in_lane"]
    np.testing.assert_array_equal(e.episode_extras["episode_success"][whole], (nth[whole] + 1) % 2)
    assert np.isnan(e.episode_extras["episode_success"][~whole]).all()
    assert "episode_success" not in rolled(Ledger(3), 30).episode_extras


def test_lanes_take_the_noise_levels_in_turn_and_actions_stay_in_the_box():
    e = rolled(Ledger(9), 9000, noise=(0.0, 0.3, 2.0))
    level = np.repeat(e.episode_extras["episode_noise_std"], e.lengths())
    np.testing.assert_array_equal(
        e.episode_extras["episode_noise_std"], np.float32([0.0, 0.3, 2.0])[e.episode_extras["episode_lane"] % 3]
    )
    action = e.action[:, 0]
    assert (action[level == 0.0] == 0.5).all()
    some = action[level == np.float32(0.3)]
    assert abs(some[some < 1].min()) <= 1.0
    assert np.abs(some - 0.5).mean() == pytest.approx(0.3 * np.sqrt(2 / np.pi), rel=0.15)  # a little less: clipped at 1
    large = action[level == 2.0]
    assert (np.abs(large) <= 1.0).all()
    assert (large == 1.0).mean() == pytest.approx(0.401, abs=0.04)  # P(0.5 + 2 z > 1)
    np.testing.assert_array_equal(e.reward, action)  # what is stored is what was executed
    counts = [(level == v).sum() for v in np.unique(level)]
    assert counts == [3000, 3000, 3000]


def test_noise_of_minus_one_samples_from_the_policy():
    def sample(obs: Tensor) -> Tensor:
        return torch.full((len(obs), 1), -0.25)

    e = rolled(Ledger(2), 100, noise=(0.0, -1.0), sample=sample)
    lane = e.obs[:, 0]
    assert (e.action[lane == 0] == 0.5).all()
    assert (e.action[lane == 1] == -0.25).all()


def test_noise_is_the_share_of_random_actions_where_they_are_discrete():
    def left(obs: Tensor) -> Tensor:
        return torch.zeros(len(obs), dtype=torch.int64)

    env = BatchedSim(CartPole(), 10, seed=0, stagger=False)
    e = collect(left, env, FACTS, steps=4000, seed=0, noise=(0.0, 0.4))
    level = np.repeat(e.episode_extras["episode_noise_std"], e.lengths())
    assert e.action.dtype == np.int64
    assert not e.action[level == 0.0].any()
    assert e.action[level > 0].mean() == pytest.approx(0.2, abs=0.04)  # half of the random ones are right


def uniform(obs: Tensor) -> Tensor:
    return torch.rand(len(obs), 1) * 2 - 1


def test_the_same_seed_gives_the_same_data_and_leaves_the_generator_as_it_was():
    def data(seed: int) -> Episodes:
        env = BatchedSim(Pendulum(), 4, stagger=False, seed=seed)
        return collect(uniform, env, FACTS, steps=500, seed=seed, noise=(0.1,))

    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    a, b, c = data(0), data(0), data(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    np.testing.assert_array_equal(a.obs, b.obs)
    np.testing.assert_array_equal(a.action, b.action)
    assert not np.array_equal(a.action, c.action)


def test_stored_actions_replayed_from_the_same_seed_give_the_stored_rows():
    n, t = 4, 450  # two whole episodes and a cut one in each lane
    e = collect(uniform, BatchedSim(Pendulum(), n, seed=5, stagger=False), FACTS, steps=n * t, seed=5, noise=(0.2,))
    assert e.lengths().tolist() == [200, 200, 50] * n
    actions = torch.from_numpy(e.action).view(n, t, 1)
    env = BatchedSim(Pendulum(), n, seed=9, stagger=False)
    obs, following = env.reset(5), e.next_obs().reshape(n, t, 3)
    for i in range(t):
        np.testing.assert_array_equal(obs.numpy(), e.obs.reshape(n, t, 3)[:, i])
        step = env.step(actions[:, i])
        np.testing.assert_array_equal(step.final_obs.numpy(), following[:, i])
        np.testing.assert_array_equal(step.reward.numpy(), e.reward.reshape(n, t)[:, i])
        obs = step.obs


def test_progress_is_told_after_every_vector_step():
    told: list[int] = []
    rolled(Ledger(4), 10, on_step=told.append)
    assert told == [4, 8, 10]


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"noise": (0.0, 0.1, 0.2)}, "noise has 3 levels for 2 environments"),
        ({"noise": ()}, "noise has 0 levels"),
        ({"noise": (-0.5,)}, "noise must be a standard deviation"),
        ({"noise": (float("nan"),)}, "noise must be a standard deviation"),
        ({"noise": (-1.0,)}, "this one is deterministic"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(kwargs, said):
    with pytest.raises(ValueError, match=said):
        rolled(Ledger(2), **({"steps": 10} | kwargs))


def test_several_rewards_or_choices_a_row_are_refused():
    env = Ledger(2)
    for spec in (env.spec._replace(reward_dim=2), env.spec._replace(action_dim=0, nvec=(2, 3))):
        env.spec = spec
        with pytest.raises(ValueError, match="one reward and one action"):
            rolled(env, 10)

"""Trials: where first episodes end, what counts as covered, and that nothing of training's generators is used up."""

import math

import pytest
import torch
from torch import Tensor

from ctrlrl.envs.multigoal import MultiGoal, MultiGoalConfig
from ctrlrl.envs.sim import BatchedSim
from ctrlrl.train.trials import Trials, coverage, run_trials
from ctrlrl.types import EnvSpec, Scene, TimeStep

SIDE = Scene((-9.0, 9.0, -1.0, 1.0), torch.tensor([[-3.0, 0.0], [3.0, 0.0]], dtype=torch.float64), 0.5)


class Walk:
    """Observation (junk, x, y): lane i moves by its action each step; it ends after i + 2 steps and restarts at 100."""

    def __init__(self, n_envs: int, limit: int) -> None:
        self.spec = EnvSpec(3, 1, 0, 1, n_envs, limit, torch.device("cpu"))

    def reset(self, seed: int | None = None) -> Tensor:
        self.obs, self.clock = torch.zeros(self.spec.n_envs, 3), torch.zeros(self.spec.n_envs)
        return self.obs

    def step(self, action: Tensor) -> TimeStep:
        final = self.obs + torch.tensor([0.0, 1.0, 0.0]) * action
        self.clock += 1
        ends = self.clock == torch.arange(self.spec.n_envs) + 2
        self.clock[ends] = 0
        self.obs = torch.where(ends.unsqueeze(1), 100.0, final)
        zero = torch.zeros(self.spec.n_envs)
        return TimeStep(self.obs, final, zero, ends, torch.zeros_like(ends), {})


def test_a_roll_out_is_its_lanes_first_episode_and_stays_where_that_ended():
    env = Walk(3, 5)
    scene = SIDE._replace(position=slice(1, 3))
    found = run_trials(lambda obs: torch.ones(3, 1), env, scene, seed=0)  # type: ignore[arg-type]
    assert found.paths[:, 0, 0].tolist() == [0, 1, 2, 2, 2, 2]
    assert found.paths[:, 2, 0].tolist() == [0, 1, 2, 3, 4, 4]
    assert found.reached.tolist() == [-1, 1, -1]


def test_an_environment_without_a_time_limit_is_refused():
    with pytest.raises(ValueError, match="time limit"):
        run_trials(lambda obs: obs, Walk(1, 0), SIDE, seed=0)  # type: ignore[arg-type]


def test_a_goal_counts_as_covered_from_two_percent_of_the_roll_outs_on():
    reached = torch.tensor([0] * 20 + [1] * 19 + [2] * 600 + [-1] * 361)
    scene = SIDE._replace(goals=torch.zeros(4, 2, dtype=torch.float64))
    found = coverage(Trials(scene, torch.zeros(2, 1000, 2), reached))
    assert (found["goals"], found["goals_covered"], found["trials"]) == (4, 2, 1000)
    assert found["goal_shares"] == [0.02, 0.019, 0.6, 0.0]
    assert found["reached"] == pytest.approx(0.639)
    p = [20 / 639, 19 / 639, 600 / 639]
    assert found["coverage_entropy"] == pytest.approx(-sum(x * math.log(x) for x in p))


def aim(sim: MultiGoal, choice: Tensor) -> object:
    """Drives lane i to goal choice[i] with a spring and a brake."""
    target = sim.goals[choice].float()
    return lambda obs: (2.0 * (target - obs[:, :2]) - 2.0 * obs[:, 2:]) / sim.cfg.max_acceleration


def test_a_policy_that_spreads_over_all_goals_covers_them_and_one_that_does_not_covers_one():
    sim = MultiGoal(MultiGoalConfig(episode_length=600)).trial()
    env = BatchedSim(sim, 60, seed=0, stagger=False)
    spread = coverage(run_trials(aim(sim, torch.arange(60) % 6), env, sim.scene, seed=0))  # type: ignore[arg-type]
    assert spread["goals_covered"] == spread["goals"] == 6
    assert spread["coverage_entropy"] == pytest.approx(math.log(6))
    assert spread["reached"] == pytest.approx(1.0)
    narrow = coverage(run_trials(aim(sim, torch.full((60,), 4)), env, sim.scene, seed=0))  # type: ignore[arg-type]
    assert narrow["goal_shares"] == [0.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    assert narrow["coverage_entropy"] == 0.0


def test_trials_repeat_by_their_seed_and_leave_the_generator_alone():
    sim = MultiGoal(MultiGoalConfig(episode_length=20)).trial()

    def run(seed: int) -> Tensor:
        env = BatchedSim(sim, 8, seed=3, stagger=False)
        return run_trials(lambda obs: torch.randn(8, 2), env, sim.scene, seed=seed).paths

    before = torch.get_rng_state()
    first, second, other = run(5), run(5), run(6)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)

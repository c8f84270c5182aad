"""MultiGoal: dynamics, reward, reset and ends in closed form."""

import math
from dataclasses import replace

import pytest
import torch

from ctrlrl.config import EnvConfig
from ctrlrl.envs.multigoal import MultiGoal, MultiGoalConfig, MultiGoalState
from ctrlrl.envs.sim import BatchedSim
from ctrlrl.tasks import make_env

F64 = torch.float64
CFG = MultiGoalConfig(n_goals=4, max_acceleration=3.0, goal_weight=2.0, action_weight=-0.05, dt=0.1)


def state(position: list[list[float]], velocity: list[list[float]]) -> MultiGoalState:
    """Rows of lanes."""
    return MultiGoalState(torch.tensor(position, dtype=F64).T, torch.tensor(velocity, dtype=F64).T)


def test_the_position_moves_with_the_velocity_before_the_push():
    sim = MultiGoal(CFG)
    after, _, _ = sim.step(state([[1.0, 2.0]], [[0.5, -1.0]]), torch.tensor([[1.0, -0.5]], dtype=F64))
    assert after.position[:, 0].tolist() == pytest.approx([1.05, 1.9])
    assert after.velocity[:, 0].tolist() == pytest.approx([0.8, -1.15])


def test_after_n_steps_of_one_push_the_way_is_a_triangular_number():
    sim, n = MultiGoal(replace(CFG, dt=0.01)), 50
    s, push = state([[0.0, 0.0]], [[0.0, 0.0]]), torch.tensor([[1.0, 0.0]], dtype=F64)
    for _ in range(n):
        s, _, _ = sim.step(s, push)
    assert s.velocity[0, 0].item() == pytest.approx(3.0 * n * 0.01)
    assert s.position[0, 0].item() == pytest.approx(3.0 * 0.01**2 * n * (n - 1) / 2)


def test_goals_lie_at_equal_angles_on_a_circle_of_radius_five():
    torch.testing.assert_close(
        MultiGoal(CFG).scene.goals, torch.tensor([[5.0, 0.0], [0.0, 5.0], [-5.0, 0.0], [0.0, -5.0]], dtype=F64)
    )
    six = MultiGoal().scene.goals
    assert six.norm(dim=1).tolist() == pytest.approx([5.0] * 6)
    assert (six - six.roll(1, 0)).norm(dim=1).tolist() == pytest.approx([5.0] * 6)  # a hexagon


def test_the_reward_is_paid_at_the_new_place_for_the_nearest_goal_less_the_action():
    sim = MultiGoal(CFG)
    action = torch.tensor([[0.6, -0.8], [0.0, 0.0]], dtype=F64)
    _, reward, _ = sim.step(state([[2.9, 0.0], [0.0, -5.0]], [[1.0, 0.0], [0.0, 0.0]]), action)
    first = 0.1 * (2.0 * (math.exp(-0.3 * 4.0) + math.exp(-0.1 * 4.0)) - 0.05 * 3.0**2)  # 2 m from (5, 0); 3 m/s^2
    assert reward.tolist() == pytest.approx([first, 0.1 * 2.0 * 2.0])


def test_nonnegative_reward_clips_the_sum_at_zero():
    costly = replace(CFG, action_weight=-100.0)
    push, at = torch.ones(1, 2, dtype=F64), state([[0.0, 0.0]], [[0.0, 0.0]])
    assert MultiGoal(costly).step(at, push)[1].item() < 0.0
    assert MultiGoal(replace(costly, nonnegative_reward=True)).step(at, push)[1].item() == 0.0


def test_beyond_eight_metres_in_either_coordinate_the_episode_terminates():
    rest = [[0.0, 0.0]] * 5
    at = state([[7.99, 7.99], [8.01, 0.0], [-8.01, 0.0], [0.0, 8.01], [0.0, -8.01]], rest)
    _, _, terminated = MultiGoal(CFG).step(at, torch.zeros(5, 2, dtype=F64))
    assert terminated.tolist() == [False, True, True, True, True]


def test_episodes_start_at_rest_all_over_the_square_and_trials_in_the_origin():
    env = BatchedSim(MultiGoal(), 4096, seed=0)
    obs = env.reset(0)
    assert obs[:, 2:].abs().max() == 0.0
    assert obs[:, :2].amax().item() == pytest.approx(7.0, abs=0.02)
    assert obs[:, :2].amin().item() == pytest.approx(-7.0, abs=0.02)
    assert obs[:, :2].std(0).tolist() == pytest.approx([14.0 / math.sqrt(12.0)] * 2, rel=0.03)
    sim = MultiGoal()
    assert BatchedSim(sim.trial(), 8, seed=0).reset(0).abs().max() == 0.0
    assert BatchedSim(sim, 8, seed=0).reset(0).abs().max() > 0.0, "a trial must not change the task"


def test_a_sample_beyond_the_bounds_moves_and_costs_as_much_as_the_bound():
    far, bound = (make_env(EnvConfig(name="multigoal"), 3, seed=1) for _ in range(2))
    far.reset(1)
    bound.reset(1)
    a, b = far.step(torch.full((3, 2), 4.0)), bound.step(torch.ones(3, 2))
    assert torch.equal(a.obs, b.obs)
    assert torch.equal(a.reward, b.reward)


def test_beyond_the_push_limit_an_action_costs_more_and_moves_no_further():
    """The authors' task: the sample is charged, the clipped one moves; |a| = (12, 16) m/s^2 moves as (5, 5)."""
    at = state([[0.0, 0.0]] * 2, [[0.0, 0.0]] * 2)
    action = torch.tensor([[0.6, -0.8], [0.25, -0.25]], dtype=F64)
    wide = replace(CFG, max_acceleration=20.0, push_limit=5.0)
    after, reward, _ = MultiGoal(wide).step(at, action)
    assert after.velocity.T.tolist() == [pytest.approx([0.5, -0.5])] * 2
    assert (reward[1] - reward[0]).item() == pytest.approx(0.1 * 0.05 * (20.0**2 - 50.0))
    within = MultiGoal(replace(wide, push_limit=None)).step(at, action)
    assert within[0].velocity[:, 0].tolist() == pytest.approx([1.2, -1.6]), "without a limit it moves as it is asked to"
    assert torch.equal(within[1], reward), "and costs the same"


def test_the_time_limit_is_a_setting():
    env = BatchedSim(MultiGoal(MultiGoalConfig(episode_length=7)), 1, seed=0, stagger=False)
    env.reset(0)
    assert [bool(env.step(torch.zeros(1, 2)).truncated) for _ in range(8)] == [False] * 6 + [True, False]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"n_goals": 0}, "env.n_goals must be at least 1"),
        ({"dt": 0.0}, "env.dt must be positive"),
        ({"max_acceleration": math.inf}, "env.max_acceleration"),
        ({"push_limit": 0.0}, "env.push_limit must be above 0"),
        ({"push_limit": 6.0}, "at most env.max_acceleration=5.0, or null, got 6.0"),
        ({"action_weight": 0.1}, "env.action_weight at most 0"),
        ({"episode_length": 0}, "env.episode_length"),
    ],
)
def test_settings_out_of_range_are_refused_by_their_key(settings, said):
    with pytest.raises(ValueError, match=said):
        MultiGoalConfig(**settings)

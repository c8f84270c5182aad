"""PointMaze without gymnasium-robotics: the map format, starts, goals, rewards, and physics with a known answer."""

import math
from dataclasses import replace

import pytest
import torch

from ctrlrl.envs.maze import DAMPING, DT, FORCE, MASS, NOISE, REACH, PointMaze, PointMazeConfig, PointMazeState
from ctrlrl.envs.maze_maps import MAPS, read_maze
from ctrlrl.envs.sim import BatchedSim

F64 = torch.float64


def state(position: list[float], velocity: list[float], goal: list[float] = [0.0, 0.0]) -> PointMazeState:  # noqa: B006
    one = [torch.tensor([[c] for c in place], dtype=F64) for place in (position, velocity, goal)]
    return PointMazeState(*one, torch.zeros(1, dtype=F64), torch.zeros(1, dtype=F64))


def roll(sim: PointMaze, s: PointMazeState, action: list[float], n: int) -> PointMazeState:
    for _ in range(n):
        s, *_ = sim.step(s, torch.tensor([action], dtype=F64))
    return s


# maps ----------------------------------------------------------------------------------------------------------------


def test_the_medium_map_is_that_of_the_specification():
    maze = read_maze("medium_diverse_g")
    assert maze.shape == (8, 8)
    assert maze.starts == ((1, 1),)
    assert maze.goals == ((2, 6), (5, 1), (6, 5))
    assert [maze.place(cell) for cell in (*maze.starts, *maze.goals)] == [
        (-2.5, 2.5),
        (2.5, 1.5),
        (-2.5, -1.5),
        (1.5, -2.5),
    ]
    assert [sum(row) for row in maze.walls] == [8, 4, 3, 5, 3, 4, 3, 8]


def test_cells_without_a_letter_serve_for_what_no_letter_says():
    free = ((1, 1), (1, 2), (1, 3))
    assert read_maze("11111/10001/11111")[1:] == (free, free)
    assert read_maze("11111/1g001/11111")[1:] == (((1, 1),), ((1, 2), (1, 3)))
    assert read_maze("11111/1r001/11111")[1:] == (((1, 2), (1, 3)), ((1, 1),))
    assert read_maze("11111/1c0c1/11111")[1:] == (((1, 1), (1, 3)),) * 2
    assert read_maze("11111/1rgc1/11111")[1:] == (((1, 2), (1, 3)), ((1, 1), (1, 3)))


def test_lists_of_cells_are_read_like_rows():
    assert read_maze([[1, 1, 1, 1], [1, "r", "g", 1], [1, 1, 1, 1]]) == read_maze("1111/1rg1/1111")


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ("mediun", "no such map; there are umaze, open"),
        ("111/101", "every cell of the border"),
        ("111/1x1/111", "cells are 1, 0, r, g or c, got x"),
        ("1111/101/1111", "rows must have one length"),
        ("111/1c1/111", "needs a cell to start from besides its own"),
        ("111/111/111", "needs a cell to start from"),
    ],
)
def test_what_is_no_maze_is_refused(layout, said):
    with pytest.raises(ValueError, match=said):
        PointMazeConfig(maze=layout)


@pytest.mark.parametrize("name", MAPS)
def test_the_scene_has_a_box_for_every_wall_and_bounds_around_them(name):
    maze, scene = read_maze(name), PointMaze(PointMazeConfig(maze=name)).scene
    assert len(scene.walls) == sum(map(sum, maze.walls))
    x_low, x_high, y_low, y_high = zip(*scene.walls, strict=True)
    assert scene.bounds == (min(x_low), max(x_high), min(y_low), max(y_high))


# starts and goals ----------------------------------------------------------------------------------------------------


def test_starts_and_goals_lie_around_their_cells_and_every_goal_is_asked_for_equally_often():
    sim = PointMaze()
    env = BatchedSim(sim, 6000, seed=0)
    obs = env.reset(0).double()
    torch.testing.assert_close(obs[:, :2], obs[:, 4:6])
    assert obs[:, 6:].abs().max() == 0.0
    start = obs[:, :2] - torch.tensor([-2.5, 2.5], dtype=F64)
    away = (obs[:, None, 2:4] - sim.goals).abs().amax(2)  # [B, G]
    assert start.abs().max() <= NOISE
    assert away.amin(1).max() <= NOISE
    assert torch.cat((start, away.amin(1, keepdim=True)), 1).abs().amax(0).min() > 0.98 * NOISE
    shares = torch.bincount(away.argmin(1)) / 6000
    assert shares.tolist() == pytest.approx([1 / 3] * 3, abs=0.03)


def test_an_episode_starts_in_any_cell_but_its_goals():
    sim = PointMaze(PointMazeConfig(maze="open_diverse_gr"))
    obs = BatchedSim(sim, 20000, seed=0).reset(0).double()
    cell, goal = (torch.cdist(obs[:, c], sim.goals).argmin(1) for c in (slice(0, 2), slice(2, 4)))
    pairs = torch.zeros(15, 15)
    pairs.index_put_((cell, goal), torch.ones(20000), accumulate=True)
    assert pairs.diagonal().max() == 0
    off = pairs[~torch.eye(15, dtype=torch.bool)]
    assert off.min() > 0.55 * 20000 / 210
    assert off.max() < 1.5 * 20000 / 210


# physics -------------------------------------------------------------------------------------------------------------


def test_in_free_space_a_constant_force_gives_the_geometric_series_of_implicit_damping():
    """v' = q v + (1 - q) F / b with q = m / (m + h b)."""
    q, n = MASS / (MASS + DT * DAMPING), 8
    after = roll(PointMaze(), state([0.5, 0.5], [0.2, -0.4]), [0.3, -0.5], n)
    limit = [0.3 * FORCE / DAMPING, -0.5 * FORCE / DAMPING]
    expected = [f + (v - f) * q**n for v, f in zip([0.2, -0.4], limit, strict=True)]
    assert after.velocity[:, 0].tolist() == pytest.approx(expected, rel=1e-12)
    way = [DT * sum(f + (v - f) * q**k for k in range(1, n + 1)) for v, f in zip([0.2, -0.4], limit, strict=True)]
    assert (after.position[:, 0] - 0.5).tolist() == pytest.approx(way, rel=1e-12)


def test_the_speed_is_limited_before_the_push():
    after = roll(PointMaze(), state([0.5, 0.5], [30.0, 0.0]), [0.0, 0.0], 1)
    assert after.velocity[0, 0].item() == pytest.approx(5.0 * MASS / (MASS + DT * DAMPING))


def test_pressed_against_a_wall_the_ball_rests_where_spring_and_force_balance():
    """F / m = K g^2 / (1 - g) depth, K = 1 / (0.95 * 0.02 s)^2; the grip g rises from 0.9 to 0.95 over a millimetre."""
    push = torch.tensor([0.1, 0.5, 1.0], dtype=F64)
    one = state([-2.5, 2.5], [0.0, 0.0])
    after = PointMazeState(*(part.expand(*part.shape[:-1], 3) for part in one))
    sim, action = PointMaze(), torch.stack([-push, torch.zeros(3, dtype=F64)], dim=1)
    for _ in range(3000):
        after, *_ = sim.step(after, action)
    assert after.velocity.abs().max().item() < 1e-9
    depth = -3.0 + 0.1 + 0.004 - after.position[0]  # m, beyond the distance at which the contact begins
    z = 1000.0 * depth
    assert (z > 0.0).all()
    assert (z < 1.0).all()
    grip = torch.where(z < 0.5, 0.9 + 0.1 * z**2, 0.95 - 0.1 * (1.0 - z) ** 2)
    held = grip**2 / (1.0 - grip) * depth / (0.95 * 0.02) ** 2
    torch.testing.assert_close(held, push * FORCE / MASS, rtol=1e-9, atol=0)


def test_mirrored_mazes_have_mirrored_motions():
    text = MAPS["medium_diverse_g"][0]
    plain, mirrored = (PointMaze(PointMazeConfig(maze=m)) for m in (text, "/".join(r[::-1] for r in text.split("/"))))
    a, b = state([-2.5, 2.5], [0.1, 0.0]), state([2.5, 2.5], [-0.1, 0.0])
    generator = torch.Generator().manual_seed(0)
    for _ in range(120):  # corners make the motion chaotic: rounding grows tenfold in some hundred steps
        action = (2.0 * torch.rand(2, generator=generator, dtype=F64) - 1.0).tolist()
        a, b = roll(plain, a, action, 5), roll(mirrored, b, [-action[0], action[1]], 5)
    torch.testing.assert_close(a.position * torch.tensor([[-1.0], [1.0]], dtype=F64), b.position, rtol=0, atol=1e-9)


def test_the_ball_never_leaves_the_corridors():
    sim = PointMaze()
    env = BatchedSim(sim, 256, seed=0, stagger=False)
    obs, seen = env.reset(0), torch.zeros(8, 8, dtype=torch.bool)
    wall = torch.tensor(read_maze("medium_diverse_g").walls)
    push = torch.zeros(256, 2)
    for t in range(590):
        if t % 20 == 0:
            push = torch.randn(256, 2).sign()
        obs = env.step(push).obs
        seen[(4 - obs[:, 1]).floor().long(), (obs[:, 0] + 4).floor().long()] = True
    assert not (seen & wall).any()
    assert (seen & ~wall).sum() > 15, "the walk must have seen much of the maze"


# rewards, ends, goals ------------------------------------------------------------------------------------------------

AT, NEAR, FAR = [-2.5, 2.5], [-2.5 + 0.99 * REACH, 2.5], [-2.5 + 1.01 * REACH, 2.5]


@pytest.mark.parametrize("place", [AT, NEAR, FAR])
@pytest.mark.parametrize("reward", ["dense", "sparse"])
@pytest.mark.parametrize("continuing", [True, False])
def test_rewards_success_and_termination_follow_the_distance(place, reward, continuing):
    sim = PointMaze(PointMazeConfig(reward=reward, continuing_task=continuing))
    before, action = state(place, [0.0, 0.0], AT), torch.zeros(1, 2, dtype=F64)
    _, paid, terminated, told = sim.step(before, action)
    there = place is not FAR
    assert paid.item() == pytest.approx(math.exp(-math.dist(place, AT)) if reward == "dense" else float(there))
    assert terminated.item() is (there and not continuing)
    assert told["success"].item() == float(there)


def test_a_reached_goal_is_replaced_in_the_next_step_only_where_that_is_asked_for():
    still = torch.zeros(1, 2, dtype=F64)
    for reset_target in (False, True):
        cfg = PointMazeConfig(reset_target=reset_target)
        reached = state([2.5, 1.5], [0.0, 0.0], [2.4, 1.6])
        after, *_ = PointMaze(cfg).step(reached, still)
        assert torch.equal(after.goal, reached.goal) is not reset_target
        missed = state([2.5, 0.5], [0.0, 0.0], [2.4, 1.6])
        assert torch.equal(PointMaze(cfg).step(missed, still)[0].goal, missed.goal)


def test_new_goals_are_those_of_the_map_beyond_reach_and_go_on_changing():
    sim = PointMaze(PointMazeConfig(reset_target=True))
    n = 5000
    zeros = torch.zeros(2, n, dtype=F64)
    place = torch.tensor([[2.5], [1.5]], dtype=F64).expand(2, n).clone()
    s = PointMazeState(place, zeros, place + 0.1, torch.arange(n, dtype=F64), zeros[0])
    first, *_ = sim.step(s, torch.zeros(n, 2, dtype=F64))
    away = (first.goal - place).norm(dim=0)
    assert away.min() > REACH
    which = torch.cdist(first.goal.T, sim.goals).argmin(1)
    assert (first.goal.T - sim.goals[which]).abs().max() <= NOISE
    same = (which == 0).double().mean().item()  # the noise of the same cell may lie beyond reach, seldom
    assert same < 0.05
    assert (which == 1).double().mean().item() == pytest.approx((1 - same) / 2, abs=0.03)
    again, *_ = sim.step(first._replace(goal=place + 0.1), torch.zeros(n, 2, dtype=F64))
    assert (again.goal != first.goal).any(0).double().mean() > 0.99


@pytest.mark.slow
def test_moving_goals_compile_to_the_same_goals():
    sim = PointMaze(PointMazeConfig(maze="11111/1ccc1/11111", reset_target=True))
    eager, fused = (BatchedSim(sim, 64, seed=0, stagger=False, compile=c) for c in (False, True))
    assert torch.equal(eager.reset(0), fused.reset(0))
    push = torch.tensor([1.0, 0.0]).expand(64, 2)
    goals = 0
    for t in range(120):
        a, b = eager.step(push if t % 60 < 30 else -push), fused.step(push if t % 60 < 30 else -push)
        torch.testing.assert_close(a.obs, b.obs, rtol=0, atol=2e-3)
        torch.testing.assert_close(a.reward, b.reward, rtol=0, atol=2e-3)
        goals = int(eager.state_dict()["state.n_goals"].sum())
    assert goals > 32, "the walk must have moved many goals"


def test_the_time_limit_is_the_maps_unless_set():
    assert [PointMaze(PointMazeConfig(maze=m)).episode_length for m in ("umaze", "medium", "large")] == [300, 600, 800]
    assert PointMaze(PointMazeConfig(maze="1111/1rg1/1111")).episode_length == 600
    assert PointMaze(replace(PointMazeConfig(), episode_length=50)).episode_length == 50


@pytest.mark.parametrize(("key", "value"), [("reward", "shaped"), ("episode_length", 0)])
def test_settings_out_of_range_are_refused(key, value):
    with pytest.raises(ValueError, match=f"env.{key} must be"):
        PointMazeConfig(**{key: value})

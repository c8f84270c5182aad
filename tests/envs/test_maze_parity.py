"""PointMaze against gymnasium-robotics itself: maps, limits, one step in contact, whole episodes, and the adapter."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium_robotics", reason="pip install 'ctrlrl[robotics]'")
from gymnasium_robotics.envs.maze import maps

from ctrlrl.config import EnvConfig
from ctrlrl.envs.maze import PointMaze, PointMazeConfig, PointMazeState
from ctrlrl.envs.maze_maps import MAPS, read_maze
from ctrlrl.envs.sim import BatchedSim
from ctrlrl.tasks import make_env

F64 = torch.float64
GYM_ID = "gymnasium_robotics:PointMaze_Medium_Diverse_GDense-v3"
THEIRS = {
    "umaze": (maps.U_MAZE, "UMaze"),
    "open": (maps.OPEN, "Open"),
    "open_diverse_g": (maps.OPEN_DIVERSE_G, "Open_Diverse_G"),
    "open_diverse_gr": (maps.OPEN_DIVERSE_GR, "Open_Diverse_GR"),
    "medium": (maps.MEDIUM_MAZE, "Medium"),
    "medium_diverse_g": (maps.MEDIUM_MAZE_DIVERSE_G, "Medium_Diverse_G"),
    "medium_diverse_gr": (maps.MEDIUM_MAZE_DIVERSE_GR, "Medium_Diverse_GR"),
    "large": (maps.LARGE_MAZE, "Large"),
    "large_diverse_g": (maps.LARGE_MAZE_DIVERSE_G, "Large_Diverse_G"),
    "large_diverse_gr": (maps.LARGE_MAZE_DIVERSE_GR, "Large_Diverse_GR"),
}


def theirs(**settings: Any) -> Any:
    return gymnasium.make(GYM_ID, **settings).unwrapped


@pytest.mark.parametrize("name", THEIRS)
def test_maps_goals_starts_and_time_limits_are_theirs(name):
    layout, gym_name = THEIRS[name]
    spec = gymnasium.spec(f"PointMaze_{gym_name}-v3")
    assert MAPS[name][1] == spec.max_episode_steps
    maze, env = read_maze(name), spec.make().unwrapped.maze
    assert maze == read_maze(layout)
    assert maze.walls == tuple(tuple(cell == 1 for cell in row) for row in layout)
    for ours, places in ((maze.goals, env.unique_goal_locations), (maze.starts, env.unique_reset_locations)):
        assert sorted(maze.place(cell) for cell in ours) == sorted(map(tuple, np.array(places).tolist()))
    assert set(MAPS) == set(THEIRS)


def some_states(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[2, n] positions, mostly in reach of one to three walls; velocities beyond the limit; actions."""
    wall = torch.tensor(read_maze("medium_diverse_g").walls)
    g = torch.Generator().manual_seed(0)
    free = (~wall).nonzero()
    cell = free[torch.randint(len(free), (n,), generator=g)]
    u = torch.rand(n, 2, dtype=F64, generator=g)
    side = torch.where(torch.rand(n, 2, generator=g) < 0.5, -1.0, 1.0).double()
    at_wall = torch.rand(n, 2, generator=g) < 0.7
    offset = torch.where(at_wall, side * (0.5 - (0.05 + 0.06 * u)), 0.8 * u - 0.4)
    position = torch.stack((cell[:, 1] + 0.5 + offset[:, 0] - 4.0, 4.0 - (cell[:, 0] + 0.5 + offset[:, 1])))
    return position, 12.0 * torch.rand(2, n, dtype=F64, generator=g) - 6.0, 2.0 * torch.rand(2, n, generator=g) - 1.0


@pytest.mark.parametrize(("dtype", "way", "speed"), [(F64, 1e-13, 1e-11), (torch.float32, 2e-6, 2e-4)])
def test_one_step_is_mujocos_in_free_space_and_in_contact_with_up_to_three_walls(dtype, way, speed):
    """Metres and m/s. In float32 the stiff spring multiplies the rounding of the position, 2e-7 m, by some hundred."""
    n = 1500
    position, velocity, action = (x.to(dtype) for x in some_states(n))
    zero = torch.zeros(n, dtype=dtype)
    sim = PointMaze().to(torch.device("cpu"), dtype)
    after, *_ = sim.step(PointMazeState(position, velocity, torch.zeros_like(position), zero, zero), action.T)
    point = theirs().point_env
    want, n_walls = [], []
    for x, v, a in zip(position.T.double().numpy(), velocity.T.double().numpy(), action.T.numpy(), strict=True):
        point.set_state(x, v)
        n_walls.append(point.data.ncon - 1)  # the floor touches too
        want.append(point.step(a)[0])
    expected = torch.tensor(np.array(want)).T
    counts = np.bincount(n_walls, minlength=4)
    assert counts.min() > 10, f"states beside 0, 1, 2 and 3 walls: {counts}"
    torch.testing.assert_close(after.position.double(), expected[:2], rtol=0, atol=way)
    torch.testing.assert_close(after.velocity.double(), expected[2:], rtol=0, atol=speed)


@pytest.mark.parametrize("reward", ["dense", "sparse"])
@pytest.mark.parametrize("continuing", [True, False])
def test_whole_episodes_are_theirs_in_observation_reward_success_and_end(reward, continuing):
    """Float64, from the same start and goal. Corners magnify rounding: 600 steps end within 1e-7 m."""
    env = theirs(reward_type=reward, continuing_task=continuing)
    sim = PointMaze(PointMazeConfig(reward=reward, continuing_task=continuing)).to(torch.device("cpu"), F64)
    rng = np.random.default_rng(0)
    ends = 0
    for seed in range(2):
        obs, _ = env.reset(seed=seed)
        goal = obs["desired_goal"]
        if seed % 2:  # seen seldom from the start cell: put the goal beside it
            goal = env.goal = obs["achieved_goal"] + np.array([0.7, 0.0])
        x = torch.tensor(obs["observation"])[:, None]
        key = torch.zeros(1, dtype=F64)
        state = PointMazeState(x[:2], x[2:], torch.tensor(goal)[:, None], key, key)
        touched = 0
        for t in range(600):
            if t % 20 == 0:
                push = rng.uniform(-1.0, 1.0, 2).astype(np.float32)
            obs, paid, terminated, _, info = env.step(push)
            touched += env.data.ncon > 1
            action = torch.tensor(push, dtype=F64)[None]
            state, reward_, terminated_, told = sim.step(state, action)
            seen = torch.tensor(np.concatenate([obs[k] for k in sorted(obs)]))
            torch.testing.assert_close(sim.observe(state)[0], seen, rtol=0, atol=1e-7)
            assert reward_.item() == pytest.approx(paid, abs=1e-7)
            assert terminated_.item() is terminated
            assert bool(told["success"]) is info["success"]
            if terminated:
                ends += 1
                break
        assert touched > 20 or terminated
    assert (ends > 0) is not continuing


def test_a_new_goal_appears_one_step_after_the_old_one_was_reached():
    """As there: the observation of the step that reaches the goal still shows it."""
    env = theirs(reset_target=True)
    env.reset(seed=0)
    env.goal = np.array([2.4, 1.6])
    env.point_env.set_state(np.array([2.5, 1.5]), np.zeros(2))
    reached, after = env.step(np.zeros(2))[0], env.step(np.zeros(2))[0]
    x = torch.tensor(reached["observation"])[:, None]
    sim = PointMaze(PointMazeConfig(reset_target=True)).to(torch.device("cpu"), F64)
    one = torch.ones(1, dtype=F64)
    state = PointMazeState(x[:2], x[2:], torch.tensor([[2.4], [1.6]], dtype=F64), one, one)
    assert reached["desired_goal"].tolist() == sim.observe(state)[0, 2:4].tolist() == [2.4, 1.6]
    moved, *_ = sim.step(state, torch.zeros(1, 2, dtype=F64))
    assert after["desired_goal"].tolist() != [2.4, 1.6]
    assert sim.observe(moved)[0, 2:4].tolist() != [2.4, 1.6]


def test_starts_and_goals_are_drawn_as_theirs():
    """Two samples of the same distribution: means and deviations of start and goal, by coordinate."""
    n = 400
    env = theirs()
    rows = [env.reset(seed=seed)[0] for seed in range(n)]
    want = torch.tensor(np.array([np.concatenate((o["achieved_goal"], o["desired_goal"])) for o in rows]))
    got = BatchedSim(PointMaze(), n, seed=0, dtype=F64).reset(0)[:, :4]
    error = want.std(0) * (2.0 / n) ** 0.5  # of a difference of means
    assert ((got.mean(0) - want.mean(0)).abs() < 4.0 * error).all()
    torch.testing.assert_close(got.std(0), want.std(0), rtol=0.12, atol=0)


@pytest.mark.parametrize("gym_id", [GYM_ID, "PointMaze_Medium_Diverse_GDense-v3"])
def test_through_gymnasium_the_task_has_the_same_observation_and_tells_success(gym_id):
    env = make_env(EnvConfig(name="gym", id=gym_id), 2, seed=0, stagger=False)
    native = BatchedSim(PointMaze(), 2, seed=0)
    assert env.spec.obs_parts == native.spec.obs_parts
    assert env.spec[:4] == native.spec[:4]
    assert env.spec.episode_length == native.spec.episode_length == 600
    obs = env.reset(0)
    torch.testing.assert_close(obs[:, :2], obs[:, 4:6])
    for _ in range(600):
        step = env.step(torch.zeros(2, 2))
    assert step.truncated.all()
    assert step.extras["success"].tolist() == [0.0, 0.0]
    env.close()


def test_the_package_is_imported_for_its_ids_where_nobody_has_imported_it(monkeypatch):
    kept = {k: v for k, v in gymnasium.registry.items() if k.startswith("PointMaze")}
    for name in kept:
        monkeypatch.delitem(gymnasium.registry, name)
    asked = []

    def imported(name: str) -> None:
        asked.append(name)
        gymnasium.registry.update(kept)

    monkeypatch.setattr("ctrlrl.envs.gymnasium.import_module", imported)
    make_env(EnvConfig(name="gym", id="PointMaze_UMaze-v3"), 1, seed=0).close()
    assert asked == ["gymnasium_robotics"]


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("ctrlrl.envs.gymnasium.import_module", missing)
    with pytest.raises(ValueError, match=r"ctrlrl\[robotics\]"):
        make_env(EnvConfig(name="gym", id="PointMaze_Tiny-v3"), 1, seed=0)

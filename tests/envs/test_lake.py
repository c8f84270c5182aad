"""The slippery lake: its rules one by one, and its randomness."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ctrlrl.envs.lake import SlipperyLake, SlipperyLakeSettings, SlipperyLakeState
from ctrlrl.envs.sim import BatchedSim

LEFT, DOWN, RIGHT, UP = range(4)
STAY, SLIDE = 0.9, 0.1  # of the first uniform number: above or below 1/2


def lake(*holes: int) -> SlipperyLake:
    sim = SlipperyLake()
    sim.hole = torch.zeros(100, dtype=torch.bool)
    sim.hole[list(holes)] = True
    sim.arrival = sim.nearness - sim.hole.double() / 20
    return sim


def move(sim: SlipperyLake, cell: int, action: int, *noise: float) -> tuple[int, int, float]:
    zero = torch.zeros(1, dtype=torch.int64)
    state = SlipperyLakeState(torch.tensor([cell]), zero, zero)
    aimed, reached, reward = sim.move(
        state, torch.tensor([action]), torch.tensor(noise, dtype=torch.float64).view(2, 1)
    )
    return int(aimed), int(reached), float(reward)


def towards(sim: SlipperyLake, cell: int, direction: int) -> float:
    """A second uniform number that slides from `cell` in `direction`."""
    borders = [0.0, *sim.slips[cell].tolist(), 1.0]
    return (borders[direction] + borders[direction + 1]) / 2


def near(row: int, column: int) -> float:
    return 1.0 / (1 + 9 - row + 9 - column)


def test_a_move_reaches_the_next_cell_and_pays_its_nearness():
    sim = lake()
    for action, cell in ((LEFT, 43), (DOWN, 54), (RIGHT, 45), (UP, 34)):
        assert move(sim, 44, action, STAY, 0.0) == (cell, cell, pytest.approx(near(*divmod(cell, 10))))


def test_walls_keep_the_cell():
    sim = lake()
    for cell, action in ((0, LEFT), (0, UP), (9, RIGHT), (90, DOWN), (30, LEFT), (79, RIGHT)):
        assert move(sim, cell, action, STAY, 0.0)[0] == cell


def test_a_slide_goes_on_from_the_cell_aimed_at_and_pays_both():
    sim = lake()
    for direction, cell in ((LEFT, 53), (DOWN, 64), (RIGHT, 55), (UP, 44)):
        aimed, reached, reward = move(sim, 44, DOWN, SLIDE, towards(sim, 54, direction))
        assert (aimed, reached) == (54, cell)
        assert reward == pytest.approx(near(5, 4) + near(*divmod(cell, 10)))


def test_a_hole_takes_a_twentieth_and_holds_from_the_next_step_on():
    sim = lake(54)
    assert move(sim, 44, DOWN, STAY, 0.0) == (54, 54, pytest.approx(near(5, 4) - 0.05))
    aimed, reached, reward = move(sim, 44, DOWN, SLIDE, towards(sim, 54, RIGHT))
    assert (aimed, reached) == (54, 55), "the ice may carry on over a hole"
    assert reward == pytest.approx(near(5, 4) - 0.05 + near(5, 5))
    assert move(sim, 54, RIGHT, STAY, 0.0) == (55, 54, 0.0)


def test_the_goal_pays_1_and_ends_every_slide():
    sim = lake()
    assert move(sim, 89, DOWN, SLIDE, 0.3) == (99, 99, 1.0)
    _, reached, reward = move(sim, 97, RIGHT, SLIDE, towards(sim, 98, RIGHT))
    assert (reached, reward) == (99, pytest.approx(near(9, 8) + 1.0))


def stepped(sim: SlipperyLake, cell: int, action: int) -> tuple[Tensor, bool, dict[str, Tensor]]:
    zero = torch.zeros(1, dtype=torch.int64)
    state, reward, terminated, extras = sim.step(
        SlipperyLakeState(torch.tensor([cell]), zero, zero), torch.tensor([action])
    )
    torch.testing.assert_close(extras["reward_split"].sum(1), reward)
    return state.cell, bool(terminated), extras


def test_termination_is_at_the_goal_and_one_step_after_a_hole():
    sim = lake(54)
    assert stepped(sim, 89, DOWN)[1]
    assert not stepped(sim, 0, DOWN)[1]
    cells = torch.full((64,), 44)
    after, _, ended, _ = sim.step(SlipperyLakeState(cells, torch.arange(64), 0 * cells), torch.full((64,), DOWN))
    assert 16 < int((after.cell == 54).sum()) < 48
    assert not ended.any(), "arriving in a hole does not end it"
    cell, terminated, _ = stepped(sim, 54, UP)
    assert (int(cell), terminated) == (54, True)


def test_the_post_decision_state_is_the_cell_aimed_at_and_pays_its_nearness_alone():
    _, _, extras = stepped(lake(54), 44, DOWN)
    assert extras["post_obs"].argmax().item() == 54
    assert extras["post_obs"].sum().item() == 1.0
    assert extras["reward_split"][0, 0].item() == pytest.approx(near(5, 4))


def test_half_of_the_moves_slide_and_directions_follow_the_tile():
    sim = lake()
    n = 20_000
    noise = torch.rand(2, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cells = torch.full((n,), 44)
    state = SlipperyLakeState(cells, cells, cells)
    _, reached, _ = sim.move(state, torch.full((n,), DOWN), noise)
    chances = np.random.RandomState(42).dirichlet(np.ones(4), size=(10, 10))[5, 4]
    for cell, share in (
        (54, 0.5),
        (53, chances[0] / 2),
        (64, chances[1] / 2),
        (55, chances[2] / 2),
        (44, chances[3] / 2),
    ):
        found = float((reached == cell).double().mean())
        assert abs(found - share) < 5 * np.sqrt(share * (1 - share) / n), cell


@pytest.mark.parametrize("seed", range(20))
def test_every_map_has_a_way_to_the_goal(seed):
    holes = SlipperyLake(SlipperyLakeSettings(map_seed=seed)).hole.view(10, 10)
    assert not holes[0, 0]
    assert not holes[9, 9]
    reached, frontier = set(), [(0, 0)]
    while frontier:
        r, c = frontier.pop()
        if (r, c) in reached or not (0 <= r < 10 and 0 <= c < 10) or holes[r, c]:
            continue
        reached.add((r, c))
        frontier += [(r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)]
    assert (9, 9) in reached


def test_maps_differ_and_a_fifth_of_their_cells_are_holes():
    maps = torch.stack([SlipperyLake(SlipperyLakeSettings(map_seed=s)).hole for s in range(60)])
    assert len({tuple(m.tolist()) for m in maps}) == 60
    assert 0.15 < maps.double().mean().item() < 0.21  # a little below 0.2: maps without a way are drawn again


def test_the_clock_truncates_after_100_steps():
    env = BatchedSim(lake(), 2, seed=0, stagger=False)
    env.reset(0)
    for _ in range(99):
        out = env.step(torch.full((2,), UP))
        assert not (out.terminated | out.truncated).any()
    assert env.step(torch.full((2,), UP)).truncated.all()

import math

import numpy as np
import pytest
import torch

from ctrlrl.functional import pareto
from ctrlrl.functional.pareto import (
    cardinality,
    crowding_distance,
    depth_first_grid,
    dominates,
    expected_utility,
    front_measures,
    hypervolume,
    hypervolume_estimate,
    inverted_generational_distance,
    least_gap,
    log_barrier,
    maximum_utility_loss,
    non_dominated,
    ratio_barrier,
    return_floor,
    rounded_simplex_grid,
    simplex_grid,
    sparsity,
)

F64 = torch.float64
CONVEX = [  # deep-sea treasure: (treasure, -1 per step), undiscounted
    *[(0.7, -1), (8.2, -3), (11.5, -5), (14, -7), (15.1, -8)],
    *[(16.1, -9), (19.6, -13), (20.3, -14), (22.4, -17), (23.7, -19)],
]
CONCAVE = [
    *[(1, -1), (2, -3), (3, -5), (5, -7), (8, -8)],
    *[(16, -9), (24, -13), (50, -14), (74, -17), (124, -19)],
]
STEPS = torch.tensor([-y for _, y in CONVEX], dtype=F64)


def points(*rows):
    return torch.tensor(rows, dtype=F64)


def discounted(front, gamma):
    """Of deep-sea treasure: a treasure is reached at the last of n steps."""
    n = -front[:, 1]
    return torch.stack((front[:, 0] * gamma ** (n - 1), -(1 - gamma**n) / (1 - gamma)), 1)


def close(actual, expected, atol=1e-9):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=F64), rtol=0, atol=atol)


# dominance


def test_equal_vectors_do_not_dominate_each_other_and_both_stay():
    a = points((1, 2))
    assert not dominates(a, a).any()
    assert non_dominated(points((1, 2), (1, 2), (0, 2))).tolist() == [True, True, False]


def test_a_gain_in_one_objective_without_loss_dominates_and_a_trade_does_not():
    assert dominates(points((1, 3)), points((1, 2))).all()
    assert not dominates(points((0, 9)), points((1, 2))).any()


def test_no_member_of_the_filtered_set_is_dominated_and_every_other_one_is():
    torch.manual_seed(0)
    p = torch.rand(200, 3, dtype=F64)
    kept = non_dominated(p)
    for i in range(len(p)):
        assert bool(kept[i]) != any(bool(dominates(q, p[i])) for q in p)


def test_cardinality_counts_different_vectors_of_the_front():
    assert int(cardinality(points((1, 2), (1, 2), (2, 1), (0, 0)))) == 2


# crowding


def test_crowding_of_the_convex_treasure_front():
    expected = [math.inf, 0.6918, 0.4744, 0.3232, 0.2024, 0.4734, 0.4604, 0.3440, 0.4256, math.inf]
    close(crowding_distance(points(*CONVEX)), expected, atol=5e-5)


def test_an_objective_in_which_all_agree_adds_nothing():
    p = points((0, 5), (1, 5), (3, 5), (4, 5))
    close(crowding_distance(p), [math.inf, 0.75, 0.75, math.inf])
    assert crowding_distance(points((1, 1), (1, 1), (1, 1))).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("n", [0, 1, 2])
def test_of_fewer_than_three_points_all_are_ends(n):
    assert crowding_distance(torch.rand(n, 2)).tolist() == [math.inf] * n


# measures


def test_dominated_points_change_no_measure():
    """Between the others they would divide the gaps: of two ends 10 apart in both objectives sparsity is 200."""
    ends, reference = torch.tensor([[0.0, 10.0], [10.0, 0.0]]), torch.tensor([-1.0, -1.0])
    alone = front_measures(ends, reference, simplex_grid(2, 4))
    among = front_measures(torch.cat((ends, torch.tensor([[5.0, 0.0], [0.0, 5.0]]))), reference, simplex_grid(2, 4))
    assert alone == among
    assert alone["sparsity"] == 200.0
    assert alone["size"] == 2.0


@pytest.mark.parametrize(
    ("front", "reference", "volume"),
    [
        ([(1, 3), (2, 2), (3, 1)], (0, 0), 6.0),
        ([(1, 1), (-1, 5)], (0, 0), 1.0),
        (CONVEX, (0, -25), 401.8),
        (CONVEX, (0, -20), 283.3),
        (CONCAVE, (0, -25), 1155.0),
        ([CONCAVE[0], CONCAVE[-1]], (0, -25), 762.0),
        ([(0, -1), (-0.25, -0.25), (-1, 0)], (-1, -1), 0.5625),
        ([(0, -1), (-0.0625, -0.5625), (-0.25, -0.25), (-0.5625, -0.0625), (-1, 0)], (-1, -1), 0.7265625),
        ([(2,), (5,)], (1,), 4.0),
        ([(-2, -2)], (0, 0), 0.0),
    ],
)
def test_hypervolume_of_known_fronts(front, reference, volume):
    close(hypervolume(points(*front), points(reference)[0]), volume)


def test_hypervolume_of_the_discounted_treasure_front():
    close(hypervolume(discounted(points(*CONVEX), 0.99), points((0, -25))[0]), 360.400946, atol=1e-6)


def test_hypervolume_of_the_bandit_front_tends_to_five_sixths():
    u = torch.linspace(0, 1, 20_001, dtype=F64)
    front = torch.stack((-u.square(), -(1 - u).square()), 1)
    close(hypervolume(front, points((-1, -1))[0]), 5 / 6, atol=1e-4)
    close(expected_utility(front, simplex_grid(2, 10_000)), -1 / 6, atol=2e-5)


def test_dominated_points_do_not_change_the_sweep():
    p = points((1, 3), (2, 2), (3, 1), (1, 1), (2, 1), (1, 3), (2, 0.5))
    close(hypervolume(p, torch.zeros(2)), 6.0)


def test_hypervolume_of_three_objectives():
    pytest.importorskip("pymoo")
    close(hypervolume(points((1, 1, 1), (2, 1, 0.5)), torch.zeros(3)), 1.5)
    close(hypervolume(points((-1, 1, 1)), torch.zeros(3)), 0.0)


@pytest.mark.parametrize(
    ("task", "reference", "volume", "digits"),
    [
        ("minecart-v0", (-1, -1, -200), 763.519, 5e-4),
        ("resource-gathering-v0", (-1, -1, -1), 3.345110, 5e-7),
    ],
)
@pytest.mark.filterwarnings("ignore:.*precision lowered")
def test_hypervolume_of_the_fronts_that_mo_gymnasium_tells(task, reference, volume, digits):
    mo_gymnasium, _ = pytest.importorskip("mo_gymnasium"), pytest.importorskip("pymoo")
    front = torch.tensor(np.array(mo_gymnasium.make(task).unwrapped.pareto_front(gamma=0.99)), dtype=F64)
    close(hypervolume(front, points(reference)[0]), volume, atol=digits)


@pytest.mark.parametrize("m", [2, 3, 9])
def test_estimated_hypervolume_of_a_box_and_of_nested_boxes(m):
    side = torch.full((1, m), 2.0, dtype=F64)
    nested = torch.cat((side, side / 2))
    for p in (side, nested):
        close(hypervolume_estimate(p, torch.zeros(m)) / 2.0**m, 1.0, atol=0.03)


def test_estimated_hypervolume_agrees_with_the_sweep():
    p, z = points(*CONVEX), points((0, -25))[0]
    close(hypervolume_estimate(p, z) / hypervolume(p, z), 1.0, atol=0.01)


def test_a_reference_of_another_length_is_refused():
    with pytest.raises(ValueError, match="3 objectives in the reference"):
        hypervolume(torch.zeros(4, 2), torch.zeros(3))


@pytest.mark.parametrize(
    ("front", "weights", "utility"),
    [
        ([(1, 3), (2, 2), (3, 1)], points((1, 0), (0.5, 0.5), (0, 1)), 8 / 3),
        (CONVEX, simplex_grid(2, 100), 6.765792),
        (CONVEX, simplex_grid(2, 10), 7.167273),
        (CONVEX, simplex_grid(2, 100_000), 6.719622),
        (CONCAVE, simplex_grid(2, 100), 53.727921),
        (CONCAVE, simplex_grid(2, 10), 54.490909),
    ],
)
def test_expected_utility_of_known_fronts(front, weights, utility):
    close(expected_utility(points(*front), weights), utility, atol=6e-5 if len(weights) > 1000 else 6e-7)


def test_linear_preferences_reach_these_treasures():
    utility = simplex_grid(2, 10) @ points(*CONVEX).T
    best = [-1, -0.83, -0.66, 0.36, 1.6, 3.55, 6.64, 10.89, 15.16, 19.43, 23.7]
    close(utility.amax(1), best)
    assert utility.argmax(1).tolist() == [0, 0, 0, 1, 2, 5, 8, 9, 9, 9, 9]
    assert {int(i) for i in (simplex_grid(2, 1000) @ points(*CONCAVE).T).argmax(1)} == {0, 9}


@pytest.mark.parametrize(
    ("front", "expected", "digits"),
    [
        ([(1, 3), (2, 2), (3, 1)], 2.0, 1e-9),
        ([(1, 1, 1), (2, 1, 0.5)], 1.25, 1e-9),
        (CONVEX, 15.382222, 5e-7),
        (CONCAVE, 437.6667, 5e-5),
        ([(3, 4)], 0.0, 0.0),
    ],
)
def test_sparsity_of_known_fronts(front, expected, digits):
    close(sparsity(points(*front)), expected, atol=digits)


def test_distance_and_lost_utility_to_a_front_vanish_on_it_and_are_these_beside_it():
    front, found = points((0, 4), (3, 0)), points((0, 4))
    weights = simplex_grid(2, 10)
    close(inverted_generational_distance(front, front), 0.0)
    close(inverted_generational_distance(found, front), 2.5)
    close(maximum_utility_loss(front, front, weights), 0.0)
    close(maximum_utility_loss(found, front, weights), 3.0)


# grids


@pytest.mark.parametrize(("m", "divisions"), [(1, 5), (2, 100), (3, 10), (4, 10), (9, 2)])
def test_the_integer_grid_loses_no_preference(m, divisions):
    grid = simplex_grid(m, divisions)
    assert len(grid.unique(dim=0)) == len(grid) == math.comb(divisions + m - 1, m - 1)
    close(grid.sum(1), torch.ones(len(grid)))


@pytest.mark.parametrize(("m", "step", "kept"), [(3, 0.1, 62), (4, 0.1, 258), (2, 0.5, 3), (2, 0.01, 101)])
def test_the_rounded_grid_keeps_what_the_released_code_keeps(m, step, kept):
    assert len(rounded_simplex_grid(m, step)) == kept


@pytest.mark.parametrize(
    ("m", "low", "high", "step", "count"),
    [
        (2, 0, 1, 0.5, 3),
        (2, 0, 1, 0.2, 6),
        (3, 0.2, 0.8, 0.3, 6),
        (3, 0, 1, 0.5, 6),
        (4, 0, 1, 1, 4),
        (6, 0, 1, 0.5, 21),
        (9, 0, 1, 1, 9),
    ],
)
def test_the_depth_first_grid_has_the_counts_of_the_released_code(m, low, high, step, count):
    grid = depth_first_grid(m, low, high, step)
    assert len(grid) == count
    assert (grid >= 0.0).all()
    close(grid.sum(1), torch.ones(count))


def test_the_last_entry_of_the_depth_first_grid_may_be_below_its_least():
    grid = depth_first_grid(3, 0.2, 0.8, 0.3)
    close(grid[2], [0.2, 0.8, 0.0])
    close(grid[0], [0.2, 0.2, 0.6])


# barriers


def test_a_floor_lies_below_returns_of_either_sign():
    close(return_floor(points((2, -0.25, 0))[0], slack=0.1), [1.8, -0.275, 0.0])


def test_the_barrier_continues_as_a_line_with_the_slope_of_the_logarithm():
    gap = torch.tensor([0.5, 0.01, -1.0, 0.0], dtype=F64, requires_grad=True)
    barrier = log_barrier(gap, least=0.01)
    close(barrier, [math.log(0.5), math.log(0.01), math.log(0.01) - 101.0, math.log(0.01) - 1.0])
    (slope,) = torch.autograd.grad(barrier.sum(), gap)
    close(slope, [2.0, 100.0, 100.0, 100.0])


@pytest.mark.parametrize(
    ("t", "angle", "returns"),
    [
        (20, 43.5504, (0.724769, 0.688992)),
        (100, 40.4019, (0.761517, 0.648145)),
        (1e4, 39.5326, None),
        (5, 52.28, None),
    ],
)
def test_the_best_policy_on_the_quarter_circle(t, angle, returns):
    start = points((math.cos(math.pi / 4), math.sin(math.pi / 4)))[0]
    floor = return_floor(start, slack=0.1)[1]
    close(floor, 0.636396, atol=1e-6)
    theta = torch.linspace(30, 80, 500_001, dtype=F64).deg2rad()
    gap = (theta.sin() - floor) / start[1]
    best = theta[(theta.cos() + log_barrier(gap, least=least_gap(t)) / t).argmax()]
    close(best.rad2deg(), angle, atol=6e-3 if t == 5 else 2e-4)
    if returns is not None:
        close(torch.stack((best.cos(), best.sin())), returns, atol=3e-6)


def test_the_released_barrier_pushes_a_positive_return_by_its_ratio_alone_and_a_negative_one_not_at_all():
    for scale in (0.5, 8.0):
        log_ratio = torch.zeros(3, dtype=F64, requires_grad=True)
        barrier = ratio_barrier(log_ratio, points((scale, -scale))[0], beta=0.9, clip_range=0.2)
        close(barrier[:, 1], [math.log(1e-3)] * 3)
        (slope,) = torch.autograd.grad(barrier.sum(), log_ratio)
        close(slope, [10.0] * 3)  # 1 / (1 - beta)


def test_public_names_are_exported():
    import ctrlrl.functional as public

    for name in ("dominates", "non_dominated", "hypervolume", "crowding_distance", "log_barrier", "simplex_grid"):
        assert getattr(public, name) is getattr(pareto, name)

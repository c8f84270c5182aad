"""Coverage of goals: every number by hand."""

import math

import pytest
import torch

from ctrlrl.functional.coverage import goal_reached, goal_shares, share_entropy

F64 = torch.float64
GOALS = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]], dtype=F64)


def test_a_roll_out_counts_for_the_nearest_goal_within_reach_and_for_none_beyond():
    ends = torch.tensor([[0.3, 0.4], [0.3, 0.41], [4.0, -0.5], [1.9, 0.0], [0.2, 4.1]], dtype=F64)
    assert goal_reached(ends, GOALS, reach=0.5).tolist() == [0, -1, 1, -1, 2]


def test_with_a_target_only_the_place_asked_for_counts_under_the_goal_nearest_to_it():
    ends = torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.9, 0.4], [4.2, 0.0]], dtype=F64)
    target = torch.tensor([[0.2, 0.0], [4.0, 0.1], [3.8, 0.2], [3.7, 0.1]], dtype=F64)
    assert goal_reached(ends, GOALS, reach=0.45, target=target).tolist() == [0, -1, 1, -1]


def test_nan_reaches_nothing():
    nan = torch.full((2, 2), torch.nan)
    assert goal_reached(nan, GOALS, reach=0.5).tolist() == [-1, -1]
    assert goal_reached(torch.zeros(2, 2), GOALS, reach=0.5, target=nan).tolist() == [-1, -1]


def test_shares_are_parts_of_all_roll_outs_also_of_those_that_reached_nothing():
    shares = goal_shares(torch.tensor([0, 0, 2, -1, -1, -1, 2, 2]), 4)
    assert shares.tolist() == [0.25, 0.0, 0.375, 0.0]
    assert goal_shares(torch.empty(0, dtype=torch.int64), 3).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("shares", "entropy"),
    [
        ([0.25, 0.25, 0.25, 0.25], math.log(4)),
        ([0.1, 0.1], math.log(2)),  # those that reached nothing do not count
        ([0.7, 0.0, 0.0], 0.0),
        ([0.0, 0.0], 0.0),
        ([0.2, 0.6], 0.25 * math.log(4) + 0.75 * math.log(4 / 3)),
    ],
)
def test_the_entropy_is_that_of_the_histogram_over_goals_in_nats(shares, entropy):
    assert share_entropy(torch.tensor(shares, dtype=F64)).item() == pytest.approx(entropy, abs=1e-12)

import math

import pytest
import torch

from ctrlrl.functional import group as module
from ctrlrl.functional.group import (
    beta_norm,
    bounded_signals,
    equal_rewards,
    group_center,
    group_mean,
    group_median,
    group_size,
    group_std,
    group_z,
    leave_one_out,
    length_baseline,
    median_mad,
    virtual_max,
)

F64 = torch.float64
SCATTERED = torch.tensor([4, 0, 4, 0, 4, 2, 0, 4, 2])  # sizes 3, 2, 4; some numbers unused
ROWS = {g: (g == SCATTERED).nonzero().squeeze(1) for g in (0, 2, 4)}


def rewards():
    torch.manual_seed(3)
    return torch.rand(9, dtype=F64)


def close(actual, expected, atol=1e-12):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=atol)


def by_group(f, x):
    """f of each group's values, at its rows."""
    out = torch.empty_like(x)
    for rows in ROWS.values():
        out[rows] = f(x[rows])
    return out


def test_statistics_are_those_of_each_group_wherever_its_rows_lie():
    x = rewards()
    close(group_mean(x, SCATTERED), by_group(torch.mean, x))
    close(group_std(x, SCATTERED), by_group(torch.std, x))
    close(group_median(x, SCATTERED), by_group(lambda y: y.quantile(0.5), x))
    assert group_size(SCATTERED).tolist() == [4, 3, 4, 3, 4, 2, 3, 4, 2]


def test_the_median_of_an_even_group_lies_between_the_two_in_the_middle():
    x = torch.tensor([0.0, 1.0, 0.25, 0.0], dtype=F64)
    close(group_median(x, torch.zeros(4, dtype=torch.int64)), [0.125] * 4)


def test_a_single_row_has_deviation_zero():
    close(group_std(torch.tensor([3.0]), torch.tensor([0])), [0.0])


def test_rows_that_do_not_count_change_nothing_and_get_zero():
    x, valid = rewards(), torch.tensor([1, 1, 0, 1, 1, 1, 0, 1, 1]).bool()
    rows = valid & (SCATTERED == 4)
    wanted = (x[rows] - x[rows].mean()) / (x[rows].std() + 1e-4)
    got = group_z(x, SCATTERED, eps=1e-4, valid=valid)
    close(got[rows], wanted)
    assert bool((got[~valid] == 0).all())


@pytest.mark.parametrize(
    "estimate",
    [
        group_center,
        leave_one_out,
        lambda r, g: group_z(r, g, eps=1e-4),
        lambda r, g: length_baseline(r, g, torch.arange(1, 10)),
        lambda r, g: median_mad(r, g)[0],
        lambda r, g: torch.stack(bounded_signals(r, g)),
    ],
    ids=["center", "leave_one_out", "z", "length", "median_mad", "bounded"],
)
def test_the_same_reward_for_all_of_a_group_is_worth_nothing(estimate):
    shift = torch.tensor([3.0, 0.0, -7.0, 0.0, 11.0], dtype=F64)[SCATTERED]
    close(estimate(rewards() + shift, SCATTERED), estimate(rewards(), SCATTERED), atol=1e-9)
    constant = torch.full((9,), 0.3, dtype=F64)
    close(estimate(constant, SCATTERED), torch.zeros_like(estimate(constant, SCATTERED)), atol=1e-9)


def test_leaving_one_out_stretches_the_centered_reward():
    n = group_size(SCATTERED)
    close(leave_one_out(rewards(), SCATTERED), group_center(rewards(), SCATTERED) * n / (n - 1))


def test_leaving_one_out_compares_with_the_others():
    x = rewards()
    others = by_group(lambda y: (y.sum() - y) / (len(y) - 1), x)
    close(leave_one_out(x, SCATTERED), x - others)


def test_the_scale_of_rewards_does_not_matter_without_eps():
    close(group_z(1000 * rewards(), SCATTERED, eps=0.0), group_z(rewards(), SCATTERED, eps=0.0))


def test_longer_responses_weigh_more_in_the_baseline():
    reward, length = torch.tensor([1.0, 0.0], dtype=F64), torch.tensor([3, 1])
    close(length_baseline(reward, torch.tensor([0, 0]), length), [0.25, -0.75])


def test_of_several_rows_at_the_median_one_is_dropped_and_the_others_weigh_more():
    reward = torch.tensor([0.0, 0.0, 1.0, 0.0, 2.0, 5.0, 6.0, 7.0], dtype=F64)
    group = torch.tensor([1, 1, 1, 1, 1, 6, 6, 6])
    advantage, keep = median_mad(reward, group)
    assert keep.tolist() == [False, True, True, True, True, True, False, True]
    # the first group: all but two at the median 0, so the median distance is 0
    close(advantage[:5], [0.0, 0.0, 1000 * 2.5, 0.0, 2000 * 2.5])
    close(advantage[5:], torch.tensor([-1.0, 0.0, 1.0], dtype=F64) / 1.001 * 1.5)


def test_all_wrong_is_bad_and_all_right_is_nothing_beside_a_virtual_success():
    group = torch.tensor([0] * 4 + [1] * 4)
    reward = torch.tensor([0.0] * 4 + [1.0] * 4, dtype=F64)
    wrong = -0.2 / math.sqrt(0.2)
    close(virtual_max(reward, group, eps=0.0)[:4], [wrong] * 4)
    close(virtual_max(reward, group)[4:], [0.0] * 4)


def test_virtual_rewards_enter_mean_and_deviation_as_further_rows():
    x = rewards()
    wanted = by_group(lambda y: (y - torch.cat([y, y.new_ones(2)]).mean()) / torch.cat([y, y.new_ones(2)]).std(), x)
    close(virtual_max(x, SCATTERED, n_virtual=2, eps=0.0), wanted)


def test_the_beta_density_is_that_of_the_prompts_each_counted_once():
    group = torch.tensor([0] * 4 + [1] * 2 + [2] * 4)
    reward = torch.tensor([1.0, 0, 0, 0, 1, 0, 1, 1, 1, 0], dtype=F64)
    p = torch.tensor([0.25, 0.5, 0.75], dtype=F64)
    density = torch.distributions.Beta(*[torch.tensor(1 + 2.5 / 3, dtype=F64)] * 2)  # mean 1/2, variance 1/24
    wanted = (reward - p[group]) / density.log_prob(p[group]).exp()
    close(beta_norm(reward, group), wanted, atol=1e-9)


@pytest.mark.parametrize("reward", [[0.0] * 4, [1.0] * 4, [1.0, 0, 1, 0], [1.0, 1, 0, 0]])
def test_beta_normalization_stays_finite_where_all_prompts_are_alike(reward):
    out = beta_norm(torch.tensor(reward, dtype=F64), torch.tensor([0, 0, 1, 1]))
    assert bool(out.isfinite().all())


@pytest.mark.parametrize("right", [1, 2, 3])
def test_beta_normalization_of_equal_prompts_is_small_whatever_their_share(right):
    reward = torch.tensor([1.0] * right + [0.0] * (4 - right), dtype=F64).repeat(2)
    out = beta_norm(reward, torch.arange(2).repeat_interleave(4))
    assert float(out.abs().max()) < 2e-3  # the density is at its height


def test_equal_rewards_are_told_by_group():
    reward = torch.tensor([1.0, 0, 1, 0, 1, 2, 0, 1, 1])
    assert equal_rewards(reward, SCATTERED).tolist() == [True, True, True, True, True, False, True, True, False]


def test_a_vector_of_groups_of_another_length_is_refused():
    with pytest.raises(ValueError, match="group_sum: shapes must match"):
        module.group_sum(torch.zeros(3), torch.zeros(2, dtype=torch.int64))

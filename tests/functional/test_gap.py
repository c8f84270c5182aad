"""The numbers of H2O's definition: ratios, weights, gaps and the penalty."""

import math

import pytest
import torch

from ctrlrl.functional.gap import (
    classification_loss,
    dynamics_gap,
    dynamics_weight,
    gap_penalty,
    log_dynamics_ratio,
    log_share,
    padded_std,
)

F64 = torch.float64


def odds(p: float) -> torch.Tensor:
    """Log-odds of a probability that the row is real."""
    return torch.tensor([math.log(p / (1.0 - p))], dtype=F64)


@pytest.mark.parametrize(("joint", "raw", "weight"), [(0.8, 4.0, 1.0), (0.2, 0.25, 0.25), (1e-9, 1e-9, 1e-5)])
def test_a_step_counts_by_how_much_likelier_it_is_in_reality_but_never_more_than_a_real_one(joint, raw, weight):
    log_ratio = log_dynamics_ratio(odds(joint), odds(0.5))
    assert log_ratio.exp().item() == pytest.approx(raw)
    assert dynamics_weight(log_ratio, low=1e-5, high=1.0).item() == pytest.approx(weight)


def test_the_ratio_is_that_of_the_four_probabilities_and_swapped_classes_turn_it_over():
    joint, marginal = torch.rand(2, 50, dtype=F64)
    expected = joint * (1 - marginal) / ((1 - joint) * marginal)
    found = log_dynamics_ratio(torch.logit(joint), torch.logit(marginal))
    torch.testing.assert_close(found.exp(), expected)
    torch.testing.assert_close(log_dynamics_ratio(torch.logit(1 - joint), torch.logit(1 - marginal)), -found)


def test_of_logits_that_add_up_the_joint_ones_alone_are_left():
    """The authors' form: softmax of the sum of both networks' logits, and of the first one's."""
    extra, own = torch.randn(2, 50, 2, dtype=F64)
    both, marginal = (extra + own).softmax(-1), own.softmax(-1)
    raw = both[:, 0] * marginal[:, 1] / (both[:, 1] * marginal[:, 0])
    torch.testing.assert_close((extra[:, 0] - extra[:, 1]).exp(), raw)


def test_the_loss_is_the_negative_log_probability_of_the_right_class():
    p = torch.tensor([0.1, 0.5, 0.9], dtype=F64)
    torch.testing.assert_close(classification_loss(torch.logit(p), real=True), -p.log())
    torch.testing.assert_close(classification_loss(torch.logit(p), real=False), -(1 - p).log())
    assert torch.isfinite(classification_loss(torch.tensor([-1e4, 1e4]), real=True)).all()


def test_the_gap_is_the_mean_log_ratio_and_not_its_exponential():
    log_ratio = torch.tensor([[-1.0, 2.0, -30.0], [-3.0, 4.0, -30.0]], dtype=F64)
    found = dynamics_gap(log_ratio, low=1e-45, high=10.0)
    torch.testing.assert_close(found, torch.tensor([2.0, 1e-45, 10.0], dtype=F64), atol=0, rtol=1e-12)


def test_the_gap_of_two_gaussians_is_their_divergence():
    """log P_sim / P_real of N(0, 1) and N(1, 1) at simulated steps: KL = 1 / 2."""
    torch.manual_seed(0)
    x = torch.randn(200_000, 1, dtype=F64)
    log_ratio = -0.5 * (x - 1.0).square() + 0.5 * x.square()
    assert dynamics_gap(log_ratio, low=1e-45, high=10.0).item() == pytest.approx(0.5, abs=0.01)


def test_two_gaps_give_the_penalty_of_the_definition():
    share = log_share(torch.tensor([1.0, 3.0], dtype=F64))
    torch.testing.assert_close(share.exp(), torch.tensor([0.25, 0.75], dtype=F64))
    zero = torch.zeros(4, dtype=F64)
    penalty = gap_penalty(torch.tensor([0.0, 1.0], dtype=F64), share, zero)
    assert penalty.item() == pytest.approx(math.log(0.25 + 0.75 * math.e), abs=1e-12)
    assert penalty.item() == pytest.approx(0.827989, abs=1e-6)


def test_a_constant_value_is_the_soft_maximum_whatever_the_size_of_the_batch():
    gaps = torch.rand(16, dtype=F64) + 0.1
    for u in (gaps, gaps.repeat(2)):
        found = gap_penalty(torch.full_like(u, 7.5), log_share(u), torch.zeros(3, dtype=F64))
        assert found.item() == pytest.approx(7.5, abs=1e-12)


def test_a_constant_added_to_all_values_changes_nothing_and_each_critic_has_its_own():
    q_sim, q_real, u = torch.randn(2, 8, dtype=F64), torch.randn(2, 5, dtype=F64), torch.rand(8, dtype=F64) + 0.1
    found = gap_penalty(q_sim, log_share(u), q_real)
    torch.testing.assert_close(gap_penalty(q_sim + 300.0, log_share(u), q_real + 300.0), found)
    torch.testing.assert_close(found[1], gap_penalty(q_sim[1], log_share(u), q_real[1]))


def test_the_penalty_is_clipped_on_both_sides():
    share = log_share(torch.ones(2, dtype=F64))
    for q, expected in ((5000.0, 1000.0), (-5000.0, -1000.0), (3.0, 3.0)):
        q_sim = torch.full((2,), q, dtype=F64)
        assert gap_penalty(q_sim, share, torch.zeros(2, dtype=F64), bound=1000.0).item() == pytest.approx(expected)
    assert gap_penalty(torch.full((2,), 5000.0), share, torch.zeros(2)).item() == pytest.approx(5000.0)


@pytest.mark.parametrize("floor", [1e-45, 1e-37])
def test_equal_dynamics_give_even_shares_at_either_floor(floor):
    u = dynamics_gap(torch.zeros(10, 32), low=floor, high=10.0)  # float32
    torch.testing.assert_close(log_share(u), torch.full((32,), -math.log(32.0)))
    weight = dynamics_weight(torch.zeros(32), low=1e-5, high=1.0)
    assert torch.equal(weight, torch.ones(32))


def test_shares_at_the_floor_are_finite_where_denormal_numbers_are_zero():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush denormal numbers")
    try:
        u = dynamics_gap(torch.tensor([[3.0, 1.0]]), low=1e-37, high=10.0)
        assert torch.isfinite(log_share(u)).all()
        released = dynamics_gap(torch.tensor([[3.0, 1.0]]), low=1e-45, high=10.0)
        assert not torch.isfinite(log_share(released)).all()
    finally:
        torch.set_flush_denormal(False)


def test_the_padded_deviation_is_that_of_a_buffer_with_ten_empty_parts():
    x = torch.randn(1000, 3, dtype=F64) * torch.tensor([0.1, 1.0, 5.0]) + torch.tensor([2.0, 0.0, -1.0])
    buffer = torch.cat((x, torch.zeros(10_000, 3, dtype=F64)))
    found = padded_std(x.mean(0), x.std(0, unbiased=False), copies=10.0)
    torch.testing.assert_close(found, buffer.std(0, unbiased=False))
    torch.testing.assert_close(padded_std(x.mean(0), x.std(0), copies=0.0), x.std(0))


def test_gradients_flow_into_the_simulated_values_by_their_share():
    q_sim = torch.zeros(2, dtype=F64, requires_grad=True)
    q_real = torch.zeros(4, dtype=F64, requires_grad=True)
    gap_penalty(q_sim, log_share(torch.tensor([1.0, 3.0], dtype=F64)), q_real).backward()
    torch.testing.assert_close(q_sim.grad, torch.tensor([0.25, 0.75], dtype=F64))
    torch.testing.assert_close(q_real.grad, torch.full((4,), -0.25, dtype=F64))

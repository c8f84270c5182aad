"""The surrogates that came with tokens; like all of them they work on any shape."""

import math

import pytest
import torch

from ctrlrl.functional.surrogate import (
    bpo_target,
    dual_ascent,
    dual_clip,
    importance,
    one_sided,
    ppo_clip,
    ratio_variance,
    reinforce,
    simple_quad,
    soft_gate,
    weighted_reinforce,
)

F64 = torch.float64


def tensor(*values):
    return torch.tensor(values, dtype=F64)


def close(actual, expected, atol=1e-12):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def slope(loss, log_ratio):
    """d loss / d log-prob per element."""
    x = log_ratio.clone().requires_grad_()
    return torch.autograd.grad(loss(x).sum(), x)[0]


A = tensor(2.0, -3.0, 0.5, -0.1)

AT_ONE = {
    "reinforce": lambda x: reinforce(x, A),
    "importance": lambda x: importance(x, A),
    "ppo_clip": lambda x: ppo_clip(x, A, clip_range=0.2),
    "dual_clip": lambda x: dual_clip(ppo_clip(x, A, clip_range=0.2), A, limit=3.0),
    "simple_quad": lambda x: simple_quad(x, A, clip_range=0.2),
    "ratio_variance": lambda x: ratio_variance(x, A, coef=0.7),
    "cispo": lambda x: weighted_reinforce(x, x, A, bounds=(0.0, 1.28)),
    "topr": lambda x: weighted_reinforce(x, x, A, bounds=(0.0, 1.0), bounds_positive=(1.0, 1.0)),
    "soft_gate": lambda x: soft_gate(x, A, positive=1.0, negative=1.05),
    "gmpo": lambda x: importance(one_sided(x, A, limit=0.4), A),
}


@pytest.mark.parametrize("name", AT_ONE)
def test_at_ratio_one_the_gradient_is_that_of_reinforce(name):
    close(slope(AT_ONE[name], torch.zeros(4, dtype=F64)), -A)


def test_the_loss_of_a_bad_action_stops_at_the_dual_bound_and_that_of_a_good_one_does_not():
    ratio, advantage = tensor(5.0, 5.0, 2.0), tensor(-2.0, 2.0, -2.0)

    def loss(x):
        return dual_clip(importance(x, advantage), advantage, limit=3.0)

    close(loss(ratio.log()), tensor(6.0, -10.0, 4.0))
    close(slope(loss, ratio.log()), tensor(0.0, -10.0, 4.0))


def test_simple_po_rests_at_the_bound_on_the_side_of_the_advantage():
    best = 1.0 + 0.2 * A.sign()
    close(slope(lambda x: simple_quad(x, A, clip_range=0.2), best.log()), torch.zeros(4, dtype=F64))
    for beyond in (0.1, -0.1):
        moved = slope(lambda x: simple_quad(x, A, clip_range=0.2), (best + beyond).log())
        assert bool((moved.sign() == math.copysign(1.0, beyond)).all())


def test_ratio_variance_rests_in_proportion_to_the_advantage():
    best = 1.0 + A / (2 * 4.0)
    close(slope(lambda x: ratio_variance(x, A, coef=4.0), best.log()), torch.zeros(4, dtype=F64))
    close(ratio_variance(A, A, coef=0.0), importance(A, A))


def test_the_multiplier_rises_above_the_bound_and_never_below_zero():
    coef = tensor(0.1, 0.1)
    close(dual_ascent(coef, tensor(0.5, 0.0), bound=0.3, rate=1.0), tensor(0.3, 0.0))


def test_cispo_bounds_the_weight_of_a_token_but_keeps_its_gradient():
    log_ratio, advantage = tensor(0.5, 9.0, -1.0), tensor(1.0, 1.0, 1.0)
    got = slope(lambda x: weighted_reinforce(x, x, advantage, bounds=(0.0, 1.28)), log_ratio)
    close(got, tensor(-1.28, -1.28, -math.exp(-1.0)))


def test_topr_reinforces_the_good_whatever_their_ratio_and_forgets_the_bad_that_are_gone():
    ratio = tensor(1e-9, 0.5, 7.0)
    for advantage, wanted in (
        (tensor(2.0, 2.0, 2.0), tensor(-2.0, -2.0, -2.0)),
        (-A[:1].expand(3), tensor(2e-9, 1.0, 2.0)),
    ):
        got = slope(
            lambda x, a=advantage: weighted_reinforce(x, x, a, bounds=(0.0, 1.0), bounds_positive=(1.0, 1.0)),
            ratio.log(),
        )
        close(got, wanted)


def test_a_response_weighs_all_its_tokens():
    log_prob, log_ratio, advantage = torch.zeros(2, 3), torch.tensor([[0.1], [0.2]]), torch.ones(2, 1)
    assert weighted_reinforce(log_prob, log_ratio, advantage, bounds=(0.0, 2.0)).shape == (2, 3)


def test_the_soft_gate_closes_on_both_sides_at_its_own_pace():
    ratio, advantage = tensor(3.0, 3.0, 0.2), tensor(1.0, -1.0, 1.0)
    tau = tensor(1.0, 1.5, 1.0)
    gate = torch.sigmoid(tau * (ratio - 1))
    wanted = -advantage * ratio * 4 * gate * (1 - gate)
    close(slope(lambda x: soft_gate(x, advantage, positive=1.0, negative=1.5), ratio.log()), wanted)


def test_log_ratios_stop_only_on_the_side_to_which_the_advantage_pushes():
    x = tensor(0.9, -0.9, 0.9, -0.9)
    close(one_sided(x, tensor(1.0, 1.0, -1.0, -1.0), limit=0.4), tensor(0.4, -0.9, 0.9, -0.4))


def test_without_the_shift_unequal_bounds_put_the_median_in_their_middle():
    target = bpo_target(tensor(0.0, 50.0), clip_range=0.2, clip_range_high=0.4, temperature=1e9, centered=False)
    close(target, tensor(1.1, 1.1), atol=1e-7)
    side = bpo_target(tensor(-1.0, 1.0), clip_range=0.2, clip_range_high=0.4, temperature=1e-4, centered=False)
    close(side, tensor(0.8, 1.4))


def test_bounds_of_the_target_hold():
    target = bpo_target(
        torch.linspace(-9, 9, 50, dtype=F64), clip_range=0.2, clip_range_high=0.3, temperature=1.0, centered=False
    )
    assert bool(((target >= 0.8) & (target <= 1.3)).all())

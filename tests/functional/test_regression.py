import math

import pytest
import torch

from ctrlrl.functional.regression import (
    clipped_value,
    expectile,
    huber,
    quantile_huber,
    soft_median_loss,
    soft_quantile_loss,
    squared_distance,
    td_target,
)
from ctrlrl.functional.surrogate import bpo_target

F64 = torch.float64


def tensor(*values):
    return torch.tensor(values, dtype=F64)


def close(actual, expected, atol=1e-9):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=atol)


def gradient(f, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(f(x).sum(), x)[0]


def minimiser(loss, low, high):
    """Root of the mean loss's derivative in m, error = q - m, by bisection."""
    for _ in range(200):
        middle = torch.tensor((low + high) / 2.0, dtype=F64, requires_grad=True)
        (up,) = torch.autograd.grad(loss(middle).mean(), middle)
        low, high = (low, middle.item()) if up > 0 else (middle.item(), high)
    return (low + high) / 2.0


# clipped value


def test_three_clipped_values_by_hand():
    value, old, target = tensor(0.1, 0.5, 0.5), tensor(0, 0, 0), tensor(1, 1, 0)
    close(clipped_value(value, old, target, clip_range=0.2, take_max=False), tensor(0.81, 0.64, 0.04))
    close(clipped_value(value, old, target, clip_range=0.2, take_max=True), tensor(0.81, 0.64, 0.25))


def test_an_infinite_clip_is_the_squared_error():
    value, old, target = (torch.randn(9, dtype=F64) for _ in range(3))
    for take_max in (True, False):
        close(clipped_value(value, old, target, clip_range=math.inf, take_max=take_max), (value - target) ** 2)


def test_without_the_max_a_value_outside_the_clip_gets_no_gradient_back():
    old, target = tensor(0, 0), tensor(-1, 1)
    for take_max, expected in ((False, [0.0, 0.0]), (True, [3.0, 0.0])):
        close(
            gradient(lambda v, m=take_max: clipped_value(v, old, target, clip_range=0.2, take_max=m), tensor(0.5, 0.5)),
            expected,
        )


def test_clipped_value_refuses_a_forgotten_axis():
    with pytest.raises(ValueError, match=r"clipped_value: shapes must match.*squeeze"):
        clipped_value(torch.zeros(3, 1), torch.zeros(3), torch.zeros(3), clip_range=0.2, take_max=True)


# soft median and quantile


def test_soft_median_numbers_of_the_specification():
    close(soft_median_loss(tensor(0, 2, -2)), [0.693147, 1.126928, 1.126928], atol=5e-7)
    close(soft_median_loss(tensor(0)), [math.log(2.0)])


def test_soft_median_is_log_two_cosh_half():
    x = torch.linspace(-30, 30, 601, dtype=F64)
    close(soft_median_loss(x), torch.log(2.0 * torch.cosh(x / 2.0)))


def test_soft_median_slope_is_sigmoid_minus_half():
    x = torch.linspace(-5, 5, 101, dtype=F64)
    close(gradient(soft_median_loss, x), torch.sigmoid(x) - 0.5)
    close(gradient(soft_median_loss, tensor(0)), [0.0])


def test_soft_median_is_finite_and_half_the_distance_far_away():
    x = tensor(-1e6, 1e6)
    close(soft_median_loss(x), [5e5, 5e5])
    close(gradient(soft_median_loss, x), [-0.5, 0.5])


def test_temperature_scales_the_error():
    x = tensor(-1, 0.3, 4)
    close(soft_median_loss(x, temperature=0.1), soft_median_loss(x / 0.1))
    close(soft_quantile_loss(x, tau=0.3, temperature=0.1), soft_quantile_loss(x / 0.1, tau=0.3))


def test_the_learned_median_makes_the_bounded_ratio_a_policy():
    q = tensor(0, 1, 2, 10)  # uniform old policy
    mu = minimiser(lambda m: soft_median_loss(q - m), 0.0, 10.0)
    assert mu == pytest.approx(1.80246, abs=5e-6)
    ratio = bpo_target(q - mu, clip_range=0.2, temperature=1.0)
    close(ratio, [0.85662, 0.92380, 1.01969, 1.19989], atol=6e-6)
    close(ratio.mean(), 1.0)
    assert minimiser(lambda m: soft_median_loss(q - m, temperature=0.1), 0.0, 10.0) == pytest.approx(1.5, abs=5e-6)


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.28), (0.2, 0.2), (1.0, 9.0), (0.5, 0.1)])
def test_the_learned_quantile_makes_the_asymmetric_ratio_a_policy(low, high):
    q = tensor(0, 1, 2, 10)
    mu = minimiser(lambda m: soft_quantile_loss(q - m, tau=low / (low + high), temperature=0.5), -20.0, 30.0)
    ratio = bpo_target(q - mu, clip_range=low, clip_range_high=high, temperature=0.5)
    close(ratio.mean(), 1.0)


def test_the_hard_quantile_leaves_the_fraction_tau_above():
    q = torch.arange(10, dtype=F64)
    mu = minimiser(lambda m: soft_quantile_loss(q - m, tau=0.1, temperature=1e-2), -20.0, 30.0)
    assert 8.0 < mu < 9.0


def test_soft_quantile_at_one_half_is_the_soft_median():
    x = torch.linspace(-40, 40, 801, dtype=F64)
    close(soft_quantile_loss(x, tau=0.5), soft_median_loss(x))


def test_soft_quantile_slope_is_a_shifted_sigmoid_minus_tau():
    x, tau = torch.linspace(-5, 5, 101, dtype=F64), 0.2 / 0.48
    b = math.log(0.2 / 0.28)  # log((1 - c_l) / (c_h - 1)) at c_l = 0.8, c_h = 1.28
    close(gradient(lambda e: soft_quantile_loss(e, tau=tau), x), torch.sigmoid(x + b) - tau)
    close(gradient(lambda e: soft_quantile_loss(e, tau=tau), tensor(0)), [0.0])


def test_soft_quantile_refuses_levels_without_a_quantile():
    for tau in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"soft_quantile_loss\.tau must lie in \(0, 1\)"):
            soft_quantile_loss(tensor(0), tau=tau)


# expectile, Huber, targets


def test_expectile_one_half_is_half_the_squared_error():
    x = torch.randn(20, dtype=F64)
    close(expectile(x, tau=0.5), 0.5 * x**2)


def test_expectile_weighs_positive_errors_by_tau():
    close(expectile(tensor(2, -2, 0), tau=0.9), [3.6, 0.4, 0.0])


def test_expectile_minimisers_run_from_the_mean_to_the_maximum():
    q = tensor(0, 1, 2, 10)
    assert minimiser(lambda m: expectile(q - m, tau=0.5), 0.0, 10.0) == pytest.approx(3.25, abs=1e-9)
    # tau * sum of positive errors = (1 - tau) * sum of negative ones: 0.9 (10 - m) = 0.1 (3 m - 3)
    assert minimiser(lambda m: expectile(q - m, tau=0.9), 0.0, 10.0) == pytest.approx(9.3 / 1.2, abs=1e-9)
    assert minimiser(lambda m: expectile(q - m, tau=0.9999), 0.0, 10.0) == pytest.approx(10.0, abs=1e-2)


def test_huber_is_torchs():
    x = torch.linspace(-5, 5, 101, dtype=F64)
    for delta in (0.5, 1.0, 20.0):
        expected = torch.nn.functional.huber_loss(x, torch.zeros_like(x), reduction="none", delta=delta)
        close(huber(x, delta=delta), expected)
        close(gradient(lambda e, d=delta: huber(e, delta=d), x), x.clamp(-delta, delta))


def test_quantile_huber_weighs_the_sides_by_the_level():
    x = torch.linspace(-5, 5, 101, dtype=F64)
    close(quantile_huber(x, tau=0.5, delta=2.0), 0.5 * huber(x, delta=2.0))
    close(quantile_huber(tensor(3, -3), tau=0.9), [0.9 * 2.5, 0.1 * 2.5])
    levels = tensor(0.25, 0.75)
    both = quantile_huber(x[:, None], tau=levels)
    assert both.shape == (101, 2)
    for k, tau in enumerate((0.25, 0.75)):
        close(both[:, k], quantile_huber(x, tau=tau))


def test_td_target_bootstraps_unless_terminated():
    reward, terminated = tensor(1, 2), torch.tensor([False, True])
    close(td_target(reward, terminated, tensor(10, math.nan), gamma=0.5), [6.0, 2.0])
    close(td_target(reward, terminated, tensor(10, 20), gamma=tensor(0.5, 0.25)), [6.0, 2.0])
    ensemble = torch.stack([tensor(10, 20), tensor(4, 20)])
    close(td_target(reward, terminated, ensemble, gamma=0.5), [[6.0, 2.0], [3.0, 2.0]])
    objectives = td_target(ensemble.T, terminated, ensemble.T, gamma=0.5)
    close(objectives, [[15.0, 6.0], [20.0, 20.0]])


def test_td_target_refuses_a_forgotten_axis():
    with pytest.raises(ValueError, match=r"td_target: shapes must match, got reward \(3,\), next_value \(3, 1\)\. A v"):
        td_target(torch.zeros(3), torch.zeros(3, dtype=torch.bool), torch.zeros(3, 1), gamma=0.9)


def test_expectile_numbers_of_the_specification():
    loss = expectile(tensor(1, -2), tau=0.7)
    close(loss, [0.7, 1.2])
    close(loss.mean(), 0.95)
    for q, tau, expected in (((0, 0, 0, 1), 0.9, 0.75), ((0, 0, 0, 1), 0.5, 0.25), ((0, 1), 0.9, 0.9)):
        value = torch.zeros((), dtype=F64, requires_grad=True)
        for _ in range(400):
            (slope,) = torch.autograd.grad(expectile(tensor(*q) - value, tau=tau).mean(), value)
            value = (value - 0.5 * slope).detach().requires_grad_()
        close(value.detach(), expected)


def test_squared_distance_sums_over_action_dimensions_alone():
    x = tensor(0.1, 0.2).expand(4, 3, 2)
    close(squared_distance(x, torch.zeros_like(x)), torch.full((4, 3), 0.05, dtype=F64))
    close(gradient(lambda y: squared_distance(x, y), torch.zeros_like(x)), -2.0 * x)


def test_rebracs_target_of_the_specification():
    penalty = squared_distance(tensor(0.3, -0.2), tensor(0.2, 0.0))
    target = td_target(tensor(0), torch.tensor([False]), (1.0 - 0.5 * penalty)[None], gamma=0.99)
    close(target, [0.96525])


def test_squared_distance_refuses_to_broadcast():
    with pytest.raises(ValueError, match=r"squared_distance: shapes must match, got x \(4, 2\), y \(4, 1\)"):
        squared_distance(torch.zeros(4, 2), torch.zeros(4, 1))

import math

import pytest
import torch

from ctrlrl.functional.surrogate import bpo, bpo_target, ppo_clip

F64 = torch.float64


def tensor(*values):
    return torch.tensor(values, dtype=F64)


def slope(loss, ratio, *signals, **cfg):
    """d loss / d ratio per element."""
    log_ratio = ratio.log().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(log_ratio, *signals, **cfg).sum(), log_ratio)
    return gradient / ratio


def close(actual, expected, atol=1e-9):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


# PPO


def test_ppo_loss_is_the_larger_of_two():
    ratio, advantage = tensor(0.5, 0.9, 1.1, 1.5).repeat(2), tensor(1, 1, 1, 1, -2, -2, -2, -2)
    expected = tensor(-0.5, -0.9, -1.1, -1.2, 1.6, 1.8, 2.2, 3.0)
    close(ppo_clip(ratio.log(), advantage, clip_range=0.2), expected)


def test_ppo_gradient_in_log_prob_at_ratio_one_is_minus_advantage():
    advantage = tensor(2, -3, 0.5)
    close(slope(ppo_clip, torch.ones(3, dtype=F64), advantage, clip_range=0.2), -advantage)


def test_ppo_gradient_vanishes_only_once_the_ratio_has_moved_the_advantage_way():
    ratio, advantage = tensor(1.3, 1.3, 0.7, 0.7), tensor(2, -2, -2, 2)
    gradient = slope(ppo_clip, ratio, advantage, clip_range=0.2) * ratio  # in log-prob
    close(gradient, tensor(0, 2 * 1.3, 0, -2 * 0.7))


def test_ppo_with_a_higher_upper_bound_keeps_the_gradient_up_to_it():
    ratio, advantage = tensor(1.25, 1.3, 0.75), tensor(1, 1, -1)
    close(slope(ppo_clip, ratio, advantage, clip_range=0.2, clip_range_high=0.28), tensor(-1, 0, 0))


@pytest.mark.parametrize("loss", [ppo_clip, lambda lr, a, **k: bpo(lr, a, a - 0.1, temperature=0.3, **k)])
def test_tensor_bounds_equal_numbers_and_differ_per_element(loss):
    torch.manual_seed(0)
    log_ratio, advantage = torch.randn(2, 5, dtype=F64), torch.randn(2, 5, dtype=F64)
    low, high = tensor(0.1, 0.3)[:, None], tensor(0.2, 0.5)[:, None]
    expected = torch.stack(
        [
            loss(log_ratio[i], advantage[i], clip_range=a, clip_range_high=b)
            for i, a, b in [(0, 0.1, 0.2), (1, 0.3, 0.5)]
        ]
    )
    close(loss(log_ratio, advantage, clip_range=low, clip_range_high=high), expected)
    same = [loss(log_ratio, advantage, clip_range=a, clip_range_high=0.2)[0] for a in (0.1, low)]
    close(same[0], same[1])
    same = [loss(log_ratio, advantage, clip_range=0.1, clip_range_high=b)[0] for b in (0.2, high)]
    close(same[0], same[1])


# BPO: the target


def test_bpo_target_numbers_of_the_specification():
    one = tensor(1.0)
    close(bpo_target(one, clip_range=0.2, temperature=1.0), tensor(1.0924234), atol=5e-8)
    close(bpo_target(one, clip_range=0.2, temperature=1e12), one)
    x = tensor(-1, 1)
    close(bpo_target(x, clip_range=0.2, temperature=1e-3), tensor(0.8, 1.2))
    close(bpo_target(x, clip_range=0.2, temperature=0.0), tensor(0.8, 1.2))


def test_bpo_target_stays_inside_the_bounds_and_never_falls():
    x = torch.linspace(-50, 50, 1001, dtype=F64)
    target = bpo_target(x, clip_range=0.2, clip_range_high=0.5, temperature=1.0)
    assert (target.diff() >= 0).all()
    assert target.min() >= 0.8
    assert target.max() <= 1.5


@pytest.mark.parametrize("temperature", [0.0, 1e-3, 1.0])
def test_bpo_target_at_the_median_is_one_with_any_bounds(temperature):
    at_median = tensor(0.0)
    for low, high in [(0.2, None), (0.2, 0.28), (0.5, 3.0), (1.0, 9.0)]:
        close(bpo_target(at_median, clip_range=low, clip_range_high=high, temperature=temperature), tensor(1.0))


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_asymmetric_target_with_equal_bounds_is_the_symmetric_one(temperature):
    x = torch.linspace(-3, 3, 61, dtype=F64)
    symmetric = bpo_target(x, clip_range=0.3, temperature=temperature)
    close(bpo_target(x, clip_range=0.3, clip_range_high=0.3, temperature=temperature), symmetric)


def test_zero_temperature_is_the_limit_of_small_ones():
    x = tensor(-2, -0.1, 0, 0.1, 2)
    for high in (None, 0.28):
        limit = bpo_target(x, clip_range=0.2, clip_range_high=high, temperature=0.0)
        close(bpo_target(x, clip_range=0.2, clip_range_high=high, temperature=1e-4), limit)


def test_the_logit_clip_bounds_the_target_away_from_the_bounds():
    x = tensor(-1e6, 1e6, 0.5)
    clipped = bpo_target(x, clip_range=0.2, temperature=1.0, logit_clip=10.0)
    inside = 0.4 / (1.0 + math.exp(-10.0))
    close(clipped[:2], tensor(1.2 - inside, 0.8 + inside))
    close(clipped[2], bpo_target(x, clip_range=0.2, temperature=1.0)[2])


def test_hard_targets_of_a_bandit_gain_the_bound_times_the_mean_distance_from_the_median():
    q = tensor(0, 1, 2, 10)  # uniform old policy
    ratio = bpo_target(q - 1.5, clip_range=0.2, temperature=0.0)
    close(ratio.mean(), tensor(1.0).squeeze())
    close((ratio * q).mean() - q.mean(), tensor(0.55).squeeze())
    close(0.2 * (q - 1.5).abs().mean(), tensor(0.55).squeeze())


def test_the_mean_as_threshold_is_not_a_policy():
    q = tensor(0, 1, 2, 10)
    ratio = bpo_target(q - q.mean(), clip_range=0.2, temperature=0.0)
    close(ratio, tensor(0.8, 0.8, 0.8, 1.2))
    close(ratio.mean(), tensor(0.9).squeeze())


def test_zero_lower_bound_is_the_elite_set_of_the_cross_entropy_method():
    q = torch.arange(10, dtype=F64)  # c_h = 10: ratio 10 on the best tenth, 0 elsewhere
    ratio = bpo_target(q - 8.5, clip_range=1.0, clip_range_high=9.0, temperature=0.0)
    close(ratio, tensor(*[0.0] * 9, 10.0))
    close(ratio.mean(), tensor(1.0).squeeze())


# BPO: the loss


@pytest.mark.parametrize(("high", "temperature"), [(None, 0.0), (None, 0.7), (0.28, 0.0), (0.28, 0.7)])
def test_the_minimiser_of_bpo_in_the_ratio_is_its_target(high, temperature):
    cfg = {"clip_range": 0.2, "clip_range_high": high, "temperature": temperature}
    ratio = torch.arange(0.5, 1.6, 1e-4, dtype=F64)
    for median_advantage in (-2.0, -0.3, 0.0, 0.4, 5.0):
        for advantage in (-1.0, 0.5):
            median = torch.full_like(ratio, median_advantage)
            loss = bpo(ratio.log(), torch.full_like(ratio, advantage), median, **cfg)
            best = ratio[loss.argmin()]
            close(best, bpo_target(median[0], **cfg), atol=1e-4)


def test_bpo_with_the_mean_equal_to_the_median_has_the_gradient_of_ppo_at_ratio_one():
    advantage = tensor(2, -3, 0.5)
    one = torch.ones(3, dtype=F64)
    expected = slope(ppo_clip, one, advantage, clip_range=0.2)
    close(slope(bpo, one, advantage, 0.1 * advantage, clip_range=0.2, temperature=0.0), expected)
    close(expected, -advantage)


def test_beyond_the_bound_bpo_pulls_back_where_ppo_is_flat():
    ratio, advantage = tensor(1.4, 0.6), tensor(2, -3)
    close(slope(bpo, ratio, advantage, advantage, clip_range=0.2, temperature=0.0), tensor(2, -3))
    close(slope(ppo_clip, ratio, advantage, clip_range=0.2), tensor(0, 0))


def test_the_weight_is_the_mean_advantage_and_the_side_the_median_advantage():
    ratio = tensor(1.0, 1.0)
    loss = bpo(ratio.log(), tensor(3, -3), tensor(-1, 1), clip_range=0.2, temperature=0.0)
    close(loss, tensor(0.6, 0.6))
    close(slope(bpo, ratio, tensor(3, -3), tensor(-1, 1), clip_range=0.2, temperature=0.0), tensor(3, -3))


def test_asymmetric_bpo_with_equal_bounds_is_symmetric_bpo():
    torch.manual_seed(0)
    log_ratio, advantage, median = (torch.randn(50, dtype=F64) for _ in range(3))
    for temperature in (0.0, 0.3):
        plain = bpo(log_ratio, advantage, median, clip_range=0.2, temperature=temperature)
        close(bpo(log_ratio, advantage, median, clip_range=0.2, clip_range_high=0.2, temperature=temperature), plain)


def test_value_networks_receive_no_gradient_from_bpo():
    log_ratio, advantage, median = (tensor(0.1, -0.2).requires_grad_() for _ in range(3))
    loss = bpo(log_ratio, advantage, median, clip_range=0.2, temperature=1.0).sum()
    gradients = torch.autograd.grad(loss, (log_ratio, advantage, median), allow_unused=True)
    assert gradients[0] is not None
    assert gradients[1:] == (None, None)


def test_groups_of_equal_scores_contribute_nothing():
    log_ratio, zero = tensor(0.3, -0.4, 0.0), tensor(0, 0, 0)
    close(bpo(log_ratio, zero, zero, clip_range=0.2, temperature=1e-4), zero)
    close(slope(bpo, log_ratio.exp(), zero, zero, clip_range=0.2, temperature=1e-4), zero)


def test_shapes_and_dtypes_are_kept():
    for dtype in (torch.float32, F64):
        x = torch.zeros(2, 3, dtype=dtype)
        for temperature in (0.0, 1.0):
            loss = bpo(x, x, x, clip_range=0.2, clip_range_high=0.3, temperature=temperature)
            assert loss.shape == (2, 3)
            assert loss.dtype == dtype
        assert ppo_clip(x, x, clip_range=0.2).dtype == dtype


def test_bpo_names_the_tensor_with_the_wrong_shape():
    x = torch.zeros(4)
    with pytest.raises(ValueError, match=r"^bpo: shapes must match, got .* median_advantage \(4, 1\)\. A value head"):
        bpo(x, x, x[:, None], clip_range=0.2, temperature=1.0)

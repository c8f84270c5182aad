"""Regression losses of an error or of a value, per element, and the one-step target they regress to."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ctrlrl.functional.checks import in_range, same_shape
from ctrlrl.functional.scan import append_axes


def td_target(reward: Tensor, terminated: Tensor, next_value: Tensor, *, gamma: float | Tensor) -> Tensor:
    """reward + gamma * next_value, without the bootstrap where terminated; the shape of `next_value`, return units.

    reward:     [N] or [N, M].
    terminated: [N] bool.
    next_value: the shape of reward, or with ensemble axes in front: [K, N].
    gamma:      per step; a tensor [N] for rows that span several steps.
    """
    if next_value.shape[max(next_value.ndim - reward.ndim, 0) :] != reward.shape:
        same_shape("td_target", reward=reward, next_value=next_value)
    return reward + gamma * next_value.masked_fill(append_axes(terminated, reward.ndim), 0.0)


def clipped_value(
    value: Tensor, old_value: Tensor, target: Tensor, *, clip_range: float | Tensor, take_max: bool
) -> Tensor:
    """Squared error of a value that may move at most `clip_range` from its rollout value; same shape, no factor 0.5.

    clip_range: return units (infinite = plain squared error).
    take_max:   True = the larger of clipped and unclipped error (rsl_rl; CleanRL with a coefficient of 0.5);
                False = the clipped error alone (Stable-Baselines3).
    """
    same_shape("clipped_value", value=value, old_value=old_value, target=target)
    bounded = old_value + (value - old_value).clamp(-clip_range, clip_range)  # type: ignore[arg-type]
    clipped = (bounded - target).square()
    return torch.maximum((value - target).square(), clipped) if take_max else clipped


def soft_median_loss(error: Tensor, *, temperature: float = 1.0) -> Tensor:
    """g(x) = softplus(x) - x/2 at x = error / temperature; its minimiser m in error = Q - m is a soft median of Q.

    Towards temperature 0, temperature * g becomes |error| / 2 and the minimiser the median. Same shape.
    Source: BRRL, arXiv:2604.18578, theorem 4.1.
    """
    size = error.abs() / temperature
    return F.softplus(-size) + 0.5 * size  # the same function, without the difference of two large numbers


def soft_quantile_loss(error: Tensor, *, tau: float, temperature: float = 1.0) -> Tensor:
    """softplus(x + b) - tau * x at x = error / temperature, b = log(tau / (1 - tau)); same shape.

    The minimiser m in error = Q - m satisfies E[sigmoid((Q - m) / temperature + b)] = tau: towards temperature 0 the
    fraction tau of Q lies above m. For ratio bounds 1 - l .. 1 + h, tau = l / (l + h); tau = 0.5 is `soft_median_loss`.
    Source: BRRL, arXiv:2604.18578, section 4.6.
    """
    in_range("soft_quantile_loss", low=0.0, high=1.0, open_ends=True, tau=tau)
    x = error / temperature
    shifted = x + math.log(tau / (1.0 - tau))
    return -F.logsigmoid(-shifted) - tau * x  # softplus(z) = -logsigmoid(-z), but F.softplus is inexact above z = 20


def expectile(error: Tensor, *, tau: float) -> Tensor:
    """|tau - 1{error < 0}| * error^2 with error = target - value; same shape, squared units.

    tau: in (0, 1); 0.5 is half the squared error, towards 1 the maximum. Source: IQL, arXiv:2110.06169, eq. 5.
    """
    squared = error.square()
    return torch.where(error < 0, (1.0 - tau) * squared, tau * squared)


def huber(error: Tensor, *, delta: float = 1.0) -> Tensor:
    """error^2 / 2 up to |error| = delta, then delta * (|error| - delta / 2); same shape."""
    size = error.abs()
    inner = size.clamp(max=delta)
    return inner * (size - 0.5 * inner)


def quantile_huber(error: Tensor, *, tau: float | Tensor, delta: float = 1.0) -> Tensor:
    """|tau - 1{error < 0}| * huber(error), error = target - quantile; the shape of error.

    tau: quantile level in (0, 1), or a tensor of levels that broadcasts. Source: QR-DQN, arXiv:1710.10044, eq. 10.
    """
    return (tau - (error < 0).to(error.dtype)).abs() * huber(error, delta=delta)


def squared_distance(x: Tensor, y: Tensor) -> Tensor:
    """|x - y|^2, summed over the last axis: actions [..., A] -> [...], squared action units.

    The sum over dimensions, not the mean: both penalties of ReBRAC, arXiv:2305.09836, and CORL's deterministic IQL
    policy. TD3+BC and BC take the mean, A times less.
    """
    same_shape("squared_distance", x=x, y=y)
    return (x - y).square().sum(-1)

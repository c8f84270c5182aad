"""Which responses and tokens take part, and rules on their length; masks are bool, True = counts."""

from __future__ import annotations

import torch
from torch import Tensor

from ctrlrl.functional.masked import masked_mean


def soft_overlong(length: Tensor, *, max_length: int, buffer: int) -> Tensor:
    """Reward for length [N] (tokens): 0 up to max_length - buffer, then down linearly to -1 at max_length, -1 beyond.

    Source: DAPO, arXiv:2503.14476, eq. 13.
    """
    return (((max_length - buffer) - length) / buffer).clamp(-1.0, 0.0)


def on_policy_rows(log_ratio: Tensor, advantage: Tensor, mask: Tensor, *, limit: float) -> Tensor:
    """[N, 1] bool: rows with A >= 0, or whose mean of log pi_old - log pi is at most `limit` nats.

    log_ratio: [N, L]; advantage [N, 1]. Source: DeepSeek-V3.2's off-policy sequence mask.
    """
    drift = -torch.where(mask, log_ratio, 0.0).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    return (advantage >= 0) | (drift <= limit)


def highest(score: Tensor, mask: Tensor, *, n: Tensor | int) -> Tensor:
    """The n counting elements with the highest score, bool, same shape; of equal ones the first. n: 0-dim."""
    ranked = score.masked_fill(~mask, -torch.inf).flatten().argsort(descending=True, stable=True)
    place = torch.empty_like(ranked).scatter_(0, ranked, torch.arange(ranked.numel(), device=score.device))
    return (place < n).view_as(mask) & mask


def covariance(log_prob: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
    """(A - mean A) (log pi - mean log pi) over the counting elements; no gradient; same shape.

    Tokens where it is large are those that lower the entropy. Source: Cui et al. 2025, arXiv:2505.22617.
    """
    log_prob = log_prob.detach()
    return (advantage - masked_mean(advantage, mask)) * (log_prob - masked_mean(log_prob, mask))


def elastic_width(
    advantage: Tensor, pass_rate: Tensor, *, width: float, by_advantage: float = 0.5, by_variance: float = 0.5
) -> Tensor:
    """width (1 + k1 tanh|A|) (1 + k2 (4 p (1 - p) - 1)): half-width of the clip per response, [N].

    pass_rate: p, the group's mean reward in [0, 1]. k1 = by_advantage and k2 = by_variance of 0 leave `width`.
    The form is a reading of ETR, arXiv:2601.03723, not checked against its authors' code.
    """
    spread = 4.0 * pass_rate * (1.0 - pass_rate)
    return width * (1.0 + by_advantage * advantage.abs().tanh()) * (1.0 + by_variance * (spread - 1.0))

"""Weights on samples, per element."""

from __future__ import annotations

from torch import Tensor


def awr_weight(advantage: Tensor, *, inverse_temperature: float, max_weight: float) -> Tensor:
    """min(exp(inverse_temperature * advantage), max_weight), unitless; same shape.

    inverse_temperature: 1 / return units.
    Source: advantage-weighted regression, arXiv:1910.00177; bounded at 100 by IQL, arXiv:2110.06169, eq. 7.
    """
    return (inverse_temperature * advantage).exp().clamp(max=max_weight)


def q_scale(q: Tensor, *, alpha: float = 1.0) -> Tensor:
    """alpha / mean|q| over the batch, the last axis, which stays with size 1; no gradient, unitless times alpha.

    Makes the pull of a critic on a policy the same whatever the scale of the rewards. TD3+BC, arXiv:2106.06860, eq. 5.
    """
    return alpha / q.detach().abs().mean(-1, keepdim=True)

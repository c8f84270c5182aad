"""Weights on samples, per element."""

from __future__ import annotations

from torch import Tensor


def awr_weight(advantage: Tensor, *, inverse_temperature: float, max_weight: float) -> Tensor:
    """min(exp(inverse_temperature * advantage), max_weight), unitless; same shape.

    inverse_temperature: 1 / return units.
    Source: advantage-weighted regression, arXiv:1910.00177; bounded at 100 by IQL, arXiv:2110.06169, eq. 7.
    """
    return (inverse_temperature * advantage).exp().clamp(max=max_weight)

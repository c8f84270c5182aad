"""Random preferences over M objectives: points of the simplex, made of noise that the caller draws."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def positive_preferences(normal: Tensor) -> Tensor:
    """|normal| over its sum, [..., M]: directions even on the positive part of the sphere, scaled to sum to 1.

    Source: the authors' code of CAPQL, Lu et al. 2023.
    """
    size = normal.abs()
    return size / size.sum(-1, keepdim=True)


def cone_preferences(normal: Tensor, uniform: Tensor, *, angle: float) -> Tensor:
    """Directions at most `angle` rad from that of equal shares, scaled to sum to 1, [..., M]; the angle is even.

    normal:  [..., M] standard normal, which way.
    uniform: [...] in [0, 1), how far.
    angle:   at most `widest_cone(M)`, else entries may be negative.
    Source: as above, its default with 22.5 degrees.
    """
    m = normal.shape[-1]
    across = normal - normal.mean(-1, keepdim=True)
    across = across / across.norm(dim=-1, keepdim=True)
    return (1.0 + torch.tan(uniform * angle).unsqueeze(-1) * across * math.sqrt(m)) / m


def widest_cone(objectives: int) -> float:
    """The largest angle, rad, at which no preference has a negative entry."""
    return math.asin(1.0 / math.sqrt(objectives))

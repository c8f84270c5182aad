"""Paths from noise to data. Time t runs from 0, noise, to 1, data."""

from __future__ import annotations

from torch import Tensor

from ctrlrl.functional.checks import same_shape


def sample_path(x1: Tensor, x0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The point (1 - t) * x0 + t * x1 of the straight path, and the velocity x1 - x0 there; both of the shape of x1.

    x1: data [..., A]. x0: noise of the same shape. t: [..., 1] in [0, 1].
    Source: rectified flow, arXiv:2209.03003, eq. 1.
    """
    same_shape("sample_path", x1=x1, x0=x0)
    return (1.0 - t) * x0 + t * x1, x1 - x0

"""Paths from noise to data and what the velocities along them tell. Time t runs from 0, noise, to 1, data.

PolicyFlow's trigonometric path alone ends at pi / 2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ctrlrl.functional.checks import same_shape

PATHS = ("straight", "interpolant", "trigonometric")
END_TIMES = {"straight": 1.0, "interpolant": 1.0, "trigonometric": 0.5 * math.pi}


def sample_path(x1: Tensor, x0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The point (1 - t) * x0 + t * x1 of the straight path, and the velocity x1 - x0 there; both of the shape of x1.

    x1: data [..., A]. x0: noise of the same shape. t: [..., 1] in [0, 1].
    Source: rectified flow, arXiv:2209.03003, eq. 1.
    """
    same_shape("sample_path", x1=x1, x0=x0)
    return (1.0 - t) * x0 + t * x1, x1 - x0


def path_point(path: str, x1: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """Where a path from x0 to x1 is at time t; the shape of x1.

    straight (1 - t) x0 + t x1, interpolant: the same plus sqrt(2 t (1 - t)) times fresh noise, trigonometric
    cos(t) x0 + sin(t) x1. t: [..., 1] in [0, END_TIMES[path]]. Source: PolicyFlow, arXiv:2602.01156, and its code.
    """
    if path == "trigonometric":
        same_shape("path_point", x1=x1, x0=x0)
        return t.cos() * x0 + t.sin() * x1
    point, _ = sample_path(x1, x0, t)
    if path == "interpolant":
        point = point + (2.0 * t * (1.0 - t)).sqrt() * torch.randn_like(x1)
    return point


def velocity_log_ratio(noise: Tensor, change: Tensor, log_std: Tensor, old_log_std: Tensor) -> Tensor:
    """log N(noise; change, std) - log N(noise; 0, old std), summed over the last axis: [...] nats.

    noise: what was added to the old flow's sample to make the action [..., A]. change: how much the velocity at one
    point of the path has grown since [..., A]; its mean over t stands for the shift of the flow's end, to first
    order where the field does not depend on the point, else up to the flow's Jacobian (for v = x, a change c shifts
    the end by (e - 1) c), and on a path of length 1: the end of the trigonometric one, of pi/2, shifts pi/2 times as
    far. The log standard deviations broadcast against them. Exactly 0 where nothing has changed.
    Source: PolicyFlow, arXiv:2602.01156, eq. 8-13.
    """
    same_shape("velocity_log_ratio", noise=noise, change=change)
    now, then = (noise - change) * torch.exp(-log_std), noise * torch.exp(-old_log_std)
    return (0.5 * (then.square() - now.square()) + (old_log_std - log_std)).sum(-1)


def brownian_residual(path: str, point: Tensor, t: Tensor, velocity: Tensor, old_velocity: Tensor) -> Tensor:
    """How far the velocity is from the heat flow of the old flow's density, times (1 - t): 0 for a spreading field.

    Straight path: (1 - t) velocity - (x - t old_velocity), since the old score is (t old_velocity - x) / (1 - t) and a
    density that diffuses moves along minus its score. point [..., A], t [..., 1]; the shape of point.
    Source: PolicyFlow, arXiv:2602.01156, eq. 14-16 (as Algorithm 1 and the code have it, not the printed eq. 16); the
    other two paths are the code's.
    """
    same_shape("brownian_residual", point=point, velocity=velocity, old_velocity=old_velocity)
    if path == "trigonometric":
        return t.cos() * velocity - (t.cos() * point - t.sin() * old_velocity)
    weight = 1.0 - t if path == "straight" else 2.0 * (t - 0.5).square() + 0.5
    return weight * velocity - (point - t * old_velocity)


def predicted_noise(point: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """The noise that a straight path through `point` with this velocity began at: x - t u; the shape of point.

    t: [..., 1] in [0, 1]. Source: FPO, arXiv:2507.21053, whose time runs from 1 to 0.
    """
    return point - t * velocity

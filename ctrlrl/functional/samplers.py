"""From noise to samples: integrators of a learned velocity field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor


def euler(velocity: Callable[[Tensor, float], Tensor], x: Tensor, times: Sequence[float]) -> Tensor:
    """Explicit Euler along dx/dt = velocity(x, t) from times[0] to times[-1]; the shape of x.

    x: where it starts, noise for times that rise from 0. The field is asked at every time but the last.
    """
    for now, then in pairwise(times):
        x = x + (then - now) * velocity(x, now)
    return x


def midpoint(velocity: Callable[[Tensor, float], Tensor], x: Tensor, times: Sequence[float]) -> Tensor:
    """The explicit midpoint rule along dx/dt = velocity(x, t); the shape of x. Two evaluations a step, error O(step^2).

    The field is asked at times[i] and half-way to times[i + 1].
    """
    for now, then in pairwise(times):
        step = then - now
        half = x + 0.5 * step * velocity(x, now)
        x = x + step * velocity(half, now + 0.5 * step)
    return x


def uniform_times(n_steps: int, end: float = 1.0) -> list[float]:
    """0, end / n, ..., end."""
    return [end * i / n_steps for i in range(n_steps + 1)]

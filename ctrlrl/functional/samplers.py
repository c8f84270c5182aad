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


def uniform_times(n_steps: int) -> list[float]:
    """0, 1 / n, ..., 1."""
    return [i / n_steps for i in range(n_steps + 1)]

"""What a sample costs, found by running its sampler without a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ctrlrl.policies.diffusion import Noise, Predict


class Rehearsal(NamedTuple):
    levels: list[float]  # at which the network is asked, in turn
    n_draws: int  # of fresh noise, the start's not among them


def rehearsed(solve: Callable[[Predict, Tensor, Noise], Tensor]) -> Rehearsal:
    """solve: a process's `sample` or `resume`."""
    levels: list[float] = []
    draws: list[Tensor] = []

    def predict(x: Tensor, level: float) -> Tensor:
        levels.append(level)
        return x

    def noise(x: Tensor) -> Tensor:
        draws.append(x)
        return x

    solve(predict, torch.zeros(1, 1, 1), noise)
    return Rehearsal(levels, len(draws))

"""The seeding of a process, and the random numbers of an update: the default generator's, or a stream a seed."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor


def seed_generators(seed: int | None) -> None:
    """Python's, NumPy's (NumPy takes 32 bits of it) and torch's; None leaves them alone."""
    if seed is not None:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)


class Randomness:
    """With `streams`, the numbers of seed s are those that its own run would have drawn."""

    def __init__(self, streams: list[torch.Generator] | None = None):
        self.streams = streams

    def randn_like(self, x: Tensor) -> Tensor:
        """Standard normal, x: [..., A], or [S, ..., A] with S streams."""
        if self.streams is None:
            return torch.randn_like(x)
        shape = x.shape[1:]
        return torch.stack([torch.randn(shape, generator=g, dtype=x.dtype, device=x.device) for g in self.streams])

    def rand_like(self, x: Tensor) -> Tensor:
        """Uniform in [0, 1)."""
        if self.streams is None:
            return torch.rand_like(x)
        shape = x.shape[1:]
        return torch.stack([torch.rand(shape, generator=g, dtype=x.dtype, device=x.device) for g in self.streams])

    def bernoulli_like(self, x: Tensor, p: float) -> Tensor:
        """1 with probability p, else 0."""
        if self.streams is None:
            return torch.empty_like(x).bernoulli_(p)
        rows = x.shape[1:]
        return torch.stack([x.new_empty(rows).bernoulli_(p, generator=g) for g in self.streams])

    def state_dict(self) -> dict[str, Tensor]:
        """Where the streams stand; the default generator is kept by whoever keeps the run."""
        return {str(i): g.get_state() for i, g in enumerate(self.streams or ())}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for i, g in enumerate(self.streams or ()):
            g.set_state(state[str(i)])

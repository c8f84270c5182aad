"""How a network is told how noisy its input is."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ctrlrl.nn.mish import Mish

LEVEL_CODES = ("steps", "times", "sigmas")


def level_rows(level: Tensor | float, like: Tensor) -> Tensor:
    """A level for every row [B], or one for all [1], as floats of the type and device of `like`."""
    if isinstance(level, Tensor):
        return level.to(like.dtype).reshape(-1)
    return torch.full((1,), float(level), dtype=like.dtype, device=like.device)


class SinusoidalEmbedding(nn.Module):
    """Levels [N] to sines and cosines [N, dim] of frequencies from 1 down to 1e-4 per step.

    code: what the levels are: "steps" 0 ... K - 1; "times" in [0, 1], times 1000 first, or the embedding would hardly
    change; "sigmas", deviations, as 250 times their logarithm (EDM's c_noise in thousandths). arXiv:1706.03762.
    """

    frequencies: Tensor

    def __init__(self, dim: int, *, code: str = "steps"):
        super().__init__()
        if dim < 4 or dim % 2:
            raise ValueError(f"embed_dim must be even and at least 4, got {dim}")
        if code not in LEVEL_CODES:
            raise ValueError(f"unknown level code {code!r}; known: {', '.join(LEVEL_CODES)}")
        self.code = code
        rates = torch.exp(-math.log(10000.0) / (dim // 2 - 1) * torch.arange(dim // 2))
        self.register_buffer("frequencies", rates, persistent=False)

    def forward(self, level: Tensor) -> Tensor:
        if self.code == "times":
            level = 1000.0 * level
        elif self.code == "sigmas":
            level = 250.0 * level.log()
        angle = level.unsqueeze(-1) * self.frequencies
        return torch.cat((angle.sin(), angle.cos()), -1)


class LevelMLP(nn.Sequential):
    """Levels [N] to [N, dim]: the sinusoidal embedding and two layers, `growth` times as wide between them."""

    def __init__(self, dim: int, *, growth: int, code: str = "steps"):
        super().__init__(
            SinusoidalEmbedding(dim, code=code), nn.Linear(dim, growth * dim), Mish(), nn.Linear(growth * dim, dim)
        )


class LearnedFourier(nn.Module):
    """Levels [N] to [N, 128]: cosines and sines of 32 learned frequencies, then two layers. IDQL's code."""

    dim = 128

    def __init__(self) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(0.2 * torch.randn(32))
        self.net = nn.Sequential(nn.Linear(64, self.dim), Mish(), nn.Linear(self.dim, self.dim))

    def forward(self, level: Tensor) -> Tensor:
        angle = 2.0 * math.pi * level.unsqueeze(-1) * self.frequencies
        return self.net(torch.cat((angle.cos(), angle.sin()), -1))

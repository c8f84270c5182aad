"""A U-Net that convolves an action chunk along time, conditioned by scales and shifts of its channels (FiLM).

Source: Diffusion Policy, arXiv:2303.04137, and its code (ConditionalUnet1D with a global condition).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctrlrl.nn.heads import Head
from ctrlrl.nn.levels import LevelMLP, level_rows
from ctrlrl.nn.mish import Mish

GROUPS = 8


class UNet1D(Head):
    """Residual convolution blocks at len(widths) resolutions, each half as long as the one above.

    All blocks' FiLM layers are one linear layer, so that the condition's part of it is computed once a decision.
    """

    def __init__(
        self,
        horizon: int,
        action_dim: int,
        condition_dim: int,
        *,
        widths: Sequence[int] = (256, 512, 1024),
        embed_dim: int = 256,
        kernel_size: int = 5,
        code: str = "steps",
    ):
        """code: what the levels are, as `SinusoidalEmbedding` has it."""
        super().__init__()
        if not widths or any(width < 1 or width % GROUPS for width in widths):
            raise ValueError(f"U-Net widths must be divisible by the {GROUPS} normalization groups, got {list(widths)}")
        factor = 2 ** (len(widths) - 1)
        if horizon % factor:
            raise ValueError(
                f"a U-Net of {len(widths)} resolutions needs a horizon divisible by {factor}, got {horizon}. "
                "Change the horizon, or give fewer widths."
            )
        self.embed_dim = embed_dim
        self.embed_level = LevelMLP(embed_dim, growth=4, code=code)
        self.mish = Mish()
        self.down = nn.ModuleList(_Stage(n_in, n_out, kernel_size) for n_in, n_out in pairwise((action_dim, *widths)))
        self.middle = _Stage(widths[-1], widths[-1], kernel_size)
        upwards = list(pairwise(reversed(widths)))
        self.up = nn.ModuleList(_Stage(2 * wide, narrow, kernel_size) for wide, narrow in upwards)
        self.halve = nn.ModuleList(nn.Conv1d(n, n, 3, stride=2, padding=1) for n in widths[:-1])
        self.lengthen = nn.ModuleList(nn.ConvTranspose1d(n, n, 4, stride=2, padding=1) for _, n in upwards)
        self.last = nn.Sequential(_convolution(widths[0], widths[0], kernel_size), nn.Conv1d(widths[0], action_dim, 1))
        stages = (*self.down, self.middle, *self.up)
        self.film_sizes = [2 * block.n_out for stage in stages for block in stage]
        self.film = nn.Linear(embed_dim + condition_dim, sum(self.film_sizes))

    def context(self, condition: Tensor) -> Tensor:
        return F.linear(self.mish(condition), self.film.weight[:, self.embed_dim :], self.film.bias)

    def at(self, x: Tensor, level: Tensor | float, context: Tensor) -> Tensor:
        emb = self.mish(self.embed_level(level_rows(level, x)))
        films = F.linear(emb, self.film.weight[:, : self.embed_dim]) + context
        film = iter(films.unsqueeze(-1).split(self.film_sizes, 1))
        h = x.transpose(1, 2)
        skips = []
        for i, stage in enumerate(self.down):
            h = stage(h, next(film), next(film))
            skips.append(h)
            if i < len(self.halve):
                h = self.halve[i](h)
        h = self.middle(h, next(film), next(film))
        for stage, lengthen in zip(self.up, self.lengthen, strict=True):
            h = lengthen(stage(torch.cat((h, skips.pop()), 1), next(film), next(film)))
        return self.last(h).transpose(1, 2)


class _Stage(nn.ModuleList):
    """Two residual blocks at one resolution."""

    def __init__(self, n_in: int, n_out: int, kernel_size: int):
        super().__init__([_Block(n_in, n_out, kernel_size), _Block(n_out, n_out, kernel_size)])

    def forward(self, x: Tensor, film: Tensor, second_film: Tensor) -> Tensor:
        first, second = self
        return second(first(x, film), second_film)


class _Block(nn.Module):
    """[N, n_in, H] to [N, n_out, H]: convolution, scale and shift [N, 2 n_out, 1], convolution, plus a skip."""

    def __init__(self, n_in: int, n_out: int, kernel_size: int):
        super().__init__()
        self.n_out = n_out
        self.first = _convolution(n_in, n_out, kernel_size)
        self.second = _convolution(n_out, n_out, kernel_size)
        self.skip = nn.Conv1d(n_in, n_out, 1) if n_in != n_out else nn.Identity()

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        scale, shift = film.split(self.n_out, 1)
        return self.second(scale * self.first(x) + shift) + self.skip(x)


def _convolution(n_in: int, n_out: int, kernel_size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(n_in, n_out, kernel_size, padding=kernel_size // 2), nn.GroupNorm(GROUPS, n_out), Mish()
    )

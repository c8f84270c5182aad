"""Networks that say what a noisy action chunk hides: (x [B, H, A], level, condition [B, C]) -> [B, H, A]."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ctrlrl.nn.levels import LearnedFourier, LevelMLP, level_rows
from ctrlrl.nn.mish import Mish
from ctrlrl.nn.mlp import NORM_EPS, lecun_uniform, mlp, torch_default


class Head(nn.Module):
    """The one signature of all heads. level: [B], or one number for all rows.

    A sampler asks for many levels of one condition: `context` is what can be computed once for all of them.
    """

    def forward(self, x: Tensor, level: Tensor | float, condition: Tensor) -> Tensor:
        return self.at(x, level, self.context(condition))

    def context(self, condition: Tensor) -> Tensor:
        """What `at` needs of the condition [B, C]; B on axis 0."""
        return condition

    def at(self, x: Tensor, level: Tensor | float, context: Tensor) -> Tensor:
        """The prediction [B, H, A] at the noisy chunk x [B, H, A]."""
        raise NotImplementedError


class _FlatHead(Head):
    """A network of [x flat, level, condition], its first layer a sum of their parts."""

    def __init__(self, horizon: int, action_dim: int, level_dim: int):
        super().__init__()
        self.n_x = horizon * action_dim
        self.n_known = self.n_x + level_dim
        self.embed_level: nn.Module
        self.first: nn.Linear
        self.rest: nn.Module

    def context(self, condition: Tensor) -> Tensor:
        return F.linear(condition, self.first.weight[:, self.n_known :], self.first.bias)

    def at(self, x: Tensor, level: Tensor | float, context: Tensor) -> Tensor:
        weight = self.first.weight
        of_level = F.linear(self.embed_level(level_rows(level, x)), weight[:, self.n_x : self.n_known])
        hidden = F.linear(x.flatten(1), weight[:, : self.n_x]) + of_level + context
        return self.rest(hidden).view_as(x)


class MLPHead(_FlatHead):
    """An MLP over the whole chunk. Sizes and level embedding of Diffusion-QL, arXiv:2208.06193."""

    def __init__(
        self,
        horizon: int,
        action_dim: int,
        condition_dim: int,
        *,
        hidden: Sequence[int] = (256, 256, 256),
        embed_dim: int = 16,
        code: str = "steps",
        activation: str = "mish",
    ):
        """code: what the levels are, as `SinusoidalEmbedding` has it."""
        super().__init__(horizon, action_dim, embed_dim)
        self.embed_level = LevelMLP(embed_dim, growth=2, code=code)
        sizes = (self.n_known + condition_dim, *hidden, self.n_x)
        net = mlp(sizes, activation=activation, init=torch_default)
        assert isinstance(net[0], nn.Linear)
        self.first, self.rest = net[0], net[1:]


class ResidualHead(_FlatHead):
    """Residual blocks with LayerNorm over the whole chunk, and learned Fourier features of the level.

    Source: IDQL, arXiv:2304.10573; the order within a block and the start of the weights are its code's (that draws
    the blocks' weights from a normal law of the same variance).
    """

    def __init__(
        self,
        horizon: int,
        action_dim: int,
        condition_dim: int,
        *,
        width: int = 256,
        n_blocks: int = 3,
        dropout: float = 0.1,
    ):
        super().__init__(horizon, action_dim, LearnedFourier.dim)
        self.embed_level = LearnedFourier()
        self.first = nn.Linear(self.n_known + condition_dim, width)
        last = nn.Linear(width, self.n_x)
        for layer in (self.first, last):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.rest = nn.Sequential(*(_ResidualBlock(width, dropout) for _ in range(n_blocks)), Mish(), last)


class _ResidualBlock(nn.Module):
    def __init__(self, width: int, dropout: float):
        super().__init__()
        wide, narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        for layer in (wide, narrow):
            lecun_uniform(layer, False)
        self.net = nn.Sequential(nn.Dropout(dropout), nn.LayerNorm(width, eps=NORM_EPS), wide, Mish(), narrow)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)

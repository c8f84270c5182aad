"""Velocity fields of flows in action space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctrlrl.nn.mish import Mish
from ctrlrl.nn.mlp import Init, mlp, torch_default


class VelocityField(nn.Module):
    """u(s, x, t): [..., O], [..., A] and a time, [..., 1] or one number for all, -> [..., A] per unit of time."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        *,
        activation: str = "gelu",
        init: Init = torch_default,
    ):
        super().__init__()
        self.net = mlp((obs_dim + action_dim + 1, *hidden, action_dim), activation=activation, init=init)

    def forward(self, obs: Tensor, x: Tensor, t: Tensor | float) -> Tensor:
        if not isinstance(t, Tensor):
            t = torch.full_like(x[..., :1], t)
        return self.net(torch.cat((obs, x, t), -1)).float()


class SplitVelocity(nn.Module):
    """u(s, x, t) by an MLP whose first layer is a sum of a part of s, one of t and one of x.

    `context` is computed once for all points of one state, `time` once for all rows of one time; both are [..., H] with
    H the width of the first layer.
    """

    def __init__(self, n_known: int, action_dim: int, hidden: Sequence[int], *, activation: str, **init: Any):
        """n_known: inputs besides x. init: as `mlp` takes it."""
        super().__init__()
        self.action_dim = action_dim
        net = mlp((action_dim + n_known, *hidden, action_dim), activation=activation, **init)
        assert isinstance(net[0], nn.Linear)
        self.first, self.rest = net[0], net[1:]

    def context(self, obs: Tensor) -> Tensor:
        """The first layer's part of the state [..., O], its bias included."""
        raise NotImplementedError

    def time(self, t: Tensor) -> Tensor:
        """The first layer's part of the times [...]."""
        raise NotImplementedError

    def at(self, known: Tensor, x: Tensor, time: Tensor | None = None) -> Tensor:
        """Velocities at points [..., A], float32. known [..., H]: all that is not x, but for the `time` [H] of all."""
        return self.rest(F.linear(x, self.first.weight[:, : self.action_dim], time).add_(known)).float()


class FourierVelocity(SplitVelocity):
    """The MLP sees x and e = FourierTime(t) + Linear(s). PolicyFlow, arXiv:2602.01156."""

    def __init__(
        self, obs_dim: int, action_dim: int, hidden: Sequence[int], *, embed_dim: int, activation: str, **init: Any
    ):
        super().__init__(embed_dim, action_dim, hidden, activation=activation, **init)
        self.embed_obs = nn.Linear(obs_dim, embed_dim)
        self.embed_time = FourierTime(embed_dim)

    def context(self, obs: Tensor) -> Tensor:
        return F.linear(*self._state(obs))

    def on_grid(self, obs: Tensor, x: Tensor, grid: Tensor, place: Tensor) -> Tensor:
        """Velocities at points x [N, A] and times grid[place] of states [N, O], the first layer in one product.

        grid [n]; place [N] int64. An update asks each state once: adding up the layer's parts would cost more memory
        traffic than the product does.
        """
        state, weight, bias = self._state(obs)
        rows = torch.cat((x, state, F.one_hot(place, len(grid)).to(x.dtype)), -1)
        columns = torch.cat((self.first.weight[:, : self.action_dim].t(), weight.t(), self.time(grid)))
        return self.rest(torch.addmm(bias, rows, columns)).float()

    def _state(self, obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, weight and bias whose linear map is the first layer's part of the state."""
        weight, embed = self.first.weight[:, self.action_dim :], self.embed_obs
        if obs.shape[-1] >= weight.shape[1]:
            return embed(obs), weight, self.first.bias
        # two linear layers in a row are one, and a narrow one: a fifth of an update's products less
        return obs, weight @ embed.weight, self.first.bias + weight @ embed.bias

    def time(self, t: Tensor) -> Tensor:
        return F.linear(self.embed_time(t), self.first.weight[:, self.action_dim :])


class CosineVelocity(SplitVelocity):
    """`scale` times the MLP of x, s and cos(2^k t), sin(2^k t), k = 0 ... n_frequencies - 1. FPO, arXiv:2507.21053."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        *,
        n_frequencies: int,
        scale: float,
        activation: str,
        **init: Any,
    ):
        super().__init__(obs_dim + 2 * n_frequencies, action_dim, hidden, activation=activation, **init)
        self.obs_end, self.n_frequencies, self.scale = action_dim + obs_dim, n_frequencies, scale

    def context(self, obs: Tensor) -> Tensor:
        return F.linear(obs, self.first.weight[:, self.action_dim : self.obs_end], self.first.bias)

    def time(self, t: Tensor) -> Tensor:
        angle = t.unsqueeze(-1) * 2.0 ** torch.arange(self.n_frequencies, device=t.device)
        return F.linear(torch.cat((angle.cos(), angle.sin()), -1), self.first.weight[:, self.obs_end :])

    def at(self, known: Tensor, x: Tensor, time: Tensor | None = None) -> Tensor:
        return self.scale * super().at(known, x, time)


class FourierTime(nn.Module):
    """Times [...] to [..., dim]: cosines and sines of dim / 8 fixed random frequencies, then two layers.

    Source: CleanDiffuser's FourierEmbedding, scale 16. That PolicyFlow uses exactly this one is not verified.
    """

    frequencies: Tensor

    def __init__(self, dim: int, *, scale: float = 16.0):
        super().__init__()
        if dim < 8 or dim % 8:
            raise ValueError(f"embed_dim must be a multiple of 8, got {dim}")
        self.register_buffer("frequencies", 2.0 * math.pi * scale * torch.randn(dim // 8))
        self.net = nn.Sequential(nn.Linear(dim // 4, dim), Mish(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        angle = t.unsqueeze(-1) * self.frequencies
        return self.net(torch.cat((angle.cos(), angle.sin()), -1))

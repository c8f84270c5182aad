"""State-value and action-value networks. Values are float32, their last product too, also under autocast."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ctrlrl.nn.mlp import Init, mlp, torch_default


class ValueCritic(nn.Module):
    """V(s): [..., O] -> [...]."""

    def __init__(
        self,
        obs_dim: int,
        hidden: Sequence[int],
        *,
        activation: str,
        orthogonal: bool = True,
        init: Init | None = None,
        norm: str = "none",
    ):
        super().__init__()
        sizes = (obs_dim, *hidden, 1)
        self.net = mlp(sizes, activation=activation, orthogonal=orthogonal, init=init, norm=norm, values=True)

    def forward(self, obs: Tensor) -> Tensor:
        return self.net(obs).squeeze(-1)


class ValueHeads(nn.Module):
    """K values on one trunk: [..., O] -> [..., K].

    The last one is a layer of its own, so that trunk and last head together are, number for number, the `ValueCritic`
    that the same seed makes.
    """

    def __init__(self, obs_dim: int, hidden: Sequence[int], n: int, *, activation: str, orthogonal: bool = True):
        super().__init__()
        kwargs: dict[str, Any] = {"activation": activation, "orthogonal": orthogonal}
        # a trunk's last layer is hidden, so it keeps the hidden gain
        self.trunk = mlp((obs_dim, *hidden), output_gain=math.sqrt(2.0), activate_last=True, **kwargs)
        width = hidden[-1] if hidden else obs_dim
        self.last = mlp((width, 1), values=True, **kwargs)
        self.others = mlp((width, n - 1), values=True, **kwargs)

    def forward(self, obs: Tensor) -> Tensor:
        latent = self.trunk(obs)
        return torch.cat((self.others(latent), self.last(latent)), dim=-1)


class VectorCritic(nn.Module):
    """One value for each of M objectives: [..., O] -> [..., M]. With M = 1 it has `ValueCritic`'s numbers."""

    def __init__(self, obs_dim: int, hidden: Sequence[int], n: int, *, activation: str, orthogonal: bool = True):
        super().__init__()
        self.net = mlp((obs_dim, *hidden, n), activation=activation, orthogonal=orthogonal, values=True)

    def forward(self, obs: Tensor) -> Tensor:
        return self.net(obs)


class ValueMedianCritic(nn.Module):
    """V(s) and a soft median mu(s) of the returns: [..., O] -> [..., 2]. arXiv:2604.18578, Algorithm 1.

    shared: mu's own layers stand on the value network's latent, so its loss also trains the trunk (the authors' SB3
    variant); otherwise two separate networks (their rsl_rl variant).
    """

    def __init__(
        self,
        obs_dim: int,
        hidden: Sequence[int],
        median_hidden: Sequence[int],
        *,
        activation: str,
        orthogonal: bool = True,
        shared: bool = True,
    ):
        super().__init__()
        self.shared = shared
        # a trunk's last layer is hidden, so it keeps the hidden gain
        self.trunk = mlp(
            (obs_dim, *hidden),
            activation=activation,
            output_gain=math.sqrt(2.0),
            orthogonal=orthogonal,
            activate_last=True,
        )
        kwargs: dict[str, Any] = {"activation": activation, "orthogonal": orthogonal, "values": True}
        self.value = mlp((hidden[-1], 1), **kwargs)
        self.median = mlp((hidden[-1] if shared else obs_dim, *median_hidden, 1), **kwargs)
        if orthogonal and shared:  # the authors' SB3 code initialises every median layer with gain 1
            for layer in self.median:
                if isinstance(layer, nn.Linear):
                    nn.init.orthogonal_(layer.weight, 1.0)

    def forward(self, obs: Tensor) -> Tensor:
        latent = self.trunk(obs)
        median = self.median(latent if self.shared else obs)
        return torch.cat((self.value(latent), median), dim=-1)


class QCritic(nn.Module):
    """K action values Q_k(s, a): [..., O] and [..., A] -> [K, ...]. Separate networks: on a CPU as fast as products of
    stacked matrices, and each of them can be asked alone.

    width: M > 1 for a value of each of M objectives, [K, ..., M].
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        *,
        n: int = 2,
        activation: str = "relu",
        init: Init = torch_default,
        norm: str = "none",
        width: int = 1,
    ):
        super().__init__()
        self.width = width
        sizes = (obs_dim + action_dim, *hidden, width)
        self.heads = nn.ModuleList(
            mlp(sizes, activation=activation, init=init, norm=norm, values=True) for _ in range(n)
        )

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        x = torch.cat((obs, action), -1)
        if self.width > 1:
            return torch.stack([head(x) for head in self.heads])
        return torch.stack([head(x).squeeze(-1) for head in self.heads])

    def first(self, obs: Tensor, action: Tensor) -> Tensor:
        """Q_1 alone, [...]: what the policies of the TD3 family climb."""
        return self.heads[0](torch.cat((obs, action), -1)).squeeze(-1)

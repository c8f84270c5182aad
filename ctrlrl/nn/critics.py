"""State-value networks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ctrlrl.nn.mlp import mlp


class ValueCritic(nn.Module):
    """V(s): [..., O] -> [...]."""

    def __init__(self, obs_dim: int, hidden: Sequence[int], *, activation: str, orthogonal: bool = True):
        super().__init__()
        self.net = mlp((obs_dim, *hidden, 1), activation=activation, output_gain=1.0, orthogonal=orthogonal)

    def forward(self, obs: Tensor) -> Tensor:
        return self.net(obs).float().squeeze(-1)


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
        self.value = mlp((hidden[-1], 1), activation=activation, output_gain=1.0, orthogonal=orthogonal)
        n_in = hidden[-1] if shared else obs_dim
        self.median = mlp((n_in, *median_hidden, 1), activation=activation, output_gain=1.0, orthogonal=orthogonal)
        if orthogonal and shared:  # the authors' SB3 code initialises every median layer with gain 1
            for layer in self.median:
                if isinstance(layer, nn.Linear):
                    nn.init.orthogonal_(layer.weight, 1.0)

    def forward(self, obs: Tensor) -> Tensor:
        latent = self.trunk(obs)
        median = self.median(latent if self.shared else obs)
        return torch.cat((self.value(latent), median), dim=-1).float()

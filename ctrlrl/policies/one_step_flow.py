"""A policy that maps noise to an action in one network call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ctrlrl.nn.mlp import Init, mlp, torch_default
from ctrlrl.types import PolicyOutput


class OneStepFlowPolicy(nn.Module):
    """mu(s, z), z ~ N(0, I): the distilled end point of a flow that starts at z. FQL, arXiv:2502.02538."""

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
        self.action_dim = action_dim
        self.net = mlp((obs_dim + action_dim, *hidden, action_dim), activation=activation, init=init)

    def forward(self, obs: Tensor, noise: Tensor) -> Tensor:
        """[..., O] and [..., A] -> [..., A], which may leave the box."""
        return self.net(torch.cat((obs, noise), -1)).float()

    def act(self, obs: Tensor, *, deterministic: bool = False) -> PolicyOutput:
        """Clipped into the box. The deterministic action belongs to z = 0, the most probable noise."""
        noise = obs.new_zeros(*obs.shape[:-1], self.action_dim)
        if not deterministic:
            noise.normal_()
        return PolicyOutput(self(obs, noise).clamp(-1.0, 1.0), None, {})

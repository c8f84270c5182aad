"""Velocity fields of flows in action space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

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

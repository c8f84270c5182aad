"""A policy without noise: one action per observation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ctrlrl.nn.mlp import Init, mlp, torch_default
from ctrlrl.types import PolicyOutput


class DeterministicPolicy(nn.Module):
    """tanh(net(s)): [..., O] -> [..., A] in [-1, 1]."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        *,
        activation: str = "relu",
        init: Init = torch_default,
        norm: str = "none",
        dropout: float = 0.0,
    ):
        super().__init__()
        sizes = (obs_dim, *hidden, action_dim)
        self.net = mlp(sizes, activation=activation, init=init, norm=norm, dropout=dropout)

    def forward(self, obs: Tensor) -> Tensor:
        return self.net(obs).float().tanh()

    def act(self, obs: Tensor, *, deterministic: bool = False) -> PolicyOutput:
        return PolicyOutput(self(obs), None, {})

"""A conditional variational autoencoder of actions given states."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ctrlrl.nn.mlp import mlp, torch_default

LOG_STD_BOUNDS = (-4.0, 15.0)


class ActionVAE(nn.Module):
    """Encoder (s, a) -> Gaussian over L numbers, decoder (s, z) -> action in [-1, 1]. BCQ's, arXiv:1812.02900."""

    def __init__(self, obs_dim: int, action_dim: int, latent_dim: int, hidden: Sequence[int]):
        super().__init__()
        sizes = (obs_dim + action_dim, *hidden)
        self.encoder = mlp(sizes, activation="relu", init=torch_default, activate_last=True)
        self.moments = nn.Linear(sizes[-1], 2 * latent_dim)
        self.decoder = mlp((obs_dim + latent_dim, *hidden, action_dim), activation="relu", init=torch_default)

    def encode(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-deviation of the latent, [..., L] each."""
        mean, log_std = self.moments(self.encoder(torch.cat((obs, action), -1))).float().chunk(2, -1)
        return mean, log_std.clamp(*LOG_STD_BOUNDS)

    def decode(self, obs: Tensor, latent: Tensor) -> Tensor:
        """[..., A]"""
        return self.decoder(torch.cat((obs, latent), -1)).float().tanh()

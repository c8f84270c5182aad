"""Diagonal Gaussian policy with a state-independent standard deviation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ctrlrl.functional import distributions as dist
from ctrlrl.nn.mlp import mlp
from ctrlrl.types import Extras, PolicyOutput


class GaussianPolicy(nn.Module):
    """N(mean(s), std): the stored action is the unclipped sample; environments clip what they receive."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        *,
        activation: str,
        log_std_init: float = 0.0,
        orthogonal: bool = True,
    ):
        super().__init__()
        self.mean = mlp((obs_dim, *hidden, action_dim), activation=activation, output_gain=0.01, orthogonal=orthogonal)
        self.log_std = nn.Parameter(torch.full((action_dim,), float(log_std_init)))

    def act(self, obs: Tensor, *, deterministic: bool = False) -> PolicyOutput:
        """obs [B, O] -> action [B, A]; log_prob is None for a deterministic action."""
        mean = self.mean(obs).float()
        if deterministic:
            return PolicyOutput(mean, None, {})
        action = dist.gaussian_sample(mean, self.log_std)
        log_prob = dist.gaussian_log_prob(action, mean, self.log_std)
        return PolicyOutput(action, log_prob, {"mean": mean, "log_std": self.log_std.expand_as(mean)})

    def log_prob(self, obs: Tensor, action: Tensor) -> Tensor:
        return dist.gaussian_log_prob(action, self.mean(obs).float(), self.log_std)

    def evaluate(self, obs: Tensor, action: Tensor, old: Extras) -> tuple[Tensor, Tensor, Tensor | None]:
        """log_prob [N], entropy [N], and KL(old || new) [N] when `old` holds the acting policy's mean and log_std."""
        mean = self.mean(obs).float()
        log_prob = dist.gaussian_log_prob(action, mean, self.log_std)
        kl = None
        if "mean" in old:
            kl = dist.gaussian_kl(old["mean"], old["log_std"], mean.detach(), self.log_std.detach())
        return log_prob, dist.gaussian_entropy(self.log_std).expand_as(log_prob), kl

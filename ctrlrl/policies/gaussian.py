"""Diagonal Gaussian policies with a state-independent standard deviation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ctrlrl.functional import distributions as dist
from ctrlrl.nn.mlp import Init, mlp, torch_default
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


class BoundedGaussianPolicy(nn.Module):
    """N(mean(s), std) with a free log std held in bounds; the density is not squashed, even where the mean is tanh.

    A tanh-squashed density would have log pi(a) explode for actions of a data set that lie at +-1 (IQL,
    arXiv:2110.06169, the authors' code).
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        *,
        activation: str = "relu",
        log_std_bounds: tuple[float, float],
        squash_mean: bool = True,
        init: Init = torch_default,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.squash_mean, self.log_std_bounds = squash_mean, log_std_bounds
        self.net = mlp((obs_dim, *hidden, action_dim), activation=activation, init=init, dropout=dropout)
        self.log_std = nn.Parameter(torch.zeros(action_dim))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [..., A] and log std, which broadcasts against it."""
        mean = self.net(obs).float()
        return mean.tanh() if self.squash_mean else mean, self.log_std.clamp(*self.log_std_bounds)

    def act(self, obs: Tensor, *, deterministic: bool = False) -> PolicyOutput:
        mean, log_std = self(obs)
        if deterministic:
            return PolicyOutput(mean.clamp(-1.0, 1.0), None, {})
        action = dist.gaussian_sample(mean, log_std)
        return PolicyOutput(action, dist.gaussian_log_prob(action, mean, log_std), {})

    def log_prob(self, obs: Tensor, action: Tensor) -> Tensor:
        mean, log_std = self(obs)
        return dist.gaussian_log_prob(action, mean, log_std)

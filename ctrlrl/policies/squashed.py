"""The tanh-squashed Gaussian of SAC and its descendants: a standard deviation for every state."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ctrlrl.functional import distributions as dist
from ctrlrl.nn.mlp import Init, mlp, torch_default
from ctrlrl.types import PolicyOutput


class SquashedGaussianPolicy(nn.Module):
    """tanh(u), u ~ N(mean(s), std(s)), in (-1, 1). SAC, arXiv:1801.01290, appendix C.

    log_std_bounds: log std is clipped into them.
    affine_log_std: log std = scale * net(s) + offset before the clip, two learned numbers that start at 1 and -1 (the
    code that CQL's and Cal-QL's results come from).
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        *,
        activation: str = "relu",
        log_std_bounds: tuple[float, float] = (-20.0, 2.0),
        affine_log_std: bool = False,
        init: Init = torch_default,
    ):
        super().__init__()
        self.log_std_bounds, self.affine_log_std = log_std_bounds, affine_log_std
        self.net = mlp((obs_dim, *hidden, 2 * action_dim), activation=activation, init=init)
        if affine_log_std:
            self.log_std_scale = nn.Parameter(torch.ones(1))
            self.log_std_offset = nn.Parameter(-torch.ones(1))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log std of u, [..., O] -> [..., A] each."""
        mean, log_std = self.net(obs).float().chunk(2, -1)
        if self.affine_log_std:
            log_std = self.log_std_scale * log_std + self.log_std_offset
        return mean, log_std.clamp(*self.log_std_bounds)

    def act(self, obs: Tensor, *, deterministic: bool = False) -> PolicyOutput:
        """The deterministic action is tanh(mean), the median."""
        mean, log_std = self(obs)
        if deterministic:
            return PolicyOutput(mean.tanh(), None, {})
        action, log_prob = dist.tanh_gaussian_sample(mean, log_std)
        return PolicyOutput(action, log_prob, {})

    def log_prob(self, obs: Tensor, action: Tensor) -> Tensor:
        return dist.tanh_gaussian_log_prob(action, *self(obs))

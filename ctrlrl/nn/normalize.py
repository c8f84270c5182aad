"""Running moments of observations and the running scale of rewards.

Both change only when `merge` is called. The on-policy core calls it once per iteration, after the update, so acting and
learning see one and the same normaliser and the first probability ratio of an update is exactly 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class RunningMoments(nn.Module):
    """Mean and variance of all samples so far, by the parallel-variance update (Chan et al.) in float64."""

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, *shape: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("var", torch.ones(shape, dtype=torch.float64))
        self.register_buffer("count", torch.tensor(1e-4, dtype=torch.float64))  # SB3's initial pseudo-count
        # moments of one process to those of all, [...] -> [R, ...], where several merge what each of them saw
        self.gather: Callable[[Tensor], Tensor] | None = None

    @torch.no_grad()
    def merge(self, x: Tensor) -> None:
        """x: [N, *shape] samples."""
        n = x.shape[0]
        # float32 sums are exact enough per column and 10x cheaper than converting a million rows to float64
        var, mean = torch.var_mean(x, dim=0, unbiased=False)
        if self.gather is None:
            self._merge(n, mean.double(), var.double())
            return
        own = torch.stack((torch.full_like(mean, n, dtype=torch.float64), mean.double(), var.double()))
        for n_of, mean_of, var_of in self.gather(own):
            self._merge(n_of.reshape(-1)[0], mean_of, var_of)

    def _merge(self, n: Tensor | int, mean: Tensor, var: Tensor) -> None:
        delta = mean - self.mean
        total = self.count + n
        self.var.copy_((self.var * self.count + var * n + delta.square() * self.count * n / total) / total)
        self.mean.add_(delta * n / total)
        self.count.copy_(total)


class ObsNormalizer(nn.Module):
    """clip((obs - mean) / sqrt(var + eps), -clip, clip); identity until the first merge."""

    shift: Tensor
    scale: Tensor

    def __init__(self, obs_dim: int, *, clip: float = 10.0, eps: float = 1e-8):
        super().__init__()
        self.clip, self.eps = clip, eps
        self.moments = RunningMoments(obs_dim)
        self.register_buffer("shift", torch.zeros(obs_dim))
        self.register_buffer("scale", torch.ones(obs_dim))

    def forward(self, obs: Tensor) -> Tensor:
        return ((obs - self.shift) * self.scale).clamp(-self.clip, self.clip)

    @torch.no_grad()
    def merge(self, obs: Tensor) -> None:
        """obs: [N, O] raw observations of one rollout."""
        self.moments.merge(obs)
        self.shift.copy_(self.moments.mean)
        self.scale.copy_((self.moments.var + self.eps).rsqrt())


class DataNormalizer(nn.Module):
    """(obs - mean) / (std + eps) with a data set's statistics; identity until `fit`. TD3+BC's, arXiv:2106.06860."""

    shift: Tensor
    scale: Tensor

    def __init__(self, obs_dim: int, *, eps: float = 1e-3):
        super().__init__()
        self.eps = eps
        self.register_buffer("shift", torch.zeros(obs_dim))
        self.register_buffer("scale", torch.ones(obs_dim))

    def forward(self, obs: Tensor) -> Tensor:
        return (obs - self.shift) * self.scale

    @torch.no_grad()
    def fit(self, obs: Tensor) -> None:
        """obs: [N, O] the whole data set; its population statistics, summed in float64."""
        blocks = obs.split(2**16)
        mean = torch.stack([block.double().sum(0) for block in blocks]).sum(0) / len(obs)
        var = torch.stack([(block.double() - mean).square().sum(0) for block in blocks]).sum(0) / len(obs)
        self.shift.copy_(mean)
        self.scale.copy_(1.0 / (var.sqrt() + self.eps))


class Identity(nn.Module):
    """The normaliser of an algorithm that wants raw observations."""

    def forward(self, obs: Tensor) -> Tensor:
        return obs

    def merge(self, obs: Tensor) -> None:
        pass


class RewardScaler(nn.Module):
    """Divides rewards by the deviation of the discounted return; the mean is not subtracted (SB3's VecNormalize)."""

    def __init__(self, *, clip: float = 10.0, eps: float = 1e-8):
        super().__init__()
        self.clip, self.eps = clip, eps
        self.moments = RunningMoments()

    def merge(self, discounted_returns: Tensor) -> None:
        """discounted_returns: [N] running sums G = gamma * G + r, before they are set to 0 at an episode's end."""
        self.moments.merge(discounted_returns)

    def forward(self, reward: Tensor) -> Tensor:
        scale = (self.moments.var + self.eps).rsqrt().to(reward.dtype)
        return (reward * scale).clamp(-self.clip, self.clip)

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
        var, mean = torch.var_mean(x, dim=0, unbiased=False) if n else (torch.zeros_like(x.sum(0)),) * 2
        if self.gather is None:
            self._merge(n, mean.double(), var.double())
            return
        own = torch.stack((torch.full_like(mean, n, dtype=torch.float64), mean.double(), var.double()))
        for n_of, mean_of, var_of in self.gather(own):
            self._merge(n_of.reshape(-1)[0], mean_of, var_of)

    def _merge(self, n: Tensor | int, mean: Tensor, var: Tensor) -> None:
        count = self.count.view((*self.count.shape, *[1] * (mean.ndim - self.count.ndim)))  # stacked ones have S
        delta = mean - self.mean
        total = count + n
        self.var.copy_((self.var * count + var * n + delta.square() * count * n / total) / total)
        self.mean.add_(delta * n / total)
        self.count.copy_(total.view(self.count.shape))


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


class MinMaxNormalizer(nn.Module):
    """The range of a data set, number by number, onto [-1, 1]; what hardly varies is only moved to 0. Identity until
    `fit`. Diffusion Policy's, arXiv:2303.04137.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, dim: int, *, least_range: float = 1e-4):
        super().__init__()
        self.least_range = least_range
        self.register_buffer("shift", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.shift) * self.scale

    def inverse(self, x: Tensor) -> Tensor:
        return x / self.scale + self.shift

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """x: [N, D] the whole data set."""
        low, high = x.aminmax(dim=0)
        self.shift.copy_((low + high) / 2.0)
        self.scale.copy_(torch.where(high - low < self.least_range, 1.0, 2.0 / (high - low)))

    @torch.no_grad()
    def refuse_outside(self, x: Tensor, what: str, mend: str, *, slack: float = 1e-3) -> None:
        """ValueError where x [N, D] leaves [-1, 1] by more than `slack`. what: the data. mend: what to do."""
        low, high = self.inverse(-torch.ones_like(self.shift)), self.inverse(torch.ones_like(self.shift))
        least, most = x.aminmax(dim=0)
        for name, excess, found, end in (
            ("below", (low - least) * self.scale, least, low),
            ("above", (most - high) * self.scale, most, high),
        ):
            d = int(excess.argmax())
            if float(excess[d]) > slack:
                raise ValueError(
                    f"{what}: number {d} reaches {float(found[d]):.4g}, {name} the {float(end[d]):.4g} at which the "
                    f"policy's normaliser ends. {mend}"
                )


class Identity(nn.Module):
    """The normaliser of an algorithm that wants raw observations."""

    def forward(self, obs: Tensor) -> Tensor:
        return obs

    def merge(self, obs: Tensor) -> None:
        pass


class RewardScaler(nn.Module):
    """Divides rewards by the deviation of the discounted return; the mean is not subtracted (SB3's VecNormalize).

    shape: (M,) for vector rewards, each objective by its own deviation.
    """

    def __init__(self, *shape: int, clip: float = 10.0, eps: float = 1e-8):
        super().__init__()
        self.clip, self.eps = clip, eps
        self.moments = RunningMoments(*shape)

    def merge(self, discounted_returns: Tensor) -> None:
        """discounted_returns: [N] running sums G = gamma * G + r, before they are set to 0 at an episode's end."""
        self.moments.merge(discounted_returns)

    def forward(self, reward: Tensor) -> Tensor:
        scale = (self.moments.var + self.eps).rsqrt().to(reward.dtype)
        return (reward * scale).clamp(-self.clip, self.clip)

    def unit(self, like: Tensor) -> Tensor:
        """What one scaled unit is worth in the rewards' own, of the moments' shape and the dtype of `like`."""
        return (self.moments.var + self.eps).sqrt().to(like.dtype)

"""How much noise there is at which level: schedules of diffusion models, and the levels that samplers visit."""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import accumulate
from operator import mul
from typing import NamedTuple

import torch
from torch import Tensor

MOST_LEVELS = 10_000  # the finest published have a thousand


class Schedule(NamedTuple):
    """A variance-preserving diffusion of K levels, 0 the cleanest: x_k = alpha_k data + sigma_k noise.

    Python numbers, so that a sampler's steps are constants of a compiled or exported graph.
    """

    beta: tuple[float, ...]  # variance that level k adds
    alpha_bar: tuple[float, ...]  # product of 1 - beta up to k, alpha_k^2

    def kept(self, k: int) -> float:
        """alpha_bar of level k; 1 for level -1, the data themselves."""
        return self.alpha_bar[k] if k >= 0 else 1.0

    def scales(self, k: int) -> tuple[float, float]:
        """alpha and sigma of level k; (1, 0) for level -1."""
        kept = self.kept(k)
        return math.sqrt(kept), math.sqrt(1.0 - kept)

    def tables(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """alpha [K] and sigma [K], float32, to be indexed by a batch of levels."""
        kept = torch.tensor(self.alpha_bar, dtype=torch.float64)
        return kept.sqrt().float().to(device), (1.0 - kept).sqrt().float().to(device)


def schedule_of(betas: list[float]) -> Schedule:
    """The schedule that adds these variances, each in (0, 1)."""
    if not betas or not all(0.0 < b < 1.0 for b in betas):
        raise ValueError(f"a diffusion schedule needs betas in (0, 1), got {betas}")
    return Schedule(tuple(betas), tuple(accumulate((1.0 - b for b in betas), mul)))


def cosine_schedule(n_levels: int) -> Schedule:
    """alpha_bar follows a squared cosine; betas at most 0.999. Improved DDPM, arXiv:2102.09672, eq. 17."""
    _levels_fit(n_levels)

    def kept(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    return schedule_of([min(1.0 - kept((k + 1) / n_levels) / kept(k / n_levels), 0.999) for k in range(n_levels)])


def vp_schedule(n_levels: int, *, beta_min: float = 0.1, beta_max: float = 10.0) -> Schedule:
    """The score SDE's linear variance rate, integrated over each level. Diffusion-QL, arXiv:2208.06193."""
    _levels_fit(n_levels)
    slope = 0.5 * (beta_max - beta_min)
    rates = [beta_min / n_levels + slope * (2 * i - 1) / n_levels**2 for i in range(1, n_levels + 1)]
    return schedule_of([-math.expm1(-rate) for rate in rates])


def level_at(schedule: Schedule, alpha: float, sigma: float) -> float:
    """The level of the same signal-to-noise ratio alpha / sigma: a whole number where the schedule has that ratio.

    Between two levels it is linear in the logarithm of the ratio; outside of the schedule it is the first or the last.
    """

    def loudness(alpha: float, sigma: float) -> float:
        return math.inf if alpha == 0.0 else -math.inf if sigma == 0.0 else math.log(sigma / alpha)

    known = [loudness(*schedule.scales(k)) for k in range(len(schedule.beta))]
    noise = loudness(alpha, sigma)
    after = bisect_right(known, noise)
    if after == 0:
        return 0.0
    if after == len(known) or known[after - 1] == noise:
        return float(after - 1)
    low, high = known[after - 1], known[after]
    return after - 1 + (noise - low) / (high - low)


def leading_levels(n_levels: int, n_steps: int) -> list[int]:
    """K // n * (n - 1), ..., 0: what diffusers calls "leading"; the first is not the noisiest level K - 1."""
    _steps_fit(n_levels, n_steps)
    return [n_levels // n_steps * i for i in reversed(range(n_steps))]


def trailing_levels(n_levels: int, n_steps: int) -> list[int]:
    """K - 1, ..., about K / n - 1: what diffusers calls "trailing"; it starts where the noise of training ends."""
    _steps_fit(n_levels, n_steps)
    return [round(n_levels - i * n_levels / n_steps) - 1 for i in range(n_steps)]


def karras_levels(n_steps: int, high: float, low: float, *, rho: float = 5.0) -> list[float]:
    """Noise deviations from `high` to `low`, evenly spaced in their rho-th root, then 0. arXiv:2206.00364, eq. 5."""
    first, last = high ** (1.0 / rho), low ** (1.0 / rho)
    return [*((first + part * (last - first)) ** rho for part in _parts(n_steps, high, low)), 0.0]


def exponential_levels(n_steps: int, high: float, low: float) -> list[float]:
    """Noise deviations from `high` to `low`, each the same part of the one before, then 0."""
    return [*(high * (low / high) ** part for part in _parts(n_steps, high, low)), 0.0]


def linear_levels(n_steps: int, high: float, low: float) -> list[float]:
    """Noise deviations from `high` to `low`, evenly spaced, then 0."""
    return [*(high + part * (low - high) for part in _parts(n_steps, high, low)), 0.0]


def _levels_fit(n_levels: int) -> None:
    if not 1 <= n_levels <= MOST_LEVELS:  # a number from a file may be any
        raise ValueError(f"a diffusion schedule has 1 to {MOST_LEVELS} levels, got n_levels={n_levels}")


def _steps_fit(n_levels: int, n_steps: int) -> None:
    if not 1 <= n_steps <= n_levels:
        raise ValueError(f"sampling in {n_steps} steps needs between 1 and n_levels={n_levels} of them")


def _parts(n_steps: int, high: float, low: float) -> list[float]:
    """0 ... 1 in n steps."""
    if n_steps < 1 or not 0.0 < low <= high:
        raise ValueError(f"noise levels need n_steps >= 1 and 0 < low <= high, got {n_steps} from {high:g} to {low:g}")
    return [i / max(n_steps - 1, 1) for i in range(n_steps)]

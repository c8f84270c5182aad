"""From noise to samples: solvers of a flow's or diffusion's path, given what a network predicts on it.

A loop asks `predict(x, level)` from the x that it is given, along the levels that it is given: pure noise and all
levels for a fresh sample, a guess and the last few levels for a warm start. The steps are functions of their own.
`noise(x)` makes standard normal noise like x, once a step that needs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ctrlrl.functional.predictions import ends
from ctrlrl.functional.schedules import Schedule

Predict = Callable[[Tensor, float], Tensor]
PredictStep = Callable[[Tensor, int], Tensor]
Noise = Callable[[Tensor], Tensor]


def euler(velocity: Callable[[Tensor, float], Tensor], x: Tensor, times: Sequence[float]) -> Tensor:
    """Explicit Euler along dx/dt = velocity(x, t) from times[0] to times[-1]; the shape of x.

    x: where it starts, noise for times that rise from 0. The field is asked at every time but the last.
    """
    for now, then in pairwise(times):
        x = x + (then - now) * velocity(x, now)
    return x


def midpoint(velocity: Callable[[Tensor, float], Tensor], x: Tensor, times: Sequence[float]) -> Tensor:
    """The explicit midpoint rule along dx/dt = velocity(x, t); the shape of x. Two evaluations a step, error O(step^2).

    The field is asked at times[i] and half-way to times[i + 1].
    """
    for now, then in pairwise(times):
        step = then - now
        half = x + 0.5 * step * velocity(x, now)
        x = x + step * velocity(half, now + 0.5 * step)
    return x


def uniform_times(n_steps: int, end: float = 1.0) -> list[float]:
    """0, end / n, ..., end."""
    return [end * i / n_steps for i in range(n_steps + 1)]


# Diffusion of K levels ------------------------------------------------------------------------------------------------


def posterior_mean(x: Tensor, data: Tensor, schedule: Schedule, k: int) -> Tensor:
    """The mean of level k - 1 given x at level k and the data; the shape of x. DDPM, arXiv:2006.11239, eq. 7."""
    beta, kept, before = schedule.beta[k], schedule.kept(k), schedule.kept(k - 1)
    of_data = math.sqrt(before) * beta / (1.0 - kept)
    of_x = math.sqrt(1.0 - beta) * (1.0 - before) / (1.0 - kept)
    return of_data * data + of_x * x


def posterior_std(schedule: Schedule, k: int) -> float:
    """The standard deviation of level k - 1 given level k and the data; 0 for k = 0. DDPM, arXiv:2006.11239, eq. 7.

    Zero there, where diffusers' "fixed_small" has 1e-10 and adds no noise either.
    """
    return math.sqrt(schedule.beta[k] * (1.0 - schedule.kept(k - 1)) / (1.0 - schedule.kept(k)))


def ddpm_step(x: Tensor, data: Tensor, schedule: Schedule, k: int, noise: Noise = torch.randn_like) -> Tensor:
    """A draw of level k - 1 given x at level k and the data; the data themselves for k = 0. The shape of x."""
    mean = posterior_mean(x, data, schedule, k)
    return mean + posterior_std(schedule, k) * noise(x) if k > 0 else mean


def ddpm(
    predict: PredictStep,
    x: Tensor,
    levels: Sequence[int],
    schedule: Schedule,
    *,
    kind: str = "noise",
    clip: float | None = 1.0,
    noise: Noise = torch.randn_like,
) -> Tensor:
    """Ancestral sampling from x at level levels[0]; the shape of x.

    Every step is the full schedule's from k to k - 1, also where the levels skip some, as real-time iteration wants.
    predict: what a network of this `kind` (see `prediction`) says at x and level k. clip: bound of the data predicted.
    Source: DDPM, arXiv:2006.11239; RTI-DP, arXiv:2508.05396.
    """
    for k in levels:
        data, _ = ends(kind, predict(x, k), x, *schedule.scales(k))
        x = ddpm_step(x, clipped(data, clip), schedule, k, noise)
    return x


def ddim_step(data: Tensor, noise: Tensor, alpha: float, sigma: float) -> Tensor:
    """Where the line between predicted data and noise stands at the next level: alpha data + sigma noise.

    On all paths; with exploding variance and on straight ones this is Euler's step. DDIM, arXiv:2010.02502, eq. 12.
    """
    return alpha * data + sigma * noise


def ddim(
    predict: PredictStep,
    x: Tensor,
    levels: Sequence[int],
    schedule: Schedule,
    *,
    kind: str = "noise",
    clip: float | None = 1.0,
) -> Tensor:
    """Deterministic sampling from x at level levels[0] through the levels to the data (eta = 0); the shape of x.

    Only the data are clipped, the noise stays as predicted, as in diffusers. Source: DDIM, arXiv:2010.02502.
    """
    for now, then in pairwise((*levels, -1)):
        data, noise = ends(kind, predict(x, now), x, *schedule.scales(now))
        x = ddim_step(clipped(data, clip), noise, *schedule.scales(then))
    return x


def clipped(data: Tensor, bound: float | None) -> Tensor:
    """data within [-bound, bound]; as it is for None."""
    return data if bound is None else data.clamp(-bound, bound)


def shifted(chunk: Tensor) -> Tensor:
    """The guess for the next sample, one control step later: rows 1 ... H - 1 of [B, H, A], the last one repeated.

    Source: RTI-DP, arXiv:2508.05396.
    """
    return torch.cat((chunk[:, 1:], chunk[:, -1:]), 1)


# Exploding variance (EDM): x = data + sigma noise, predict(x, sigma) is the denoised x, levels fall to 0. BESO's code
# has all of these bound x, not the data predicted, after every step: `clip`. ------------------------------------------


def edm_ddim(predict: Predict, x: Tensor, levels: Sequence[float], *, clip: float | None = None) -> Tensor:
    """Along the probability flow from deviation levels[0], where x is data + levels[0] noise; the shape of x.

    Euler's method in sigma takes the very same steps. Source: EDM, arXiv:2206.00364, algorithm 1 uncorrected; BESO.
    """
    for now, then in pairwise(levels):
        x = clipped(edm_step(x, predict(x, now), now, then), clip)
    return x


def edm_step(x: Tensor, data: Tensor, now: float, then: float) -> Tensor:
    """One step of `edm_ddim` from deviation `now` to `then`; exactly the data where `then` is 0."""
    return ddim_step(*ends("data", data, x, 1.0, now), 1.0, then)


def edm_heun(predict: Predict, x: Tensor, levels: Sequence[float], *, clip: float | None = None) -> Tensor:
    """Euler steps, each but the last corrected by the slope at its end: two evaluations, error O(step^2).

    Source: EDM, arXiv:2206.00364, algorithm 1.
    """
    for now, then in pairwise(levels):
        x = clipped(edm_heun_step(predict, x, now, then), clip)
    return x


def edm_heun_step(predict: Predict, x: Tensor, now: float, then: float) -> Tensor:
    """One step of `edm_heun` from deviation `now` to `then`."""
    slope = (x - predict(x, now)) / now
    ahead = x + (then - now) * slope
    if then == 0.0:
        return ahead
    return x + 0.5 * (then - now) * (slope + (ahead - predict(ahead, then)) / then)


def ancestral_deviations(now: float, then: float, eta: float) -> tuple[float, float]:
    """Down to which deviation to step, and how much fresh noise takes it back up to `then`."""
    up = min(then, eta * math.sqrt(then**2 * (now**2 - then**2) / now**2))
    return math.sqrt(then**2 - up**2), up


def edm_ancestral(
    predict: Predict,
    x: Tensor,
    levels: Sequence[float],
    *,
    eta: float = 1.0,
    clip: float | None = None,
    noise: Noise = torch.randn_like,
) -> Tensor:
    """Euler steps that go too far down and add fresh noise back; eta = 0 is `edm_ddim`. The shape of x.

    Source: k-diffusion; BESO, arXiv:2304.02532.
    """
    for now, then in pairwise(levels):
        x = clipped(edm_ancestral_step(x, predict(x, now), now, then, eta=eta, noise=noise), clip)
    return x


def edm_ancestral_step(
    x: Tensor, data: Tensor, now: float, then: float, *, eta: float = 1.0, noise: Noise = torch.randn_like
) -> Tensor:
    """One step of `edm_ancestral` from deviation `now` to `then`."""
    down, up = ancestral_deviations(now, then, eta)
    x = edm_step(x, data, now, down)
    return x + up * noise(x) if down > 0.0 else x

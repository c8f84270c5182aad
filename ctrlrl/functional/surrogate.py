"""Policy losses, to be minimised: log-ratio and advantage in, one loss per element out ([N] samples, [B, L] tokens)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ctrlrl.functional.checks import same_shape


def ppo_clip(
    log_ratio: Tensor,
    advantage: Tensor,
    *,
    clip_range: float | Tensor,
    clip_range_high: float | Tensor | None = None,
) -> Tensor:
    """Clipped surrogate, to be minimised; same shape as its inputs ([N] samples or [B, L] tokens).

    log_ratio:  log pi_new(a|s) - log pi_old(a|s), in nats; carries the gradient.
    advantage:  no gradient; unitless once standardised.
    clip_range: half-width of the interval around ratio 1, in (0, 1); a tensor broadcasts.
    clip_range_high: width above ratio 1 where it differs from the width below.
    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7; two widths: DAPO, arXiv:2503.14476, eq. 10.
    """
    same_shape("ppo_clip", log_ratio=log_ratio, advantage=advantage)
    low, high = _bounds(clip_range, clip_range_high)
    if isinstance(low, Tensor) and not isinstance(high, Tensor):
        high = torch.full_like(low, high)  # clamp takes two tensors or two numbers
    elif isinstance(high, Tensor) and not isinstance(low, Tensor):
        low = torch.full_like(high, low)
    ratio = log_ratio.exp()
    bounded = torch.clamp(ratio, low, high)  # type: ignore[arg-type]
    return -torch.minimum(ratio * advantage, bounded * advantage)


def bpo_target(
    median_advantage: Tensor,
    *,
    clip_range: float | Tensor,
    clip_range_high: float | Tensor | None = None,
    temperature: float,
    logit_clip: float | None = None,
) -> Tensor:
    """The ratio rho* of the best policy inside the bounds 1 - clip_range .. 1 + clip_range_high; same shape.

    median_advantage: Q - mu(s), return units; its sign chooses the side.
    temperature: lambda, in the same units; 0 is the limit: a bound, or exactly 1 at the median.
    logit_clip:  bound on |median_advantage| / temperature (10 in the authors' rsl_rl code); unused at temperature 0.
    Unequal bounds shift the logit by b = log(clip_range / clip_range_high), so that the target at the median is 1.
    Source: BRRL, arXiv:2604.18578, theorem 4.1, remark 4.3; unequal bounds section 4.6.
    """
    low, high = _bounds(clip_range, clip_range_high)
    if temperature == 0:
        sign = median_advantage.sign()
        return 1.0 + (high - 1.0) * sign.clamp(min=0) - (low - 1.0) * sign.clamp(max=0)
    logit = median_advantage / temperature
    if logit_clip is not None:
        logit = logit.clamp(-logit_clip, logit_clip)
    if clip_range_high is not None:
        logit = logit + _log(clip_range) - _log(clip_range_high)
    return low + (high - low) * logit.sigmoid()


def bpo(
    log_ratio: Tensor,
    advantage: Tensor,
    median_advantage: Tensor,
    *,
    clip_range: float | Tensor,
    clip_range_high: float | Tensor | None = None,
    temperature: float,
    logit_clip: float | None = None,
) -> Tensor:
    """Bounded policy optimisation: |rho - rho*| * |A|, to be minimised; same shape as its inputs.

    log_ratio:        nats; the only input that receives a gradient. Not clipped: the slope beyond rho* pulls back.
    advantage:        Q - V, the weight. Not standardised by the authors.
    median_advantage: Q - mu, chooses the side through `bpo_target`. Swapping the two changes the method.
    Source: BRRL, arXiv:2604.18578, section 4.4 (practical form).
    """
    same_shape("bpo", log_ratio=log_ratio, advantage=advantage, median_advantage=median_advantage)
    target = bpo_target(
        median_advantage.detach(),
        clip_range=clip_range,
        clip_range_high=clip_range_high,
        temperature=temperature,
        logit_clip=logit_clip,
    )
    return (log_ratio.exp() - target).abs() * advantage.detach().abs()


def _bounds(
    clip_range: float | Tensor, clip_range_high: float | Tensor | None
) -> tuple[float | Tensor, float | Tensor]:
    return 1.0 - clip_range, 1.0 + (clip_range if clip_range_high is None else clip_range_high)


def _log(x: float | Tensor) -> float | Tensor:
    return x.log() if isinstance(x, Tensor) else math.log(x)

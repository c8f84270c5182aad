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
    centered: bool = True,
) -> Tensor:
    """The ratio rho* of the best policy inside the bounds 1 - clip_range .. 1 + clip_range_high; same shape.

    median_advantage: Q - mu(s), return units; its sign chooses the side.
    temperature: lambda, in the same units; 0 is the limit: a bound, or exactly 1 at the median.
    logit_clip:  bound on |median_advantage| / temperature (10 in the authors' rsl_rl code); unused at temperature 0.
    Unequal bounds shift the logit by b = log(clip_range / clip_range_high), so that the target at the median is 1;
    centered=False leaves the shift out, as the authors' token code does.
    Source: BRRL, arXiv:2604.18578, theorem 4.1, remark 4.3; unequal bounds section 4.6.
    """
    low, high = _bounds(clip_range, clip_range_high)
    if temperature == 0:
        sign = median_advantage.sign()
        return 1.0 + (high - 1.0) * sign.clamp(min=0) - (low - 1.0) * sign.clamp(max=0)
    logit = median_advantage / temperature
    if logit_clip is not None:
        logit = logit.clamp(-logit_clip, logit_clip)
    if centered and clip_range_high is not None:
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
    centered: bool = True,
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
        centered=centered,
    )
    return (log_ratio.exp() - target).abs() * advantage.detach().abs()


def dual_clip(loss: Tensor, advantage: Tensor, *, limit: float) -> Tensor:
    """min(loss, -limit * A) where A < 0: a bad action's loss stops growing at ratio `limit` > 1; same shape.

    loss: of a clipped surrogate. Source: Ye et al. 2020, arXiv:1912.09729.
    """
    return torch.where(advantage < 0, torch.minimum(loss, -limit * advantage), loss)


def reinforce(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """-A log pi(a|s), same shape. Source: Williams 1992."""
    return -advantage * log_prob


def importance(log_ratio: Tensor, advantage: Tensor) -> Tensor:
    """-A times the ratio, unclipped; same shape. Its gradient at ratio 1 is that of `reinforce`."""
    return -advantage * log_ratio.exp()


def simple_quad(log_ratio: Tensor, advantage: Tensor, *, clip_range: float) -> Tensor:
    """-(ratio A - |A| (ratio - 1)^2 / (2 clip_range)): least at ratio 1 +- clip_range, which pulls from both sides.

    Source: Simple Policy Optimization, arXiv:2401.16025.
    """
    change = torch.expm1(log_ratio)
    return -((1.0 + change) * advantage - advantage.abs() * change.square() / (2.0 * clip_range))


def ratio_variance(log_ratio: Tensor, advantage: Tensor, *, coef: float | Tensor) -> Tensor:
    """-(ratio A - coef (ratio - 1)^2), same shape; least at ratio 1 + A / (2 coef).

    coef: a multiplier of the constraint E (ratio - 1)^2 <= delta (`dual_ascent`). Source: R2VPO, arXiv:2601.03320.
    """
    change = torch.expm1(log_ratio)
    return -((1.0 + change) * advantage - coef * change.square())


def dual_ascent(coef: Tensor, constraint: Tensor, *, bound: float, rate: float) -> Tensor:
    """max(0, coef + rate (constraint - bound)): one projected step on a multiplier; 0-dim."""
    return (coef + rate * (constraint - bound)).clamp(min=0.0)


def weighted_reinforce(
    log_prob: Tensor,
    log_ratio: Tensor,
    advantage: Tensor,
    *,
    bounds: tuple[float, float],
    bounds_positive: tuple[float, float] | None = None,
) -> Tensor:
    """-w A log pi(a|s) with w = clip(ratio, *bounds) without gradient; [N, 1] and [N, L] broadcast.

    Clipped samples keep a bounded gradient. CISPO, arXiv:2506.13585: (0, 1 + epsilon). TOPR, arXiv:2503.14286: the
    ratio of the whole response, (0, 1), and (1, 1) where A >= 0.
    bounds_positive: those where A >= 0, if others.
    """
    ratio = log_ratio.detach().exp()
    weight = ratio.clamp(*bounds)
    if bounds_positive is not None:
        weight = torch.where(advantage >= 0, ratio.clamp(*bounds_positive), weight)
    return -weight * advantage * log_prob


def soft_gate(log_ratio: Tensor, advantage: Tensor, *, positive: float, negative: float) -> Tensor:
    """-(4 / tau) sigmoid(tau (ratio - 1)) A, tau = `positive` where A > 0, else `negative`; same shape.

    Source: SAPO, arXiv:2511.20347.
    """
    tau = torch.where(advantage > 0, positive, negative).to(log_ratio.dtype)
    return -(4.0 / tau) * torch.sigmoid(tau * torch.expm1(log_ratio)) * advantage


def one_sided(log_ratio: Tensor, advantage: Tensor, *, limit: float) -> Tensor:
    """The log-ratio, stopped at +limit where A > 0 and at -limit where A < 0; same shape (A broadcasts).

    The exponential of its mean over a response times -A is GMPO's loss, arXiv:2507.20673.
    """
    bounded = log_ratio.clamp(-limit, limit)
    return torch.where(advantage > 0, torch.minimum(log_ratio, bounded), torch.maximum(log_ratio, bounded))


def _bounds(
    clip_range: float | Tensor, clip_range_high: float | Tensor | None
) -> tuple[float | Tensor, float | Tensor]:
    return 1.0 - clip_range, 1.0 + (clip_range if clip_range_high is None else clip_range_high)


def _log(x: float | Tensor) -> float | Tensor:
    return x.log() if isinstance(x, Tensor) else math.log(x)

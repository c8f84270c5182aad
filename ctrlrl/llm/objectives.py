"""Ratios, surrogates and aggregations by name: the other factors of a method. Entries may be added.

The functions behind them are those of the control algorithms; here they only get their settings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from ctrlrl.functional import preference, surrogate
from ctrlrl.functional import ratio as ratios
from ctrlrl.functional.adaptive_bounds import bound_ladder, bound_sums, choose_bounds
from ctrlrl.functional.masked import masked_mean, sequence_mean, sequence_sum

Bounds = tuple[Tensor, Tensor]
Count = Tensor | float | None


class Elements(NamedTuple):
    """What a surrogate reads. E is [N, L], or [N, 1] where the ratio belongs to the whole response."""

    log_ratio: Tensor  # E nats
    advantage: Tensor  # E
    target: Tensor | None  # E
    token_log_ratio: Tensor  # [N, L]
    log_prob: Tensor  # [N, L], 0 under the mask
    mask: Tensor  # [N, L] bool
    variance_coef: float | Tensor  # the multiplier of ratio_variance
    bounds: Bounds | None  # of the ratio, where they were chosen for the whole optimizer step


def _holder(cfg: Any, log_ratio: Tensor, mask: Tensor, holder_p: float) -> Tensor:
    return ratios.holder_log_ratio(log_ratio, mask, p=holder_p)


def _sequence_token(cfg: Any, log_ratio: Tensor, mask: Tensor, holder_p: float) -> Tensor:
    return ratios.token_form(ratios.sequence_log_ratio(log_ratio, mask), log_ratio)


RATIOS: dict[str, Callable[[Any, Tensor, Tensor, float], Tensor]] = {
    "token": lambda cfg, log_ratio, mask, holder_p: log_ratio,
    "sequence": lambda cfg, log_ratio, mask, holder_p: ratios.sequence_log_ratio(log_ratio, mask),
    "sequence_token": _sequence_token,
    "product": lambda cfg, log_ratio, mask, holder_p: ratios.product_log_ratio(log_ratio, mask),
    "holder": _holder,
}
OF_RESPONSES = ("sequence", "product", "holder")  # log-ratios [N, 1]


def _clip(cfg: Any, e: Elements) -> Tensor:
    loss = surrogate.ppo_clip(e.log_ratio, e.advantage, clip_range=cfg.clip_range, clip_range_high=cfg.clip_range_high)
    return _dual(cfg, loss, e)


def _clip_bounds(cfg: Any, e: Elements) -> Tensor:
    assert e.bounds is not None
    low, high = e.bounds
    loss = surrogate.ppo_clip(e.log_ratio, e.advantage, clip_range=1.0 - low, clip_range_high=high - 1.0)
    return _dual(cfg, loss, e)


def _clip_elastic(cfg: Any, e: Elements) -> Tensor:
    assert e.target is not None
    return _dual(cfg, surrogate.ppo_clip(e.log_ratio, e.advantage, clip_range=e.target), e)


def _dual(cfg: Any, loss: Tensor, e: Elements) -> Tensor:
    return loss if cfg.dual_clip is None else surrogate.dual_clip(loss, e.advantage, limit=cfg.dual_clip)


def _bounded(cfg: Any, e: Elements) -> Tensor:
    assert e.target is not None
    return surrogate.bpo(
        e.log_ratio,
        e.advantage,
        e.target,
        clip_range=cfg.clip_range,
        clip_range_high=cfg.clip_range_high,
        temperature=cfg.target_temperature,
        centered=False,
    )


def _topr(cfg: Any, e: Elements) -> Tensor:
    return surrogate.weighted_reinforce(
        e.log_prob, e.log_ratio, e.advantage, bounds=(0.0, 1.0), bounds_positive=(1.0, 1.0)
    )


def _cispo(cfg: Any, e: Elements) -> Tensor:
    high = cfg.clip_range if cfg.clip_range_high is None else cfg.clip_range_high
    bounds = (1.0 - cfg.clip_range, 1.0 + high)
    return surrogate.weighted_reinforce(e.log_prob, e.log_ratio, e.advantage, bounds=bounds)


def _sapo(cfg: Any, e: Elements) -> Tensor:
    return surrogate.soft_gate(e.log_ratio, e.advantage, positive=cfg.gate_positive, negative=cfg.gate_negative)


def _gmpo(cfg: Any, e: Elements) -> Tensor:
    stopped = surrogate.one_sided(e.token_log_ratio, e.advantage, limit=cfg.clip_range)
    return surrogate.importance(ratios.sequence_log_ratio(stopped, e.mask), e.advantage[:, :1])


def _whole(e: Elements) -> Tensor:
    """[N, 1] log-ratio of the whole response, of which nothing here takes the exponential."""
    return ratios.product_log_ratio(e.token_log_ratio, e.mask, limit=float("inf"))


def _dpo(cfg: Any, e: Elements) -> Tensor:
    """At both rows of a pair of neighbours the pair's loss, so that the mean over rows is that over pairs."""
    first, second = _whole(e).unflatten(0, (-1, 2)).unbind(1)
    one, other = e.advantage.unflatten(0, (-1, 2)).unbind(1)
    better = (one - other).sign()  # 0 where neither is: then there is no gradient
    return preference.dpo(better * first, better * second, beta=cfg.beta).repeat_interleave(2, 0)


SURROGATES: dict[str, Callable[[Any, Elements], Tensor]] = {
    "pg": lambda cfg, e: surrogate.reinforce(e.log_prob, e.advantage),
    "is": lambda cfg, e: surrogate.importance(e.log_ratio, e.advantage),
    "clip": _clip,
    "clip_bounds": _clip_bounds,
    "clip_elastic": _clip_elastic,
    "bounded": _bounded,
    "simple_quad": lambda cfg, e: surrogate.simple_quad(e.log_ratio, e.advantage, clip_range=cfg.clip_range),
    "ratio_var": lambda cfg, e: surrogate.ratio_variance(e.log_ratio, e.advantage, coef=e.variance_coef),
    "topr": _topr,
    "cispo": _cispo,
    "sapo": _sapo,
    "gmpo": _gmpo,
    "dpo": _dpo,
    "regress": lambda cfg, e: preference.direct_advantage(_whole(e), e.advantage, beta=cfg.beta),
}
OF_REFERENCE = ("dpo", "regress")  # their ratio is to the reference policy
CLIPPED = ("clip", "clip_bounds", "clip_elastic")
WITH_TARGET = {"bounded": ("gbpo", "value_median"), "clip_elastic": ("group_z_elastic",)}  # and who makes it


def _token_mean(cfg: Any, loss: Tensor, mask: Tensor, n_tokens: Count, n_sequences: Count) -> Tensor:
    return masked_mean(loss, mask, count=n_tokens)


def _const(cfg: Any, loss: Tensor, mask: Tensor, n_tokens: Count, n_sequences: Count) -> Tensor:
    return sequence_sum(loss, mask, n_sequences=n_sequences) / cfg.max_tokens


AGGREGATIONS: dict[str, Callable[[Any, Tensor, Tensor, Count, Count], Tensor]] = {
    "token_mean": _token_mean,
    "seq_mean": lambda cfg, loss, mask, n_tokens, n: sequence_mean(loss, mask, n_sequences=n),
    "seq_sum": lambda cfg, loss, mask, n_tokens, n: sequence_sum(loss, mask, n_sequences=n),
    "const": _const,
}


def adaptive_bounds(cfg: Any, log_ratio: Tensor, advantage: Tensor, mask: Tensor) -> Bounds:
    """BAPO's bounds of the ratio for these elements, 0-dim each."""
    lows, highs = bound_ladder(tuple(cfg.bounds_low), tuple(cfg.bounds_high), cfg.bounds_step, like=log_ratio)
    sums = bound_sums(log_ratio.detach().exp(), advantage, mask.expand_as(log_ratio), lows, highs)
    return choose_bounds(sums, lows, highs, target=cfg.bounds_target)

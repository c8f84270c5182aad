"""From log-probabilities and advantages to the loss of one (micro-)batch, as a TokenConfig says.

N responses of up to L tokens. mask [N, L] bool: True on tokens that the policy chose, the first end-of-sequence token
included; False behind it and on tokens of a tool. Everything is normalized by the counts of the whole optimizer step,
so the sum of the losses of its micro-batches, or of its ranks, is its loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctrlrl.functional.checks import same_shape
from ctrlrl.functional.distributions import approx_kl
from ctrlrl.functional.kl import kl_estimate
from ctrlrl.functional.masked import masked_mean
from ctrlrl.functional.ratio import silenced
from ctrlrl.functional.selection import covariance, highest, on_policy_rows
from ctrlrl.llm.config import TokenConfig
from ctrlrl.llm.controls import Controls, controls
from ctrlrl.llm.objectives import (
    AGGREGATIONS,
    CLIPPED,
    RATIOS,
    SURROGATES,
    Bounds,
    Elements,
    adaptive_bounds,
)
from ctrlrl.types import Metrics


def token_loss(
    config: TokenConfig,
    log_prob: Tensor,
    log_prob_old: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    target: Tensor | None = None,
    log_prob_ref: Tensor | None = None,
    entropy: Tensor | None = None,
    weight: Tensor | None = None,
    n_tokens: Tensor | float | None = None,
    n_sequences: Tensor | float | None = None,
    now: Controls | None = None,
    bounds: Bounds | None = None,
) -> tuple[Tensor, Metrics]:
    """The policy's loss, 0-dim, with KL and entropy terms, and its metrics, 0-dim without gradient.

    log_prob, log_prob_old, log_prob_ref, entropy: [N, L] nats; under the mask anything. Rows to be left out have an
    empty mask. advantage: [N] or [N, L]. target: the second signal of AdvantageOut.
    weight:   [N, L] without gradient, on the policy's loss (`functional.ratio.truncated_importance`).
    n_tokens, n_sequences: of the whole optimizer step; None = of this call.
    now:      what the method adapts; None = the values of the start.
    bounds:   of clip_bounds, if chosen for the whole step (`objectives.adaptive_bounds`); None = for this call.
    What compares tokens with each other (entropy_share, covariance) compares those of this call.
    """
    same_shape("token_loss", log_prob=log_prob, log_prob_old=log_prob_old, mask=mask)
    if mask.dtype != torch.bool:
        raise ValueError(f"token_loss: mask must be bool, True = counts, got {mask.dtype}")
    now = controls(config, like=log_prob) if now is None else now
    log_ratio = silenced(log_prob, log_prob_old, mask)
    ratio = RATIOS[config.ratio](config, log_ratio, mask, now.holder_p)
    advantage = _like(advantage, ratio)
    if config.surrogate == "clip_bounds" and bounds is None:
        bounds = adaptive_bounds(config, ratio, advantage, mask)
    elements = Elements(
        ratio,
        advantage,
        None if target is None else _like(target, ratio),
        log_ratio,
        torch.where(mask, log_prob, 0.0),
        mask,
        now.variance_coef,
        bounds,
    )
    loss = SURROGATES[config.surrogate](config, elements).expand_as(mask)
    chosen = _chosen(config, log_prob, advantage, log_ratio, mask, entropy)
    if weight is not None:
        loss = loss * weight
    if config.covariance == "kl":
        product = covariance(log_prob, advantage.expand_as(mask), mask)
        paying = highest(product, mask, n=_few(config, mask))
        loss = loss + config.covariance_coef * torch.where(paying, log_ratio.abs(), 0.0)
    if chosen is not mask:
        loss = torch.where(chosen, loss, 0.0)
    aggregate = AGGREGATIONS[config.aggregation]
    total = aggregate(config, loss, mask, n_tokens, n_sequences)
    metrics = {"loss/policy": total, **_ratio_metrics(config, elements, mask, n_tokens)}
    if config.kl == "loss" and config.needs_reference:
        if log_prob_ref is None:
            raise ValueError("token_loss: kl=loss needs log_prob_ref")
        kl = kl_estimate(elements.log_prob, torch.where(mask, log_prob_ref, 0.0), kind=config.kl_kind)
        if config.kl_off_policy:
            kl = kl * ratio.exp()
        total = total + config.kl_coef * aggregate(config, kl, mask, n_tokens, n_sequences)
        metrics["policy/kl_ref"] = masked_mean(kl, mask, count=n_tokens)
    if entropy is not None:
        metrics["policy/entropy"] = mean = masked_mean(entropy, mask, count=n_tokens)
        if config.ent_coef > 0.0 or config.ent_target is not None:
            total = total - now.ent_coef.to(mean) * mean
    elif config.needs_entropy:
        raise ValueError("token_loss: ent_coef, ent_target and entropy_share < 1 need entropy")
    return total, {name: value.detach() for name, value in metrics.items()}


def summed(parts: list[Metrics]) -> Metrics:
    """The metrics of an optimizer step from those of its micro-batches, all taken with the step's counts."""
    rules = {"ratio/min": torch.amin, "ratio/max": torch.amax}
    return {name: rules.get(name, torch.sum)(torch.stack([p[name] for p in parts]), 0) for name in parts[0]}


def _chosen(
    config: TokenConfig, log_prob: Tensor, advantage: Tensor, log_ratio: Tensor, mask: Tensor, entropy: Tensor | None
) -> Tensor:
    """[N, L] bool: the tokens whose policy loss counts; the mean's denominator still counts all of the mask."""
    chosen = mask
    if config.entropy_share < 1.0:
        if entropy is None:
            raise ValueError("token_loss: entropy_share < 1 needs entropy")
        total = mask.sum()
        n = total - ((1.0 - config.entropy_share) * (total - 1)).ceil()  # at or above that quantile
        chosen = chosen & highest(entropy.detach(), mask, n=n)
    if config.off_policy_limit is not None:
        rows = on_policy_rows(log_ratio.detach(), advantage[:, :1], mask, limit=config.off_policy_limit)
        chosen = chosen & rows
    if config.covariance == "clip":
        low, high = config.covariance_range
        product = covariance(log_prob, advantage.expand_as(mask), mask)
        candidates = mask & (product > low) & (product < high)
        score = torch.where(candidates, torch.rand_like(product), -1.0)
        chosen = chosen & ~(highest(score, mask, n=_few(config, mask)) & candidates)
    return chosen


def _few(config: TokenConfig, mask: Tensor) -> Tensor:
    return (config.covariance_share * mask.sum()).floor().clamp(min=1)


def _ratio_metrics(config: TokenConfig, e: Elements, mask: Tensor, n_tokens: Tensor | float | None) -> Metrics:
    with torch.no_grad():
        change = torch.expm1(e.log_ratio).expand_as(mask)
        metrics = {
            "ratio/min": torch.where(mask, change, 0.0).amin() + 1.0,
            "ratio/max": torch.where(mask, change, 0.0).amax() + 1.0,
            "ratio/variance": masked_mean(change.square(), mask, count=n_tokens),
            "policy/kl": masked_mean(approx_kl(e.token_log_ratio), mask, count=n_tokens),
            "policy/kl_k1": masked_mean(-e.token_log_ratio, mask, count=n_tokens),
        }
        if config.surrogate in CLIPPED:
            low, high = _bounds(config, e)
            stopped_low = ((change + 1.0 < low) & (e.advantage < 0)).to(change.dtype)
            stopped_high = ((change + 1.0 > high) & (e.advantage > 0)).to(change.dtype)
            metrics["policy/clip_fraction_low"] = masked_mean(stopped_low, mask, count=n_tokens)
            metrics["policy/clip_fraction_high"] = masked_mean(stopped_high, mask, count=n_tokens)
    return metrics


def _bounds(config: TokenConfig, e: Elements) -> tuple[Tensor | float, Tensor | float]:
    if e.bounds is not None:
        return e.bounds
    if config.surrogate == "clip_elastic" and e.target is not None:
        return 1.0 - e.target, 1.0 + e.target
    high = config.clip_range if config.clip_range_high is None else config.clip_range_high
    return 1.0 - config.clip_range, 1.0 + high


def _like(x: Tensor, ratio: Tensor) -> Tensor:
    return (x.unsqueeze(1) if x.ndim == 1 else x).expand_as(ratio)

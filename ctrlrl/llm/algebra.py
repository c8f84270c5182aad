"""From rewards to advantages, and from log-probabilities to the loss of one (micro-)batch, as a TokenConfig says.

N responses of up to L tokens. mask [N, L] bool: True on tokens that the policy chose, the first end-of-sequence token
included; False behind it and on tokens of a tool. Everything is normalized by the counts of the whole optimizer step,
so the sum of the losses of its micro-batches, or of its ranks, is its loss.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ctrlrl.functional import group as groups
from ctrlrl.functional.checks import same_shape
from ctrlrl.functional.distributions import approx_kl
from ctrlrl.functional.kl import kl_estimate
from ctrlrl.functional.masked import masked_mean, standardize, whiten
from ctrlrl.functional.ratio import silenced
from ctrlrl.functional.regression import clipped_value, soft_median_loss
from ctrlrl.functional.selection import covariance, highest, on_policy_rows, soft_overlong
from ctrlrl.functional.surrogate import dual_ascent
from ctrlrl.llm.config import TokenConfig
from ctrlrl.llm.estimators import ADVANTAGES, AdvantageOut, Scored, last_token
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


class Controls(NamedTuple):
    """What a method adapts while it runs."""

    variance_coef: Tensor  # 0-dim, ratio_var's multiplier
    ent_coef: Tensor  # 0-dim, as applied in the next step
    ent_level: Tensor  # 0-dim, the adaptive coefficient, also while it is switched off
    holder_p: float


def advantages(
    config: TokenConfig,
    rewards: Tensor,
    group: Tensor,
    mask: Tensor,
    *,
    log_prob_old: Tensor | None = None,
    log_prob_ref: Tensor | None = None,
    value: Tensor | None = None,
    lengths: Tensor | None = None,
    truncated: Tensor | None = None,
    greedy_reward: Tensor | None = None,
    state: tuple[Tensor, Tensor] | None = None,
) -> AdvantageOut:
    """Advantages of a whole generation batch; no gradient. Rows of one prompt must not be spread over calls.

    rewards:  [N], or [N, K] of several reward functions; NaN there = does not apply to this row.
    group:    [N] int64 in 0 ... N - 1: which prompt.
    log_prob_old, log_prob_ref: [N, L], read where the KL is in the reward.
    value:    [N, L], or [N, L, 2] (mean, median), of the critic that saw the tokens before.
    lengths:  [N] tokens; None = those of the mask.
    truncated: [N] bool: cut off at the longest length. greedy_reward: [N], for remax.
    state:    success and failure counts [N] of each row's prompt, for the tracker; move them afterwards.
    """
    rewards = rewards if rewards.ndim == 2 else rewards.unsqueeze(1)
    _check_rows(config, rewards, group, mask, value=value, greedy_reward=greedy_reward, state=state)
    with torch.no_grad():
        length = mask.sum(-1) if lengths is None else lengths
        cut = torch.zeros_like(mask[:, 0]) if truncated is None else truncated
        outcome = (torch.nan_to_num(rewards, nan=0.0) * config.weights(rewards)).sum(1)
        reward = outcome
        if config.overlong == "soft":
            buffer = config.overlong_buffer or max(1, config.max_tokens // 5)
            reward = reward + soft_overlong(length, max_length=config.max_tokens, buffer=buffer)
        token_reward = torch.where(last_token(mask), reward.unsqueeze(1), 0.0)
        if config.kl == "reward" and config.needs_reference:
            if log_prob_old is None or log_prob_ref is None:
                raise ValueError("advantages: kl=reward needs log_prob_old and log_prob_ref")
            penalty = config.kl_coef * torch.where(mask, log_prob_old - log_prob_ref, 0.0)
            token_reward, reward = token_reward - penalty, reward - penalty.sum(-1)
        scored = Scored(reward, rewards, token_reward, group, mask, value, length, cut, greedy_reward, state)
        out = ADVANTAGES[config.advantage](config, scored)
        if config.single == "raw":
            alone = groups.group_size(group) == 1
            out = out._replace(advantage=torch.where(alone, reward, out.advantage))
        keep = _kept(config, out.keep, outcome, group, cut)
        return out._replace(advantage=_whitened(config, out.advantage, mask), keep=keep)


def _whitened(config: TokenConfig, advantage: Tensor, mask: Tensor) -> Tensor:
    if config.whiten == "responses":
        return standardize(advantage, eps=config.advantage_eps)
    if config.whiten == "tokens":
        if advantage.ndim == 1:
            advantage = advantage.unsqueeze(1).expand(mask.shape)
        return whiten(advantage, mask)
    return advantage


def _kept(config: TokenConfig, keep: Tensor | None, reward: Tensor, group: Tensor, truncated: Tensor) -> Tensor:
    keep = torch.ones_like(truncated) if keep is None else keep
    if config.overlong == "mask":
        keep = keep & ~truncated
    if config.drop_solved:
        keep = keep & (groups.group_sum((reward < config.reward_max).to(group.dtype), group) > 0)
    if config.dynamic_sampling:
        keep = keep & ~groups.equal_rewards(reward, group)
    return keep


def _check_rows(
    config: TokenConfig, rewards: Tensor, group: Tensor, mask: Tensor, **optional: Tensor | tuple[Tensor, Tensor] | None
) -> None:
    n = mask.shape[0]
    if mask.dtype != torch.bool or rewards.shape[0] != n or group.shape != (n,):
        raise ValueError(
            f"advantages: mask must be bool [N, L] and rewards and group have N rows, got mask {tuple(mask.shape)} "
            f"{mask.dtype}, rewards {tuple(rewards.shape)}, group {tuple(group.shape)}"
        )
    wanted = {"value": config.needs_critic, "greedy_reward": config.needs_greedy, "state": config.needs_tracker}
    for name, needed in wanted.items():
        if needed and optional[name] is None:
            raise ValueError(f"advantages: advantage={config.advantage} needs {name}")
    # once a generation batch, not once an update: reading the device is cheap here
    if not bool(((group >= 0) & (group < n)).all()):
        raise ValueError(f"advantages: group must hold numbers in 0 ... {n - 1}, one a prompt")
    if bool(rewards.isinf().any()) or bool(rewards.isnan().all(1).any()):
        raise ValueError("advantages: some response has no finite reward; NaN may stand for some rewards, not for all")
    if config.needs_groups and config.single == "refuse" and bool((groups.group_size(group) < 2).any()):
        raise ValueError(
            f"advantages: some prompt has one response, but advantage={config.advantage} compares several. "
            "Use group_size >= 2, or single=raw."
        )


def controls(config: TokenConfig, *, like: Tensor | None = None) -> Controls:
    """Their values at the start of a run, on the device and in the dtype of `like`."""
    like = torch.zeros(()) if like is None else like.detach()
    ent = like.new_tensor(config.ent_coef)
    return Controls(like.new_tensor(config.variance_coef), ent, ent.clone(), config.holder_p)


def next_controls(config: TokenConfig, now: Controls, metrics: Metrics, *, progress: float = 0.0) -> Controls:
    """Their values for the next optimizer step from the metrics of this one; no host read.

    progress: fraction of the run that is done, in [0, 1].
    """
    coef, ent, level = now.variance_coef, now.ent_coef, now.ent_level
    if config.variance_rate > 0.0:
        variance = metrics["ratio/variance"].to(coef)
        coef = dual_ascent(coef, variance, bound=config.variance_bound, rate=config.variance_rate)
    if config.ent_target is not None:
        low = metrics["policy/entropy"] <= config.ent_target
        level = torch.where(low, level + config.ent_delta, level - config.ent_delta).clamp(0.0, config.ent_coef_max)
        ent = torch.where(low, level, 0.0)
    end = config.holder_p if config.holder_p_end is None else config.holder_p_end
    return Controls(coef, ent, level, config.holder_p + progress * (end - config.holder_p))


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


def value_loss(
    config: TokenConfig,
    value: Tensor,
    value_old: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    n_tokens: Tensor | float | None = None,
) -> tuple[Tensor, Metrics]:
    """Half the squared error of the critic, optionally of a clipped change; with two heads also the median's loss.

    value, value_old: [N, L], or [N, L, 2]; returns, mask: [N, L]. T-PPO's mask holds finished responses only.
    """
    mean, old = (value[..., 0], value_old[..., 0]) if value.ndim == 3 else (value, value_old)
    limit = float("inf") if config.clip_range_vf is None else config.clip_range_vf
    error = 0.5 * clipped_value(mean, old, returns, clip_range=limit, take_max=True)
    loss = masked_mean(error, mask, count=n_tokens)
    metrics = {"loss/value": loss.detach()}
    if value.ndim == 3:
        median = soft_median_loss(returns - value[..., 1], temperature=config.median_temperature)
        median_loss = masked_mean(median, mask, count=n_tokens)
        metrics["loss/median"] = median_loss.detach()
        loss = loss + config.median_coef * median_loss
    return loss, metrics


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

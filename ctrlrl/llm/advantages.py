"""From rewards to advantages, as a TokenConfig says: KL in the reward, estimator, whitening, data rules.

N responses of up to L tokens. mask [N, L] bool: True on tokens that the policy chose, the first end-of-sequence token
included; False behind it and on tokens of a tool.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ctrlrl.core.ranks import Ranks
from ctrlrl.functional import group as groups
from ctrlrl.functional.masked import standardize, whiten
from ctrlrl.functional.selection import soft_overlong
from ctrlrl.llm.batches import Rollout
from ctrlrl.llm.config import TokenConfig
from ctrlrl.llm.estimators import ADVANTAGES, AdvantageOut, Scored, last_token
from ctrlrl.types import tree_map


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
    window: Tensor | None = None,
    truncated: Tensor | None = None,
    greedy_reward: Tensor | None = None,
    state: tuple[Tensor, Tensor] | None = None,
) -> AdvantageOut:
    """Advantages of a whole generation batch; no gradient. Rows of one prompt must not be spread over calls.

    rewards:  [N], or [N, K] of several reward functions; NaN there = does not apply to this row.
    group:    [N] int64 in 0 ... N - 1: which prompt.
    log_prob_old, log_prob_ref: [N, L], read where the KL is in the reward.
    value:    [N, L], or [N, L, 2] (mean, median), of the critic that saw the tokens before.
    lengths:  [N] tokens; None = those of the mask. window: [N, L] bool, the tokens that the policy learns from, which
        alone are whitened; None = the mask.
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
        return out._replace(advantage=_whitened(config, out.advantage, mask if window is None else window), keep=keep)


def advantages_over_ranks(
    config: TokenConfig,
    ranks: Ranks,
    batch: Rollout,
    *,
    old: Tensor | None = None,
    ref: Tensor | None = None,
    value: Tensor | None = None,
    state: tuple[Tensor, Tensor] | None = None,
) -> AdvantageOut:
    """Of this rank's rows, made from those of all ranks: some estimators compare the whole batch."""
    n = len(batch.reward)

    def whole(x: Any) -> Any:
        if x is None or ranks.size == 1:
            return x
        stacked = ranks.stacked(x.byte()).bool() if x.dtype == torch.bool else ranks.stacked(x)
        return stacked.flatten(0, 1)

    out = advantages(
        config,
        whole(batch.rewards),
        whole(batch.group + ranks.index * n),
        whole(batch.mask),
        log_prob_old=whole(old),
        log_prob_ref=whole(ref),
        value=whole(value),
        window=whole(batch.window),
        truncated=~whole(batch.ended),
        greedy_reward=whole(batch.greedy_reward),
        state=None if state is None else (whole(state[0]), whole(state[1])),
    )
    return tree_map(lambda x: x[ranks.index * n : (ranks.index + 1) * n], out) if ranks.size > 1 else out


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
    if config.advantage == "beta_norm" and bool(((rewards < 0.0) | (rewards > 1.0)).any()):
        raise ValueError("advantages: advantage=beta_norm takes rewards in [0, 1]")
    if config.needs_groups and config.single == "refuse" and bool((groups.group_size(group) < 2).any()):
        raise ValueError(
            f"advantages: some prompt has one response, but advantage={config.advantage} compares several. "
            "Use group_size >= 2, or single=raw."
        )

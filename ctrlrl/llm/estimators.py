"""Advantage estimators by name: rewards of responses to what a token's log-probability is multiplied with.

An entry is f(config, rollout) -> AdvantageOut; entries may be added. Whitening, KL in the reward and data rules come
around them, in `algebra.advantages`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctrlrl.functional import group as groups
from ctrlrl.functional.returns import egae, gae, next_valid
from ctrlrl.functional.selection import elastic_width
from ctrlrl.functional.tracker import tracker_value


class Scored(NamedTuple):
    """N responses of up to L tokens with their rewards; what an estimator reads."""

    reward: Tensor  # [N], the weighted sum, less the KL where that is in the reward
    rewards: Tensor  # [N, K] as given; NaN = does not apply
    token_reward: Tensor  # [N, L]: the reward on the last token, the KL on each
    group: Tensor  # [N] int64
    mask: Tensor  # [N, L] bool
    value: Tensor | None  # [N, L], or [N, L, 2]: mean and median
    length: Tensor  # [N] tokens
    truncated: Tensor  # [N] bool: cut off, no end-of-sequence token
    greedy_reward: Tensor | None  # [N] of the greedy response to the same prompt
    tracker: tuple[Tensor, Tensor] | None  # [N] success and failure counts of the row's prompt


class AdvantageOut(NamedTuple):
    advantage: Tensor  # [N] or [N, L]
    target: Tensor | None = None  # a second signal of the surrogate: bounded: the side; clip_elastic: the half-width
    returns: Tensor | None = None  # [N, L], what a critic regresses to
    keep: Tensor | None = None  # [N] bool: rows that stay in the batch; None = all


def _gae(cfg: Any, x: Scored) -> AdvantageOut:
    advantage, returns = _token_gae(cfg, x, x.value)
    return AdvantageOut(advantage, returns=returns)


def _egae(cfg: Any, x: Scored) -> AdvantageOut:
    assert x.value is not None
    cut = x.truncated.unsqueeze(1) & last_token(x.mask)
    advantage, _ = _over_tokens(egae, cfg, x, x.value, cut, gae_lambda=cfg.gae_lambda)
    return AdvantageOut(advantage, returns=_token_returns(cfg, x))  # Monte Carlo: for finished responses only


def _value_median(cfg: Any, x: Scored) -> AdvantageOut:
    assert x.value is not None
    mean, median = x.value[..., 0], x.value[..., 1]
    advantage, returns = _token_gae(cfg, x, mean)
    return AdvantageOut(advantage, target=torch.where(x.mask, returns - median, 0.0), returns=returns)


def _reinforce_pp(cfg: Any, x: Scored) -> AdvantageOut:
    return AdvantageOut(_token_returns(cfg, x))


def _batch_z(cfg: Any, x: Scored) -> AdvantageOut:
    return AdvantageOut(groups.group_center(x.reward, x.group) / (x.reward.std() + cfg.advantage_eps))


def _remax(cfg: Any, x: Scored) -> AdvantageOut:
    assert x.greedy_reward is not None
    return AdvantageOut(x.reward - x.greedy_reward)


def _median_mad(cfg: Any, x: Scored) -> AdvantageOut:
    advantage, keep = groups.median_mad(x.reward, x.group)
    return AdvantageOut(advantage, keep=keep)


def _bounded(cfg: Any, x: Scored) -> AdvantageOut:
    weight, side = groups.bounded_signals(x.reward, x.group, eps=cfg.advantage_eps)
    return AdvantageOut(weight, target=side)


def _virtual_max(cfg: Any, x: Scored) -> AdvantageOut:
    return AdvantageOut(
        groups.virtual_max(x.reward, x.group, n_virtual=cfg.n_virtual, reward_max=cfg.reward_max, eps=cfg.advantage_eps)
    )


def _each_z(cfg: Any, x: Scored) -> AdvantageOut:
    z = []
    for column in x.rewards.unbind(1):
        valid = ~column.isnan()
        z.append(groups.group_z(column.masked_fill(~valid, 0.0), x.group, eps=cfg.advantage_eps, valid=valid))
    return AdvantageOut((torch.stack(z, 1) * cfg.weights(x.rewards)).sum(1))


def _tracker(cfg: Any, x: Scored) -> AdvantageOut:
    assert x.tracker is not None
    return AdvantageOut(x.reward - tracker_value(*x.tracker))


def _elastic(cfg: Any, x: Scored) -> AdvantageOut:
    advantage = groups.group_z(x.reward, x.group, eps=cfg.advantage_eps)
    width = elastic_width(
        advantage,
        groups.group_mean(x.reward, x.group).clamp(0.0, 1.0),
        width=cfg.clip_range,
        by_advantage=cfg.elastic_advantage,
        by_variance=cfg.elastic_variance,
    )
    return AdvantageOut(advantage, target=width)


ADVANTAGES: dict[str, Callable[[Any, Scored], AdvantageOut]] = {
    "gae": _gae,
    "egae": _egae,
    "value_median": _value_median,
    "reinforce_pp": _reinforce_pp,
    "reward": lambda cfg, x: AdvantageOut(x.reward),
    "one": lambda cfg, x: AdvantageOut(torch.ones_like(x.reward)),
    "group_z": lambda cfg, x: AdvantageOut(groups.group_z(x.reward, x.group, eps=cfg.advantage_eps)),
    "group_z_elastic": _elastic,
    "group_center": lambda cfg, x: AdvantageOut(groups.group_center(x.reward, x.group)),
    "rloo": lambda cfg, x: AdvantageOut(groups.leave_one_out(x.reward, x.group)),
    "batch_z": _batch_z,
    "remax": _remax,
    "opo": lambda cfg, x: AdvantageOut(groups.length_baseline(x.reward, x.group, x.length)),
    "median_mad": _median_mad,
    "gbpo": _bounded,
    "virtual_max": _virtual_max,
    "beta_norm": lambda cfg, x: AdvantageOut(groups.beta_norm(x.reward, x.group)),
    "gdpo": _each_z,
    "tracker": _tracker,
}

OF_TOKENS = ("gae", "egae", "value_median", "reinforce_pp")  # advantages [N, L]; the others have one a response
OF_CRITIC = ("gae", "egae", "value_median")
OF_GROUPS = tuple(name for name in ADVANTAGES if name not in (*OF_TOKENS, "reward", "one", "remax", "tracker"))


def _token_gae(cfg: Any, x: Scored, value: Tensor | None) -> tuple[Tensor, Tensor]:
    assert value is not None
    return _over_tokens(gae, cfg, x, value, torch.zeros_like(x.mask), gae_lambda=cfg.gae_lambda)


def _token_returns(cfg: Any, x: Scored) -> Tensor:
    """Discounted sums of the token rewards from each token on: the advantage over values of 0."""
    nothing = torch.zeros_like(x.token_reward)
    return _over_tokens(gae, cfg, x, nothing, torch.zeros_like(x.mask), gae_lambda=1.0)[0]


def _over_tokens(
    estimate: Callable[..., tuple[Tensor, Tensor]],
    cfg: Any,
    x: Scored,
    value: Tensor,
    cut: Tensor,
    *,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    mask = x.mask.T
    value = torch.where(mask, value.T, 0.0)
    reward = x.token_reward.T
    never = torch.zeros_like(mask)
    out = estimate(
        reward, value, next_valid(value, mask), never, cut.T, gamma=cfg.gamma, gae_lambda=gae_lambda, mask=mask
    )
    return out[0].T, out[1].T


def last_token(mask: Tensor) -> Tensor:
    """[N, L] bool: the last counting token of each row."""
    return mask & (mask.flip(1).cumsum(1).flip(1) == 1)

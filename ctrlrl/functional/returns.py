"""Advantages and returns along axis 0 (time). Tokens [B, L] pass `x.T`.

Everywhere: `terminated` drops the bootstrap, `truncated` keeps it, both cut the trace. `next_value` is the value of the
observation the action led to (before auto-reset), so row T-1 needs no special case. Gradients flow where inputs carry
them: call under `torch.no_grad()`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctrlrl.functional.checks import same_shape
from ctrlrl.functional.scan import append_axes, linear_recurrence


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    *,
    gamma: float | Tensor,
    gae_lambda: float | Tensor,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimate and the critic's target, advantage + value; both [T, B] in reward units.

    reward, value, next_value: [T, B]; or rewards [T, B, 1] against values [T, B, K] and gamma [K]: K discounts at once.
    terminated, truncated:     [T, B] bool.
    mask: [T, B] bool, True = counts. A masked step has advantage 0 (target = value) and hands the trace through
        unchanged, so the tokens of a tool cost no discount; give `next_valid(value, mask)` as `next_value` then.
    Source: Schulman et al. 2015, arXiv:1506.02438, eq. 16.
    """
    _same_axes("gae", reward=reward, value=value, next_value=next_value)
    terminated, done = _ends(terminated, truncated, value.ndim)
    delta = reward + gamma * next_value.masked_fill(terminated, 0.0) - value
    decay = (~done).to(delta.dtype) * (gamma * gae_lambda)
    if mask is None:
        advantage = linear_recurrence(decay, delta)
    else:
        silent = ~append_axes(mask, value.ndim)
        # An episode end cuts the trace even on a masked step.
        decay = torch.where(silent, (~done).to(delta.dtype), decay)
        advantage = linear_recurrence(decay, delta.masked_fill(silent, 0.0)).masked_fill(silent, 0.0)
    return advantage, advantage + value


def egae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    *,
    gamma: float | Tensor,
    gae_lambda: float | Tensor,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`gae` on unfinished responses: where `truncated`, the next value is taken to be this step's own value.

    Shapes as in `gae`; `next_value` is not read where `truncated`.
    Source: T-PPO, arXiv:2506.15050 (extended GAE).
    """
    _same_axes("egae", reward=reward, value=value, next_value=next_value)
    extended = torch.where(append_axes(truncated, value.ndim), value, next_value)
    return gae(reward, value, extended, terminated, truncated, gamma=gamma, gae_lambda=gae_lambda, mask=mask)


def next_valid(x: Tensor, mask: Tensor) -> Tensor:
    """[T, B] -> [T, B]: at each step `x` of the next later step where `mask` is True, 0 where there is none.

    Used to skip the tokens of a tool when the value after a token is wanted.
    """
    mask = append_axes(mask, x.ndim)
    here_or_later = linear_recurrence((~mask).to(x.dtype), x.masked_fill(~mask, 0.0))
    return torch.cat([here_or_later[1:], torch.zeros_like(here_or_later[:1])])


def lambda_returns(
    reward: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    *,
    gamma: float | Tensor,
    gae_lambda: float | Tensor,
) -> Tensor:
    """G[t] = r + gamma * ((1 - lambda) * next_value + lambda * G[t+1]), [T, B]; equals the target of `gae`.

    An episode end or row T-1 replaces G[t+1] by next_value; termination makes both 0.
    Source: Sutton & Barto 2018, eq. 12.18 (in recursive form).
    """
    _same_axes("lambda_returns", reward=reward, next_value=next_value)
    terminated, cut = _ends(terminated, truncated, next_value.ndim)
    cut[-1] = True
    trace = (~cut).to(next_value.dtype) * gae_lambda
    bootstrap = next_value.masked_fill(terminated, 0.0)
    return linear_recurrence(gamma * trace, reward + gamma * (1.0 - trace) * bootstrap)


def discounted_returns(
    reward: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    *,
    gamma: float | Tensor,
    bootstrap: Tensor | None = None,
) -> Tensor:
    """G[t] = r[t] + gamma * G[t+1] inside each episode, [T, B] in reward units.

    bootstrap: [T, B] value of the observation each action led to, read only where an episode was truncated and at row
        T-1 (unless terminated there); None = 0.
    """
    tail = torch.zeros_like(reward) if bootstrap is None else bootstrap
    _same_axes("discounted_returns", reward=reward, bootstrap=tail)
    terminated, cut = _ends(terminated, truncated, tail.ndim)
    cut[-1] = True
    read = cut & ~terminated
    return linear_recurrence((~cut).to(tail.dtype) * gamma, reward + gamma * tail.masked_fill(~read, 0.0))


def n_step(
    reward: Tensor, next_value: Tensor, terminated: Tensor, truncated: Tensor, *, gamma: float | Tensor, n: int
) -> Tensor:
    """n rewards and the bootstrap after them, [T, B]; fewer where the episode or the rollout ends first.

    n = 1 is the TD target, n >= T is `discounted_returns`. Source: Sutton & Barto 2018, eq. 7.1.
    """
    if n < 1:
        raise ValueError(f"n_step.n must be >= 1, got {n}")
    _same_axes("n_step", reward=reward, next_value=next_value)
    terminated, cut = _ends(terminated, truncated, next_value.ndim)
    tail = next_value.masked_fill(terminated, 0.0)
    target = reward + gamma * tail
    for _ in range(n - 1):
        later = torch.cat([target[1:], tail[-1:]])
        target = reward + gamma * torch.where(cut, tail, later)
    return target


def n_step_sums(reward: Tensor, stop: Tensor, *, gamma: float, n: int) -> tuple[Tensor, Tensor]:
    """Discounted sum of up to n rewards from every step on, none past a stop, and their number, int64; [T, ...] each.

    stop: True where the episode ends with this step, in whatever way; the T-th step stops too. What the k rewards from
    step t on led to is what step t + k - 1 led to, discounted by gamma to the k. Source: Sutton & Barto 2018, eq. 7.1.
    """
    if n < 1:
        raise ValueError(f"n_step_sums.n must be >= 1, got {n}")
    same_shape("n_step_sums", reward=reward, stop=stop)
    total, length = reward.clone(), torch.ones_like(reward, dtype=torch.int64)
    steps = len(reward)
    going = torch.ones_like(stop)
    for j in range(1, min(n, steps)):
        going = going[: steps - j] & ~stop[j - 1 : steps - 1]
        total[: steps - j] += gamma**j * reward[j:].masked_fill(~going, 0.0)
        length[: steps - j] += going
    return total, length


def _ends(terminated: Tensor, truncated: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
    """Terminated, and a fresh terminated | truncated, both with trailing axes to meet values of `ndim` axes."""
    terminated = append_axes(terminated, ndim)
    return terminated, terminated | append_axes(truncated, ndim)


def _same_axes(where: str, **tensors: Tensor) -> None:
    # [T, B] against [T, B, 1] would silently broadcast to [T, B, B]; [T, B, 1] against [T, B, K] is meant.
    first, *rest = (t.shape for t in tensors.values())
    for shape in rest:
        leading = len(shape) == len(first) and shape[:2] == first[:2]
        if not leading or any(a != b and 1 not in (a, b) for a, b in zip(shape[2:], first[2:], strict=True)):
            same_shape(where, **tensors)


def discounted_sums(reward: Tensor, done: Tensor, initial: Tensor, *, gamma: float) -> Tensor:
    """Running sums forward in time: G[t] = reward[t] + gamma * G[t-1], started anew after each episode end.

    reward: [T, ...]; done: bool, broadcastable to it; initial: [...], G before the first step (0 after an episode end).
    Returns G, [T, ...], taken before an episode end sets it to 0: with gamma = 1 the episode's return so far.
    """
    goes_on = (~done).to(reward.dtype).expand_as(reward)
    first = reward[:1] + gamma * initial
    decay = gamma * torch.cat((torch.zeros_like(goes_on[:1]), goes_on[:-1]))
    return linear_recurrence(decay.flip(0), torch.cat((first, reward[1:])).flip(0)).flip(0)

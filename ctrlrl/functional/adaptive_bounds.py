"""Clip bounds chosen for every batch, so that good tokens weigh enough beside bad ones. BAPO, arXiv:2510.18927."""

from __future__ import annotations

import torch
from torch import Tensor


def bound_ladder(
    low: tuple[float, float], high: tuple[float, float], step: float, *, like: Tensor
) -> tuple[Tensor, Tensor]:
    """The pairs of bounds in the order in which they are tried, [C] each: first low rises to its end, then high."""
    n_low, n_high = round((low[1] - low[0]) / step), round((high[1] - high[0]) / step)
    lows = [low[0] + step * i for i in range(n_low)] + [low[1]] * (n_high + 1)
    highs = [high[0]] * n_low + [high[0] + step * i for i in range(n_high)] + [high[1]]
    return like.new_tensor(lows), like.new_tensor(highs)


def bound_sums(ratio: Tensor, advantage: Tensor, mask: Tensor, lows: Tensor, highs: Tensor) -> Tensor:
    """For every pair of bounds the weight of good and of bad elements, [C, 2]; sums over batches and ranks add up.

    Good: sum over A >= 0 of min(ratio, high) A; bad: the size of the sum over A < 0 of max(ratio, low) A.
    """
    good = torch.where(mask & (advantage >= 0), advantage, 0.0)
    bad = torch.where(mask & (advantage < 0), -advantage, 0.0)
    positive = [(ratio.clamp(max=high) * good).sum() for high in highs]
    negative = [(ratio.clamp(min=low) * bad).sum() for low in lows]
    return torch.stack((torch.stack(positive), torch.stack(negative)), -1)


def choose_bounds(sums: Tensor, lows: Tensor, highs: Tensor, *, target: float) -> tuple[Tensor, Tensor]:
    """The first pair of bounds with good / bad >= target, else the last; 0-dim each, no host read."""
    enough = sums[:, 0] >= target * sums[:, 1]
    enough = torch.cat((enough[:-1], torch.ones_like(enough[-1:])))
    first = enough.to(torch.int64).argmax()
    return lows.take(first), highs.take(first)

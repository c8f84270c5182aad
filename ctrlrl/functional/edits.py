"""Actions made better without a gradient through the policy that drew them: edited, climbed, chosen by value."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def edited(action: Tensor, edit: Tensor, *, scale: float) -> Tensor:
    """action + scale * edit, [..., A]; not clipped. edit: in (-1, 1). Source: EXPO, arXiv:2507.07986."""
    return action + scale * edit


def edited_log_prob(log_prob: Tensor, *, scale: float, action_dim: int) -> Tensor:
    """log-density [...] of the edited action, nats: log_prob - action_dim * log(scale).

    log_prob: of the edit before it is scaled. Source: EXPO's code.
    """
    return log_prob - action_dim * math.log(scale)


def picked(candidates: Tensor, index: Tensor) -> Tensor:
    """candidates[index[n], n] for every row n: [C, N, ...] and [N] int64 -> [N, ...]."""
    shape = (1, -1) + (1,) * (candidates.ndim - 2)
    return candidates.gather(0, index.view(shape).expand(1, *candidates.shape[1:])).squeeze(0)


def climbed(
    action: Tensor, value: Callable[[Tensor], Tensor], *, step_size: float, n_steps: int, bound: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The best point [..., A] on a gradient ascent from `action`, and its value [...]; never below the start.

    value: actions [..., A] -> [...], each element a function of its own action alone. step_size: of every step along
    the gradient, which is then clipped into +-bound. Source: PA-RL, arXiv:2412.06685, local optimisation.
    """
    point = action.detach()
    best, most = point, torch.full(point.shape[:-1], -math.inf, device=point.device, dtype=point.dtype)
    for step in range(n_steps + 1):
        with torch.enable_grad():
            point = point.detach().requires_grad_()
            here = value(point)
            (slope,) = torch.autograd.grad(here.sum(), point) if step < n_steps else (None,)
        better = here.detach() > most
        best = torch.where(better.unsqueeze(-1), point.detach(), best)
        most = torch.where(better, here.detach(), most)
        if slope is not None:
            point = (point.detach() + step_size * slope).clamp(-bound, bound)
    return best, most

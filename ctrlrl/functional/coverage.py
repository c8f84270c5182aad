"""Which of several goals a policy's roll-outs end at, and how evenly they are spread over them."""

from __future__ import annotations

import torch
from torch import Tensor


def goal_reached(position: Tensor, goals: Tensor, *, reach: float, target: Tensor | None = None) -> Tensor:
    """The goal [N] that each roll-out counts for, int64, -1 for none.

    position: [N, 2] m, where it ended. goals: [G, 2] m. reach: m, at most this far away counts as there.
    target:   [N, 2] m, the place it was to reach: it counts for the goal nearest to that place. None: any goal counts.
    """
    place = position if target is None else target
    away = torch.cdist(place.double(), goals.double(), compute_mode="donot_use_mm_for_euclid_dist")  # [N, G]
    nearest, which = away.min(1)
    if target is not None:
        nearest = torch.linalg.vector_norm(position.double() - target.double(), dim=1)
    return torch.where(nearest <= reach, which, -1)


def goal_shares(reached: Tensor, n_goals: int) -> Tensor:
    """[G] float64: the part of all N roll-outs that ended at each goal. reached: [N] int64, -1 = at none."""
    return torch.bincount(reached + 1, minlength=n_goals + 1)[1:].double() / max(1, reached.numel())


def share_entropy(shares: Tensor) -> Tensor:
    """Entropy in nats, [], of the histogram over goals of the roll-outs that ended at one; 0 where none did.

    log G where all goals are reached equally often, 0 where only one is.
    """
    total = shares.sum()
    p = shares / torch.where(total > 0.0, total, 1.0)
    return torch.special.entr(p).sum()

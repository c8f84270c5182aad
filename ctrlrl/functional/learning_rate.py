"""Schedules of the learning rate."""

from __future__ import annotations

import math


def cosine(done: float) -> float:
    """Share of the learning rate: 1 at done = 0, 0 at 1, and up again beyond it, whole at 2."""
    return 0.5 * (1.0 + math.cos(math.pi * done))


def warmup_cosine(step: int, *, warmup: int, total: float) -> float:
    """Share of the learning rate at update `step` = 0, 1, ...: up in a line over `warmup`, down in half a cosine.

    Source: diffusers' get_scheduler("cosine"), which Diffusion Policy uses.
    """
    if step < warmup:
        return step / warmup
    done = (step - warmup) / max(1.0, total - warmup)
    return cosine(min(done, 1.0))

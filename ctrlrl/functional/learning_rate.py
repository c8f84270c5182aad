"""Schedules of the learning rate."""

from __future__ import annotations

import math


def warmup_cosine(step: int, *, warmup: int, total: float) -> float:
    """Share of the learning rate at update `step` = 0, 1, ...: up in a line over `warmup`, down in half a cosine.

    Source: diffusers' get_scheduler("cosine"), which Diffusion Policy uses.
    """
    if step < warmup:
        return step / warmup
    done = (step - warmup) / max(1.0, total - warmup)
    return 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))

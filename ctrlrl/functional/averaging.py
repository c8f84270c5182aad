"""How slowly an averaged copy of a network follows it."""

from __future__ import annotations

from torch import Tensor


def ema_decay(step: Tensor, *, power: float = 0.75, highest: float = 0.9999) -> Tensor:
    """What the averaged weights keep of themselves in an update: 1 - (1 + step)^-power, at most `highest`; as step.

    step: updates so far, counted from 0: the first one copies the weights. Source: Diffusion Policy, arXiv:2303.04137,
    and its code, after K. Crowson.
    """
    return (1.0 - (1.0 + step).pow(-power)).clamp(0.0, highest)

"""What a method adapts while it runs: multiplier of the ratio's variance, entropy bonus, the mean's exponent."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ctrlrl.functional.surrogate import dual_ascent
from ctrlrl.llm.config import TokenConfig
from ctrlrl.types import Metrics


class Controls(NamedTuple):
    """What a method adapts while it runs."""

    variance_coef: Tensor  # 0-dim, ratio_var's multiplier
    ent_coef: Tensor  # 0-dim, as applied in the next step
    ent_level: Tensor  # 0-dim, the adaptive coefficient, also while it is switched off
    holder_p: float


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

"""The check of actions that every environment of our own makes at every step."""

from __future__ import annotations

from torch import Tensor

from ctrlrl.types import EnvSpec


def check_action(name: str, spec: EnvSpec, action: Tensor) -> None:
    """ValueError where actions are not [B, A], or of integers [B] or [B, D]; reads no values, so it costs nothing."""
    width = spec.action_dim or len(spec.nvec)
    shape = (spec.n_envs, width) if width else (spec.n_envs,)
    if action.shape != shape:
        raise ValueError(f"{name}.step: actions must have shape {list(shape)}, got {list(action.shape)}")
    if not spec.action_dim and action.is_floating_point():
        raise ValueError(f"{name}.step: discrete actions must be integers, got {action.dtype}; action.long()")

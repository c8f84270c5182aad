"""Transitions as packed rows on one device: one gather a batch, the columns are views of it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ctrlrl.types import Transition


class Table:
    """obs | action | reward | next_obs | terminated | extras, float32. An extra of width 0 is one number a row, [N]."""

    def __init__(
        self,
        capacity: int,
        obs_dim: int,
        action_dim: int,
        extras: Mapping[str, int],
        device: torch.device | str,
        *,
        reward_dim: int = 1,
    ):
        reward = reward_dim if reward_dim > 1 else 0
        widths = [
            ("obs", obs_dim),
            ("action", action_dim),
            ("reward", reward),
            ("next_obs", obs_dim),
            ("terminated", 0),
        ]
        self.obs_dim, self.action_dim, self.extras = obs_dim, action_dim, tuple(extras)
        self.columns: dict[str, slice | int] = {}
        at = 0
        for name, width in [*widths, *extras.items()]:
            self.columns[name] = slice(at, at + width) if width else at
            at += max(width, 1)
        self.rows = torch.empty(capacity, at, device=device)

    def __getitem__(self, name: str) -> Tensor:
        """The column [capacity, width] or [capacity], a view."""
        return self.rows[:, self.columns[name]]

    def read(self, rows: Tensor) -> Transition:
        """Rows [..., width] as a transition of views."""
        c = self.columns
        return Transition(
            rows[..., c["obs"]],
            rows[..., c["action"]],
            rows[..., c["reward"]],
            rows[..., c["next_obs"]],
            rows[..., c["terminated"]] > 0.5,
            {name: rows[..., c[name]] for name in self.extras},
        )

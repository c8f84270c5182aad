"""What learners share that learn from a data set first and treat the updates after that otherwise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ctrlrl.core.off_policy import Nets, OffPolicyLearner


class PhasedLearner(OffPolicyLearner):
    """Knows which updates are those of an online phase after updates on a data set alone."""

    def __init__(self, cfg: Any, nets: Nets):
        self.offline_updates = 0  # until now
        super().__init__(cfg, nets)

    @property
    def fine_tunes(self) -> bool:
        """Whether the next update comes after the offline ones, of which there were some."""
        return self.n_updates >= self.offline_updates > 0

    def set_progress(self, done: float) -> None:
        self.offline_updates = self.n_updates + 1

    def training_state(self) -> dict[str, Tensor]:
        return {**super().training_state(), "offline_updates": torch.tensor(self.offline_updates)}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        super().load_training_state(state)
        self.offline_updates = int(state["offline_updates"])

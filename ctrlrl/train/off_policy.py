"""The offline loop: batches from a source to the learner, a chunk of updates at a time. It knows no algorithm."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ctrlrl.core.off_policy import OffPolicyLearner
from ctrlrl.data.episodes import Facts
from ctrlrl.types import Metrics, Source

CHUNK = 50  # updates between two looks at the losses, so also between two log rows or checkpoints


class OfflineLoop:
    """One `iterate` is up to CHUNK updates; between them the host reads nothing from the device."""

    clock: ClassVar[str] = "gradient_steps"

    def __init__(
        self,
        learner: OffPolicyLearner,
        source: Source,
        *,
        gradient_steps: int,
        batch_size: int,
        facts: Facts | None = None,
    ):
        """facts: what the data set's file says of itself."""
        self.learner, self.source, self.batch_size, self.facts = learner, source, batch_size, facts
        self.total_steps = gradient_steps
        self.gradient_steps = 0
        self.env_steps = 0
        self.env: Any = None

    @property
    def done(self) -> bool:
        return self.gradient_steps >= self.total_steps

    def iterate(self) -> Metrics:
        """Means over the chunk; a metric that only some updates have, over those."""
        totals: Metrics = {}
        counts: dict[str, int] = {}
        for _ in range(min(CHUNK, self.total_steps - self.gradient_steps)):
            self.learner.set_progress(self.gradient_steps / self.total_steps)
            for name, value in self.learner.update(self.source.sample(self.batch_size)).items():
                totals[name] = totals[name].add_(value) if name in totals else value.clone()
                counts[name] = counts.get(name, 0) + 1
            self.gradient_steps += 1
        means = {name: total / counts[name] for name, total in totals.items()}
        means = self.learner.ranks.averaged(means)
        self._check_finite(means)
        return means

    def _check_finite(self, means: Metrics) -> None:
        if bool(torch.isfinite(torch.stack([value.sum() for value in means.values()])).all()):
            return
        bad = next(name for name, value in means.items() if not bool(torch.isfinite(value).all()))
        raise ValueError(
            f"training diverged: {bad} is not finite within the {CHUNK} updates before gradient step "
            f"{self.gradient_steps}. Lower algo.learning_rate, or look for NaN with `ctrlrl data check`."
        )

    def episode_metrics(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        pass

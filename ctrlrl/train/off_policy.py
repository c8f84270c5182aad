"""The offline loop: batches from a source to the learner, a chunk of updates at a time. It knows no algorithm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ctrlrl.core.off_policy import OffPolicyLearner
from ctrlrl.core.ranks import ALONE, Ranks
from ctrlrl.data.episodes import Facts
from ctrlrl.train.held_out import Rows
from ctrlrl.types import EnvSpec, Metrics, Source

CHUNK = 50  # updates between two looks at the losses, so also between two log rows or checkpoints


class Means:
    """Of the metrics of a chunk of updates; they stay on the device until they are read."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.totals: Metrics = {}
        self.counts: dict[str, int] = {}

    def add(self, metrics: Metrics) -> None:
        for name, value in metrics.items():
            self.totals[name] = self.totals[name].add_(value) if name in self.totals else value.clone()
            self.counts[name] = self.counts.get(name, 0) + 1

    def read(self, when: str, ranks: Ranks = ALONE) -> Metrics:
        """Over all ranks. ValueError, on every one, where a mean is not finite; the host's one look at the device."""
        means = ranks.averaged({name: total / self.counts[name] for name, total in self.totals.items()})
        if not means or bool(torch.isfinite(torch.stack([value.sum() for value in means.values()])).all()):
            return means
        bad = next(name for name, value in means.items() if not bool(torch.isfinite(value).all()))
        raise ValueError(
            f"training diverged: {bad} is not finite within the {max(self.counts.values())} updates before {when}. "
            "Lower algo.learning_rate, or look for NaN with `ctrlrl data check`."
        )


class OfflineLoop:
    """One `iterate` is up to CHUNK updates; between them the host reads nothing from the device."""

    clock = "gradient_steps"

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
        self.spec: EnvSpec | None = None  # of the task, where the loop was made for one
        self.unseen: Rows | None = None  # what was held out from the source
        self.on_update: Callable[[Metrics], bool] | None = None  # False ends the chunk

    @property
    def done(self) -> bool:
        return self.gradient_steps >= self.total_steps

    def iterate(self) -> Metrics:
        """Means over the chunk; a metric that only some updates have, over those."""
        means = Means()
        for _ in range(min(CHUNK, self.total_steps - self.gradient_steps)):
            self.learner.set_progress(self.gradient_steps / self.total_steps)
            metrics = self.learner.update(self.source.sample(self.batch_size))
            means.add(metrics)
            self.gradient_steps += 1
            if self.on_update is not None and not self.on_update(metrics):
                break
        return means.read(f"gradient step {self.gradient_steps}", self.learner.ranks)

    def episode_metrics(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        pass

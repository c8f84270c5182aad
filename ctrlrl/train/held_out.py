"""How far a policy is from episodes that it did not learn from."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from ctrlrl.train.evaluate import forked_rng
from ctrlrl.types import Metrics, Transition

MOST = 8192  # rows; of a larger set as many, evenly spread
BLOCK = 1024  # rows that are predicted together


class Rows(Protocol):
    size: int

    def take(self, index: Tensor) -> Transition: ...


class Judged(Protocol):
    device: Any

    def held_out(self, batch: Transition, *, deterministic: bool) -> Metrics: ...


@torch.no_grad()
def held_out_means(learner: Judged, rows: Rows, *, deterministic: bool, seed: int) -> dict[str, Tensor]:
    """Means over the rows of what the learner tells of each, on the CPU: "action_error" and, where it has one, "loss".

    The same rows and the same random numbers at every call.
    """
    count = min(rows.size, MOST)
    index = torch.arange(count, device=learner.device) * rows.size // count
    totals: dict[str, Tensor] = {}
    with forked_rng(seed):
        for part in index.split(BLOCK):
            for name, values in learner.held_out(rows.take(part), deterministic=deterministic).items():
                totals[name] = totals.get(name, 0.0) + values.double().sum()
    return {name: (total / count).cpu() for name, total in totals.items()}

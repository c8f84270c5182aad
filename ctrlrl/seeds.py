"""From `seeds=8` to one learner that trains all of them at once, and back to the learner of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ctrlrl.core.off_policy import OffPolicyLearner
from ctrlrl.core.random import Randomness
from ctrlrl.core.stacked import Rows, StackedSource, stream, take_over
from ctrlrl.nn.stacked import stack


def stacked(
    make: Callable[[], OffPolicyLearner], seeds: Sequence[int], data: Rows
) -> tuple[OffPolicyLearner, StackedSource]:
    """The learner of all seeds, and their batches.

    make: gives a seed's learner, just as its own run makes it; called with torch's generators at that seed.
    """
    learners, streams = [], []
    for seed in seeds:
        torch.manual_seed(seed)
        learner = make()
        learner.prefit(data.all())
        learners.append(learner)
        streams.append(stream(learner.device))
    random = Randomness(streams)
    take_over(learners[0], stack([learner.nets for learner in learners], random.bernoulli_like), random)
    return learners[0], StackedSource(data, streams)


def refuse_unless_stackable(kind: type, seeds: int) -> None:
    """ValueError where a learner trains one seed a run."""
    if not getattr(kind, "stackable", False):
        name = kind.__name__.removesuffix("Learner")
        raise ValueError(
            f"seeds={seeds}: {name} trains one seed a run; use seeds=1 and several runs, e.g. ctrlrl sweep"
        )

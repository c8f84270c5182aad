"""Several seeds of one off-policy learner trained as one: `seeds=8`. Each gets what its own run would have got."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from ctrlrl.core.off_policy import OffPolicyLearner
from ctrlrl.core.random import Randomness
from ctrlrl.core.update import as_stored
from ctrlrl.types import Transition


class Rows(Protocol):
    """A data set of `size` transitions that are asked for by number."""

    size: int

    def take(self, index: Tensor) -> Transition: ...
    def all(self) -> Transition: ...


class StackedSource:
    """Batches [S, n, ...]: of seed s the rows that its own run would have drawn."""

    def __init__(self, data: Rows, streams: Sequence[torch.Generator]):
        self.data, self.streams = data, streams

    def sample(self, n: int) -> Transition:
        size = (n,)
        drawn = [torch.randint(self.data.size, size, generator=g, device=g.device) for g in self.streams]
        return self.data.take(torch.stack(drawn))

    def all(self) -> Transition:
        return self.data.all()


def stream(device: torch.device) -> torch.Generator:
    """A generator that goes on as the device's default one would."""
    generator = torch.Generator(device)
    state = torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device)
    return generator.set_state(state)


def take_over(learner: OffPolicyLearner, nets: nn.Module, random: Randomness) -> None:
    """Let a learner that has not learned yet train the stacked networks of S seeds, `nets`, with their numbers."""
    learner.nets, learner.random = nets, random
    learner.prepare()
    if any(step.max_grad_norm is not None for step in learner.opt.values()):
        raise ValueError(f"seeds: {type(learner).__name__} clips by the norm of a whole network's gradient")


def extract(learner: OffPolicyLearner, place: int, single: OffPolicyLearner) -> None:
    """Make `single` the learner that the seed at `place` of a stacked one is now, optimizers included."""
    stacked = learner.model_state()
    single.load_model_state({k: stacked[k][place].reshape(x.shape) for k, x in single.model_state().items()})
    training = learner.training_state()
    for name, step in learner.opt.items():
        for key, x in step.state_dict().items():
            if x.ndim:  # all seeds' values of the first parameter, then of the second, ...
                parts = x.split([p.numel() for p in step.params])
                pairs = zip(parts, step.params, single.opt[name].params, strict=True)
                training[f"{name}/{key}"] = torch.cat([_own(part, p, q, place) for part, p, q in pairs])
    single.load_training_state({k: training[k] for k in single.training_state()})


def _own(x: Tensor, stacked: nn.Parameter, own: nn.Parameter, place: int) -> Tensor:
    """A seed's share of a flat vector that lies as the stacked parameter does: flat, as the seed's own one does."""
    every = as_stored(x.view(as_stored(stacked, stacked).shape), stacked)
    return as_stored(every[place].view(own.shape), own).reshape(-1)

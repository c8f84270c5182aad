"""The offline loop: chunks of updates, means over them, the clock, and NaN that does not go unnoticed."""

from typing import Any

import pytest
import torch

from ctrlrl.core.ranks import ALONE
from ctrlrl.data.dataset import Dataset
from ctrlrl.train.off_policy import CHUNK, OfflineLoop
from ctrlrl.types import Metrics, Transition


class Counting:
    """Reports the number of the update, and on every second one half of it too."""

    ranks = ALONE

    def __init__(self, fail_at: int = -1):
        self.updates, self.progress, self.sizes, self.fail_at = 0, [], [], fail_at
        self.values: list[torch.Tensor] = []

    def set_progress(self, done: float) -> None:
        self.progress.append(done)

    def update(self, batch: Transition) -> Metrics:
        self.updates += 1
        self.sizes.append(len(batch.reward))
        value = torch.tensor(float("nan") if self.updates == self.fail_at else float(self.updates))
        self.values.append(value)
        return {"loss/critic": value} | ({"loss/policy": value / 2} if self.updates % 2 == 0 else {})


def data(n: int = 9) -> Dataset:
    rows = torch.arange(n).float()[:, None]
    return Dataset.of(Transition(rows, rows, rows[:, 0], rows, torch.zeros(n, dtype=torch.bool), {}))


def loop(learner: Any, steps: int) -> OfflineLoop:
    return OfflineLoop(learner, data(), gradient_steps=steps, batch_size=5)


def test_chunks_end_with_the_budget():
    learner = Counting()
    run, counts = loop(learner, 2 * CHUNK + 7), []
    while not run.done:
        run.iterate()
        counts.append(run.gradient_steps)
    assert counts == [CHUNK, 2 * CHUNK, 2 * CHUNK + 7]
    assert learner.updates == 2 * CHUNK + 7
    assert set(learner.sizes) == {5}
    assert run.env_steps == 0


def test_a_metric_is_averaged_over_the_updates_that_have_it():
    learner = Counting()
    run = loop(learner, 2 * CHUNK)
    for first in (1, CHUNK + 1):
        means = run.iterate()
        every = torch.arange(first, first + CHUNK).float()
        assert means["loss/critic"] == every.mean()
        assert means["loss/policy"] == (every[every % 2 == 0] / 2).mean()
    assert [v.item() for v in learner.values] == list(range(1, 2 * CHUNK + 1)), "the learner's own tensors stay"


def test_schedules_hear_the_fraction_done_before_every_update():
    learner = Counting()
    run = loop(learner, 80)
    run.iterate()
    run.iterate()
    assert learner.progress == [k / 80 for k in range(80)]


def test_a_resumed_loop_goes_on_from_its_clock():
    learner = Counting()
    run = loop(learner, 80)
    run.gradient_steps = 60  # what the trainer restores
    run.iterate()
    assert learner.progress == [k / 80 for k in range(60, 80)]
    assert run.done


@pytest.mark.parametrize("fail_at", [1, CHUNK])
def test_a_nan_ends_the_run_within_its_chunk_and_is_named(fail_at):
    run = loop(Counting(fail_at), 200)
    with pytest.raises(ValueError, match=f"training diverged: loss/critic is not finite .* gradient step {CHUNK}"):
        run.iterate()


def test_every_seed_of_a_stacked_run_is_looked_at():
    class Stacked(Counting):
        def update(self, batch: Transition) -> Metrics:
            super().update(batch)
            return {"loss/critic": torch.tensor([1.0, float("inf"), 2.0])}

    with pytest.raises(ValueError, match="loss/critic"):
        loop(Stacked(), 100).iterate()

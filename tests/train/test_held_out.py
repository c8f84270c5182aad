"""The error on held-out rows: a mean over all of them, the same at every call, and no part of training."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ctrlrl.algos.bc import BCConfig, BCLearner
from ctrlrl.data.dataset import Dataset
from ctrlrl.train import held_out
from ctrlrl.train.held_out import held_out_means
from ctrlrl.types import EnvSpec, Metrics, Transition

SPEC = EnvSpec(1, 2, 0, 1, 1, 0, torch.device("cpu"))


def data(n: int) -> Dataset:
    rows = torch.arange(n).float()[:, None]
    action = torch.zeros(n, 2)
    return Dataset.of(Transition(rows, action, rows[:, 0], rows, torch.zeros(n, dtype=torch.bool), {}))


class Telling:
    """Of every row its number, and a random number."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.seen: list[float] = []

    def held_out(self, batch: Transition, *, deterministic: bool) -> Metrics:
        self.seen += batch.obs[:, 0].tolist()
        return {"action_error": batch.obs[:, 0], "loss": torch.rand(len(batch.obs))}


@pytest.mark.parametrize("n", [1, 7, held_out.BLOCK, held_out.BLOCK + 3])
def test_every_row_counts_once_whatever_the_blocks_are(n):
    learner = Telling()
    means = held_out_means(learner, data(n), deterministic=True, seed=0)
    assert learner.seen == list(range(n))
    assert means["action_error"].item() == pytest.approx((n - 1) / 2)


def test_of_a_large_set_as_many_rows_are_taken_evenly_spread(monkeypatch):
    monkeypatch.setattr(held_out, "MOST", 4)
    learner = Telling()
    held_out_means(learner, data(10), deterministic=True, seed=0)
    assert learner.seen == [0, 2, 5, 7]


def test_the_random_numbers_are_the_same_at_every_call_and_none_are_taken_from_training():
    before = torch.get_rng_state()
    first, second = (held_out_means(Telling(), data(5), deterministic=True, seed=3)["loss"] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_action_error_is_the_mean_square_over_rows_and_the_actions_numbers():
    learner = BCLearner(BCConfig(hidden=[4], normalize_obs=False), SPEC)
    with torch.no_grad():
        for parameter in learner.nets.policy.parameters():
            parameter.zero_()
    rows = data(3)
    rows.table["action"].copy_(torch.tensor([[0.3, 0.0], [0.0, 0.0], [0.6, 0.9]]))
    means = held_out_means(learner, rows, deterministic=True, seed=0)  # the policy says 0
    assert means["action_error"].item() == pytest.approx((0.09 + 0.36 + 0.81) / 6, rel=1e-6)
    assert torch.equal(means["loss"], means["action_error"])


@pytest.mark.parametrize("algo", ["diffusion", "flow"])
def test_of_a_chunk_the_present_action_is_compared(algo):
    from ctrlrl.data.windows import Windows
    from ctrlrl.loops import make_learner
    from ctrlrl.registry import ALGORITHMS, lookup

    cfg: Any = lookup(ALGORITHMS, algo, "algorithm").config(hidden=[8], embed_dim=4, horizon=4, n_action_steps=2)
    learner: Any = make_learner(cfg, SPEC)
    n = 6
    rows = data(n)
    rows.table["action"].copy_(torch.linspace(-1.0, 1.0, n)[:, None].expand(n, 2))
    rows.ends = torch.tensor([n])
    learner.prefit(rows.all())
    windows = Windows(rows, cfg.window)
    learner.nets.policy.sample = lambda obs, *, deterministic: torch.full((len(obs), 4, 2), 0.5)
    found = learner.held_out(windows.take(torch.arange(windows.size)), deterministic=True)
    now = rows.table["action"][windows.rows(torch.arange(windows.size))[:, 1], 0]
    torch.testing.assert_close(found["action_error"], (0.5 - now).square())
    assert found["loss"].shape == (windows.size,)
    assert torch.isfinite(found["loss"]).all()


def test_the_action_that_is_compared_has_its_switches_thrown():
    from ctrlrl.algos.generative_bc import FlowConfig, FlowLearner

    learner = FlowLearner(FlowConfig(hidden=[8], embed_dim=4, horizon=2, n_action_steps=1, switches=[1]), SPEC)
    learner.nets.policy.sample = lambda obs, *, deterministic: torch.full((len(obs), 2, 2), 0.5)
    wanted = torch.tensor([0.5, 1.0]).expand(3, 2, 2)
    rows = Transition(torch.zeros(3, 2, 1), wanted, torch.zeros(3), torch.zeros(3, 1), torch.zeros(3).bool(), {})
    assert learner.held_out(rows, deterministic=True)["action_error"].tolist() == [0.0, 0.0, 0.0]

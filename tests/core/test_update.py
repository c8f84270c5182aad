"""Slicing a batch into minibatches, and one clipped Adam step against torch's own."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from ctrlrl.core.update import GradStep, run_epochs


class Rows(NamedTuple):
    row: Tensor
    twice: Tensor


def rows(n: int) -> Rows:
    return Rows(torch.arange(n), 2 * torch.arange(n).repeat(3, 1).T)


def collected(n: int, *, n_epochs: int, n_minibatches: int) -> list[Tensor]:
    seen: list[Tensor] = []

    def step(batch: Rows) -> dict[str, Tensor]:
        assert torch.equal(batch.twice, 2 * batch.row.repeat(3, 1).T), "fields of one row must stay together"
        seen.append(batch.row.clone())
        return {"size": torch.tensor(float(len(batch.row)))}

    run_epochs(rows(n), step, n_epochs=n_epochs, n_minibatches=n_minibatches)
    return seen


@pytest.mark.parametrize(("n", "n_minibatches"), [(12, 4), (13, 4), (7, 7), (5, 1)])
def test_every_row_is_visited_exactly_once_an_epoch(n, n_minibatches):
    seen = collected(n, n_epochs=3, n_minibatches=n_minibatches)
    assert len(seen) == 3 * n_minibatches
    for epoch in range(3):
        visited = torch.cat(seen[epoch * n_minibatches : (epoch + 1) * n_minibatches])
        assert torch.equal(visited.sort().values, torch.arange(n))


def test_epochs_are_shuffled_anew():
    first, second = collected(64, n_epochs=2, n_minibatches=1)
    assert not torch.equal(first, second)
    assert not torch.equal(first, torch.arange(64))


def test_uneven_minibatches_differ_by_at_most_one_row():
    sizes = [len(x) for x in collected(100, n_epochs=1, n_minibatches=16)]
    assert len(sizes) == 16
    assert sum(sizes) == 100
    assert max(sizes) - min(sizes) == 1


def test_more_minibatches_than_rows_gives_one_row_each():
    assert [len(x) for x in collected(3, n_epochs=1, n_minibatches=10)] == [1, 1, 1]


def test_none_ends_the_update_at_once():
    calls = []

    def step(batch: Rows) -> dict[str, Tensor] | None:
        calls.append(batch)
        return None if len(calls) == 6 else {"call": torch.tensor(float(len(calls)))}

    metrics, n_steps = run_epochs(rows(16), step, n_epochs=10, n_minibatches=4)
    assert len(calls) == 6
    assert n_steps == 5
    assert metrics["call"] == 3.0  # the mean of 1 to 5: the refused step counts nowhere


def test_after_epoch_gives_the_batch_of_the_next_epoch_only():
    sums = []

    def step(batch: Rows) -> dict[str, Tensor]:
        sums.append(int(batch.row.sum()))
        return {}

    def after_epoch(batch: Rows) -> Rows:
        return Rows(batch.row + 10, batch.twice + 20)

    run_epochs(rows(4), step, n_epochs=3, n_minibatches=1, after_epoch=after_epoch)
    assert sums == [6, 46, 86]


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(3)
    mine = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    theirs = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    theirs.load_state_dict(mine.state_dict())
    return mine, theirs


@pytest.mark.parametrize("max_grad_norm", [None, 0.05, 100.0])
def test_grad_step_equals_clip_grad_norm_and_adam(max_grad_norm):
    mine, theirs = networks()
    step = GradStep(mine.parameters(), learning_rate=1e-2, max_grad_norm=max_grad_norm, eps=1e-5)
    adam = torch.optim.Adam(theirs.parameters(), lr=1e-2, eps=1e-5)
    for _ in range(20):
        x = torch.randn(16, 4)
        step((mine(x) - x[:, :2]).square().mean())
        adam.zero_grad()
        (theirs(x) - x[:, :2]).square().mean().backward()
        if max_grad_norm is not None:
            nn.utils.clip_grad_norm_(theirs.parameters(), max_grad_norm)
        adam.step()
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)


def test_weight_decay_is_decoupled_as_in_adamw():
    mine, theirs = networks()
    step = GradStep(mine.parameters(), learning_rate=1e-2, weight_decay=0.1)
    adam = torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(20):
        x = torch.randn(16, 4)
        step((mine(x) - x[:, :2]).square().mean())
        adam.zero_grad()
        (theirs(x) - x[:, :2]).square().mean().backward()
        adam.step()
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)


def test_every_epoch_reports_the_means_over_all_minibatches_so_far():
    seen: list[float] = []
    values = iter([1.0, 3.0, 5.0, 7.0])
    run_epochs(
        (torch.zeros(4),),
        lambda batch: {"a/b": torch.tensor(next(values))},
        n_epochs=2,
        n_minibatches=2,
        report=lambda means: seen.append(float(means["a/b"])),
    )
    assert seen == [2.0, 4.0]


def test_the_learning_rate_tensor_is_the_rate_of_the_next_step():
    mine, _ = networks()
    step = GradStep(mine.parameters(), learning_rate=1e-2)
    step.learning_rate.fill_(0.0)
    before = step.flat.detach().clone()
    step(mine(torch.ones(1, 4)).sum())
    assert torch.equal(step.flat, before)
    step.learning_rate.fill_(0.125)  # Adam's first steps are of about the rate's size in every coordinate
    fresh = GradStep(nn.Linear(2, 1).parameters(), learning_rate=0.125)
    start = fresh.flat.detach().clone()
    fresh.apply(torch.tensor([3.0, -2.0, 5.0]))
    assert torch.allclose(fresh.flat - start, torch.tensor([-0.125, 0.125, -0.125]), atol=1e-6)


def test_module_parameters_stay_views_of_the_flat_vector():
    mine, theirs = networks()
    step = GradStep(mine.parameters(), learning_rate=0.1)
    step(mine(torch.ones(1, 4)).sum())
    assert torch.equal(torch.cat([p.reshape(-1) for p in mine.parameters()]), step.flat)
    mine.load_state_dict(theirs.state_dict())  # what a checkpoint does
    assert torch.equal(torch.cat([p.reshape(-1) for p in theirs.parameters()]), step.flat)


def test_state_round_trip_continues_bit_for_bit():
    mine, other = networks()
    step = GradStep(mine.parameters(), learning_rate=1e-2, max_grad_norm=0.5)
    for k in range(3):
        step(mine(torch.full((2, 4), float(k))).square().sum())
    step.learning_rate.fill_(3e-3)
    saved = {k: v.clone() for k, v in step.state_dict().items()}
    other.load_state_dict(mine.state_dict())
    copy = GradStep(other.parameters(), learning_rate=1.0, max_grad_norm=0.5)
    copy.load_state_dict(saved)
    for k in range(3):
        x = torch.full((2, 4), 0.5 + k)
        step(mine(x).square().sum())
        copy(other(x).square().sum())
    assert torch.equal(step.flat, copy.flat)


def test_a_parameter_without_gradient_does_not_move():
    used, idle = nn.Linear(3, 1), nn.Linear(3, 1)
    before = idle.weight.detach().clone()
    step = GradStep([*used.parameters(), *idle.parameters()], learning_rate=0.1)
    step(used(torch.ones(2, 3)).sum())
    assert torch.equal(idle.weight, before)
    assert step.flat.grad is not None
    assert float(step.flat.grad[: 3 + 1].abs().sum()) > 0

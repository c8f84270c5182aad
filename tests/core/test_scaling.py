"""More environments, the same inner loop: minibatches of one size, shuffled in blocks, without copies of the batch."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ctrlrl.algos.ppo import PPOConfig, PPOLearner
from ctrlrl.core import actor_critic, update
from ctrlrl.core.update import block_length, run_epochs
from ctrlrl.envs.classic import Pendulum
from ctrlrl.envs.sim import BatchedSim
from ctrlrl.train.rollout import Collector

SMALL: dict[str, Any] = {"n_steps": 16, "n_epochs": 2, "hidden": [8], "normalize_obs": True, "normalize_reward": True}


class Rows(NamedTuple):
    row: Tensor
    twice: Tensor


def rows(n: int) -> Rows:
    return Rows(torch.arange(n), 2 * torch.arange(n).repeat(3, 1).T.contiguous())


def shuffled(n: int, *, n_epochs: int = 1, n_minibatches: int = 1) -> list[Tensor]:
    """The row numbers of every minibatch."""
    seen: list[Tensor] = []

    def step(batch: Rows) -> dict[str, Tensor]:
        assert torch.equal(batch.twice, 2 * batch.row.repeat(3, 1).T), "fields of one row must stay together"
        seen.append(batch.row.clone())
        return {}

    run_epochs(rows(n), step, n_epochs=n_epochs, n_minibatches=n_minibatches)
    return seen


def trained(n_envs: int, **settings: Any) -> tuple[Any, list[int], dict[str, Tensor]]:
    """A learner after one update on `n_envs` pendulums, the rows of each of its minibatches, and the metrics."""
    torch.manual_seed(0)
    env = BatchedSim(Pendulum(), n_envs, seed=0, episode_length=10)
    learner = PPOLearner(PPOConfig(**{**SMALL, **settings}), env.spec)
    collector = Collector(env, learner, 16)
    collector.reset(0)
    sizes: list[int] = []
    inner = learner.step
    learner.step = lambda batch: sizes.append(len(batch.obs)) or inner(batch)  # type: ignore[assignment,method-assign]
    rollout = collector.collect()
    assert rollout is not None
    return learner, sizes, learner.update(rollout)


# the shuffle in blocks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "n_minibatches"), [(4096, 4), (4096, 1), (1000, 3), (999, 7), (64, 64)])
def test_a_shuffle_in_blocks_visits_every_row_once_an_epoch(monkeypatch, n, n_minibatches):
    monkeypatch.setattr(update, "WHOLE", 1)
    seen = shuffled(n, n_epochs=3, n_minibatches=n_minibatches)
    assert len(seen) == 3 * n_minibatches
    block = block_length(n, n_minibatches)
    assert max(map(len, seen)) - min(map(len, seen)) <= block
    for epoch in range(3):
        visited = torch.cat(seen[epoch * n_minibatches : (epoch + 1) * n_minibatches])
        assert torch.equal(visited.sort().values, torch.arange(n))


def test_a_shuffle_in_blocks_mixes(monkeypatch):
    """Every minibatch takes from all of the batch: its mean row is that of a sample without replacement."""
    monkeypatch.setattr(update, "WHOLE", 1)
    n, k = 2**16, 16
    assert block_length(n, k) == 64
    seen = shuffled(n, n_epochs=2, n_minibatches=k)
    assert not torch.equal(seen[0].sort().values, seen[k].sort().values), "another epoch, other minibatches"
    deviation = n / 12**0.5 * (64 / (n / k)) ** 0.5  # of the mean of n / k / 64 blocks' uniform places
    for minibatch in seen:
        assert abs(float(minibatch.double().mean()) - n / 2) < 4 * deviation
    neighbours = (seen[0].diff() == 1).double().mean()
    assert abs(float(neighbours) - 63 / 64) < 0.01, "rows within a block stay together"


@pytest.mark.parametrize(
    ("n", "n_minibatches", "block"),
    [(2**24, 2**15, 32), (2**24, 4, 64), (2**20 + 1, 4, 1), (2**20 + 4, 4, 4), (64, 8, 1)],
)
def test_a_block_divides_the_batch_and_a_minibatch_has_at_least_sixteen(n, n_minibatches, block):
    assert block_length(n, n_minibatches) == block


class Allocations(TorchDispatchMode):
    """The most elements that one operation made room for."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and not func.is_view:
            self.largest = max(self.largest, out.numel())
        return out


@pytest.mark.parametrize("whole", [1, 10**9])
def test_from_whole_rows_on_no_copy_of_a_field_and_no_index_of_the_batch_is_made(monkeypatch, whole):
    monkeypatch.setattr(update, "WHOLE", whole)
    n, batch = 2**14, rows(2**14)
    with Allocations() as seen:
        run_epochs(batch, lambda b: {}, n_epochs=2, n_minibatches=8)
    assert seen.largest == (3 * n // 8 if whole == 1 else 3 * n)  # the widest field of a minibatch, or of the batch


def test_below_whole_rows_minibatches_are_views_of_one_copy(monkeypatch):
    parts: list[Tensor] = []
    run_epochs(rows(64), lambda b: parts.append(b.row) or {}, n_epochs=1, n_minibatches=4)  # type: ignore[func-returns-value]
    assert len({part.untyped_storage().data_ptr() for part in parts}) == 1


def test_acting_goes_through_many_environments_in_chunks(monkeypatch):
    monkeypatch.setattr(actor_critic, "CHUNK", 3)
    torch.manual_seed(0)
    learner = PPOLearner(PPOConfig(**SMALL), BatchedSim(Pendulum(), 8, seed=0).spec)
    sizes: list[int] = []
    inner = learner._act
    learner._act = lambda obs: sizes.append(len(obs)) or inner(obs)  # type: ignore[func-returns-value]
    out = learner.act(torch.randn(8, 3))
    assert sizes == [3, 3, 2]
    assert out.log_prob is not None
    assert (out.action.shape, out.log_prob.shape) == ((8, 1), (8,))


# the recipe ----------------------------------------------------------------------------------------------------------


def test_steps_grow_with_the_environments_and_the_rows_of_a_minibatch_stay():
    for n_envs in (2, 4, 8, 16):
        _, sizes, metrics = trained(n_envs, minibatch_size=32)
        assert set(sizes) == {32}
        assert metrics["train/gradient_steps"] == len(sizes) == 2 * n_envs * 16 // 32


def test_at_the_size_it_starts_from_the_recipe_is_the_base_to_the_bit():
    base, *_ = trained(8, n_minibatches=4)
    recipe, *_ = trained(8, minibatch_size=32)
    assert torch.equal(base.opt["actor_critic"].flat, recipe.opt["actor_critic"].flat)


def test_the_number_of_minibatches_is_the_nearest_to_the_asked_size():
    cfg = PPOConfig(minibatch_size=16384, n_steps=256)
    assert [cfg.minibatches(n * 256) for n in (2048, 8192, 131072, 1048576)] == [32, 128, 2048, 16384]
    assert [PPOConfig(minibatch_size=100).minibatches(n) for n in (100, 149, 151, 260)] == [1, 1, 2, 3]


def test_the_rate_grows_with_the_asked_power_of_the_environments():
    cfg = PPOConfig(learning_rate=1e-3, lr_exponent=0.5, lr_base_envs=64)
    assert [cfg.for_envs(n).learning_rate for n in (64, 256, 65536)] == pytest.approx([1e-3, 2e-3, 32e-3])
    assert PPOConfig(learning_rate=1e-3).for_envs(2**20).learning_rate == 1e-3
    assert cfg.for_envs(256).for_envs(256).learning_rate == pytest.approx(2e-3)


@pytest.mark.parametrize("whole", [1, 10**9])
def test_on_a_quadratic_bandit_the_variance_of_the_outer_update_falls_as_one_over_n(monkeypatch, whole):
    """K minibatches of M rewards at outer step eta: theta <- theta - eta / K (theta - mean), from theta = 0."""
    monkeypatch.setattr(update, "WHOLE", whole)
    eta, m, trials = 0.2, 16, 4000
    found = []
    for k in (4, 16, 64):
        torch.manual_seed(k)
        theta, h = torch.zeros(trials, dtype=torch.float64), eta / k

        def step(batch: tuple[Tensor], theta: Tensor = theta, h: float = h) -> dict[str, Tensor]:
            theta.sub_(h * (theta - batch[0].mean(0)))
            return {}

        run_epochs((torch.randn(k * m, trials, dtype=torch.float64),), step, n_epochs=1, n_minibatches=k)
        exact = h**2 / m * sum((1 - h) ** (2 * j) for j in range(k))
        assert float(theta.var()) == pytest.approx(exact, rel=0.1)
        found.append(float(theta.var()))
    assert found[0] / found[1] == pytest.approx(4.0, rel=0.15)
    assert found[1] / found[2] == pytest.approx(4.0, rel=0.15)

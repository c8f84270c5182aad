"""What every off-policy learner promises. A new line in registry.ALGORITHMS is tested here without a change."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ctrlrl.build import build
from ctrlrl.config import TrainConfig
from ctrlrl.core.learner import Learner
from ctrlrl.data.dataset import Dataset
from ctrlrl.data.episodes import Episodes, Facts
from ctrlrl.data.replay import Pair
from ctrlrl.envs.classic import Pendulum
from ctrlrl.loops import loop_over, make_learner
from ctrlrl.registry import ALGORITHMS, lookup
from ctrlrl.settings import train_config, typed
from ctrlrl.sources import dataset
from ctrlrl.train.checkpoint import read_folder
from ctrlrl.train.off_policy import CHUNK
from ctrlrl.types import EnvSpec, HybridBatch

KINDS = {name: lookup(ALGORITHMS, name, "algorithm") for name in ALGORITHMS}
OFF_POLICY = [n for n, k in KINDS.items() if k.loop in ("off_policy", "hybrid") and not k.multi_objective]
OFFLINE = [name for name in OFF_POLICY if lookup(ALGORITHMS, name, "algorithm").offline]
SPEC = EnvSpec(3, 1, 0, 1, 1, 200, torch.device("cpu"))  # Pendulum's
SMALL = {"batch_size": 16, "hidden": [8, 8]}
FEW = {"base_hidden": [8], "base_n_levels": 2, "base_sampling_steps": 2, "n_samples": 4, "n_kept": 2, "n_climbs": 2}
FEW |= {"n_edits": 2, "n_critics": 2, "critic_hidden": [8, 8], "vae_hidden": [8, 8]}

on_every_algo = pytest.mark.parametrize("algo", OFF_POLICY)


def episodes(n: int = 120, seed: int = 0) -> Episodes:
    """Six episodes of random numbers: two end by termination, four by the clock."""
    random = np.random.default_rng(seed)
    ends = np.arange(20, n + 1, 20)
    terminated = np.zeros(n, dtype=bool)
    terminated[ends[:2] - 1] = True
    return Episodes(
        obs=random.standard_normal((n, 3)).astype(np.float32),
        action=random.uniform(-0.9, 0.9, (n, 1)).astype(np.float32),
        reward=random.standard_normal(n).astype(np.float32),
        terminated=terminated,
        ends=ends,
        final_obs=random.standard_normal((len(ends), 3)).astype(np.float32),
        has_final=np.ones(len(ends), dtype=bool),
        usable=np.ones(n, dtype=bool),
        extras={},
        episode_extras={},
        facts=Facts("rollouts", "made by a test", env_id="Pendulum-v1"),
    )


class Both(Pair):
    """Real and simulated rows for a hybrid learner, with what the tests ask of a data set."""

    def __init__(self, real: Dataset, sim: Dataset):
        super().__init__(real, sim)
        self.table = real.table

    def take(self, index: torch.Tensor) -> HybridBatch:
        return HybridBatch(self.real.take(index), self.sim.take(index))


def small(algo: str) -> dict[str, Any]:
    """Settings of a short run; of FEW, those that the algorithm has."""
    known = {field.name for field in dataclasses.fields(lookup(ALGORITHMS, algo, "algorithm").config)}
    return SMALL | {name: value for name, value in FEW.items() if name in known}


def made(algo: str, seed: int = 0, **changes: Any) -> tuple[Any, Any]:
    kind = lookup(ALGORITHMS, algo, "algorithm")
    torch.manual_seed(seed)
    learner = make_learner(kind.config(**{**small(algo), **changes}), SPEC)
    data = dataset(TrainConfig(algo=learner.cfg), episodes(), kind, SPEC.device)
    learner.prefit(data.all())
    if kind.loop == "hybrid":
        return learner, Both(data, Dataset.of_episodes(episodes(seed=1), needs=kind.needs))
    return learner, data


def state(learner: Learner) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in {**learner.model_state(), **learner.training_state()}.items()}


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


@on_every_algo
def test_the_config_carries_the_registry_key(algo):
    assert lookup(ALGORITHMS, algo, "algorithm").config().name == algo


@on_every_algo
def test_metrics_are_finite_0_dim_tensors_and_the_policy_moves(algo):
    learner, data = made(algo)
    before = state(learner)
    for _ in range(max(4, learner.period)):
        for name, value in learner.update(data.sample(learner.rows)).items():
            assert value.ndim == 0, name
            assert torch.isfinite(value), name
            assert "/" in name
            assert not value.requires_grad, name
    assert any(not torch.equal(before[k], v) for k, v in state(learner).items() if "policy" in k)


@on_every_algo
def test_the_data_set_stays_as_it_was(algo):
    learner, data = made(algo)
    before = data.table.rows.clone()
    for _ in range(3):
        learner.update(data.sample(learner.rows))
    assert torch.equal(data.table.rows, before)


@on_every_algo
def test_one_seed_gives_one_result(algo):
    ends = []
    for _ in range(2):
        learner, data = made(algo)
        for _ in range(3):
            learner.update(data.sample(learner.rows))
        ends.append(state(learner))
    assert_equal(*ends)


@on_every_algo
def test_state_round_trip_continues_bit_for_bit(algo):
    learner, data = made(algo)
    for _ in range(3):
        learner.update(data.sample(learner.rows))
    model, training = (
        {k: v.clone() for k, v in part.items()} for part in (learner.model_state(), learner.training_state())
    )
    copy, _ = made(algo, seed=1)
    copy.load_model_state(model)
    copy.load_training_state(training)
    assert_equal(state(learner), state(copy))
    for each in (learner, copy):
        torch.manual_seed(5)
        for _ in range(3):
            each.update(data.sample(each.rows))
    assert_equal(state(learner), state(copy))


@on_every_algo
def test_actions_are_in_the_box_and_acting_changes_nothing(algo):
    learner, data = made(algo)
    learner.update(data.sample(learner.rows))
    before = state(learner)
    action = learner.act(50.0 * torch.randn(32, 3), deterministic=True).action
    assert action.shape == (32, 1)
    assert action.abs().max() <= 1.0
    assert_equal(before, state(learner))


@on_every_algo
def test_bfloat16_products_give_nearly_the_same_losses(algo):
    found = []
    for dtype in ("float32", "bfloat16"):
        learner, data = made(algo, hidden=[32, 32])
        learner.set_dtype(dtype)
        torch.manual_seed(3)
        found.append(learner.update(data.take(torch.arange(64))))
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=0.1, atol=0.05, msg=lambda m, n=name: f"{n}: {m}")


@on_every_algo
def test_a_nan_in_the_data_is_refused_with_its_row(algo):
    broken = episodes()
    broken.reward[7] = np.nan
    learner, _ = made(algo)
    cfg = TrainConfig(algo=learner.cfg, gradient_steps=CHUNK)
    with pytest.raises(ValueError, match="nan or inf in rewards, first at row 7"):
        loop_over(cfg, broken, learner)


@pytest.mark.parametrize("algo", OFFLINE)
def test_interrupted_and_resumed_equals_uninterrupted(algo, tmp_path, monkeypatch):
    monkeypatch.setattr("ctrlrl.sources.load", lambda path, data_id=None: episodes())
    monkeypatch.setattr(Pendulum, "episode_length", 20)
    words = [f"algo={algo}", "env=pendulum", "data=file", "data.path=x", "experiment=none", "log.progress=false"]
    words += [f"gradient_steps={2 * CHUNK}", "eval.every=0", "eval.episodes=1", "log.every_steps=50"]
    words += ["run.report=false", *(f"algo.{k}={v}" for k, v in small(algo).items())]
    composed = train_config(words)

    def run(folder: Path, stop_after: int | None, resume: bool = False) -> Path:
        trainer = build(typed(composed), folder, resume=resume)
        if stop_after is not None:
            trainer.loop.total_steps, full = stop_after, trainer.loop.total_steps
            while not trainer.loop.done:
                trainer.loop.total_steps = full  # schedules see the whole run
                trainer.metrics = trainer.loop.iterate()
                trainer.loop.total_steps = stop_after
            trainer.save("last")
        else:
            trainer.train()
        return folder / "checkpoints" / "last"

    whole = read_folder(run(tmp_path / "whole", None))
    run(tmp_path / "cut", CHUNK)
    resumed = read_folder(run(tmp_path / "cut", None, resume=True))
    assert_equal(whole.model, resumed.model)
    assert_equal(
        {k: v for k, v in whole.training.items() if not k.startswith("eval/")},
        {k: v for k, v in resumed.training.items() if not k.startswith("eval/")},
    )


@on_every_algo
def test_config_fields_are_checked_or_plain(algo):
    kind = lookup(ALGORITHMS, algo, "algorithm").config
    for field in dataclasses.fields(kind):
        value = getattr(kind(), field.name)
        assert isinstance(value, (bool, int, float, str, list, type(None))), field.name

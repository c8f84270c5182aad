"""What every learner of a population promises. A new line in registry.ALGORITHMS is tested here without a change."""

import csv
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from ctrlrl.build import build
from ctrlrl.config import CheckpointConfig, EnvConfig, EvalConfig, LogConfig, TrainConfig
from ctrlrl.loops import training_loop
from ctrlrl.registry import ALGORITHMS, lookup
from ctrlrl.runs import load_run
from ctrlrl.settings import load_config, typed
from ctrlrl.train.checkpoint import read_folder

POPULATION = [name for name in ALGORITHMS if lookup(ALGORITHMS, name, "algorithm").loop == "population"]
SMALL = {
    "n_steps": 4,
    "n_minibatches": 2,
    "n_epochs": 2,
    "hidden": [8],
    "eval_episodes": 2,
    "eval_max_steps": 10,
    "eval_every": 2,
}
TASKS = {"mo_bandit": 2, "deep_sea_treasure": 2}
TOTAL = 480
on_every_algo = pytest.mark.parametrize("algo", POPULATION)


def settings(algo: str, m: int = 2, **changes: Any) -> Any:
    kind = lookup(ALGORITHMS, algo, "algorithm").config
    rounds = {"n_extended": 1, "extension_updates": 2} if hasattr(kind, "n_extended") else {}
    return kind(**{**SMALL, **rounds, "reference": [-1e3] * m, **changes})


def config(algo: str, task: str, **changes: Any) -> TrainConfig:
    return TrainConfig(
        algo=settings(algo, TASKS[task]),
        env=EnvConfig(name=task),
        n_envs=4,
        total_steps=TOTAL,
        device="cpu",
        eval=EvalConfig(episodes=1),
        **{"log": LogConfig(progress=False), **changes},
    )


def run(algo: str, folder: Path, *, task: str = "mo_bandit", stop: int = TOTAL, resume: bool = False, **changes: Any):
    cfg = config(algo, task, **changes)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(cfg)))
    trainer = build(cfg, folder, resume=resume)
    if stop < TOTAL:
        loop: Any = trainer.loop
        inner = loop.iterate

        def iterate() -> Any:
            if loop.env_steps >= stop:
                raise KeyboardInterrupt
            return inner()

        loop.iterate = iterate
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        return None
    return trainer.train()


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


@on_every_algo
@pytest.mark.parametrize("task", TASKS)
def test_a_run_ends_with_a_front_that_is_told_twice(algo, task, tmp_path):
    result = run(algo, tmp_path, task=task)
    assert result["status"] == "finished"
    assert 0 < result["env_steps"] <= TOTAL
    for name in ("hypervolume", "expected_utility", "sparsity"):
        assert isinstance(result[name], float)
        assert isinstance(result[f"{name}_stored"], float)
    assert len(result["front"]) == len(result["front_stored"]) >= 1
    assert len(result["front"][0]) == TASKS[task]
    rows = (tmp_path / "progress.csv").read_text().splitlines()
    assert "front/hypervolume" in rows[0]
    assert "members/return_" in rows[0]


@on_every_algo
@pytest.mark.parametrize("stop", [96, 330])  # within the first round, and within the last one
def test_resumed_equals_uninterrupted(algo, stop, tmp_path: Path):
    often = CheckpointConfig(every=0.0)
    log = LogConfig(progress=False, every_steps=1)
    run(algo, tmp_path / "whole", log=log)
    run(algo, tmp_path / "parts", stop=stop, checkpoint=often, log=log)
    run(algo, tmp_path / "parts", resume=True, log=log)
    whole, parts = (read_folder(tmp_path / name / "checkpoints" / "last") for name in ("whole", "parts"))
    assert_equal(whole.model, parts.model)
    assert_equal(whole.training, parts.training)
    clock = ("wall_seconds", "time/steps_per_s")
    rows = []
    for name in ("whole", "parts"):
        with open(tmp_path / name / "progress.csv", newline="") as file:
            rows.append([{k: v for k, v in row.items() if k not in clock} for row in csv.DictReader(file)])
    assert rows[0] == rows[1]


@on_every_algo
def test_two_runs_of_a_seed_are_equal_and_of_two_seeds_are_not(algo, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(algo, tmp_path / name, seed=seed)
    a, b, c = (read_folder(tmp_path / name / "checkpoints" / "last").training for name in "abc")
    assert_equal(a, b)
    assert any(a[k].shape != c[k].shape or not torch.equal(a[k], c[k]) for k in a if k in c and "team" in k)


@on_every_algo
def test_a_loaded_run_acts_by_preference_and_every_policy_keeps_its_normalizer(algo, tmp_path):
    run(algo, tmp_path)
    _, learner = load_run(tmp_path)
    model = read_folder(tmp_path / "checkpoints" / "last").model
    n = len(model["archive/returns"])
    assert all(len(x) == n for x in model.values())
    assert any("normalizer" in name for name in model)
    obs = torch.zeros(3, learner.spec.obs_dim)
    for preference in ([1.0, 0.0], [0.0, 1.0]):
        place = learner.prefer(preference)
        best = (model["archive/returns"] @ torch.tensor(preference).double()).max()
        assert model["archive/returns"][place] @ torch.tensor(preference).double() == best
        assert torch.equal(learner.act(obs, deterministic=True).action, learner.act(obs, deterministic=True).action)


@on_every_algo
def test_a_reward_that_is_not_finite_stops_the_run_and_tells_its_step(algo):
    loop: Any = training_loop(config(algo, "mo_bandit"))
    loop.iterate()
    loop.iterate()
    env, step = loop.env, loop.env.step

    def broken(action: torch.Tensor) -> Any:
        taken = step(action)
        return taken._replace(reward=torch.full_like(taken.reward, math.nan))

    env.step = broken
    with pytest.raises(ValueError, match=f"non-finite reward .* about {loop.env_steps} environment steps"):
        loop.iterate()


@on_every_algo
def test_the_config_survives_yaml_with_every_field(algo, tmp_path: Path):
    cfg = TrainConfig(algo=settings(algo, gamma=0.123, surrogate="bpo"), env=EnvConfig(name="mo_bandit"), seed=7)
    file = tmp_path / "config.yaml"
    file.write_text(OmegaConf.to_yaml(OmegaConf.structured(cfg)))
    back = typed(load_config(file))
    assert type(back.algo) is type(cfg.algo)
    assert dataclasses.asdict(back) == dataclasses.asdict(cfg)


@on_every_algo
@pytest.mark.slow
def test_compiled_equals_eager(algo, tmp_path):
    for mode in ("eager", "compile"):
        run(algo, tmp_path / mode, compile=mode)
    eager, fused = (read_folder(tmp_path / m / "checkpoints" / "last").model for m in ("eager", "compile"))
    torch.testing.assert_close(fused["archive/returns"], eager["archive/returns"], rtol=1e-3, atol=1e-3)


@on_every_algo
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"env": EnvConfig(name="pendulum")}, "is for several objectives, this environment pays one reward"),
        ({"compile": "graph"}, "compile=graph"),
        ({"seeds": 2}, "seeds=2"),
    ],
)
def test_what_a_population_cannot_do_is_refused_by_name(algo, changes, said, tmp_path):
    cfg = dataclasses.replace(config(algo, "mo_bandit"), **changes)
    with pytest.raises(ValueError, match=said):
        build(cfg, tmp_path)

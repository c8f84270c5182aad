"""`ctrlrl train seeds=3`: a run folder for all seeds, in it one for each, and every one as its own run leaves it."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ctrlrl.cli import main
from ctrlrl.sweep.cells import Cell
from ctrlrl.sweep.records import rows_of
from ctrlrl.train.checkpoint import read_folder

STEPS = 100


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "swing.npz"
    random, n = np.random.default_rng(0), 400
    np.savez(
        path,
        observations=random.standard_normal((n, 3)).astype(np.float32),
        actions=random.uniform(-0.9, 0.9, (n, 1)).astype(np.float32),
        rewards=random.standard_normal(n).astype(np.float32),
        terminals=np.zeros(n, dtype=bool),
        timeouts=np.arange(n) % 100 == 99,
    )
    return path


def words(file: Path, folder: Path, *more: str) -> list[str]:
    fixed = ["train", "algo=iql", "data=file", f"data.path={file}", "env=pendulum", f"gradient_steps={STEPS}"]
    fixed += ["algo.hidden=[8,8]", "algo.batch_size=16", "eval.episodes=2", "eval.every=50", "log.every_steps=50"]
    return [*fixed, "device=cpu", "log.progress=false", "run.report=false", f"run.dir={folder}", *more]


def called(*line: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(line)
    return end.value.code


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "progress.csv", newline="") as f:
        return [
            {k: v for k, v in r.items() if k not in ("wall_seconds", "time/steps_per_s")} for r in csv.DictReader(f)
        ]


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def run(file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "x"
    assert called(*words(file, folder, "seed=5", "seeds=3")) == 0
    return folder


@pytest.fixture(scope="module")
def alone(file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "alone"
    assert called(*words(file, folder, "seed=6")) == 0
    return folder


def test_every_seed_has_its_rows_and_its_entry(run):
    found = rows(run)
    assert [row["seed"] for row in found] == ["5", "6", "7"] * 2
    assert [row["gradient_steps"] for row in found] == ["50"] * 3 + ["100"] * 3
    whole = result(run)
    assert [entry["seed"] for entry in whole["seeds"]] == [5, 6, 7]
    means = [entry["final_return_mean"] for entry in whole["seeds"]]
    assert whole["final_return_mean"] == pytest.approx(np.mean(means))
    assert len(set(means)) == 3
    assert (whole["status"], whole["gradient_steps"], whole["seed"]) == ("finished", STEPS, 5)


def test_a_seeds_folder_is_that_of_its_own_run(run, alone):
    inside = run / "seed_6"
    for own, wanted in zip(rows(inside), rows(alone), strict=True):
        assert own.keys() == wanted.keys()
        for name in wanted:
            assert float(own[name]) == pytest.approx(float(wanted[name]), rel=1e-3, abs=1e-3), name
    configs = [(folder / "config.yaml").read_text().replace(str(folder), "FOLDER") for folder in (inside, alone)]
    assert configs[0] == configs[1]
    mine, theirs = result(inside), result(alone)
    assert mine.keys() == theirs.keys()
    for name in ("algo", "env", "seed", "status", "gradient_steps", "config_hash", "data_checksum", "eval_episodes"):
        assert mine[name] == theirs[name], name
    for name in ("last", "best"):
        a, b = (read_folder(folder / "checkpoints" / name) for folder in (inside, alone))
        assert a.training.keys() == b.training.keys()
        assert a.state["spec"] == b.state["spec"]
        assert torch.equal(a.training["rng/cpu"], b.training["rng/cpu"])
        for key, value in {**b.model, **b.training}.items():
            torch.testing.assert_close({**a.model, **a.training}[key], value, rtol=1e-3, atol=1e-3)


def test_a_seed_is_evaluated_by_its_folder_and_the_whole_run_says_so(run, capsys):
    assert called("eval", f"run={run / 'seed_7'}", "episodes=2", "seed=10000") == 0
    found = json.loads((run / "seed_7" / "eval.json").read_text())
    assert found["return_mean"] == pytest.approx(result(run)["seeds"][2]["final_return_mean"])
    assert called("eval", f"run={run}") == 2
    assert f"holds 3 seeds trained together; name one of them: run={run / 'seed_5'}" in capsys.readouterr().err


def test_a_sweep_writes_a_row_a_seed(run):
    words = ("algo=iql", "data.path=/mydata/x.npz", "out=data/y", "seed=5", "seeds=3")
    cell = Cell("iql-swing-s5", "iql", "swing", "5", "", words)
    assert {row["command"] for row in rows_of(cell, run, "mine", "data")} == {
        "ctrlrl train algo=iql data.path=/mydata/x.npz out={data_dir}/y seed=5 seeds=3"
    }
    found = rows_of(cell, run, "mine", "data")
    assert [row["seed"] for row in found] == [5, 6, 7]
    for row, entry in zip(found, result(run)["seeds"], strict=True):
        assert row["final_return_mean"] == entry["final_return_mean"]
        assert [steps for steps, *_ in row["evaluations"]] == [50, 100]
        assert row["evaluations"][-1][1] == pytest.approx(entry["final_return_mean"], rel=1e-6)


def test_a_stacked_run_goes_on_bit_for_bit(run, file, tmp_path):
    folder = tmp_path / "half"
    assert (
        called(*words(file, folder, "seed=5", "seeds=3", "algo.policy_lr_schedule=constant", "gradient_steps=50")) == 0
    )
    assert called("train", f"run.resume={folder}", f"gradient_steps={STEPS}") == 0
    through = tmp_path / "through"
    assert called(*words(file, through, "seed=5", "seeds=3", "algo.policy_lr_schedule=constant")) == 0
    a, b = (read_folder(f / "checkpoints" / "last") for f in (folder, through))
    for key, value in {**a.model, **a.training}.items():
        assert torch.equal(value, {**b.model, **b.training}[key]), key
    assert [r["seed"] for r in rows(folder)] == [r["seed"] for r in rows(through)]
    assert len(rows(folder / "seed_5")) == 2


def test_a_seeds_folder_goes_on_as_a_run_of_its_own(run, file, tmp_path):
    folder = tmp_path / "x"
    assert (
        called(*words(file, folder, "seed=5", "seeds=2", "algo.policy_lr_schedule=constant", "gradient_steps=50")) == 0
    )
    assert called("train", f"run.resume={folder / 'seed_6'}", f"gradient_steps={STEPS}") == 0
    own = tmp_path / "own"
    assert called(*words(file, own, "seed=6", "algo.policy_lr_schedule=constant")) == 0
    a, b = (read_folder(f / "checkpoints" / "last").model for f in (folder / "seed_6", own))
    for key, value in a.items():
        torch.testing.assert_close(value, b[key], rtol=1e-3, atol=1e-3)


def test_algorithms_that_train_one_seed_a_run_say_so(tmp_path, capsys):
    assert called("train", "algo=ppo", "env=pendulum", "seeds=2", f"run.dir={tmp_path / 'x'}") == 2
    assert "seeds=2: PPO trains one seed a run" in capsys.readouterr().err
    assert called("train", "algo=ppo", "env=pendulum", "seeds=0", f"run.dir={tmp_path / 'x'}") == 2
    assert "seeds must lie in 1 ... 1000, got 0" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_the_summary_and_the_report_show_every_seed(file, tmp_path, capsys):
    folder, page = tmp_path / "x", tmp_path / "page.html"
    assert called(*words(file, folder, "seeds=2", "gradient_steps=10", "eval.every=0")) == 0
    returns = [entry["final_return_mean"] for entry in result(folder)["seeds"]]
    out = capsys.readouterr().out
    for seed, value in enumerate(returns):
        assert f"seed {seed}" in out
        assert f"{value:,.2f}" in out
    assert called("report", str(folder), f"out={page}") == 0
    assert "seed_1" in page.read_text()

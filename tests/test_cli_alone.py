"""`ctrlrl train env=none`: a data set without its environment, judged by episodes that were held out."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ctrlrl.cli import main
from ctrlrl.runs import load_run
from ctrlrl.train.checkpoint import read_folder

FIXED = [
    "algo=bc",
    "algo.hidden=[16]",
    "algo.learning_rate=1e-2",
    "gradient_steps=200",
    "eval.every=100",
    "log.every_steps=100",
    "device=cpu",
]
FIXED += ["log.progress=false", "run.report=false"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """40 episodes of 10 steps whose action is half of the observation."""
    path = tmp_path_factory.mktemp("data") / "arm.npz"
    obs = np.random.default_rng(0).uniform(-1, 1, (400, 2)).astype(np.float32)
    np.savez(
        path,
        observations=obs,
        actions=obs / 2,
        rewards=np.zeros(400, np.float32),
        terminals=np.zeros(400, bool),
        timeouts=np.arange(400) % 10 == 9,
        episode_ends=np.arange(10, 401, 10),
    )
    return path


def called(*line: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(line)
    return end.value.code


def train(file: Path, folder: Path, *more: str) -> int:
    return called("train", "data=file", f"data.path={file}", f"run.dir={folder}", *FIXED, *more)


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def test_the_held_out_error_is_told_in_rows_and_result_and_picks_the_best(file, tmp_path, capsys):
    assert train(file, tmp_path / "x", "env=none", "data.holdout=0.1") == 0
    assert "4 of 40 episodes are held out" in capsys.readouterr().err
    found = result(tmp_path / "x")
    assert (found["status"], found["env"], found["eval_episodes"]) == ("finished", "none", 0)
    assert found["final_return_mean"] is None
    assert found["best_return_mean"] is None
    assert found["held_out_loss"] == found["held_out_action_error"]
    with open(tmp_path / "x" / "progress.csv", newline="") as f:
        rows = [float(row["eval/held_out_action_error"]) for row in csv.DictReader(f)]
    assert rows[-1] == found["held_out_action_error"]
    assert rows[-1] < 0.2 * np.square(np.linspace(-0.5, 0.5, 1000)).mean()  # of always saying 0
    best = read_folder(tmp_path / "x" / "checkpoints" / "best").state
    assert best["best"] == -min(rows)
    _, learner = load_run(tmp_path / "x")
    action = learner.act(torch.tensor([[0.4, -0.2]]), deterministic=True).action
    torch.testing.assert_close(action, torch.tensor([[0.2, -0.1]]), rtol=0, atol=0.05)


def test_a_run_without_an_environment_resumes_bit_for_bit_and_is_not_rolled_out(file, tmp_path, capsys):
    assert train(file, tmp_path / "whole", "env=none", "data.holdout=0.1") == 0
    assert train(file, tmp_path / "x", "env=none", "data.holdout=0.1", "gradient_steps=100") == 0
    assert called("train", f"run.resume={tmp_path / 'x'}", "gradient_steps=200") == 0
    assert result(tmp_path / "x")["held_out_action_error"] == result(tmp_path / "whole")["held_out_action_error"]
    capsys.readouterr()
    assert called("eval", f"run={tmp_path / 'x'}") == 2
    assert "env=none" in capsys.readouterr().err


def test_nothing_is_judged_without_both(file, tmp_path):
    assert train(file, tmp_path / "x", "env=none") == 0
    found = result(tmp_path / "x")
    assert "held_out_action_error" not in found
    assert (found["status"], found["final_return_mean"]) == ("finished", None)
    assert (tmp_path / "x" / "checkpoints" / "last").is_dir()


def test_every_seed_of_a_stacked_run_has_the_error_of_its_own_run(file, tmp_path):
    more = ("env=none", "data.holdout=0.1")
    assert train(file, tmp_path / "x", "seeds=2", "seed=3", *more) == 0
    assert train(file, tmp_path / "y", "seed=4", *more) == 0
    both = [own["held_out_action_error"] for own in result(tmp_path / "x")["seeds"]]
    assert both[1] == pytest.approx(result(tmp_path / "y")["held_out_action_error"], rel=1e-5)
    assert result(tmp_path / "x")["held_out_action_error"] == pytest.approx(np.mean(both))


@pytest.mark.parametrize("more", [("algo=iql", "data.return_range=true"), ("data.best_fraction=0.5",)])
def test_what_is_held_out_is_read_as_it_is(file, tmp_path, more):
    """One episode alone has no range of returns, and no best one."""
    columns = dict(np.load(file)) | {"rewards": np.arange(400.0) // 100}
    np.savez(tmp_path / "set.npz", **columns)
    assert train(tmp_path / "set.npz", tmp_path / "x", "env=none", "data.holdout=0.025", *more) == 0
    assert result(tmp_path / "x")["status"] == "finished"


def test_best_episodes_are_refused_where_there_are_no_rewards(tmp_path, capsys):
    ends = np.arange(20) % 5 == 4
    np.savez(tmp_path / "set.npz", observations=np.ones((20, 2)), actions=np.zeros((20, 2)), terminals=ends)
    assert train(tmp_path / "set.npz", tmp_path / "x", "env=none", "algo=bc", "data.best_fraction=0.2") == 2
    assert "no rewards, so data.best_fraction finds no best episodes" in capsys.readouterr().err


def test_the_environment_and_the_held_out_error_stand_side_by_side(tmp_path):
    more = ("env=hopper-v4", "data.holdout=0.2", "eval.episodes=1", "gradient_steps=100")
    assert train(Path("hopper-medium.npz"), tmp_path / "x", *more) == 0
    found = result(tmp_path / "x")
    assert found["final_return_mean"] > 0
    assert found["held_out_action_error"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["env=none", "algo=ppo"], "env=none"),
        (["env=none", "algo=bc", "data.holdout=1.5"], "data.holdout must lie in"),
        (
            ["env=none", "algo=cql", "data.holdout=0.5", "total_steps=10"],
            "data.holdout is for learning",
        ),
    ],
)
def test_what_needs_an_environment_says_so(file, tmp_path, capsys, words, said):
    data = [] if "algo=ppo" in words else ["data=file", f"data.path={file}"]
    assert called("train", *words, *data, f"run.dir={tmp_path / 'x'}", "log.progress=false") == 2
    assert said in capsys.readouterr().err

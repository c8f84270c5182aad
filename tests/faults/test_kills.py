"""kill -9 at seeded moments: every folder stays loadable, only the last interval is lost, and the end is the same.

A kill comes so many reports of the victim and so many milliseconds later, so a slow machine sees the same moments.
"""

import csv
import json
import random
import signal
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from ctrlrl.data.replay import ReplayBuffer
from ctrlrl.train.buffer_files import load_buffer
from ctrlrl.train.checkpoint import exists, read_folder

CLOCKS = {"wall_seconds", "time/steps_per_s"}
CHANGING = {"commit", "train_seconds", "wall_seconds", "checkpoint_seconds", "steps_per_second", "updates_per_second"}


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "progress.csv", newline="") as f:
        return [{k: v for k, v in row.items() if k not in CLOCKS} for row in csv.DictReader(f)]


def result(folder: Path) -> dict[str, Any]:
    return {k: v for k, v in json.loads((folder / "result.json").read_text()).items() if k not in CHANGING}


def checkpoints(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """All that a user sees; hidden names are the swap's own."""
    names = [p.name for p in (folder / "checkpoints").iterdir() if not p.name.startswith(".")]
    read = {name: read_folder(folder / "checkpoints" / name) for name in {*names, "last"}}
    return {name: {**c.model, **c.training} for name, c in read.items()}


def assert_same_end(whole: Path, killed: Path) -> None:
    first, second = checkpoints(whole), checkpoints(killed)
    assert first.keys() == second.keys()
    for name, tensors in first.items():
        assert tensors.keys() == second[name].keys()
        for key, tensor in tensors.items():
            assert torch.equal(tensor, second[name][key]), (name, key)
    assert rows(whole) == rows(killed)
    assert result(whole) == result(killed)


def kill_often(start: Any, tmp_path: Path, *, kills: int, iterations: int) -> Counter[str]:
    """Train, killed again and again, then to the end; returns what the victims were doing when they died."""
    assert start("train", tmp_path / "whole", iterations=iterations).code == 0
    folder, schedule, during = tmp_path / "killed", random.Random(kills), Counter[str]()
    done, begun, began = 0, 0, False
    for kill in range(kills):
        ended = start(
            "train",
            folder,
            words=schedule.randint(0, 12),
            seconds=schedule.uniform(0.0, 0.02),
            signals=[signal.SIGKILL],
            iterations=iterations,
        )
        assert ended.code == -signal.SIGKILL, (kill, ended)
        during[ended.words[-1].split()[0] if ended.words else "starting"] += 1
        done = max([done, *(int(w.split()[2]) for w in ended.words if w.startswith("saved last"))])
        # of all victims: one may die between the swap and its report, and the next before it begins another save
        begun = max([begun, done, *(int(w.split()[2]) for w in ended.words if w.startswith("saving last"))])
        began = began or "saved last 0" in ended.words
        if not began and not exists(folder / "checkpoints/last"):
            continue  # killed before the first checkpoint: the next one starts from the beginning
        assert done <= read_folder(folder / "checkpoints" / "last").state["env_steps"] <= begun
        checkpoints(folder)
        if (folder / "result.json").exists():
            result(folder)
    assert start("train", folder, iterations=iterations).code == 0
    assert_same_end(tmp_path / "whole", folder)
    return during


def test_a_run_killed_five_times_ends_as_if_nothing_had_been(start, tmp_path):
    kill_often(start, tmp_path, kills=5, iterations=20)


@pytest.mark.faults
def test_a_run_killed_a_hundred_times_ends_as_if_nothing_had_been(start, tmp_path):
    during = kill_often(start, tmp_path, kills=100, iterations=350)
    assert min(during["saving"], during["saved"], during["starting"]) >= 5, during


def kill_saving(start: Any, folder: Path, *, kills: int) -> None:
    schedule, last = random.Random(kills), 0
    for _ in range(kills):
        ended = start(
            "save",
            folder,
            words=schedule.randint(0, 3) if last else 1,
            seconds=schedule.uniform(0.0, 0.01),
            signals=[signal.SIGKILL],
            first=last + 1,
        )
        assert ended.code == -signal.SIGKILL
        saved = max([last, *(int(w.split()[1]) for w in ended.words)])
        found = read_folder(folder / "last")
        last = found.state["mark"]
        assert last in (saved, saved + 1)
        assert torch.equal(found.model["w"], torch.full((64, 64), float(last)))
        assert torch.equal(found.training["m"], found.model["w"])
        buffer = ReplayBuffer(32, 2, 1)
        load_buffer(buffer, folder / "last")
        assert torch.equal(buffer.table["obs"][:20], torch.full((20, 2), float(last)))


def test_killed_while_saving_the_old_or_the_new_checkpoint_loads(start, tmp_path):
    kill_saving(start, tmp_path, kills=10)


@pytest.mark.faults
def test_killed_a_hundred_times_while_saving_the_old_or_the_new_checkpoint_loads(start, tmp_path):
    kill_saving(start, tmp_path, kills=100)


def test_at_no_moment_of_saving_is_there_nothing_to_load(start, tmp_path):
    """A reader beside the writer, which is never killed before the reader has had enough."""
    start("save", tmp_path, words=1, signals=[signal.SIGKILL], first=1)
    writer = threading.Thread(
        target=start, args=("save", tmp_path), kwargs={"words": 150, "signals": [signal.SIGKILL], "first": 2}
    )
    writer.start()
    marks = []
    while writer.is_alive():
        marks.append(read_folder(tmp_path / "last").state["mark"])
    writer.join()
    assert marks == sorted(marks)
    assert len(set(marks)) > 10, "the reader saw checkpoints come and go"


TINY = (
    "train algo=ppo env=pendulum experiment=none n_envs=2 total_steps=1000000 algo.n_steps=8 algo.n_minibatches=1 "
    "algo.n_epochs=1 algo.hidden=[4] eval.every=0 checkpoint.every=1000 log.progress=false run.report=false device=cpu "
    "run.dir=run"
).split()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_the_run_with_130_and_everything_saved(start, tmp_path, number):
    ended = start("command", tmp_path, words=4, signals=[number], typed=TINY)
    assert ended.code == 130
    steps = int(ended.words[-1].split()[1]) + 16  # the iteration that the signal met was finished
    assert read_folder(tmp_path / "run/checkpoints/last").state["env_steps"] == steps
    assert result(tmp_path / "run")["status"] == "interrupted"


def test_a_second_sigterm_ends_the_run_in_the_middle_of_an_iteration(start, tmp_path):
    words = [*TINY, "checkpoint.every=0"]
    ended = start(
        "command",
        tmp_path,
        words=2,
        seconds=0.2,
        signals=[signal.SIGTERM, signal.SIGTERM],
        typed=words,
        stuck=True,
    )
    assert ended.code == 130
    assert len(ended.words) == 2
    assert read_folder(tmp_path / "run/checkpoints/last").state["env_steps"] == 16
    assert result(tmp_path / "run")["status"] == "interrupted"

"""`ctrlrl sweep` and `ctrlrl report` with real cells: processes that train, fail, are stopped and go on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ctrlrl.cli import main
from ctrlrl.report import drawing

CELLS = (
    "algo=ppo env=pendulum experiment=none n_envs=4 algo.n_steps=32 algo.n_minibatches=2 algo.n_epochs=2 "
    "algo.hidden=[8] eval.episodes=2 log.every=0 device=cpu sweep.dir=s jobs=2"
).split()


@pytest.fixture
def ctrlrl(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(drawing, "DPI", 50)
    monkeypatch.delenv("CTRLRL_TRACEBACK", raising=False)

    def call(*words):
        with pytest.raises(SystemExit) as info:
            main(words)
        out, err = capsys.readouterr()
        return info.value.code, out, err

    return call


def result(name):
    return json.loads(Path("s", name, "result.json").read_text())


def test_cells_train_a_failure_is_told_the_same_command_goes_on_and_a_report_is_made(ctrlrl):
    pytest.importorskip("matplotlib")
    words = [*CELLS, "env=gym", "env.id=Pendulum-v1,Missing-v0", "total_steps=256", "rows=rows.jsonl"]
    words.remove("env=pendulum")
    code, out, err = ctrlrl("sweep", *words)
    assert code == 1, err
    assert "1 finished, 1 failed of 2 cells" in out
    (failed,) = [line for line in out.splitlines() if line.startswith("failed: ")]
    assert "Missing" in failed
    assert failed.endswith(".log)")
    assert " finished: return -" in err
    (name,) = [p.parent.name for p in Path("s").glob("*/result.json")]
    assert (result(name)["status"], result(name)["threads"]) == ("finished", 1)
    assert "s/report.html" in out
    assert Path("s/report.html").read_text().startswith("<!doctype html>")
    before = Path("s", name, "result.json").read_bytes()
    code, out, _ = ctrlrl("sweep", *words)
    assert code == 1
    assert Path("s", name, "result.json").read_bytes() == before
    assert len(Path("rows.jsonl").read_text().splitlines()) == 1

    code, out, _ = ctrlrl("report", "rows.jsonl", "out=table.md")
    assert (code, out.strip()) == (0, "table.md")
    assert "| ppo |" in Path("table.md").read_text()
    code, out, _ = ctrlrl("report", "s", "out=table.txt", "format=markdown")
    assert "| ppo |" in Path("table.txt").read_text()


def test_ctrl_c_stops_the_cells_with_a_checkpoint_and_the_same_command_resumes_them(ctrlrl, tmp_path):
    words = [*CELLS, "seed=0", "total_steps=400_000", "eval.every=0", "log.every_steps=1000"]
    sweep = subprocess.Popen(
        [sys.executable, "-m", "ctrlrl.cli", "sweep", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    names = ["ppo-pendulum-s0"]
    deadline = time.time() + 120
    while not all((tmp_path / "s" / name / "progress.csv").exists() for name in names):
        assert time.time() < deadline
        assert sweep.poll() is None, sweep.stderr.read()
        time.sleep(0.05)
    sweep.send_signal(signal.SIGINT)
    out, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 130, err
    assert "1 interrupted of 1 cells" in out
    stopped = {name: result(name) for name in names}
    assert {r["status"] for r in stopped.values()} == {"interrupted"}
    assert all(0 < r["env_steps"] < 400_000 for r in stopped.values())

    for name in names:  # a shorter way to the end: the rest of the budget is not what is tested
        config = Path("s", name, "config.yaml")
        config.write_text(config.read_text().replace("400000", str(stopped[name]["env_steps"] + 128)))
    code, out, err = ctrlrl("sweep", *words)
    assert code == 0, (out, err)
    assert "1 finished of 1 cells" in out
    for name in names:
        assert result(name)["env_steps"] == stopped[name]["env_steps"] + 128
        assert f"$ ctrlrl train run.resume=s/{name}" in Path("s", "logs", f"{name}.log").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sweep", "launcher=slurm"], ["unknown launcher", "submitit"]),
        (["sweep", "algo=ppo,bppo"], ["bppo", "bpo"]),
        (["sweep", "algo.gama=0.9,0.8"], ["algo.gama", "algo.gamma"]),
        (["sweep", "sweep=d4rl"], ["d4rl", "d4rl_mujoco"]),
        (["sweep", "seed=0,x"], ["seed", "x"]),
        (["sweep", "seed"], ["key=value"]),
        (["sweep", "run.dir=x"], ["sweep.dir"]),
        (["report", "empty"], ["empty", "no run"]),
        (["report", "nothing.jsonl"], ["nothing.jsonl", "cannot be read"]),
        (["report", "x", "format=pdf"], ["format", "html or markdown", "pdf"]),
    ],
    ids=" ".join,
)
def test_a_mistake_is_told_in_one_line_and_nothing_starts(ctrlrl, tmp_path, words, said):
    (tmp_path / "empty").mkdir()
    code, _, err = ctrlrl(*words)
    assert code == 2, err
    assert len(err.strip().splitlines()) == 1
    for word in said:
        assert word in err, err
    assert os.listdir(tmp_path) == ["empty"]


def test_help_lists_sweeps_and_launchers(ctrlrl):
    code, out, _ = ctrlrl("sweep", "--help")
    assert code == 0
    for word in ("d4rl_mujoco", "rollouts_mujoco", "local submitit ray", "sweep.dir"):
        assert word in out

"""`ctrlrl` with goals: a task that asks for its own, a goal given at evaluation, and words that clash."""

import json
from pathlib import Path

import numpy as np
import pytest

from ctrlrl import BESO
from ctrlrl.cli import main

TINY = "algo=beso data=file env=pointmaze env.episode_length=40 experiment=none gradient_steps=50".split()
TINY += "algo.batch_size=16 algo.hidden=[8,8] algo.horizon=3 algo.n_obs_steps=3 eval.episodes=2 eval.every=0".split()
TINY += ["log.progress=false", "run.report=false", "device=cpu"]


def said(capsys, *words: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as info:
        main(words)
    out, err = capsys.readouterr()
    return int(info.value.code or 0), out + err


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "maze.npz"
    with pytest.raises(SystemExit) as info:
        main(["data", "collect", f"out={path}", *"env=pointmaze policy=random steps=1200 progress=false".split()])
    assert not info.value.code
    return path


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    folder = data.parent / "run"
    with pytest.raises(SystemExit) as info:
        main(["train", f"data.path={data}", f"run.dir={folder}", *TINY])
    assert not info.value.code
    return folder


def test_goal_and_guidance_may_be_changed_at_evaluation(run, capsys):
    found = []
    for words in ((), ("algo.guidance=0",), ("algo.guidance=2.5",), ("algo.goal=[1.0,-2.0]",), ("algo.sampler=heun",)):
        assert said(capsys, "eval", f"run={run}", "episodes=1", "trials=4", *words)[0] == 0
        found.append(str(json.loads((run / "eval.json").read_bytes())["returns"]))
    assert len(set(found)) == len(found)


def test_clashing_numbers_are_refused_with_both(run, data, tmp_path, capsys):
    code, told = said(capsys, "eval", f"run={run}", "episodes=2", "algo.goal=[1.0,2.0,3.0]")
    assert code == 2
    assert "algo.goal has 3 numbers, algo.goal_columns=[0, 1] 2" in told
    words = ["train", f"data.path={data}", f"run.dir={tmp_path / 'x'}", *TINY]
    code, told = said(capsys, *words, "algo.guidance=2", "algo.goal_dropout=0")
    assert code == 2
    assert "guidance without the null condition" in told


def test_a_run_that_was_taught_no_goal_free_policy_is_not_guided(data, tmp_path, capsys):
    folder = tmp_path / "run"
    assert said(capsys, "train", f"data.path={data}", f"run.dir={folder}", *TINY, "algo.goal_dropout=0")[0] == 0
    code, told = said(capsys, "eval", f"run={folder}", "episodes=2", "algo.guidance=2")
    assert code == 2
    assert "guidance without the null condition" in told


def test_a_saved_model_takes_another_goal(data, tmp_path):
    settings = {"hidden": [8, 8], "horizon": 3, "n_obs_steps": 3, "batch_size": 16}
    settings |= {"goal_columns": [0, 1], "asked_columns": [2, 3]}  # in Python this task's observations are one vector
    model = BESO("MlpPolicy", "pointmaze", dataset=data, seed=0, **settings).learn(10)
    model.save(tmp_path / "model")
    obs = model.learner.nets.policy.obs_normalizer.shift.numpy().copy()
    obs[2:4] = (0.0, 1.0)
    others = [
        BESO.load(tmp_path / "model", goal=goal).predict(obs, deterministic=True)[0] for goal in ([0, 1], [0, -2])
    ]
    assert np.array_equal(others[0], model.predict(obs, deterministic=True)[0]), "the goal that is asked for anyway"
    assert not np.array_equal(*others)

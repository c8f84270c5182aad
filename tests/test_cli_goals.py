"""What a user types for tasks with goals: a simulator's settings, coverage, sampled evaluation, pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
from ctrlrl import runs, settings
from ctrlrl.cli import main
from ctrlrl.tasks import make_sim

SMALL = (
    "total_steps=64",
    "n_envs=4",
    "algo.n_steps=8",
    "algo.n_minibatches=1",
    "algo.n_epochs=1",
    "log.progress=false",
)


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as done:
        main(list(words))
    return done.value.code  # type: ignore[return-value]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("goals") / "run"
    words = (
        "algo=ppo",
        "env=multigoal",
        "experiment=none",
        "env.n_goals=3",
        "env.episode_length=3",
        "eval.episodes=2",
    )
    assert call("train", *words, *SMALL, f"run.dir={folder}") == 0
    return folder


def test_a_simulators_settings_are_kept_in_the_run_folder(run):
    cfg, _ = runs.load_run(run)
    sim = make_sim(cfg.env)
    assert (len(sim.scene.goals), sim.episode_length) == (3, 3)
    assert sim.cfg.dt == 0.1


def test_the_paths_stand_beside_the_report_and_in_it(run):
    assert (run / "paths.png").read_bytes()[:4] == b"\x89PNG"
    page = (run / "report.html").read_text()
    assert "<h2>Paths</h2>" in page
    assert not (run / "video.mp4").exists()


def test_eval_writes_the_coverage_and_the_picture(run, tmp_path, capsys):
    picture = tmp_path / "new" / "paths.png"
    assert call("eval", f"run={run}", "episodes=2", f"picture={picture}") == 0
    found = json.loads((run / "eval.json").read_text())
    assert found["goals"] == 3
    assert found["goals_covered"] == 0  # no goal is reached within 0.3 s
    assert found["coverage_entropy"] == 0.0
    assert found["goal_shares"] == [0.0, 0.0, 0.0]
    assert (found["trials"], found["reached"], found["deterministic"]) == (1000, 0.0, True)
    assert "goals_covered" in capsys.readouterr().out
    assert picture.stat().st_size > 5000


def test_the_number_of_trials_can_be_chosen(run, capsys):
    assert call("eval", f"run={run}", "episodes=1", "trials=7") == 0
    assert json.loads((run / "eval.json").read_text())["trials"] == 7
    assert call("eval", f"run={run}", "trials=0") == 2
    assert "trials must be at least 1" in capsys.readouterr().err


def test_sampled_evaluation_differs_from_the_deterministic_one_and_repeats_itself(run):
    def returns(*words: str) -> list[float]:
        assert call("eval", f"run={run}", "episodes=3", *words) == 0
        return json.loads((run / "eval.json").read_text())["returns"]

    sampled = returns("deterministic=false")
    assert sampled == returns("deterministic=false")
    assert sampled != returns()


def test_eval_deterministic_false_holds_for_the_evaluations_of_a_run_and_after_it(tmp_path):
    words = (
        "algo=ppo",
        "env=pendulum",
        "experiment=none",
        *SMALL,
        "run.report=false",
        "eval.episodes=2",
        "eval.every=0",
    )
    finals = []
    for word in ("true", "false"):
        folder = tmp_path / word
        assert call("train", *words, f"eval.deterministic={word}", f"run.dir={folder}") == 0
        finals.append(json.loads((folder / "result.json").read_text())["final_return_mean"])
        assert call("eval", f"run={folder}", "episodes=1") == 0
        found = json.loads((folder / "eval.json").read_text())
        assert found["deterministic"] is (word == "true")
        assert "goals" not in found
    assert finals[0] != finals[1]


def test_a_picture_of_a_task_without_a_plane_is_refused(tmp_path, capsys):
    folder = tmp_path / "run"
    assert call("train", "algo=ppo", "env=pendulum", "experiment=none", *SMALL, "run.report=false", "eval.episodes=1",
                f"run.dir={folder}") == 0  # fmt: skip
    assert call("eval", f"run={folder}", "episodes=1", f"picture={tmp_path}/x.png") == 2
    assert "picture: env=pendulum is no task in the plane" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("env=multigoal", "env.n_goal=3"), "did you mean env.n_goals"),
        (("env=pendulum", "env.n_goals=3"), "unknown key"),
        (("env=multigoal", "env.n_goals=0"), "env.n_goals must be at least 1"),
        (("env=multigoal", "env.n_goals=many"), "env.n_goals=many"),
        (("env=pointmaze", "env.maze=tiny"), "no such map"),
        (("env=pointmaze", "env.backend=gymnasium"), "does not have env=pointmaze"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(words, said, capsys, tmp_path):
    folder = tmp_path / "run"
    assert call("train", "algo=ppo", *words, f"run.dir={folder}") == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1
    assert not folder.exists()


def test_a_maze_is_typed_as_rows():
    cfg = settings.typed(settings.train_config(["algo=ppo", "env=pointmaze", "env.maze=11111/1r0g1/11111"]))
    assert make_sim(cfg.env).goals.tolist() == [[1.0, 0.0]]

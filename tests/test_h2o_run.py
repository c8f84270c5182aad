"""H2O from the command line and from Python: a changed simulator, real data, and what a run leaves behind."""

import json

import numpy as np
import pytest

import ctrlrl
from ctrlrl import H2O
from ctrlrl.cli import main
from ctrlrl.data.episodes import Episodes, Facts
from ctrlrl.settings import train_config, typed
from ctrlrl.tasks import eval_env

SMALL = {"hidden": [8], "batch_size": 8, "discriminator_batch_size": 8, "learning_starts": 20, "n_next_states": 2}


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(words)
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("runs") / "h2o"
    words = ["algo=h2o", "env=hopper-v4", "env.gravity_scale=2", "eval.env.gravity_scale=1", "data=file", "n_envs=2"]
    words += ["data.path=hopper-medium.npz", "total_steps=60", "eval.episodes=1", "eval.every=0", "log.progress=false"]
    words += [f"algo.{k}={str(v).replace(' ', '')}" for k, v in SMALL.items()]
    assert call("train", *words, "experiment=none", "threads=1", "env.threads=1", f"run.dir={folder}") == 0
    return folder


def test_a_run_leaves_a_picture_of_the_gap_and_shows_it_on_its_page(run):
    assert (run / "gap.png").stat().st_size > 10_000
    assert "Dynamics gap" in (run / "report.html").read_text()


def test_eval_draws_it_too(run, tmp_path):
    assert call("eval", f"run={run}", "episodes=1", f"picture={tmp_path / 'gap.png'}") == 0
    assert (tmp_path / "gap.png").read_bytes().startswith(b"\x89PNG")


def test_eval_takes_the_settings_of_another_environment_and_scores_only_the_robot_itself(run, capsys):
    found = []
    for words in ([], ["eval.env.gravity_scale=2"]):
        assert call("eval", f"run={run}", "episodes=1", "seed=3", *words) == 0
        found.append(json.loads((run / "eval.json").read_text()))
    assert found[0]["return_mean"] != found[1]["return_mean"]
    assert isinstance(found[0]["normalized_score"], float)
    assert found[1]["normalized_score"] is None
    assert call("eval", f"run={run}", "eval.env.gravity=1") == 2
    assert "eval.env: unknown key gravity; did you mean gravity_scale" in capsys.readouterr().err


def test_roll_outs_in_the_changed_simulator_say_so_and_have_no_score(run, tmp_path, capsys):
    out = tmp_path / "x.npz"
    assert call("data", "collect", f"run={run}", "steps=40", "n_envs=2", "progress=false", f"out={out}") == 0
    assert call("data", "info", str(out)) == 0
    card = capsys.readouterr().out
    assert "made in Hopper-v4 with gravity_scale=2, which plays the task of Hopper-v4" in card
    assert "score" not in card


def test_a_policy_judged_in_changed_dynamics_has_no_score_and_is_told_so(tmp_path):
    words = ["algo=h2o", "env=hopper-v4", "env.gravity_scale=2", "data=file", "data.path=hopper-medium.npz"]
    words += ["n_envs=2", "total_steps=30", "eval.episodes=1", "eval.every=0", "log.progress=false", "threads=1"]
    words += [f"algo.{k}={str(v).replace(' ', '')}" for k, v in SMALL.items()]
    assert call("train", *words, "experiment=none", "run.report=false", f"run.dir={tmp_path / 'x'}") == 0
    result = json.loads((tmp_path / "x" / "result.json").read_text())
    assert result.get("normalized_score") is None
    assert "judged with gravity_scale=2" in result["notices"][-1]
    assert "eval.env.gravity_scale=1 judges the robot itself" in result["notices"][-1]


def test_a_run_without_data_in_changed_dynamics_is_told_so_too(tmp_path):
    words = ["algo=ppo", "env=hopper", "env.gravity_scale=2", "experiment=none", "n_envs=2", "algo.n_steps=8"]
    words += ["total_steps=16", "eval.episodes=1", "eval.every=0", "log.progress=false", "run.report=false"]
    assert call("train", *words, "algo.hidden=[4]", "algo.n_minibatches=1", f"run.dir={tmp_path / 'x'}") == 0
    result = json.loads((tmp_path / "x" / "result.json").read_text())
    assert result["notices"] == [
        "judged with gravity_scale=2; eval.env.gravity_scale=1 judges the robot itself, with run.resume=... later, too"
    ]
    assert result["dynamics"] == {"training": {"gravity_scale": 2.0}, "evaluation": {"gravity_scale": 2.0}}


def test_a_backend_of_the_evaluation_that_changes_nothing_is_named_with_its_key():
    words = ["algo=h2o", "env=hopper-v4", "env.friction_scale=0.3", "eval.env.backend=gymnasium", "experiment=none"]
    with pytest.raises(ValueError, match=r"eval\.env\.friction_scale=0\.3: eval\.env\.backend=gymnasium"):
        eval_env(typed(train_config(words)))


def test_with_its_buffer_a_loaded_model_goes_on_at_once(tmp_path):
    sim = ctrlrl.make_env("hopper-v4", 2)
    model = H2O("MlpPolicy", sim, "hopper-medium.npz", seed=0, **SMALL).learn(60)
    model.save(tmp_path / "m")
    model.save_replay_buffer(tmp_path / "buffer")
    again = H2O.load(tmp_path / "m", env=sim, dataset="hopper-medium.npz")
    again.load_replay_buffer(tmp_path / "buffer")
    again.learn(10)
    assert (again.num_timesteps, again.gradient_steps, len(again.replay_buffer)) == (70, 50, 70)


def test_in_python_the_environment_is_the_simulator_and_learn_counts_its_steps(tmp_path):
    sim = ctrlrl.make_env("hopper-v4", 2, gravity_scale=2.0)
    model = H2O("MlpPolicy", sim, "hopper-medium.npz", seed=0, **SMALL).learn(60)
    assert (model.num_timesteps, model.gradient_steps) == (60, 40)
    model.save(tmp_path / "m")
    copy = ctrlrl.load(tmp_path / "m")
    obs = sim.reset(0).numpy()
    assert (copy.predict(obs, deterministic=True)[0] == model.predict(obs, deterministic=True)[0]).all()
    with pytest.raises(ValueError, match=r"H2O\.learn needs real data"):
        copy.learn(10)
    with pytest.raises(ValueError, match="observations and actions have 11 and 3 numbers, those of"):
        H2O("MlpPolicy", ctrlrl.make_env("walker2d-v4", 1), "hopper-medium.npz", **SMALL)


@pytest.mark.parametrize("make", [ctrlrl.make_env, ctrlrl.make_vec_env])
def test_data_of_a_robot_of_the_same_size_are_refused_beside_an_environment_of_ours_too(make):
    n, random = 20, np.random.default_rng(0)
    obs, action = random.standard_normal((n, 17)).astype("f4"), random.uniform(-1.0, 1.0, (n, 6)).astype("f4")
    no, known = np.zeros(n, bool), Facts("rollouts", "hc.npz", env_id="HalfCheetah-v4")
    data = Episodes(obs, action, obs[:, 0], no, np.array([n]), obs[-1:], ~no[:1], ~no, {}, {}, known)
    with pytest.raises(ValueError, match="data set is of HalfCheetah-v4, the policy would be for Walker2d"):
        H2O("MlpPolicy", make("walker2d-v4", 2), data, **SMALL)

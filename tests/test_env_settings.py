"""A simulator's own settings, from the command line, a run folder, Python and Gymnasium."""

from pathlib import Path

import gymnasium
import pytest

from ctrlrl.config import EnvConfig, env_config_with
from ctrlrl.face.environments import make_env
from ctrlrl.registry import env_settings
from ctrlrl.runs import evaluate_run, load_run, start
from ctrlrl.settings import load_config, train_config, typed

TINY = ["algo=ppo", "experiment=none", "env=lotsizing", "n_envs=2", "total_steps=40", "algo.n_steps=20", "device=cpu"]
TINY += ["algo.n_minibatches=1", "algo.n_epochs=1", "algo.hidden=[4]", "eval.episodes=1", "log.progress=false"]


def test_they_are_keys_of_env_and_only_of_the_tasks_that_have_them():
    assert typed(train_config(["env=lotsizing", "env.size=20x10"])).env.size == "20x10"  # type: ignore[attr-defined]
    assert typed(train_config(["env=slippery_lake", "env.map_seed=7"])).env.map_seed == 7  # type: ignore[attr-defined]
    for words, said in (
        (["env=pendulum", "env.size=20x10"], r"unknown key env\.size"),
        (["env=lotsizing", "env.sise=20x10"], r"unknown key env\.sise; did you mean env\.size"),
        (["env=lotsizing", "env.size=20x11"], r"env\.size must be one of 15x5"),
        (["env=lotsizing", "env.observe_setups=maybe"], r"env\.observe_setups=maybe"),
        (["env=slippery_lake", "env.map_seed=-1"], r"env\.map_seed must lie in"),
    ):
        with pytest.raises(ValueError, match=said):
            typed(train_config(words))


def test_a_run_folder_keeps_them(tmp_path: Path):
    words = [*TINY, "env.size=20x10", f"run.dir={tmp_path / 'run'}"]
    trainer, folder = start(train_config(words), words)
    trainer.train()
    cfg, learner = load_run(folder)
    assert cfg.env.size == "20x10"  # type: ignore[attr-defined]
    assert learner.nets["policy"].net[0].in_features == 20  # type: ignore[index]
    assert evaluate_run(folder, episodes=1, seed=0)["length_mean"] == 100
    with pytest.raises(ValueError, match=r"unknown key env\.sise"):
        load_config(folder / "config.yaml", ["env.sise=15x5"])


def test_python_and_gymnasium_take_them_as_arguments():
    assert make_env("lotsizing", 2, size="25x10", observe_setups=True).spec.obs_dim == 35
    env = gymnasium.make_vec("ctrlrl/LotSizing", 3, size="30x15")
    assert env.single_action_space == gymnasium.spaces.MultiDiscrete([31] * 15)
    with pytest.raises(TypeError, match="sise"):
        make_env("lotsizing", 2, sise="25x10")


def test_a_task_without_settings_has_the_plain_configuration():
    assert env_settings("pendulum") is None
    assert env_config_with(None) is EnvConfig
    assert env_config_with(env_settings("lotsizing")) is env_config_with(env_settings("lotsizing"))

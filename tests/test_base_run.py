"""EXPO and PA-RL from the run of a cloned policy: whose weights begin, what its form decides, what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ctrlrl import EXPO, PARL, Flow
from ctrlrl.data.episodes import Episodes, Facts
from ctrlrl.envs.classic import Pendulum
from ctrlrl.loops import training_loop
from ctrlrl.runs import load_run, resume, start
from ctrlrl.settings import train_config, typed
from ctrlrl.train.checkpoint import read_folder, write_folder

SINGLE = ["algo.horizon=1", "algo.n_obs_steps=1", "algo.n_action_steps=1"]
DATA = ["env=pendulum", "data=file", "data.path=x", "experiment=none"]
SHORT = ["eval.every=0", "eval.episodes=1", "run.report=false", "log.progress=false", "threads=1"]
EXPO_WORDS = ["algo=expo", *DATA, *SHORT, "total_steps=60", "n_envs=3", "algo.learning_starts=30", "algo.utd=0.1"]

PARL_WORDS = ["algo=parl", *DATA, *SHORT, "gradient_steps=50", "algo.hidden=[8]", "algo.n_climbs=1", "algo.n_samples=4"]
PARL_WORDS += ["algo.n_kept=2", "algo.n_critics=2", "algo.batch_size=16"]


def episodes(n_obs: int = 3) -> Episodes:
    random = np.random.default_rng(0)
    return Episodes(
        obs=random.standard_normal((40, n_obs)).astype(np.float32),
        action=random.uniform(-0.5, 0.5, (40, 1)).astype(np.float32),
        reward=random.standard_normal(40).astype(np.float32),
        terminated=np.zeros(40, dtype=bool),
        ends=np.array([20, 40]),
        final_obs=random.standard_normal((2, n_obs)).astype(np.float32),
        has_final=np.ones(2, dtype=bool),
        usable=np.ones(40, dtype=bool),
        extras={},
        episode_extras={},
        facts=Facts("rollouts", "made by a test"),
    )


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(Pendulum, "episode_length", 20)
    monkeypatch.setattr("ctrlrl.sources.load", lambda path, data_id=None: episodes())


def run(words: list[str]) -> Path:
    trainer, folder = start(train_config(words), words)
    trainer.train()
    return folder


@pytest.fixture
def base(tmp_path) -> Path:
    words = ["algo=flow", *DATA, *SHORT, *SINGLE, "gradient_steps=50", "algo.hidden=[8,8]", "algo.sampling_steps=2"]
    return run([*words, f"run.dir={tmp_path / 'base'}"])


def test_the_run_begins_with_the_bases_weights_and_normalisers(base):
    loop: Any = training_loop(typed(train_config([*EXPO_WORDS, f"algo.base={base}", "algo.hidden=[8,8]"])))
    found, nets = read_folder(base / "checkpoints" / "last").model, loop.learner.nets
    for part, prefix in ((nets.policy.base, "policy."), (nets.base, "online.")):
        state = part.state_dict()
        assert state
        for name, value in state.items():
            assert torch.equal(value, found[prefix + name]), name
    assert not torch.equal(nets.policy.base.action_normalizer.scale, torch.ones(1))
    assert loop.skilled, "no random start"
    clone: Any = load_run(base)[1]
    clone.nets.policy.start.zero_()  # a plan begins at a saved noise, an action that may be edited at 0
    nets.policy.n_edits, nets.policy.n_samples = 0, 1
    obs = torch.randn(5, 3)
    assert torch.equal(loop.learner.act(obs, deterministic=True).action, clone.act(obs, deterministic=True).action)


def test_a_run_that_ended_before_its_first_checkpoint_begins_with_the_base_again(base, tmp_path):
    words = [*EXPO_WORDS, f"algo.base={base}", f"run.dir={tmp_path / 'x'}"]
    first, folder = start(train_config(words), words)
    again = resume(folder, [])
    assert again.loop.skilled
    for name, value in first.learner.nets.base.state_dict().items():
        assert torch.equal(value, again.learner.nets.base.state_dict()[name]), name


def test_the_form_is_the_bases_in_the_folder_too_and_the_sampler_may_be_another(base, tmp_path):
    words = [*EXPO_WORDS, f"algo.base={base}", "algo.base_sampling_steps=3", "algo.hidden=[16]"]
    folder = run([*words, f"run.dir={tmp_path / 'x'}"])
    cfg, learner = load_run(folder)
    assert (cfg.algo.base_kind, cfg.algo.base_hidden, cfg.algo.base_head) == ("flow", [8, 8], "mlp")
    assert (cfg.algo.base_sampler, cfg.algo.base_sampling_steps) == ("euler", 3)
    assert learner.act(torch.randn(4, 3)).action.shape == (4, 1)


def test_a_base_that_does_not_fit_is_refused_by_name(base, tmp_path):
    words = ["algo=flow", *DATA, *SHORT, "gradient_steps=50", "algo.hidden=[8,8]", "algo.horizon=4"]
    chunks = run([*words, "algo.n_action_steps=2", f"run.dir={tmp_path / 'chunks'}"])
    with pytest.raises(ValueError, match=r"algo\.base=.*chunks has algo\.horizon=4 algo\.n_obs_steps=2 algo\.n_action"):
        train_config([*EXPO_WORDS, f"algo.base={chunks}"])
    with pytest.raises(ValueError, match=r"algo\.base=nowhere: no run folder there; name one of algo=diffusion or"):
        train_config([*EXPO_WORDS, "algo.base=nowhere"])
    other = [word for word in EXPO_WORDS if "data" not in word and "env=" not in word] + ["env=pointmass"]
    with pytest.raises(ValueError, match=r"algo\.base=.*base was trained on an environment with obs_dim=3, this one"):
        training_loop(typed(train_config([*other, f"algo.base={base}", "experiment=none"])))
    last = base / "checkpoints" / "last"
    found = read_folder(last)
    write_folder(last, found._replace(state={**found.state, "env": "halfcheetah-v4"}))
    with pytest.raises(ValueError, match=r"algo\.base=.*base was trained for halfcheetah-v4, this is pendulum"):
        training_loop(typed(train_config([*EXPO_WORDS, f"algo.base={base}"])))
    write_folder(last, found._replace(state={**found.state, "env": "Pendulum-v1"}))
    training_loop(typed(train_config([*EXPO_WORDS, f"algo.base={base}"])))
    with pytest.raises(ValueError, match=r"algo\.base=.*its weights do not fit algo\.base_"):
        training_loop(typed(train_config([*EXPO_WORDS, f"algo.base={base}", "algo.base_hidden=[9,9]"])))


def test_an_environment_with_another_limit_or_none_is_no_other_task(base, tmp_path):
    alone = ["env=none" if word == "env=pendulum" else word for word in DATA]
    words = ["algo=flow", *alone, *SHORT, *SINGLE, "gradient_steps=50", "algo.hidden=[8,8]", "algo.sampling_steps=2"]
    of_none = run([*words, f"run.dir={tmp_path / 'alone'}"])
    training_loop(typed(train_config([*EXPO_WORDS, f"algo.base={of_none}"])))
    words = ["env=none" if word == "env=pendulum" else word for word in PARL_WORDS]
    training_loop(typed(train_config([*words, f"algo.base={base}"])))


def test_a_run_goes_on_without_the_folder_of_its_base(base, tmp_path):
    words = [*EXPO_WORDS, f"algo.base={base}", "algo.hidden=[8,8]"]
    whole, cut = (run([*words, f"run.dir={tmp_path / name}", *more]) for name, more in
                  (("whole", []), ("cut", ["total_steps=39"])))  # fmt: skip
    base.rename(tmp_path / "elsewhere")
    resume(cut, ["total_steps=60"]).train()
    ends = [read_folder(folder / "checkpoints" / "last").model for folder in (whole, cut)]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_in_python_the_base_is_a_model():
    single = {"horizon": 1, "n_obs_steps": 1, "n_action_steps": 1}
    clone = Flow("MlpPolicy", "Pendulum-v1", episodes(), hidden=[8, 8], seed=0, **single).learn(20)
    small = {"hidden": [8, 8], "batch_size": 8, "learning_starts": 10, "seed": 0, "n_samples": 2, "n_edits": 2}
    model = EXPO("MlpPolicy", "Pendulum-v1", base=clone, dataset=episodes(), gradient_steps=1, **small)
    assert model.cfg.base_kind == "flow"
    for name, value in model.learner.nets.policy.base.state_dict().items():
        assert torch.equal(value, clone.learner.model_state()[f"policy.{name}"]), name
    kept = model.learner.nets.policy.base.obs_normalizer.scale.clone()
    model.learn(14)
    assert model._n_updates == 4
    assert model._loop.skilled, "no random start"
    assert torch.equal(model.learner.nets.policy.base.obs_normalizer.scale, kept)
    action, _ = model.predict(np.zeros(3, dtype=np.float32))
    assert action.shape == (1,)
    with pytest.raises(TypeError, match="EXPO: base must be a Diffusion or a Flow, got str"):
        EXPO("MlpPolicy", "Pendulum-v1", base="runs/x")
    with pytest.raises(ValueError, match=r"EXPO: base: its weights do not fit base_\.\.\. "):
        EXPO("MlpPolicy", "Pendulum-v1", base=clone, base_hidden=[16], **small)
    for nothing in ({"env": None}, {"env": "Pendulum-v1", "_init_setup_model": False}):
        with pytest.raises(
            ValueError, match="EXPO: base is for an environment's policy, and there is none yet; give env"
        ):
            EXPO("MlpPolicy", base=clone, **nothing)
    with pytest.raises(ValueError, match="EXPO: base has learned nothing"):
        EXPO("MlpPolicy", "Pendulum-v1", base=Flow("MlpPolicy", **single), **small)
    with pytest.raises(ValueError, match="EXPO: base has learned nothing"):
        EXPO("MlpPolicy", "Pendulum-v1", base=Flow("MlpPolicy", "Pendulum-v1", hidden=[8, 8], **single), **small)
    clone._connection.task.name = "acrobot"
    with pytest.raises(ValueError, match="EXPO: base was trained for acrobot, this is pendulum"):
        EXPO("MlpPolicy", "Pendulum-v1", base=clone, **small)
    with pytest.raises(ValueError, match="EXPO: base: the model was trained with observation space"):
        EXPO("MlpPolicy", "pointmass", base=clone, **small)


def test_a_saved_model_is_the_same_when_loaded(tmp_path):
    small = {"hidden": [8, 8], "base_head": "mlp", "batch_size": 8, "learning_starts": 10, "seed": 0}
    model = EXPO("MlpPolicy", "Pendulum-v1", dataset=episodes(), gradient_steps=1, **small).learn(12)
    model.save(tmp_path / "x")
    again = EXPO.load(tmp_path / "x")
    obs = np.ones((4, 3), dtype=np.float32)
    np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], again.predict(obs, deterministic=True)[0])


def test_offline_a_base_from_a_run_rests_and_keeps_its_normalisers_until_the_environment_comes(base, tmp_path):
    found = read_folder(base / "checkpoints" / "last").model
    folder = run([*PARL_WORDS, f"algo.base={base}", f"run.dir={tmp_path / 'offline'}"])
    cfg, learner = load_run(folder)
    assert (cfg.algo.base_kind, cfg.algo.base_hidden, cfg.algo.base_sampler) == ("flow", [8, 8], "euler")
    nets: Any = learner.nets
    for part, prefix in ((nets.policy.base, "policy."), (nets.base, "online.")):
        for name, value in part.state_dict().items():
            assert torch.equal(value, found[prefix + name]), name
    online = [*PARL_WORDS, "total_steps=300", "algo.learning_starts=0", "n_envs=1", "algo.utd=0.2"]
    nets = load_run(run([*online, f"algo.base={base}", f"run.dir={tmp_path / 'online'}"]))[1].nets
    moved = {name for name, value in nets.base.state_dict().items() if not torch.equal(value, found["online." + name])}
    assert moved
    for name, value in nets.policy.base.obs_normalizer.state_dict().items():
        assert torch.equal(value, found["policy.obs_normalizer." + name]), name


@pytest.mark.parametrize("cut", [pytest.param(50, marks=pytest.mark.slow), 70])
def test_from_data_into_the_environment_resumed_equals_uninterrupted(tmp_path, cut):
    """Cut where the data set alone has taught, and where the base has begun to learn better actions."""
    words = [*PARL_WORDS, "total_steps=90", "algo.learning_starts=0", "algo.base_kind=flow", "algo.base_sampler=euler"]
    words += ["algo.base_hidden=[8]", "algo.utd=0.5", "n_envs=1"]
    whole = read_folder(run([*words, f"run.dir={tmp_path / 'whole'}"]) / "checkpoints" / "last")
    trainer, folder = start(train_config([*words, f"run.dir={tmp_path / 'cut'}"]), words)
    while trainer.loop.gradient_steps < cut and not trainer.loop.done:
        trainer.metrics = trainer.loop.iterate()
    assert trainer.loop.learner.begun == (cut > 50)
    trainer.save("last")
    resume(folder, []).train()
    found = read_folder(folder / "checkpoints" / "last")
    for name, value in whole.model.items():
        assert torch.equal(value, found.model[name]), name


def test_in_python_the_base_of_parl_is_a_model_that_learns_in_the_environment(tmp_path):
    single = {"horizon": 1, "n_obs_steps": 1, "n_action_steps": 1}
    clone = Flow("MlpPolicy", "Pendulum-v1", episodes(), hidden=[8, 8], seed=0, **single).learn(20)
    small = {"hidden": [8], "batch_size": 8, "n_samples": 2, "n_kept": 2, "n_climbs": 1, "learning_starts": 0}
    model = PARL("MlpPolicy", "Pendulum-v1", episodes(), base=clone, seed=0, **small).learn(4)
    of_clone = {k.removeprefix("online."): v for k, v in clone.learner.model_state().items() if k.startswith("online.")}
    base = model.learner.nets.base
    assert all(torch.equal(value, of_clone[name]) for name, value in base.state_dict().items())
    model.save(tmp_path / "x")
    again = PARL.load(tmp_path / "x", env="Pendulum-v1", dataset=episodes()).learn(2)
    base = again.learner.nets.base
    assert all(torch.equal(value, of_clone[name]) for name, value in base.state_dict().items()), "it rests after a load"
    again.learn_online(210)
    first = PARL("MlpPolicy", "Pendulum-v1", episodes(), base=clone, seed=0, **{**small, "learning_starts": 50})
    first.learn_online(3)
    assert first._online.skilled, "no random start"
    assert any(not torch.equal(value, of_clone[name]) for name, value in base.state_dict().items())
    with pytest.raises(TypeError, match="PARL: base must be a Diffusion or a Flow, got str"):
        PARL("MlpPolicy", "Pendulum-v1", base="runs/x")

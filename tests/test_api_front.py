"""A front from Python: learn, ask by preference, save, load, and from a run folder; and the command line's eval."""

import json

import numpy as np
import pytest
import torch

import ctrlrl
from ctrlrl import cli, runs, settings

SMALL = {
    "n_steps": 4,
    "n_minibatches": 2,
    "n_epochs": 1,
    "hidden": [8],
    "eval_episodes": 2,
    "eval_max_steps": 5,
    "n_extended": 1,
    "extension_updates": 2,
    "reference": [-1e3, -1e3],
}
OBS = np.zeros((3, 1), dtype=np.float32)


@pytest.fixture(scope="module")
def model():
    return ctrlrl.CMORL("MlpPolicy", "mo_bandit", n_envs=4, seed=0, **SMALL).learn(480)


def test_a_preference_picks_the_policy_and_none_keeps_the_last_one(model):
    one, _ = model.predict(OBS, preference=[1.0, 0.0])
    kept, _ = model.predict(OBS)
    other, _ = model.predict(OBS[0], preference=[0.0, 1.0])
    assert one.shape == (3, 2)
    assert other.shape == (2,)
    assert np.array_equal(one, kept)
    assert model.front.shape[1] == 2


def test_saved_and_loaded_it_acts_as_before(model, tmp_path):
    model.save(tmp_path / "front")
    for back in (ctrlrl.load(tmp_path / "front"), ctrlrl.CMORL.load(tmp_path / "front", env="mo_bandit")):
        assert np.array_equal(back.front, model.front)
        for preference in ([1.0, 0.0], [0.3, 0.7]):
            assert np.array_equal(
                back.predict(OBS, preference=preference)[0], model.predict(OBS, preference=preference)[0]
            )


def test_a_callback_sees_the_front_grow_and_false_ends_learning_with_what_is_found(model):
    seen: list[dict[str, float]] = []
    again = ctrlrl.CMORL("MlpPolicy", "mo_bandit", n_envs=4, seed=0, **SMALL).learn(480, callback=seen.append)
    assert np.array_equal(again.front, model.front)
    assert seen[-1]["env_steps"] == again.num_timesteps == model.num_timesteps
    volumes = [row["front/hypervolume"] for row in seen]
    assert volumes == sorted(volumes)
    assert volumes[-1] > 0.0

    def enough(row: dict[str, float]) -> bool:
        return row["front/hypervolume"] == 0.0

    stopped = ctrlrl.CMORL("MlpPolicy", "mo_bandit", n_envs=4, seed=0, **SMALL).learn(480, callback=enough)
    assert 0 < stopped.num_timesteps < model.num_timesteps
    assert len(stopped.front)
    assert stopped.predict(OBS, preference=[1.0, 0.0])[0].shape == (3, 2)


@pytest.mark.parametrize(("preference", "said"), [([0.5, 0.6], "sums to 1.1"), ([-1, 2], "negative"), ([1], "entries")])
def test_what_is_no_preference_is_refused(model, preference, said):
    with pytest.raises(ValueError, match=said):
        model.predict(OBS, preference=preference)


def test_bad_arguments_are_refused_by_name(model, tmp_path):
    with pytest.raises(TypeError, match="did you mean n_extended"):
        ctrlrl.CMORL("MlpPolicy", "mo_bandit", n_extend=2)
    with pytest.raises(TypeError, match="env must be a name"):
        ctrlrl.CMORL("MlpPolicy", object())
    with pytest.raises(ValueError, match="is for several objectives"):
        ctrlrl.CMORL("MlpPolicy", "pendulum", reference=[0.0])
    with pytest.raises(TypeError, match="CMORL: callback must be a function of the metrics of one update, a dict, got"):
        ctrlrl.CMORL("MlpPolicy", "mo_bandit", **SMALL).learn(480, callback=ctrlrl.BaseCallback())
    with pytest.raises(ValueError, match="planned as a whole"):
        model.learn(480)
    with pytest.raises(ValueError, match=r"algo=ppo learns from one reward.*algo=cmorl"):
        ctrlrl.PPO("MlpPolicy", "mo_bandit")


def test_a_run_folder_is_loaded_and_evaluated_by_preference(tmp_path, capsys, monkeypatch):
    words = [f"algo.{k}={json.dumps(v).replace(' ', '')}" for k, v in SMALL.items()]
    words += ["algo=cmorl", "env=mo_bandit", "experiment=none"]
    words += ["n_envs=4", "total_steps=480", f"run.dir={tmp_path}/run"]
    trainer, folder = runs.start(settings.train_config([*words, "log.progress=false"]), words)
    result = trainer.train()
    for word in ("total_steps=960", "algo.eval_gamma=1.0"):
        with pytest.raises(ValueError, match="a front is planned as a whole"):
            runs.resume(folder, [word])
    agent = ctrlrl.load(folder)
    with pytest.raises(TypeError, match="load: env is not taken for a run folder"):
        ctrlrl.load(folder, env="mo_bandit")
    assert agent.front.tolist() == result["front_stored"]
    assert agent.predict(OBS, preference=[1.0, 0.0])[0].shape == (3, 2)
    assert cli.evaluate([f"run={folder}", "preference=[0.3,0.7]", "episodes=2"]) == 0
    told = json.loads((folder / "eval.json").read_text())
    assert told["preference"] == [0.3, 0.7]
    best = max(0.3 * a + 0.7 * b for a, b in result["front_stored"])
    assert told["utility"] == pytest.approx(best, rel=1e-5)  # the bandit's evaluations have no noise
    assert cli.evaluate([f"run={folder}", "episodes=2"]) == 0
    assert json.loads((folder / "eval.json").read_text())["hypervolume"] == pytest.approx(result["hypervolume"])
    assert "utility" in capsys.readouterr().out
    with pytest.raises(ValueError, match="sums to 1"):
        cli.evaluate([f"run={folder}", "preference=[0.5,0.6]"])
    for word in ("picture=x.png", "deterministic=false"):
        with pytest.raises(ValueError, match=f"{word[:7]}.*algo=cmorl has several objectives"):
            cli.evaluate([f"run={folder}", word])
    filmed, obs = [], torch.from_numpy(OBS)
    monkeypatch.setattr(
        runs, "film", lambda cfg, learner, *_, **how: filmed.append(learner.act(obs, deterministic=True))
    )
    for preference in ([1.0, 0.0], [0.0, 1.0]):
        asked = f"preference=[{preference[0]},{preference[1]}]"
        assert cli.evaluate([f"run={folder}", asked, "episodes=1", "video=x.mp4"]) == 0
        agent.learner.prefer(preference)
        assert torch.equal(filmed[-1].action, agent.learner.act(obs, deterministic=True).action)
    assert not torch.equal(filmed[0].action, filmed[1].action)

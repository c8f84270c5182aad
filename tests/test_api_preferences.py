"""A model for several objectives from Python: learn, predict for a preference, save, load."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ctrlrl import CAPQL, CMORL, SAC, evaluate_policy, export, load

OBS = np.zeros((1, 1), np.float32)


def test_one_model_answers_every_preference(tmp_path):
    model = CAPQL("MlpPolicy", "mo_bandit", reference=[-1.0, -1.0], learning_starts=16, batch_size=16,
                  policy_kwargs={"net_arch": [16]}, seed=0).learn(64)  # fmt: skip
    first, second = (model.predict(OBS, deterministic=True, preference=w)[0] for w in ([1.0, 0.0], [0.0, 1.0]))
    assert first.shape == (1, 2)
    assert not np.array_equal(first, second)
    model.save(tmp_path / "model")
    again = CAPQL.load(tmp_path / "model")
    np.testing.assert_array_equal(again.predict(OBS, deterministic=True, preference=[0.0, 1.0])[0], second)
    for wrong, said in (([0.5], "1 entries"), ([1.5, -0.5], "negative"), ([0.5, 0.6], "not to 1")):
        with pytest.raises(ValueError, match=said):
            model.predict(OBS, preference=wrong)


def test_a_model_of_one_objective_takes_no_preference():
    with pytest.raises(ValueError, match="learned from one reward"):
        SAC("MlpPolicy", "pendulum").predict(np.zeros((1, 3), np.float32), preference=[1.0])


def test_a_model_of_one_objective_refuses_several_rewards():
    with pytest.raises(ValueError, match=r"algo=sac learns from one reward.*near_origin, near_one"):
        SAC("MlpPolicy", "mo_bandit")


def small(**settings):
    return CAPQL("MlpPolicy", "mo_bandit", reference=[-1.0, -1.0], learning_starts=16, batch_size=16,
                 policy_kwargs={"net_arch": [16]}, seed=0, **settings)  # fmt: skip


def test_a_saved_model_is_loaded_by_the_name_of_what_made_it(tmp_path):
    model = small()
    model.save(tmp_path / "model")
    asked = {"deterministic": True, "preference": [0.2, 0.8]}
    np.testing.assert_array_equal(load(tmp_path / "model").predict(OBS, **asked)[0], model.predict(OBS, **asked)[0])


def test_an_evaluation_tells_every_objective_for_the_preference_that_it_is_given():
    model = small()
    for preference in ([1.0, 0.0], [0.0, 1.0]):
        mean, std = evaluate_policy(model, "mo_bandit", 3, preference=preference)
        action = model.predict(OBS, deterministic=True, preference=preference)[0][0].astype(np.float64)
        wanted = [-(action**2).sum(), -((action - [1.0, 0.0]) ** 2).sum()]  # one step, by the task's definition
        np.testing.assert_allclose(mean, wanted, rtol=1e-5)
        np.testing.assert_allclose(std, [0.0, 0.0], atol=1e-6)
    returns, lengths = evaluate_policy(model, "mo_bandit", 3, return_episode_rewards=True)
    assert (np.shape(returns), lengths) == ((3, 2), [1, 1, 1])
    for wrong in ({"callback": print}, {"render": True}, {"reward_threshold": 0.0}):
        with pytest.raises(ValueError, match="for tasks with one reward"):
            evaluate_policy(model, "mo_bandit", 3, **wrong)
    with pytest.raises(ValueError, match="not to 1"):
        evaluate_policy(model, "mo_bandit", 3, preference=[0.5, 0.6])


@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("suffix", [".onnx", ".pt"])
def test_an_exported_policy_takes_the_preference_as_its_second_input(tmp_path, suffix):
    if suffix == ".onnx":
        ort = pytest.importorskip("onnxruntime")
    model, file = small(), tmp_path / f"policy{suffix}"
    model.predict(OBS, preference=[1.0, 0.0])  # what it was told last has no say in the file
    model.export(file)
    obs = np.random.default_rng(0).standard_normal((5, 1)).astype(np.float32)
    weight = np.linspace(0.0, 1.0, 5, dtype=np.float32)
    weight = np.stack((weight, 1.0 - weight), 1)
    if suffix == ".onnx":
        found = ort.InferenceSession(str(file)).run(["action"], {"obs": obs, "preference": weight})[0]
    else:
        found = torch.jit.load(str(file))(torch.from_numpy(obs), torch.from_numpy(weight)).numpy()
        facts = json.loads(file.with_suffix(".json").read_text())
        assert (facts["inputs"], facts["objectives"]) == (["obs", "preference"], 2)
    for row, w, action in zip(obs, weight, found, strict=True):
        np.testing.assert_allclose(model.predict(row, deterministic=True, preference=w)[0], action, rtol=0, atol=1e-5)


def test_a_front_of_many_policies_is_not_exported_as_one(tmp_path):
    model = CMORL("MlpPolicy", "mo_bandit", reference=[-1.0, -1.0])
    with pytest.raises(ValueError, match=r"algo=cmorl has found many.*algo=capql"):
        export(model, tmp_path / "policy.pt")


def test_discrete_actions_of_several_objectives_are_sent_to_an_algorithm_that_takes_them():
    with pytest.raises(ValueError, match=r"discrete. Use algo=cmorl"):
        CAPQL("MlpPolicy", "deep_sea_treasure", reference=[0.0, -25.0])

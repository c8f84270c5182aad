"""A model for several objectives from Python: learn, predict for a preference, save, load."""

from __future__ import annotations

import numpy as np
import pytest

from ctrlrl import CAPQL, SAC

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

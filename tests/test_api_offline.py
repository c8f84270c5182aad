"""The Python API of algorithms that learn from a data set, on the data set that comes with the library."""

import numpy as np
import pytest

import ctrlrl
from ctrlrl import BC, IQL, TD3BC
from ctrlrl.data.episodes import Episodes, Facts

SMALL = {"hidden": [16], "batch_size": 32}


@pytest.fixture(scope="module")
def model():
    return TD3BC("MlpPolicy", "Hopper-v4", "hopper-medium.npz", seed=0, **SMALL).learn(50)


def observations(model, n):
    return np.random.default_rng(0).standard_normal((n, *model.observation_space.shape))


def test_predict_is_in_the_action_space_single_and_batched_alike(model):
    obs = observations(model, 5)
    batch, state = model.predict(obs, deterministic=True)
    assert batch.shape == (5, 3)
    assert state is None
    for row, action in zip(obs, batch, strict=True):
        single, _ = model.predict(row, deterministic=True)
        assert model.action_space.contains(single)
        np.testing.assert_allclose(single, action, atol=1e-5)


def test_a_saved_model_acts_the_same_and_goes_on(model, tmp_path):
    model.save(tmp_path / "m")
    copy = ctrlrl.load(tmp_path / "m")
    obs = observations(model, 4)
    np.testing.assert_array_equal(copy.predict(obs)[0], model.predict(obs)[0])
    assert copy.gradient_steps == 50
    with pytest.raises(ValueError, match="needs a data set"):
        copy.learn(1)
    copy.set_dataset("hopper-medium.npz")
    assert copy.learn(50).gradient_steps == 100


def test_a_loaded_model_learns_at_the_rate_that_is_asked_for(tmp_path):
    IQL("MlpPolicy", "Hopper-v4", "hopper-medium.npz", seed=0, **SMALL).learn(50).save(tmp_path / "m")
    again = IQL.load(tmp_path / "m", dataset="hopper-medium.npz", learning_rate=1e-6).learn(50)
    assert max(step.learning_rate.item() for step in again.learner.opt.values()) <= 1.001e-6


def test_one_seed_gives_one_policy():
    first, second = (IQL("MlpPolicy", "Hopper-v4", "hopper-medium.npz", seed=3, **SMALL).learn(20) for _ in range(2))
    obs = observations(first, 3)
    np.testing.assert_array_equal(first.predict(obs, deterministic=True)[0], second.predict(obs, deterministic=True)[0])


def test_evaluate_policy_takes_it(model):
    mean, std = ctrlrl.evaluate_policy(model, "Hopper-v4", n_eval_episodes=2)
    assert mean > 0.0
    assert std >= 0.0


def test_data_transforms_are_keywords():
    model = BC("MlpPolicy", "Hopper-v4", "hopper-medium.npz", best_fraction=0.05, **SMALL)
    model.learn(1)
    assert model._loop.source.size < 60_000 * 0.2


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: BC("MlpPolicy", "Hopper-v4", "nowhere.npz"), "nowhere.npz"),
        (lambda: BC("MlpPolicy", "HalfCheetah-v4", "hopper-medium.npz"), "env=hopper-v4"),
        (lambda: BC("MlpPolicy", "CartPole-v1", "hopper-medium.npz"), "continuous"),
        (lambda: BC("MlpPolicy", "Hopper-v4").learn(1), "needs a data set"),
        (lambda: BC("MlpPolicy", dataset="hopper-medium.npz"), "env is needed"),
        (lambda: BC("CnnPolicy", "Hopper-v4"), "MlpPolicy"),
        (lambda: BC("MlpPolicy", "Hopper-v4", {}), "must be a path or Episodes, got dict"),
    ],
)
def test_bad_input_is_named(make, told):
    with pytest.raises((ValueError, TypeError, OSError), match=told):
        make()


def test_data_of_another_robot_of_the_same_size_are_refused():
    n, rng = 20, np.random.default_rng(0)
    obs, action = rng.standard_normal((n, 17)).astype("f4"), rng.uniform(-1.0, 1.0, (n, 6)).astype("f4")
    no, ends = np.zeros(n, bool), np.array([n])
    known = Facts("rollouts", "walker.npz", env_id="Walker2d-v4")
    data = Episodes(obs, action, np.zeros(n, "f4"), no, ends, obs[-1:], np.ones(1, bool), ~no, {}, {}, known)
    with pytest.raises(ValueError, match="data set is of Walker2d-v4, the policy would be for HalfCheetah: use env="):
        IQL("MlpPolicy", "HalfCheetah-v5", data, **SMALL)
    with pytest.warns(UserWarning, match="data set is of Walker2d-v4, evaluated on Walker2d-v5"):
        IQL("MlpPolicy", "Walker2d-v5", data, **SMALL)


def test_unknown_arguments_are_named_with_the_nearest():
    with pytest.raises(TypeError, match="batch_size"):
        BC("MlpPolicy", "Hopper-v4", batchsize=3)


def test_learn_online_goes_on_from_a_replay_buffer_that_can_be_saved(tmp_path):
    made = {"seed": 0, "n_envs": 4, "learning_starts": 8, "utd": 0.25, "buffer_size": 500, **SMALL}
    model = IQL("MlpPolicy", "Hopper-v4", "hopper-medium.npz", offline_share=0.5, **made).learn(20)
    assert model.learn_online(40).num_timesteps == 40
    assert model.gradient_steps == 20 + 8  # a quarter of the steps after the first eight
    assert len(model.replay_buffer) == 40
    model.save_replay_buffer(tmp_path / "replay")
    model.save(tmp_path / "m")

    again = IQL.load(tmp_path / "m", env="Hopper-v4", n_envs=4)
    again.load_replay_buffer(tmp_path / "replay")
    np.testing.assert_array_equal(again.replay_buffer.table.rows[:40], model.replay_buffer.table.rows[:40])
    assert again.learn_online(20).num_timesteps == 60
    assert len(again.replay_buffer) == 60


def test_online_the_policys_learning_rate_is_constant_as_it_is_on_the_command_line():
    model = IQL("MlpPolicy", "Hopper-v4", "hopper-medium.npz", seed=0, learning_starts=0, **SMALL).learn(20)
    assert float(model.learner.opt["policy"].learning_rate) < 1e-5, "the cosine of the offline updates is over"
    for _ in range(2):
        model.learn_online(60)
        assert float(model.learner.opt["policy"].learning_rate) == pytest.approx(3e-4)
    model.learn(20)
    assert float(model.learner.opt["policy"].learning_rate) < 1e-5
    model.learn_online(60)
    assert float(model.learner.opt["policy"].learning_rate) == pytest.approx(3e-4), "after updates on the data again"


def test_what_cannot_go_on_online_is_refused(tmp_path):
    with pytest.raises(ValueError, match="algo=td3bc learns from a data set alone"):
        TD3BC("MlpPolicy", "Hopper-v4", **SMALL).learn_online(10)
    model = IQL("MlpPolicy", "Hopper-v4", **SMALL)
    with pytest.raises(ValueError, match="none before learn_online"):
        model.save_replay_buffer(tmp_path / "replay")
    with pytest.raises(ValueError, match="no replay buffer there"):
        model.load_replay_buffer(tmp_path / "nothing")

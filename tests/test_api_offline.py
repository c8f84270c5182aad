"""The Python API of algorithms that learn from a data set, on the data set that comes with the library."""

import csv
import warnings

import gymnasium as gym
import numpy as np
import pytest

import ctrlrl
from ctrlrl import BC, IQL, TD3BC, BaseCallback, build
from ctrlrl.api import configure
from ctrlrl.core.random import seed_generators
from ctrlrl.data.episodes import Episodes, Facts
from ctrlrl.train.off_policy import Means

SMALL = {"hidden": [16], "batch_size": 32}


@pytest.fixture(scope="module")
def model():
    return TD3BC("MlpPolicy", "Hopper-v4", "hopper-medium.npz", seed=0, **SMALL).learn(50)


def pendulum(n):
    """Episodes of noise for Pendulum-v1."""
    rng = np.random.default_rng(0)
    obs, action = rng.standard_normal((n, 3)).astype("f4"), rng.uniform(-1.0, 1.0, (n, 1)).astype("f4")
    no, one = np.zeros(n, bool), np.ones(1, bool)
    reward = rng.standard_normal(n).astype("f4")
    return Episodes(obs, action, reward, no, np.array([n]), obs[-1:], one, ~no, {}, {}, Facts("rollouts", "noise"))


class CallOn(BaseCallback):
    """Calls the function at every step."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def _on_step(self):
        self.function()
        return True


def table(folder):
    with (folder / "progress.csv").open() as file:
        return list(csv.DictReader(file))


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
        (
            lambda: BC("MlpPolicy", "Hopper-v4", "hopper-medium.npz").learn("9"),
            "BC: gradient_steps must be a whole number",
        ),
        (
            lambda: IQL("MlpPolicy", "Hopper-v4").learn_online(9.5),
            "IQL: total_timesteps must be a whole number, got 9.5",
        ),
        (
            lambda: BC("MlpPolicy", "Hopper-v4", "hopper-medium.npz").learn(None),
            "BC: gradient_steps must be a whole number, got None",
        ),
        (lambda: BC("MlpPolicy", "Hopper-v4", {}), "must be a path or Episodes, got dict"),
    ],
)
def test_bad_input_is_named(make, told):
    with pytest.raises((ValueError, TypeError, OSError), match=told):
        make()


def test_a_buffer_need_only_hold_a_step_of_the_environments_that_there_are():
    model = IQL("MlpPolicy", "Pendulum-v1", pendulum(50), buffer_size=50, **SMALL).learn(1)
    assert len(model.learn_online(20).replay_buffer) == 50
    with pytest.raises(ValueError, match="buffer_size=4 is smaller than one step of n_envs=8"):
        IQL("MlpPolicy", "Pendulum-v1", pendulum(50), buffer_size=4, n_envs=8, **SMALL).learn(1)


def test_no_action_noise_is_none_as_in_sb3():
    assert IQL("MlpPolicy", "Pendulum-v1", action_noise=None, **SMALL).cfg.action_noise == 0.0


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
    assert model.learn_online(40).env_steps == 40
    assert model.num_timesteps == 60, "updates on the data set, then environment steps"
    assert model.gradient_steps == 20 + 8  # a quarter of the steps after the first eight
    assert len(model.replay_buffer) == 40
    model.save_replay_buffer(tmp_path / "replay")
    model.save(tmp_path / "m")

    again = IQL.load(tmp_path / "m", env="Hopper-v4", n_envs=4)
    again.load_replay_buffer(tmp_path / "replay")
    np.testing.assert_array_equal(again.replay_buffer.table.rows[:40], model.replay_buffer.table.rows[:40])
    assert again.learn_online(20).env_steps == 60
    assert len(again.replay_buffer) == 60
    with pytest.warns(UserWarning, match="set_dataset: 60 rows of the replay buffer are left"):
        again.set_dataset("hopper-medium.npz")


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


def test_a_model_loaded_after_steps_online_goes_on_with_the_schedule_of_its_offline_updates(tmp_path):
    words = {"learning_starts": 0, "n_envs": 1, **SMALL}
    model = IQL("MlpPolicy", "Hopper-v4", "hopper-medium.npz", seed=0, **words).learn(10).learn_online(30)
    model.save(tmp_path / "m")
    copy = IQL.load(tmp_path / "m", env="Hopper-v4", dataset="hopper-medium.npz")
    rates = []
    for one in (model, copy):
        one.learn(5, CallOn(lambda one=one: rates.append(float(one.learner.opt["policy"].learning_rate))))
    assert rates[:5] == rates[5:]


def test_what_cannot_go_on_online_is_refused(tmp_path):
    with pytest.raises(ValueError, match="algo=td3bc learns from a data set alone"):
        TD3BC("MlpPolicy", "Hopper-v4", **SMALL).learn_online(10)
    model = IQL("MlpPolicy", "Hopper-v4", **SMALL)
    with pytest.raises(ValueError, match="none before learn_online"):
        model.save_replay_buffer(tmp_path / "replay")
    with pytest.raises(ValueError, match="no replay buffer there"):
        model.load_replay_buffer(tmp_path / "nothing")


def test_a_loaded_model_does_not_learn_online_from_rewards_of_another_size(tmp_path):
    made = IQL("MlpPolicy", "Hopper-v4", "hopper-medium.npz", reward_shift=-7.0, **SMALL).learn(2)
    made.save(tmp_path / "m")
    loaded = IQL.load(tmp_path / "m", env="Hopper-v4")
    with pytest.raises(ValueError, match=r"IQL: reward_shift=-7.0 transforms a data set, and there is none"):
        loaded.learn_online(4)
    loaded.set_dataset("hopper-medium.npz")
    assert loaded.learn_online(4).env_steps == 4


class Clock(BaseCallback):
    """Keeps the clock of every call; says no at one of them."""

    def __init__(self, until=None):
        super().__init__()
        self.until, self.seen, self.losses, self.ended = until, [], [], False

    def _on_step(self):
        self.seen.append(self.num_timesteps)
        if "metrics" in self.locals:
            self.losses.append(float(self.locals["metrics"]["loss/critic"]))
        return self.num_timesteps != self.until

    def _on_training_end(self):
        self.ended = True


def test_a_callback_sees_every_update_and_then_every_step_of_the_environments():
    made = {"seed": 0, "n_envs": 4, "learning_starts": 8, "utd": 0.25, **SMALL}
    updates, steps = Clock(), Clock()
    model = IQL("MlpPolicy", "Hopper-v4", "hopper-medium.npz", **made).learn(60, updates)
    model.learn_online(40, steps)
    assert updates.seen == list(range(1, 61))
    assert steps.seen == [60 + 4 * k for k in range(1, 11)]
    assert updates.ended
    assert steps.ended
    assert steps.locals["rewards"].shape == (4,)
    assert updates.locals["metrics"]["loss/critic"].isfinite()


def test_what_a_callback_sees_changes_nothing():
    made = {"seed": 0, "n_envs": 4, "learning_starts": 8, "utd": 0.25, **SMALL}
    models = [IQL("MlpPolicy", "Hopper-v4", "hopper-medium.npz", **made) for _ in range(2)]
    for model, callback in zip(models, (None, Clock()), strict=True):
        seed_generators(0)
        model.learn(60, callback).learn_online(40, callback)
    obs, (alone, watched) = observations(models[0], 3), models
    np.testing.assert_array_equal(
        alone.predict(obs, deterministic=True)[0], watched.predict(obs, deterministic=True)[0]
    )
    assert (alone.num_timesteps, alone.env_steps) == (watched.num_timesteps, watched.env_steps) == (100, 40)


def test_a_callback_ends_training_and_a_second_call_goes_on():
    model = IQL("MlpPolicy", "Hopper-v4", "hopper-medium.npz", seed=0, learning_starts=8, offline_share=0.5, **SMALL)
    stop = Clock(until=7)
    assert model.learn(100, stop).gradient_steps == 7
    assert stop.ended
    assert model.learn(10).gradient_steps == 17
    assert model.learn_online(100, Clock(until=17 + 9)).env_steps == 9
    assert len(model.replay_buffer) == 8, "the step that was refused is not kept"
    assert model.learn_online(10).env_steps == 19


def test_the_logger_has_the_means_of_the_updates(tmp_path):
    model = IQL("MlpPolicy", "Hopper-v4", "hopper-medium.npz", seed=0, **SMALL)
    model.set_logger(configure(tmp_path, ["csv"]))
    seen = Clock()
    model.learn(60, seen, log_interval=20)
    model.logger.close()
    rows = table(tmp_path)
    assert [int(row["time/total_timesteps"]) for row in rows] == [20, 40, 60]
    assert float(rows[-1]["train/critic_loss"]) == pytest.approx(sum(seen.losses[40:]) / 20, rel=1e-5)
    assert float(rows[-1]["loss/value"]) > 0.0
    assert float(rows[-1]["train/learning_rate"]) < 1e-5, "the policy's, which falls along a cosine"


def test_the_logger_has_the_means_of_online_updates_alone(tmp_path):
    made = {"seed": 0, "learning_starts": 5, "buffer_size": 500, "offline_share": 0.5, **SMALL}
    model = IQL("MlpPolicy", "Pendulum-v1", pendulum(300), **made).learn(30)
    model.set_logger(configure(tmp_path, ["csv"]))
    updates = []
    add = Means.add
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Means, "add", lambda self, m: (updates.append((self, m)), add(self, m))[1])
        model.learn_online(430, log_interval=1)
    model.logger.close()
    own = [float(m["loss/critic"]) for means, m in updates if means is model._means]
    rows = table(tmp_path)
    assert [int(row["time/total_timesteps"]) for row in rows] == [230, 430], "at the ends of episodes of 200 steps"
    assert len(own) == 430 - 5
    n_first = 200 - 5 - 1  # the log is written before the update of the episode's last step
    assert float(rows[0]["train/critic_loss"]) == pytest.approx(sum(own[:n_first]) / n_first, rel=1e-5)
    assert float(rows[1]["train/critic_loss"]) == pytest.approx(sum(own[n_first : n_first + 200]) / 200, rel=1e-5)
    assert int(rows[0]["train/n_updates"]) == 30 + n_first
    assert float(rows[0]["rollout/ep_len_mean"]) == 200.0


@pytest.mark.parametrize("stops", ["says no", "raises"])
def test_after_a_stop_at_an_episodes_end_the_next_one_is_whole(stops):
    class AtTheEnd(BaseCallback):
        def _on_step(self):
            if self.locals["dones"].any() and stops == "raises":
                raise KeyboardInterrupt
            return not self.locals["dones"].any()

    made = {"seed": 0, "learning_starts": 5, "buffer_size": 1000, "offline_share": 0.5, "utd": 0.01, **SMALL}
    model = IQL("MlpPolicy", "Pendulum-v1", pendulum(300), **made)
    if stops == "raises":
        with pytest.raises(KeyboardInterrupt):
            model.learn_online(1_000, AtTheEnd())
    else:
        model.learn_online(1_000, AtTheEnd())
    assert model.env_steps == 200
    model.learn_online(250)
    assert [info["l"] for info in model.ep_info_buffer] == [200]
    rows = model.replay_buffer.table.read(model.replay_buffer.newest(1000))
    joined = (rows.next_obs[:-1] == rows.obs[1:]).all(-1)
    assert len(rows.obs) == 199 + 250, "the refused step is not kept"
    assert (~joined).nonzero().flatten().tolist() == [198, 398], "between episodes alone"


def test_tensorboards_run_goes_on_with_the_object_that_began_it(tmp_path):
    pytest.importorskip("tensorboard")
    made = {"seed": 0, "learning_starts": 5, "offline_share": 0.5, "tensorboard_log": tmp_path, **SMALL}
    first, second = (IQL("MlpPolicy", "Pendulum-v1", pendulum(300), **made) for _ in range(2))
    for model in (first, second, first):
        model.learn(10, log_interval=10)
        model.logger.close()
    assert len(list((tmp_path / "IQL_1").iterdir())) == 2
    assert len(list((tmp_path / "IQL_2").iterdir())) == 1
    first.save(tmp_path / "m")
    again = IQL.load(tmp_path / "m", env="Pendulum-v1").learn_online(20)
    again.logger.close()
    assert (tmp_path / "IQL_3").is_dir(), "a loaded model is another run"


def test_a_progress_bars_callback_knows_the_end_of_the_clock():
    class Ends(BaseCallback):
        def _on_training_start(self):
            self.end = self.locals["total_timesteps"], self.model._total_timesteps

    model = IQL("MlpPolicy", "Pendulum-v1", pendulum(300), seed=0, learning_starts=5, offline_share=0.5, **SMALL)
    offline, online = Ends(), Ends()
    model.learn(20, offline).learn_online(10, online)
    assert offline.end == (20, 20)
    assert online.end == (30, 30)


def test_a_file_without_its_counters_is_refused_by_name(model, tmp_path):
    model.save(tmp_path / "m")
    whole = build.read_zip(tmp_path / "m")
    facts = {name: value for name, value in whole.state.items() if name != "gradient_steps"}
    build.write_zip(tmp_path / "old", build.Checkpoint(whole.model, whole.training, facts))
    with pytest.raises(ValueError, match="gradient_steps is None, wanted int"):
        TD3BC.load(tmp_path / "old")


def test_verbose_prints_a_table_and_stays_in_the_file(tmp_path, capsys):
    model = BC("MlpPolicy", "Hopper-v4", "hopper-medium.npz", verbose=1, **SMALL).learn(20, log_interval=20)
    assert "train/" in capsys.readouterr().out
    model.save(tmp_path / "m")
    assert BC.load(tmp_path / "m", None, "cpu").verbose == 1
    assert BC.load(tmp_path / "m", verbose=0).verbose == 0


def test_a_learning_rate_that_is_a_function_is_refused():
    with pytest.raises(TypeError, match="IQL: learning_rate is one value for all updates"):
        IQL("MlpPolicy", "Hopper-v4", learning_rate=lambda progress: 1e-3 * progress)


def test_sb3s_own_callbacks_evaluate_and_save_it(tmp_path):
    callbacks = pytest.importorskip("stable_baselines3.common.callbacks")
    judge = ctrlrl.make_vec_env("Hopper-v4", n_envs=1, seed=1)
    told = callbacks.EvalCallback(judge, eval_freq=20, n_eval_episodes=1, log_path=str(tmp_path), verbose=0)
    kept = callbacks.CheckpointCallback(save_freq=30, save_path=str(tmp_path))
    model = IQL("MlpPolicy", "Hopper-v4", "hopper-medium.npz", seed=0, learning_starts=5, utd=0.1, **SMALL)
    model.learn(40, [told, kept]).learn_online(20, [told, kept])
    with np.load(tmp_path / "evaluations.npz") as found:
        assert found["timesteps"].tolist() == [20, 40, 60]
    assert IQL.load(tmp_path / "rl_model_30_steps").gradient_steps == 30
    again = IQL.load(tmp_path / "rl_model_60_steps")
    assert (again.num_timesteps, again.env_steps, again.gradient_steps) == (60, 20, model.gradient_steps)


def test_it_is_evaluated_in_its_own_environment_and_goes_on():
    env = gym.make("Pendulum-v1")
    model = IQL("MlpPolicy", env, pendulum(300), seed=0, learning_starts=5, offline_share=0.5, utd=0.1, **SMALL)
    model.learn_online(20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # no Monitor
        ctrlrl.evaluate_policy(model, model.get_env(), n_eval_episodes=1)
    model.learn_online(220)
    assert [info["l"] for info in model.ep_info_buffer] == [200], "a new episode from the first step on"

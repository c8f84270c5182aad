"""What SB3's users of SAC and TD3 find again: constructors, learning, callbacks, replay buffers, files."""

import inspect
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

import ctrlrl
from ctrlrl import EXPO, RLPD, SAC, TD3, BaseCallback
from ctrlrl.train.checkpoint import read_zip, write_zip

SMALL: dict[str, Any] = {"policy_kwargs": {"net_arch": [16]}, "batch_size": 16, "learning_starts": 20, "seed": 0}
KINDS = pytest.mark.parametrize("kind", [SAC, TD3])


class Count(BaseCallback):
    """Counts the moments SB3 calls at, and ends training after `stop` steps."""

    def __init__(self, stop: int = 10**9):
        super().__init__()
        self.stop, self.starts, self.ends, self.seen = stop, 0, 0, []

    def _on_rollout_start(self) -> None:
        self.starts += 1

    def _on_rollout_end(self) -> None:
        self.ends += 1

    def _on_step(self) -> bool:
        self.seen.append({k: self.locals[k] for k in ("actions", "buffer_actions", "rewards", "dones", "infos")})
        return self.n_calls < self.stop


@KINDS
def test_arguments_and_defaults_are_those_of_sb3(kind):
    sb3 = pytest.importorskip("stable_baselines3", reason="pip install 'ctrlrl[sb3]'")
    ours, theirs = (inspect.signature(k.__init__).parameters for k in (kind, getattr(sb3, kind.__name__)))
    named = [p for p in ours.values() if p.kind is not p.VAR_KEYWORD]
    assert [p.name for p in named] == list(theirs)
    for p in named:
        assert p.default == theirs[p.name].default, p.name


@KINDS
def test_updates_follow_train_freq_and_gradient_steps(kind):
    made = {**SMALL, "learning_starts": 10}
    assert kind("MlpPolicy", "Pendulum-v1", **made).learn(30)._n_updates == 20
    assert kind("MlpPolicy", "Pendulum-v1", train_freq=4, gradient_steps=2, **made).learn(30)._n_updates == 2 * 6
    assert (
        kind("MlpPolicy", "Pendulum-v1", train_freq=(5, "step"), gradient_steps=-1, **made).learn(30)._n_updates == 20
    )
    model = kind("MlpPolicy", "Pendulum-v1", train_freq=(1, "episode"), gradient_steps=3, **made).learn(250)
    assert (model.num_timesteps, model._n_updates) == (400, 6)
    model = kind("MlpPolicy", "Pendulum-v1", n_envs=3, gradient_steps=-1, **made).learn(30)
    assert (model.num_timesteps, model._n_updates) == (30, 21)


def rates(model) -> set[float]:
    return {round(step.learning_rate.item(), 9) for step in model.learner.opt.values()}


@KINDS
def test_a_loaded_model_learns_at_the_rate_that_is_asked_for(kind, tmp_path):
    model = kind("MlpPolicy", "Pendulum-v1", **SMALL, learning_rate=1e-3).learn(30)
    model.save(tmp_path / "m")
    again = kind.load(tmp_path / "m", env="Pendulum-v1", learning_rate=1e-6)
    assert rates(again) == {1e-6}
    again.learn(30)
    assert rates(again) == {1e-6}
    assert rates(kind.load(tmp_path / "m")) == {1e-3}
    falling = kind("MlpPolicy", "Pendulum-v1", **SMALL, learning_rate=lambda left: 1e-3 * left).learn(40)
    assert rates(falling) == {0.0}


@KINDS
def test_settings_can_be_changed_between_updates(kind):
    model = kind("MlpPolicy", "Pendulum-v1", **SMALL)
    assert (model.tau, model.gamma, model.learning_starts, model.buffer_size) == (0.005, 0.99, 20, 1_000_000)
    model.learning_starts, model.tau, model.gamma = 0, 1.0, 0.5
    model.learn(10)
    assert model._n_updates == 10
    followed, followers = model.learner.opt["critic"].flat, model.learner.targets["critic"].flat
    assert torch.equal(followed.detach(), followers), "tau=1 copies"
    with pytest.raises(ValueError, match=r"gamma must lie in \[0, 1\], got 2"):
        model.gamma = 2.0
    several = kind("MlpPolicy", "Pendulum-v1", n_steps=3, **SMALL)
    with pytest.raises(ValueError, match=r"gamma=0\.5: with n_steps=3 the kept rows hold its powers; make a new model"):
        several.gamma = 0.5
    assert several.gamma == 0.99


def test_learning_is_the_same_for_the_same_seed_and_goes_on():
    first, second = (SAC("MlpPolicy", "Pendulum-v1", **SMALL).learn(60) for _ in range(2))
    assert torch.equal(first.actor.net[0].weight, second.actor.net[0].weight)
    assert len(first.replay_buffer) == 60
    first.learn(40, reset_num_timesteps=False)
    assert (first.num_timesteps, len(first.replay_buffer), first._n_updates) == (100, 100, 80)


def test_a_learn_that_counts_anew_counts_episodes_anew_too():
    model = SAC("MlpPolicy", "Pendulum-v1", **{**SMALL, "learning_starts": 1000}).learn(401)
    assert model._episode_num == 2
    model.learn(201, reset_num_timesteps=False)
    assert model._episode_num == 3
    assert model.learn(10)._episode_num == 0


def test_callbacks_see_every_step_and_can_end_training():
    counted = Count()
    model = SAC("MlpPolicy", "Pendulum-v1", train_freq=2, **SMALL).learn(210, callback=counted)
    assert (counted.starts, counted.ends, len(counted.seen)) == (105, 105, 210)
    for seen in counted.seen:
        np.testing.assert_allclose(seen["actions"], 2.0 * seen["buffer_actions"], rtol=1e-6)
    assert [i for i, seen in enumerate(counted.seen) if seen["dones"][0]] == [199]
    assert counted.seen[199]["infos"][0]["TimeLimit.truncated"]
    total = sum(float(seen["rewards"][0]) for seen in counted.seen[:200])
    assert model.ep_info_buffer[0]["r"] == pytest.approx(total, abs=1e-2)
    assert SAC("MlpPolicy", "Pendulum-v1", **SMALL).learn(100, callback=Count(stop=7)).num_timesteps == 7


def test_the_logger_has_sb3s_names(tmp_path):
    model = SAC("MlpPolicy", "Pendulum-v1", **SMALL)
    model.set_logger(ctrlrl.api.configure(str(tmp_path), ["csv"]))
    model.learn(410, log_interval=2)
    model.logger.close()
    header, *rows = (tmp_path / "progress.csv").read_text().splitlines()
    assert len(rows) == 1
    wanted = {"rollout/ep_rew_mean", "rollout/ep_len_mean", "time/episodes", "time/total_timesteps", "train/n_updates"}
    wanted |= {"train/actor_loss", "train/critic_loss", "train/ent_coef", "train/ent_coef_loss", "train/learning_rate"}
    assert wanted <= set(header.split(","))


@KINDS
def test_a_saved_model_acts_the_same_and_goes_on_with_its_buffer(kind, tmp_path):
    model = kind("MlpPolicy", "Pendulum-v1", train_freq=2, gradient_steps=-1, **SMALL).learn(60)
    model.save(tmp_path / "m")
    model.save_replay_buffer(tmp_path / "replay")
    copy = ctrlrl.load(tmp_path / "m", env="Pendulum-v1")
    obs = np.random.default_rng(0).standard_normal((4, 3))
    np.testing.assert_array_equal(copy.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    assert (copy.train_freq, copy.gradient_steps, copy.num_timesteps) == ((2, "step"), -1, 60)
    copy.load_replay_buffer(tmp_path / "replay")
    assert torch.equal(copy.replay_buffer.table.rows[:60], model.replay_buffer.table.rows[:60])
    copy.learn(10, reset_num_timesteps=False)
    assert len(copy.replay_buffer) == 70
    assert copy._n_updates == model._n_updates + 10


def test_print_system_info_names_both_versions(tmp_path, capsys):
    SAC("MlpPolicy", "Pendulum-v1", **SMALL).save(tmp_path / "m")
    SAC.load(tmp_path / "m", print_system_info=True)
    assert capsys.readouterr().out.count(torch.__version__.split("+")[0]) == 2


def test_no_replay_buffer_is_told_by_the_folder_that_was_named(tmp_path):
    with pytest.raises(ValueError, match=r"nope: no replay buffer there \(.*/nope/buffer\.json\)"):
        SAC("MlpPolicy", "Pendulum-v1", **SMALL).load_replay_buffer(tmp_path / "nope")


def test_another_environment_keeps_the_buffer():
    model = SAC("MlpPolicy", "Pendulum-v1", **SMALL).learn(30)
    model.set_env(gym.make("Pendulum-v1"))
    model.set_env(gym.make("Pendulum-v1"))
    assert len(model.replay_buffer) == 30
    assert len(model.learn(30, reset_num_timesteps=False).replay_buffer) == 60


def test_evaluating_in_the_training_environment_keeps_the_buffer(tmp_path):
    model = SAC("MlpPolicy", gym.make("Pendulum-v1"), **SMALL).learn(30)
    ctrlrl.evaluate_policy(model, model.get_env(), n_eval_episodes=1)
    model.save_replay_buffer(tmp_path / "buffer")
    assert len(model.learn(10, reset_num_timesteps=False).replay_buffer) == 40


def test_another_data_set_keeps_the_buffer():
    model = RLPD("MlpPolicy", "Hopper-v4", dataset="hopper-medium.npz", **SMALL).learn(30)
    for _ in range(2):
        model.set_dataset("hopper-medium.npz")
    assert len(model.learn(5, reset_num_timesteps=False).replay_buffer) == 35


@pytest.mark.parametrize("kind", [SAC, ctrlrl.PPO])
def test_evaluating_where_it_learns_is_refused_while_it_learns(kind):
    class Evaluate(BaseCallback):
        def _on_step(self):
            ctrlrl.evaluate_policy(self.model, self.model.get_env(), n_eval_episodes=1)
            return True

    model = kind("MlpPolicy", gym.make("Pendulum-v1"), batch_size=16)
    with pytest.raises(ValueError, match="the model is learning in"):
        model.learn(30, callback=Evaluate())
    ctrlrl.evaluate_policy(model, model.get_env(), n_eval_episodes=1)


def test_a_fixed_temperature_is_that_of_the_settings_whatever_a_file_holds(tmp_path):
    model = SAC("MlpPolicy", "Pendulum-v1", ent_coef=0.2, **SMALL).learn(25)
    model.save(tmp_path / "fixed")
    SAC("MlpPolicy", "Pendulum-v1", **SMALL).learn(25).save(tmp_path / "learned")
    for name in ("fixed", "learned"):
        loaded = SAC.load(tmp_path / name, ent_coef=0.01)
        assert float(loaded.learner.nets.log_temperature().detach().exp()) == pytest.approx(0.01)
    assert float(SAC.load(tmp_path / "learned").learner.nets.log_temperature().detach().exp()) != 1.0
    model.ent_coef = 0.5
    assert float(model.learner.nets.log_temperature().detach().exp()) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="stays learned or fixed"):
        model.ent_coef = "auto"


def test_a_model_is_loaded_with_its_data_set(tmp_path):
    RLPD("MlpPolicy", "Hopper-v4", dataset="hopper-medium.npz", **SMALL).learn(25).save(tmp_path / "model")
    model = RLPD.load(tmp_path / "model", env="Hopper-v4", dataset="hopper-medium.npz")
    assert len(model.learn(25).replay_buffer) == 25


def test_a_model_that_is_loaded_without_its_data_set_says_so_when_it_learns(tmp_path, recwarn):
    RLPD("MlpPolicy", "Hopper-v4", dataset="hopper-medium.npz", **SMALL).learn(25).save(tmp_path / "model")
    model = RLPD.load(tmp_path / "model", env="Hopper-v4")
    model.save(tmp_path / "again")
    assert not recwarn.list
    model = RLPD("MlpPolicy", "Hopper-v4", dataset="hopper-medium.npz", **SMALL).learn(25)
    for name in ("model", "again"):
        with pytest.warns(UserWarning, match="RLPD: it learned with a data set, which a model file does not hold"):
            RLPD.load(tmp_path / name, env="Hopper-v4").learn(25)
    RLPD("MlpPolicy", "Hopper-v4", **SMALL).learn(5).save(tmp_path / "never")
    whole = RLPD("MlpPolicy", "Hopper-v4", dataset="hopper-medium.npz", offline_share=None, **SMALL).learn(25)
    whole.save(tmp_path / "whole")
    for name, learned in (("model", model), ("whole", whole)):
        learned.save_replay_buffer(tmp_path / f"{name}-buffer")
    recwarn.clear()
    RLPD.load(tmp_path / "never", env="Hopper-v4").learn(5)
    again = RLPD.load(tmp_path / "whole", env="Hopper-v4")
    again.load_replay_buffer(tmp_path / "whole-buffer")  # which holds the data set
    again.learn(5)
    again = RLPD.load(tmp_path / "model", env="Hopper-v4")
    again.load_replay_buffer(tmp_path / "model-buffer")
    again.set_dataset("hopper-medium.npz")
    again.learn(5)
    assert not recwarn.list


def test_other_networks_than_the_saved_ones_are_refused(tmp_path):
    SAC("MlpPolicy", "Pendulum-v1", **SMALL).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"policy_kwargs differ.*hidden=\[16\]"):
        SAC.load(tmp_path / "model", policy_kwargs={"net_arch": [64, 64]})
    assert SAC.load(tmp_path / "model", policy_kwargs={"net_arch": [16]}).cfg.hidden == [16]


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (ctrlrl.PPO, {"batch_size": 64.0, "n_steps": np.int64(64), "n_epochs": 2.0, "n_envs": np.int64(2)}),
        (
            ctrlrl.PPO,
            {"learning_rate": np.float32(1e-3), "gamma": np.float32(0.9), "seed": np.int64(3), "n_steps": 64.0},
        ),
        (SAC, {"batch_size": np.int64(16), "buffer_size": 1e3, "gradient_steps": np.int64(1), "n_steps": 2.0}),
        (
            SAC,
            {"ent_coef": np.float32(0.1), "tau": np.float32(0.01), "train_freq": np.int64(2), "learning_starts": 5.0},
        ),
        (SAC, {"target_entropy": np.float32(-1), "action_noise": np.float32(0.1), "learning_rate": np.float64(1e-3)}),
        (ctrlrl.IQL, {"expectile": np.float32(0.7), "batch_size": 16.0, "reward_scale": np.float32(2.0)}),
    ],
)
def test_numbers_of_numpy_and_whole_floats_are_numbers_and_survive_in_a_file(kind, given, tmp_path):
    if kind is ctrlrl.IQL:
        model = kind("MlpPolicy", "Hopper-v4", "hopper-medium.npz", hidden=[8], **given).learn(2)
    else:
        model = kind("MlpPolicy", "Pendulum-v1", **given).learn(130)
    model.save(tmp_path / "model")
    loaded = kind.load(tmp_path / "model")
    for name in ("batch_size", "n_steps", "buffer_size", "n_epochs", "gamma", "learning_rate", "ent_coef", "expectile"):
        value = getattr(model.cfg, name, None)
        assert type(value) in (int, float, str, type(None))
        assert getattr(loaded.cfg, name, None) == value


@pytest.mark.parametrize(
    ("kind", "given", "match"),
    [
        (SAC, {"batch_size": 16.5}, "SAC: batch_size must be a whole number, got 16.5"),
        (SAC, {"gradient_steps": 0.5}, "SAC: gradient_steps must be a whole number, got 0.5"),
        (ctrlrl.PPO, {"n_steps": 10.5}, "PPO: n_steps must be a whole number"),
        (ctrlrl.PPO, {"seed": "3"}, "PPO: seed must be a whole number, got '3'"),
        (SAC, {"target_entropy": float("nan")}, "target_entropy must be auto or a finite number"),
    ],
)
def test_what_is_no_whole_number_is_refused_by_its_name(kind, given, match):
    with pytest.raises((TypeError, ValueError), match=match):
        kind("MlpPolicy", "Pendulum-v1", **given)


def test_a_setting_that_an_algorithm_has_not_is_refused_by_its_name():
    with pytest.raises(AttributeError, match="SAC has no max_grad_norm"):
        SAC("MlpPolicy", "Pendulum-v1", **SMALL).max_grad_norm = 0.1


def test_as_many_environments_as_a_function_is_asked_for_and_no_other_number_of_an_object():
    model = SAC("MlpPolicy", lambda: gym.make("Pendulum-v1"), n_envs=2, **SMALL).learn(30)
    assert (model.n_envs, len(model.replay_buffer)) == (2, 30)
    for kind in (SAC, ctrlrl.PPO, ctrlrl.IQL):
        with pytest.raises(ValueError, match="n_envs=4: env is an object of 1 environment;"):
            kind("MlpPolicy", gym.make("Pendulum-v1"), n_envs=4)


def test_predict_names_what_is_wrong_with_an_observation():
    model = SAC("MlpPolicy", "Pendulum-v1", **SMALL)
    with pytest.raises(ValueError, match="predict: nan or inf in observation 1"):
        model.predict(np.array([[0.0, 0.0, 0.0], [np.nan, 0.0, 0.0]], np.float32))
    with pytest.raises(ValueError, match=r"predict: got \(observation, info\)"):
        model.predict(gym.make("Pendulum-v1").reset())


def test_a_schedule_of_the_learning_rate_reaches_every_optimiser():
    model = SAC("MlpPolicy", "Pendulum-v1", learning_rate=lambda left: 1e-3 * left, **SMALL).learn(50)
    rates = {round(float(step.learning_rate), 9) for step in model.learner.opt.values()}
    assert rates == {0.0}, "the last update is at the end of the run"


def test_a_rate_set_as_sb3s_users_set_it_is_that_of_the_next_updates():
    model = SAC("MlpPolicy", "Pendulum-v1", **SMALL).learn(25)
    other = SAC("MlpPolicy", "Pendulum-v1", learning_rate=1e-2, **SMALL).learn(25)
    model.set_parameters(other.get_parameters())
    assert rates(model) == {3e-4}
    model.learning_rate = 1e-6
    model._setup_lr_schedule()
    assert rates(model.learn(5, reset_num_timesteps=False)) == {1e-6}


def test_parameters_of_another_model_leave_a_fixed_temperature_and_those_that_do_not_fit_are_refused():
    fixed, other, learned = (SAC("MlpPolicy", "Pendulum-v1", ent_coef=c, **SMALL) for c in (0.01, 0.5, "auto"))
    fixed.set_parameters(other.get_parameters())
    assert float(fixed.learner.nets.log_temperature().detach().exp()) == pytest.approx(0.01)
    with pytest.raises(ValueError, match=r"set_parameters: not of a model like this one .'log_temperature/"):
        learned.set_parameters(other.get_parameters())


@KINDS
def test_a_warm_up_begins_at_a_rate_of_zero(kind):
    model = kind("MlpPolicy", "Pendulum-v1", learning_rate=lambda left: 1e-3 * (1.0 - left), **SMALL)
    before = [x.clone() for x in model.learner.nets.policy.parameters()]
    assert rates(model.learn(30)) == {1e-3}
    after = model.learner.nets.policy.parameters()
    assert any(not torch.equal(x, old) for x, old in zip(after, before, strict=True))


@KINDS
def test_what_scripts_put_into_custom_objects_for_every_class_is_taken(kind, tmp_path):
    kind("MlpPolicy", "Pendulum-v1", **SMALL).save(tmp_path / "m")
    objects = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}
    for given in (objects, {"learning_rate": 0.0}):
        assert rates(kind.load(tmp_path / "m", env="Pendulum-v1", custom_objects=given).learn(25)) == {0.0}


def test_a_buffer_need_only_hold_a_step_of_the_environments_that_there_are():
    assert len(SAC("MlpPolicy", "Pendulum-v1", n_envs=2, buffer_size=50, **SMALL).learn(60).replay_buffer) == 50
    with pytest.raises(ValueError, match=r"buffer_size=4 is smaller than one step of 8 environments"):
        SAC("MlpPolicy", "Pendulum-v1", n_envs=8, buffer_size=4, **SMALL).learn(80)
    made = {**SMALL, "policy_kwargs": None, "hidden": [8], "dataset": "hopper-medium.npz"}
    assert len(RLPD("MlpPolicy", "Hopper-v4", buffer_size=50, **made).learn(60).replay_buffer) == 50
    with pytest.raises(ValueError, match=r"buffer_size=1 is smaller than one step of n_envs=2"):
        RLPD("MlpPolicy", "Hopper-v4", n_envs=2, buffer_size=1, **made).learn(60)


def test_a_second_learn_does_not_report_the_episodes_that_its_staggered_clocks_cut_short():
    model = SAC("MlpPolicy", "Pendulum-v1", n_envs=4, gradient_steps=0, **SMALL)
    for _ in range(2):
        model.learn(1800)
        assert {info["l"] for info in model.ep_info_buffer} == {200}


def test_a_schedule_reaches_expos_optimisers_before_their_own_decay_does():
    made = {**SMALL, "hidden": [8], "n_samples": 2, "n_edits": 2, "n_critics": 2, "base_n_levels": 2}
    model = EXPO("MlpPolicy", "Pendulum-v1", learning_rate=lambda left: 1e-3 * left, gradient_steps=1, **made).learn(50)
    assert {round(float(step.learning_rate), 9) for step in model.learner.opt.values()} == {0.0}


def test_a_batch_size_set_later_is_that_of_the_next_updates():
    model = SAC("MlpPolicy", "Pendulum-v1", **SMALL).learn(30)
    update, seen = model.learner.update, []
    model.learner.update = lambda batch: seen.append(len(batch.reward)) or update(batch)
    model.batch_size = 8
    model.learn(5, reset_num_timesteps=False)
    assert seen == [8] * 5
    assert model.cfg.batch_size == 8
    for wrong, told in ((0, "batch_size must be at least 1, got 0"), (2.5, "batch_size must be a whole number")):
        model.batch_size = wrong
        with pytest.raises((TypeError, ValueError), match=told):
            model.learn(5, reset_num_timesteps=False)


def test_td3_explores_with_the_noise_it_is_given_and_none_else():
    noises = pytest.importorskip("stable_baselines3.common.noise", reason="pip install 'ctrlrl[sb3]'")
    assert TD3("MlpPolicy", "Pendulum-v1", **SMALL).cfg.action_noise == 0.0
    noise = noises.NormalActionNoise(np.zeros(1), 0.3 * np.ones(1))
    assert TD3("MlpPolicy", "Pendulum-v1", action_noise=noise, **SMALL).cfg.action_noise == pytest.approx(0.3)
    assert TD3("MlpPolicy", "Pendulum-v1", action_noise=0.2, **SMALL).cfg.action_noise == 0.2
    with pytest.raises(ValueError, match="OrnsteinUhlenbeckActionNoise"):
        TD3("MlpPolicy", "Pendulum-v1", action_noise=noises.OrnsteinUhlenbeckActionNoise(np.zeros(1), np.ones(1)))


def test_rlpd_learns_from_a_data_set_and_the_environment():
    made = {**SMALL, "hidden": [16], "n_critics": 3, "policy_kwargs": None, "policy_delay": 2}
    model = RLPD("MlpPolicy", "Hopper-v4", dataset="hopper-medium.npz", gradient_steps=2, **made).learn(40)
    assert model._n_updates == 40
    batch = model._loop.source.sample(16)
    rows = model._loop.source.sources[0].table["obs"]
    assert all((rows == o).all(1).any() for o in batch.obs[::2])
    model.set_dataset("hopper-medium.npz")
    assert len(model.learn(10, reset_num_timesteps=False).replay_buffer) == 50, "another data set keeps the buffer"


def test_the_data_sets_settings_are_arguments_and_the_environments_rewards_follow_them(tmp_path):
    made = {**SMALL, "hidden": [16], "n_critics": 3, "reward_shift": -7.0, "clip_actions": 0.5}
    model = RLPD("MlpPolicy", "Hopper-v4", dataset="hopper-medium.npz", **made).learn(20)
    plain = RLPD("MlpPolicy", "Hopper-v4", dataset="hopper-medium.npz", **{**made, "reward_shift": 0.0}).learn(20)
    for place in (0, 1):  # the data set, the replay buffer: Hopper's first steps pay about 1
        shifted, own = (m._loop.source.sources[place].table["reward"][:20] for m in (model, plain))
        torch.testing.assert_close(shifted.mean(), own.mean() - 7.0, rtol=0, atol=0.3)
    assert model._loop.source.sources[0].table["action"].abs().max() == 0.5
    model.save(tmp_path / "m")
    loaded = RLPD.load(tmp_path / "m", env="Hopper-v4")
    assert loaded._data == model._data
    with pytest.raises(
        ValueError, match=r"reward_shift=-7.0, clip_actions=0.5 transforms a data set, and there is none"
    ):
        loaded.learn(8)
    model._data.return_range = True
    with pytest.raises(ValueError, match="buffer holds those of another"):
        model.set_dataset("hopper-medium.npz")
    with pytest.raises(TypeError, match="unknown argument 'holdout'"):
        RLPD("MlpPolicy", "Hopper-v4", holdout=0.5)


def test_a_share_of_none_puts_the_data_into_the_buffer_and_comes_back_from_a_file(tmp_path):
    made = {**SMALL, "hidden": [16], "n_critics": 3, "offline_share": None, "buffer_size": 70_000}
    model = RLPD("MlpPolicy", "Hopper-v4", dataset="hopper-medium.npz", **made).learn(8)
    assert len(model.replay_buffer) == 60_000 + 8
    with pytest.raises(ValueError, match="offline_share=None puts the data set into a new replay buffer"):
        model.set_dataset("hopper-medium.npz")
    model.save(tmp_path / "m")
    assert RLPD.load(tmp_path / "m").cfg.offline_share is None


def test_a_dict_of_vectors_is_one_long_vector():
    class Parts(gym.Env[Any, Any]):
        observation_space = spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Box(-1, 1, (1,))})
        action_space = spaces.Box(-2, 2, (1,))

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            return self.observation_space.sample(), {}

        def step(self, action: Any) -> Any:
            return self.observation_space.sample(), 0.0, False, False, {}

    model = SAC("MultiInputPolicy", Parts(), **SMALL).learn(30)
    assert model.actor.net[0].weight.shape == (16, 3)
    assert model.predict({"a": np.zeros(2), "b": np.zeros(1)})[0].shape == (1,)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"use_sde": True}, "use_sde=True is not taken"),
        ({"replay_buffer_class": dict}, "replay_buffer_class"),
        ({"optimize_memory_usage": True}, "optimize_memory_usage"),
        ({"train_freq": 0}, "train_freq must be a count"),
        ({"train_freq": (1, "rollout")}, "train_freq must be a count"),
        ({"train_freq": (1, "episode"), "n_envs": 2}, "for one environment"),
        ({"gradient_steps": -2}, "gradient_steps must be -1 or at least 0"),
        ({"buffer_size": 0}, "buffer_size must be at least 1"),
        ({"policy_kwargs": {"optimizer_kwargs": {"eps": 1e-5}}}, "optimizer_kwargs"),
        ({"policy_kwargs": {"activation_fn": torch.nn.LeakyReLU}}, "activation must be one of relu.*got 'leakyrelu'"),
        ({"policy_kwargs": {"net_arch": {"pi": [8], "vf": [8]}}}, r"net_arch=.*give \[256, 256\] or dict\(pi="),
        ({"policy_kwargs": {"net_arch": [8, {"pi": [8], "qf": [8]}]}}, "net_arch="),
        ({"utd": 4.0}, "utd=4 is a word of the command line; give gradient_steps"),
        ({"n_quantiles": 3}, "unknown argument 'n_quantiles'"),
    ],
)
def test_bad_input_is_named(settings, told):
    with pytest.raises((ValueError, TypeError), match=told):
        SAC("MlpPolicy", "Pendulum-v1", **settings)


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        (
            {"net_arch": {"pi": [8], "qf": [8]}},
            r"RLPD: policy_kwargs net_arch of two parts is no choice .*\[256, 256\]",
        ),
        (
            {"activation_fn": torch.nn.Tanh},
            "RLPD: policy_kwargs activation_fn is no choice of this algorithm; leave it",
        ),
    ],
)
def test_layers_that_an_algorithm_cannot_have_are_named_as_they_were_asked_for(chosen, told):
    with pytest.raises(ValueError, match=told):
        RLPD("MlpPolicy", "Pendulum-v1", policy_kwargs=chosen)
    assert RLPD("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [8], "n_critics": 3}).cfg.n_critics == 3


def test_discrete_actions_and_images_are_refused():
    with pytest.raises(ValueError, match="continuous"):
        SAC("MlpPolicy", "CartPole-v1")
    with pytest.raises(ValueError, match="MlpPolicy or MultiInputPolicy"):
        TD3("CnnPolicy", "Pendulum-v1")


@KINDS
def test_the_policy_gives_actions_in_the_unit_box_as_sb3s_does(kind):
    model = kind("MlpPolicy", "Pendulum-v1", **SMALL)  # whose torques reach from -2 to 2
    obs = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, -3.0]], dtype="f4")
    action = model.policy(model.policy.obs_to_tensor(obs)[0], deterministic=True)
    np.testing.assert_allclose(2.0 * action.numpy(), model.predict(obs, deterministic=True)[0], rtol=1e-5)
    assert not hasattr(model.policy, "evaluate_actions"), "it has no density of a given action"
    assert not hasattr(model.policy, "optimizer"), "as in SB3, which has one a network"


def test_sb3s_attributes_are_settings_and_not_forgotten():
    noises = pytest.importorskip("stable_baselines3.common.noise", reason="pip install 'ctrlrl[sb3]'")
    model = TD3("MlpPolicy", "Pendulum-v1", **SMALL)
    model.action_noise = noises.NormalActionNoise(np.zeros(1), 0.5 * np.ones(1))
    model.policy_delay, model.target_policy_noise, model.target_noise_clip = 3, 0.1, 0.3
    cfg = model.cfg
    assert (cfg.action_noise, cfg.policy_delay, cfg.target_policy_noise, cfg.target_noise_clip) == (0.5, 3, 0.1, 0.3)
    model = SAC("MlpPolicy", "Pendulum-v1", **SMALL)
    model.target_update_interval = 9
    assert model.cfg.target_update_interval == 9
    assert model.target_entropy == -1.0
    with pytest.raises(AttributeError):
        model.target_entropy = -3.0
    with pytest.raises(ValueError, match="target_update_interval must be at least 1"):
        model.target_update_interval = 0


@KINDS
@pytest.mark.parametrize("change", [{"n_critics": 10**9}, {"critic_hidden": [3000, 3000]}])
def test_a_small_file_cannot_ask_for_large_critics(kind, change, tmp_path):
    kind("MlpPolicy", "Pendulum-v1", **SMALL).save(tmp_path / "m")
    state = (checkpoint := read_zip(tmp_path / "m")).state
    write_zip(tmp_path / "bad", checkpoint._replace(state=state | {"config": state["config"] | change}))
    with pytest.raises(ValueError, match=r"bad: .*weights do not fill the networks"):
        kind.load(tmp_path / "bad")

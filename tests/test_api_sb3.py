"""What SB3's users find again: constructor, settings, policy, parameters, environments, files, evaluation."""

import inspect
import io
import json
import math
import subprocess
import sys
import warnings
import zipfile
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import nn

from ctrlrl import BPO, PPO, evaluate_policy, make_env, make_vec_env
from ctrlrl.api import Agent
from ctrlrl.core.actor_critic import Batch
from ctrlrl.envs.classic import Pendulum
from ctrlrl.envs.sim import BatchedSim
from ctrlrl.train import checkpoint
from ctrlrl.train.logger import Logger

SMALL: dict[str, Any] = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "seed": 0}


def small(policy: str = "MlpPolicy", env: Any = "CartPole-v1", kind: type[Agent] = PPO, **changes: Any) -> Agent:
    return kind(policy, env, **{**SMALL, **changes})


def weights(model: Agent) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.policy.parameters()])


class Random(gym.Env[Any, Any]):
    """Random observations of any space; reward 1 a step; 7 steps."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any] | None = None):
        self.observation_space = observation_space
        self.action_space = spaces.Discrete(2) if action_space is None else action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        self.t += 1
        return self.observation_space.sample(), 1.0, False, self.t == 7, {"t": self.t}


IMAGE = spaces.Box(0, 255, (40, 36, 3), np.uint8)
DICT = spaces.Dict({"camera": IMAGE, "joints": spaces.Box(-1, 1, (2,)), "mode": spaces.Discrete(3)})
VECTOR = spaces.Box(-1, 1, (3,), np.float32)


# constructor ---------------------------------------------------------------------------------------------------------


def test_positional_arguments_have_the_order_and_defaults_of_sb3():
    theirs = pytest.importorskip("stable_baselines3").PPO
    names = list(inspect.signature(theirs.__init__).parameters)
    ours = inspect.signature(PPO.__init__).parameters
    assert [n for n in ours if ours[n].kind is ours[n].POSITIONAL_OR_KEYWORD] == names
    model = PPO("MlpPolicy", "CartPole-v1")
    same = {"learning_rate", "n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "normalize_advantage"}
    same |= {"ent_coef", "vf_coef", "max_grad_norm", "target_kl", "verbose", "tensorboard_log", "seed"}
    for name in same:
        assert getattr(model, name) == inspect.signature(theirs.__init__).parameters[name].default, name
    assert (model.clip_range(1.0), model.clip_range_vf, model.cfg.adam_eps) == (0.2, None, 1e-5)


def test_methods_have_the_arguments_of_sb3():
    theirs = pytest.importorskip("stable_baselines3").PPO
    for name in ("learn", "predict", "save", "load", "set_env", "set_parameters", "set_random_seed", "set_logger"):
        parameters = inspect.signature(getattr(PPO, name)).parameters
        positional = [n for n in parameters if parameters[n].kind is parameters[n].POSITIONAL_OR_KEYWORD]
        wanted = inspect.signature(getattr(theirs, name)).parameters
        assert positional == [n for n in wanted if wanted[n].kind is wanted[n].POSITIONAL_OR_KEYWORD], name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_sde": True}, "use_sde"),
        ({"rollout_buffer_class": dict}, "rollout_buffer_class=dict"),
        ({"rollout_buffer_kwargs": {"a": 1}}, "rollout_buffer_kwargs"),
        ({"policy_kwargs": {"optimizer_class": torch.optim.SGD}}, "optimizer_class=SGD"),
        ({"policy_kwargs": {"optimizer_kwargs": {"weight_decay": 0.1}}}, "weight_decay"),
        ({"policy_kwargs": {"squash_output": True}}, "squash_output"),
        ({"policy_kwargs": {"features_extractor_kwargs": {"x": 1}}}, "features_extractor_kwargs x"),
        ({"policy_kwargs": {"activation_fn": nn.Softplus}}, "softplus"),
        ({"policy_kwargs": {"activation_fn": "swish"}}, "swish"),
        ({"policy_kwargs": {"net_arch": [64, {"pi": [8], "vf": [8]}]}}, "net_arch=.* give .64, 64. or dict"),
        ({"policy": "LstmPolicy"}, "LstmPolicy"),
        ({"policy": nn.Linear}, "policy class Linear"),
        ({"policy": "CnnPolicy"}, "CnnPolicy needs uint8 images"),
        ({"policy": "MultiInputPolicy"}, "MultiInputPolicy is for Dict"),
        ({"env": Random(DICT)}, "MultiInputPolicy"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"learning_rate": lambda p: p, "lr_schedule": "linear"}, "learning_rate is a function and lr_schedule"),
    ],
)
def test_what_ctrlrl_does_not_have_is_refused_by_name_in_one_line(changes, words):
    with pytest.raises((ValueError, TypeError), match=words) as info:
        small(**changes)
    assert len(str(info.value).splitlines()) == 1


def test_policy_kwargs_shape_the_networks_as_sb3_does():
    model = small(policy_kwargs={"net_arch": {"pi": [5], "vf": [7, 3]}, "activation_fn": nn.ReLU, "ortho_init": False})
    shapes = [tuple(p.shape) for p in model.learner.policy.parameters()]
    assert shapes == [(5, 4), (5,), (2, 5), (2,)]
    assert [tuple(p.shape) for p in model.learner.critic.parameters()][::2] == [(7, 4), (3, 7), (1, 3)]
    assert any(isinstance(layer, nn.ReLU) for layer in model.policy.modules())
    pendulum = small(env="Pendulum-v1", policy_kwargs={"log_std_init": -1.5, "optimizer_kwargs": {"eps": 1e-7}})
    assert pendulum.policy.log_std.tolist() == [-1.5]
    assert pendulum.policy.optimizer.param_groups[0]["eps"] == 1e-7
    optimizer = pendulum.learn(32).policy.optimizer
    (moments,) = optimizer.state.values()
    assert moments["step"] > 0
    assert moments["exp_avg"].abs().sum() > 0
    assert optimizer.param_groups[0]["lr"] == pendulum.learner.opt["actor_critic"].learning_rate > 0
    assert small(policy_kwargs={"optimizer_kwargs": {}}).cfg.adam_eps == 1e-8  # torch's, as with SB3


def test_image_policies_have_the_encoders_and_layers_of_sb3():
    model = small("CnnPolicy", Random(IMAGE))
    assert (model.cfg.features_extractor, model.cfg.features_dim, model.cfg.hidden) == ("cnn", 512, [])
    assert [tuple(p.shape) for p in model.learner.policy.parameters()] == [(2, 512), (2,)]
    narrow = small("CnnPolicy", Random(IMAGE), policy_kwargs={"features_extractor_kwargs": {"features_dim": 32}})
    assert narrow.learner.policy.logits[0].in_features == 32
    several = small("MultiInputPolicy", Random(DICT))
    assert several.learner.policy.logits[0].in_features == 256 + 2 + 3  # CombinedExtractor
    assert several.cfg.hidden == [64, 64]
    assert small("CnnPolicy", Random(IMAGE), kind=BPO).cfg.hidden == [64, 64]


def test_own_sb3_extractors_are_recognized_by_name():
    layers = pytest.importorskip("stable_baselines3.common.torch_layers")
    kwargs = {"features_extractor_class": layers.NatureCNN, "features_extractor_kwargs": {"features_dim": 16}}
    model = small("MlpPolicy", Random(IMAGE), policy_kwargs=kwargs)
    assert model.learner.policy.logits[0].in_features == 16
    assert model._extractor is None


def test_clip_range_vf_is_clipped_alone_as_in_sb3(tmp_path):
    assert small(clip_range_vf=0.2).cfg.value_clip_max is False
    assert small(clip_range_vf=0.2, value_clip_max=True).cfg.value_clip_max is True
    small().save(tmp_path / "m")
    assert PPO.load(tmp_path / "m", clip_range_vf=0.2).cfg.value_clip_max is False


def test_a_schedule_ends_at_zero_where_the_last_rollout_goes_beyond_the_budget():
    model = small(learning_rate=lambda left: 1e-3 * left, clip_range=lambda left: 0.2 * left).learn(20)
    assert model.num_timesteps > 20
    assert (float(model.learner.opt["actor_critic"].learning_rate), model.cfg.clip_range) == (0.0, 0.0)


def test_a_rate_that_is_asked_for_counts_where_a_rule_goes_on_from_it(tmp_path):
    model = small(desired_kl=1e-6, learning_rate=1e-3, n_epochs=4).learn(16)
    now = float(model.learner.opt["actor_critic"].learning_rate)
    assert now != pytest.approx(1e-3)
    model.save(tmp_path / "m")
    assert float(PPO.load(tmp_path / "m").learner.opt["actor_critic"].learning_rate) == now
    asked = PPO.load(tmp_path / "m", learning_rate=1e-5)
    assert float(asked.learner.opt["actor_critic"].learning_rate) == pytest.approx(1e-5)


def test_episodes_that_an_environments_own_stagger_cuts_short_are_not_reported():
    model = small(env=BatchedSim(Pendulum(), 4, seed=0, episode_length=10), n_steps=25).learn(100)
    assert {episode["l"] for episode in model.ep_info_buffer} == {10}


def test_a_rollout_of_one_step_is_refused_where_its_advantage_would_be_normalised_away():
    with pytest.raises(ValueError, match="raise n_steps, now 1"):
        small(n_steps=1)
    small(n_steps=1, normalize_advantage=False).learn(2)


class LateSuccess(Random):
    """Tells is_success from its fourth episode on, always True."""

    episodes = 0

    def reset(self, **options: Any) -> Any:
        self.episodes += 1
        return super().reset(**options)

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, _ = super().step(action)
        told = (terminated or truncated) and self.episodes > 3
        return obs, reward, terminated, truncated, {"is_success": True} if told else {}


def test_episodes_that_ended_before_success_was_first_told_are_no_failures():
    model = small(env=LateSuccess(spaces.Box(-1, 1, (2,))), n_steps=64).learn(64)
    assert list(model.ep_success_buffer) == [1.0] * (64 // 7 - 3)


def test_a_batch_size_set_on_the_model_is_that_of_the_next_learn():
    model = small()
    model.batch_size = 4
    assert model.learn(16)._n_updates == 1
    assert model._loop.gradient_steps == 4


def test_a_model_without_a_rollout_has_no_rollout_buffer():
    model = small()
    assert not hasattr(model, "rollout_buffer")
    assert hasattr(model.learn(16), "rollout_buffer")


def test_numbers_set_on_the_model_are_those_of_the_next_update():
    model = small().learn(16)
    model.ent_coef, model.max_grad_norm, model.gamma = 0.25, 1e-9, 0.5
    assert (model.cfg.ent_coef, model.cfg.gamma) == (0.25, 0.5)
    model.lr_schedule = lambda progress: 1e-3
    model.learn(16)
    opt = model.learner.opt["actor_critic"]
    assert opt.max_grad_norm == 1e-9
    assert float(opt.learning_rate) == pytest.approx(1e-3)


def test_a_reset_of_the_environment_starts_the_discounted_returns_anew():
    model = small(normalize_reward=True).learn(16)
    assert float(model.learner.discounted_return.abs().sum()) > 0
    seen = []
    model.learn(16, callback=lambda locals_, globals_: seen.append(model.learner.discounted_return))
    assert seen == [None] * 16


def test_without_init_setup_model_there_are_no_networks_until_asked_for():
    model = small(_init_setup_model=False)
    assert not hasattr(model, "learner")
    model._setup_model()
    assert model.learn(16).num_timesteps == 16


# policy --------------------------------------------------------------------------------------------------------------


def test_densities_are_those_of_the_units_of_the_action_space():
    low, high = np.array([-2.0, 0.0], np.float32), np.array([2.0, 6.0], np.float32)
    model = small(env=Random(VECTOR, spaces.Box(low, high)), policy_kwargs={"log_std_init": -0.5})
    obs, _ = model.policy.obs_to_tensor(np.zeros(3, np.float32))
    torch.manual_seed(0)
    actions, values, log_prob = model.policy(obs)
    half = torch.tensor([2.0, 3.0])
    mean = model.learner.policy.mean(obs) * half + torch.tensor([0.0, 3.0])
    normal = torch.distributions.Normal(mean, math.exp(-0.5) * half)
    torch.testing.assert_close(log_prob, normal.log_prob(actions).sum(-1), rtol=1e-5, atol=1e-5)
    again, log_prob_again, entropy = model.policy.evaluate_actions(obs, actions)
    torch.testing.assert_close(log_prob_again, log_prob, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy, normal.entropy().sum(-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again, values)
    distribution = model.policy.get_distribution(obs)
    torch.testing.assert_close(distribution.mode(), mean)
    torch.testing.assert_close(distribution.distribution.mean, mean)
    torch.testing.assert_close(distribution.distribution.stddev, normal.stddev)
    assert model.policy.evaluate_actions(obs, actions)[1].requires_grad


def test_several_choices_have_one_distribution_each():
    model = small(env=Random(VECTOR, spaces.MultiDiscrete([2, 4])))
    obs, many = model.policy.obs_to_tensor(np.zeros((5, 3), np.float32))
    assert many
    actions, _, log_prob = model.policy(obs)
    found = model.policy.get_distribution(obs).distribution
    assert [d.probs.shape for d in found] == [(5, 2), (5, 4)]
    by_hand = sum(d.log_prob(actions[:, i]) for i, d in enumerate(found))
    torch.testing.assert_close(log_prob, by_hand)


def test_dict_observations_go_through_the_policy_as_tensors():
    env = Random(DICT)
    model = small("MultiInputPolicy", env)
    obs, _ = env.reset(seed=1)
    tensors, many = model.policy.obs_to_tensor(obs)
    assert not many
    assert tensors["camera"].shape == (1, 3, 40, 36)  # channel-first, as SB3's networks see it
    assert tensors["mode"].tolist() == [obs["mode"]]
    mode = model.policy.get_distribution(tensors).mode()
    assert model.predict(obs, deterministic=True)[0] == mode[0]
    assert model.policy.predict_values(tensors).shape == (1, 1)


class Extractor(nn.Module):
    def __init__(self, observation_space: spaces.Dict, width: int):
        super().__init__()
        self.shape = observation_space["camera"].shape
        self.features_dim = width
        self.linear = nn.Linear(2, width)
        self.dropout = nn.Dropout(0.9)

    def forward(self, obs: dict[str, torch.Tensor]) -> torch.Tensor:
        assert obs["camera"].shape[1:] == self.shape
        return self.dropout(self.linear(obs["joints"]))


OWN = {"features_extractor_class": Extractor, "features_extractor_kwargs": {"width": 6}}


def test_an_own_extractor_gets_channel_first_spaces_orthogonal_weights_and_acts_without_dropout():
    env = Random(DICT)
    model = small("MultiInputPolicy", env, policy_kwargs=OWN)
    extractor = model.policy.features_extractor.module
    assert extractor.shape == (3, 40, 36)
    torch.testing.assert_close(extractor.linear.weight.T @ extractor.linear.weight, 2.0 * torch.eye(2))
    model.learn(16)
    obs, _ = env.reset(seed=0)
    row = model.policy.obs_to_tensor(obs)[0]
    values = [float(model.policy.predict_values(row).detach()) for _ in range(5)]
    assert len(set(values)) == 1
    model.policy.set_training_mode(True)
    assert len({float(model.policy.predict_values(row).detach()) for _ in range(5)}) > 1


# environments --------------------------------------------------------------------------------------------------------


def test_set_env_refuses_another_number_of_lanes_and_other_spaces():
    model = small(n_envs=2)
    with pytest.raises(ValueError, match="2 environments, the new one 1"):
        model.set_env(gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match="observation space"):
        model.set_env(make_env("acrobot", 2))
    same_shape = make_env("cartpole", 2)
    model.set_env(same_shape)
    assert model.learn(32).num_timesteps == 32


def test_actions_with_other_bounds_are_another_space():
    model = small(env=Random(VECTOR, spaces.Box(-1, 1, (2,))))
    with pytest.raises(ValueError, match="action space"):
        model.set_env(Random(VECTOR, spaces.Box(-2, 2, (2,))))


def test_get_env_is_an_sb3_environment_with_the_users_units():
    vec_env = pytest.importorskip("stable_baselines3.common.vec_env")
    model = small(env="Pendulum-v1", n_envs=3)
    env = model.get_env()
    assert isinstance(env, vec_env.VecEnv)
    assert env is model.get_env() is model.env
    assert (env.num_envs, env.action_space) == (3, model.action_space)
    given = make_vec_env("Pendulum-v1", 2)
    assert small(env=given).get_env() is given


def test_make_vec_env_runs_known_ids_on_the_own_simulators_and_others_on_sb3():
    pytest.importorskip("stable_baselines3")
    native = make_vec_env("CartPole-v1", 5, seed=3)
    assert type(native.env).__name__ == "BatchedSim"
    model = small(env=native)
    assert model._connection.env is native.env  # stepped without SB3's clothes
    first, again = native.reset(), make_vec_env("CartPole-v1", 5, seed=3).reset()
    assert np.array_equal(first, again)
    assert not np.array_equal(first[0], first[1])
    wrapped = make_vec_env("CartPole-v1", 2, wrapper_class=gym.wrappers.NormalizeObservation)
    assert type(wrapped).__name__ == "DummyVecEnv"
    wrapped.close()


def test_evaluating_on_the_training_environment_leaves_training_as_it_was():
    plain, evaluated = small(n_envs=2).learn(64), small(n_envs=2).learn(64)
    mean, _ = evaluate_policy(evaluated, evaluated.get_env() or evaluated._connection.env, n_eval_episodes=4)
    assert mean > 5
    for model in (plain, evaluated):
        torch.manual_seed(5)
        model.learn(64, reset_num_timesteps=False)
    assert torch.equal(weights(plain), weights(evaluated))


# evaluation ----------------------------------------------------------------------------------------------------------


class Fixed:
    def __init__(self, action: int):
        self.action = action

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> Any:
        assert deterministic
        return np.full(len(observation), self.action), state


def test_anything_with_predict_can_be_evaluated_and_episodes_are_split_evenly():
    env = SyncVectorEnv([lambda: Random(VECTOR)] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    seen = []
    returns, lengths = evaluate_policy(
        Fixed(1),
        env,
        7,
        callback=lambda now, _: seen.append((now["i"], now["info"]["t"], now["done"])),
        return_episode_rewards=True,
    )
    assert returns == [7.0] * 7
    assert lengths == [7] * 7
    assert [sum(1 for i, t, done in seen if i == lane and done) for lane in range(3)] == [2, 2, 3]
    assert seen[0] == (0, 1, False)


def test_a_monitors_returns_count_and_a_missing_one_is_warned_of():
    monitor = pytest.importorskip("stable_baselines3.common.monitor").Monitor
    vec_env = pytest.importorskip("stable_baselines3.common.vec_env").DummyVecEnv

    def doubled(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
        return gym.wrappers.TransformReward(env, lambda r: 2.0 * r)

    model = small(env=Random(VECTOR))
    for env in (doubled(monitor(Random(VECTOR))), vec_env([lambda: doubled(monitor(Random(VECTOR)))])):
        assert evaluate_policy(model, env, 3) == (7.0, 0.0)
    with pytest.warns(UserWarning, match="not wrapped with a Monitor"):
        assert evaluate_policy(model, vec_env([lambda: doubled(Random(VECTOR))]), 3) == (14.0, 0.0)
    model = small(env=doubled(monitor(Random(VECTOR)))).learn(16)
    assert [info["r"] for info in model.ep_info_buffer] == [7.0, 7.0]


def test_a_threshold_that_is_not_reached_is_an_error():
    with pytest.raises(AssertionError, match=r"7.00 < 8.00"):
        evaluate_policy(small(env=Random(VECTOR)), Random(VECTOR), 2, reward_threshold=8.0)


def test_sb3s_evaluation_and_ours_agree_on_one_environment():
    theirs = pytest.importorskip("stable_baselines3.common.evaluation").evaluate_policy
    model = small().learn(256)
    env = make_vec_env("CartPole-v1", 2)
    env.seed(0)
    expected = theirs(model, env, 5, return_episode_rewards=True)
    returns, lengths = evaluate_policy(model, make_vec_env("CartPole-v1", 2), 5, return_episode_rewards=True, seed=0)
    assert sorted(returns) == sorted(expected[0])
    assert sorted(lengths) == sorted(expected[1])


# files ---------------------------------------------------------------------------------------------------------------


def test_functions_and_classes_are_given_again_at_loading(tmp_path):
    env = Random(DICT)
    model = small("MultiInputPolicy", env, policy_kwargs=OWN, learning_rate=lambda p: 1e-3 * p).learn(16)
    model.save(tmp_path / "m")
    with pytest.raises(ValueError, match=r"features_extractor_class of its own, .*Extractor") as info:
        PPO.load(tmp_path / "m")
    assert len(str(info.value).splitlines()) == 1
    with pytest.warns(UserWarning, match="learning_rate was a function"):
        again = PPO.load(tmp_path / "m", policy_kwargs=OWN)
    obs, _ = env.reset()
    assert again.predict(obs, deterministic=True)[0] == model.predict(obs, deterministic=True)[0]
    assert again.learning_rate == 1e-3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = PPO.load(tmp_path / "m", policy_kwargs=OWN, learning_rate=lambda p: 2e-3 * p)
    assert again.lr_schedule(0.5) == 1e-3


def test_a_model_whose_schedules_have_ended_loads_with_what_they_started_from(tmp_path):
    model = small(clip_range=lambda progress: 0.2 * progress, learning_rate=lambda progress: 1e-3 * progress).learn(32)
    assert model.cfg.clip_range == 0.0
    model.save(tmp_path / "m")
    with pytest.warns(UserWarning, match="clip_range was a function, .* it is 0.2 from now on"):
        loaded = PPO.load(tmp_path / "m", learning_rate=1e-4)
    assert loaded.clip_range(0.0) == 0.2
    loaded.clip_range, loaded.learning_rate = (lambda progress: 0.1 * progress), 1e-5  # set on the model, as SB3 allows
    loaded.cfg.clip_range = 0.0
    loaded.save(tmp_path / "m")
    with pytest.warns(UserWarning, match="clip_range was a function, .* it is 0.1"):
        again = PPO.load(tmp_path / "m")
    assert (again.clip_range(0.0), again.learning_rate) == (0.1, 1e-5)


def test_policy_kwargs_that_differ_from_the_saved_ones_are_refused(tmp_path):
    small(policy_kwargs={"net_arch": [8]}).save(tmp_path / "m")
    with pytest.raises(ValueError, match="policy_kwargs differ"):
        PPO.load(tmp_path / "m", policy_kwargs={"net_arch": [9]})
    assert PPO.load(tmp_path / "m", policy_kwargs={"net_arch": [8]}).cfg.hidden == [8]


def test_a_model_saved_before_there_were_image_policies_still_loads(tmp_path):
    model = small().learn(16)
    model.save(tmp_path / "m")
    found = checkpoint.read_zip(tmp_path / "m")
    new = {"policy", "features_extractor", "schedules", "n_envs", "n_updates", "stats_window_size", "tensorboard_log"}
    state = {k: v for k, v in found.state.items() if k not in new | {"verbose", "format"}}
    state["config"] = {k: v for k, v in state["config"].items() if "features" not in k and k != "normalize_images"}
    assert len(state["config"]) == len(found.state["config"]) - 4
    checkpoint.write_zip(tmp_path / "old", found._replace(state=state))
    again = PPO.load(tmp_path / "old", env="CartPole-v1")
    assert torch.equal(weights(again), weights(model))
    assert again.learn(16, reset_num_timesteps=False).num_timesteps == 32


def test_models_go_through_binary_files_and_hold_no_pickle(tmp_path):
    model, buffer = small(), io.BytesIO()
    model.save(buffer, exclude=["policy.optimizer"], include=[])
    with zipfile.ZipFile(buffer) as archive:
        assert sorted(archive.namelist()) == ["model.safetensors", "optimizer.safetensors", "state.json"]
        json.loads(archive.read("state.json"))
    buffer.seek(0)
    assert torch.equal(weights(PPO.load(buffer)), weights(model))


def test_print_system_info_names_both_versions(tmp_path, capsys):
    small().save(tmp_path / "m")
    PPO.load(tmp_path / "m", print_system_info=True)
    assert capsys.readouterr().out.count(torch.__version__.split("+")[0]) == 2


def test_parameters_go_from_model_to_model_whole_or_in_part():
    a, b = small().learn(16), small(seed=1)
    b.set_parameters(a.get_parameters())
    assert torch.equal(weights(a), weights(b))
    step = b.learner.opt["actor_critic"].state_dict()["step"]
    assert float(step) == 1.0
    with pytest.raises(ValueError, match="expected"):
        b.set_parameters({"policy": a.get_parameters()["policy"]})
    some = {k: torch.zeros_like(v) for k, v in a.get_parameters()["policy"].items() if k.startswith("policy.")}
    b.set_parameters({"policy": some}, exact_match=False)
    assert all(float(p.detach().abs().sum()) == 0.0 for p in b.learner.policy.parameters())
    assert any(float(p.detach().abs().sum()) > 0.0 for p in b.learner.critic.parameters())
    with pytest.raises(ValueError, match="expected"):
        b.set_parameters({"actor": {}}, exact_match=False)


# without SB3 ---------------------------------------------------------------------------------------------------------

WITHOUT = """
import sys
sys.modules["stable_baselines3"] = None
from ctrlrl import PPO, BaseCallback, evaluate_policy, make_vec_env
seen = []
class Count(BaseCallback):
    def _on_step(self):
        seen.append(self.locals["dones"].sum())
        return self.n_calls < 20
model = PPO("MlpPolicy", make_vec_env("CartPole-v1", 2), n_steps=16, batch_size=16, n_epochs=1, verbose=1)
model.learn(100, callback=[Count(), lambda locals_, globals_: True])
assert (len(seen), model.num_timesteps) == (20, 40)
assert model.get_env() is model._connection.env
assert evaluate_policy(model, "CartPole-v1", 2)[0] > 0
try:
    make_vec_env("CartPole-v1", 2, monitor_dir="x")
except ImportError as error:
    assert "ctrlrl[sb3]" in str(error)
else:
    raise AssertionError
"""


def test_callbacks_and_logs_need_no_sb3(tmp_path):
    done = subprocess.run([sys.executable, "-c", WITHOUT], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "time/" in done.stdout


# logs ----------------------------------------------------------------------------------------------------------------


class Rows:
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, Any]]] = []

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        self.rows.append((step, dict(key_values)))

    def close(self) -> None: ...


def logged(model: Agent, steps: int, **arguments: Any) -> list[tuple[int, dict[str, Any]]]:
    rows = Rows()
    model.set_logger(Logger(None, [rows]))
    model.learn(steps, **arguments)
    return rows.rows


def test_keys_and_moments_are_those_of_sb3():
    theirs = pytest.importorskip("stable_baselines3")
    module = pytest.importorskip("stable_baselines3.common.logger")
    settings = {**SMALL, "n_steps": 64, "n_epochs": 3, "clip_range_vf": 0.5, "device": "cpu"}
    kept = type("Kept", (Rows, module.KVWriter), {})()
    other = theirs.PPO("MlpPolicy", "Pendulum-v1", **settings)
    other.set_logger(module.Logger(None, [kept]))
    other.learn(320)
    ours = logged(PPO("MlpPolicy", "Pendulum-v1", **settings), 320)
    assert [(step, sorted(row)) for step, row in ours] == [(step, sorted(row)) for step, row in kept.rows]
    for name in (
        "train/n_updates",
        "time/iterations",
        "time/total_timesteps",
        "rollout/ep_len_mean",
        "train/clip_range",
    ):
        assert [row.get(name) for _, row in ours] == [row.get(name) for _, row in kept.rows]


def test_log_interval_counts_rollouts():
    assert [step for step, _ in logged(small(), 96, log_interval=3)] == [48, 96]
    assert logged(small(), 96, log_interval=None) == []


def test_an_update_that_the_kl_limit_ends_counts_its_started_epochs():
    model = small(n_steps=64, n_epochs=10, learning_rate=0.05, target_kl=1e-3)
    model.learn(64)
    assert 1 <= model._n_updates < 10


def test_the_means_are_over_the_last_episodes_of_the_window():
    env = Random(VECTOR)
    lengths = iter(range(1, 1000))
    env.step = lambda action: (env.observation_space.sample(), float(next(lengths)), True, False, {})  # type: ignore
    model = small(env=env, stats_window_size=3).learn(16)
    assert [info["r"] for info in model.ep_info_buffer] == [14.0, 15.0, 16.0]
    assert model._loop.episodes.last == [(14.0, 1), (15.0, 1), (16.0, 1)]


def test_clip_fraction_is_the_share_of_ratios_outside():
    model = small()
    model.learn(16, callback=lambda locals_, globals_: True)
    learner, batch = model.learner, model._loop.collector.storage
    assert learner.detailed
    obs, action = batch.obs.flatten(0, 1), batch.action.flatten(0, 1)
    with torch.no_grad():
        log_prob = learner.policy.log_prob(obs, action)
    ratio = torch.tensor([0.79, 0.81, 1.0, 1.1]).repeat(4)  # one of four outside 0.8 ... 1.2
    flat = {"obs": obs, "action": action, "log_prob": log_prob - ratio.log(), "value": torch.zeros(16)}
    metrics = learner.loss(Batch(**flat, advantage=torch.ones(16), target=torch.zeros(16), extras={}))[1]
    assert float(metrics["policy/clip_fraction"]) == 0.25

"""The SB3-style face: construct, learn, predict, save, load, evaluate."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import ctrlrl
from ctrlrl import BPO, FPO, MTPPO, PPO, BaseCallback, PolicyFlow, evaluate_policy, load, make_env
from ctrlrl.api import Agent
from ctrlrl.train.checkpoint import read_zip, write_zip

SMALL: dict[str, Any] = {"n_steps": 32, "batch_size": 32, "n_epochs": 2, "policy_kwargs": {"net_arch": [8]}, "seed": 0}


def small(kind: type[Agent] = PPO, env: Any = "Pendulum-v1", **changes: Any) -> Agent:
    return kind("MlpPolicy", env, **{**SMALL, **changes})


def observations(n: int = 7, dim: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, dim)).astype(np.float32)


def imported_by(words: str, program: str) -> list[str]:
    """Modules that are loaded after `words` in a fresh interpreter whose program has this name."""
    code = f"import sys; sys.argv = [{program!r}]; {words}; print(*sys.modules)"
    return subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True
    ).stdout.split()


def test_importing_ctrlrl_imports_nothing_heavy():
    loaded = imported_by("import ctrlrl, ctrlrl.cli; ctrlrl.__version__; dir(ctrlrl)", "train.py")
    assert not {"torch", "mujoco"} & set(loaded)


def test_the_command_line_does_not_pay_for_gymnasiums_registry():
    """Gymnasium has no plug-in hook: `import ctrlrl` imports it (0.2 s) to enter ids that no verb asks for."""
    assert "gymnasium" in imported_by("import ctrlrl", "train.py")
    assert "gymnasium" not in imported_by("import ctrlrl.cli", "/somewhere/bin/ctrlrl")


def test_to_learn_eagerly_imports_no_compiler():
    """PyTorch's optimisers import its compiler when they are made: seconds of every run's start."""
    words = "import ctrlrl; ctrlrl.PPO('MlpPolicy', 'pendulum', n_steps=8, batch_size=4, device='cpu').learn(16); "
    words += "ctrlrl.SAC('MlpPolicy', 'pendulum', learning_starts=4, batch_size=4, device='cpu').learn(16)"
    loaded = imported_by(words, "train.py")
    assert "torch" in loaded
    assert not {"torch._dynamo", "sympy"} & set(loaded)


def test_every_public_name_can_be_had_and_others_cannot():
    for name in ctrlrl.__all__:
        assert getattr(ctrlrl, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'PPPO'"):
        ctrlrl.PPPO  # noqa: B018


@pytest.mark.parametrize("kind", [PPO, BPO, MTPPO, PolicyFlow, FPO])
def test_construct_learn_predict_evaluate(kind):
    model = small(kind, n_envs=4)
    before = torch.cat([p.detach().reshape(-1).clone() for p in model.learner.policy.parameters()])
    assert model.learn(200) is model
    assert model.num_timesteps == 256  # whole rollouts of 32 x 4
    after = torch.cat([p.detach().reshape(-1) for p in model.learner.policy.parameters()])
    assert not torch.equal(before, after)
    mean, std = evaluate_policy(model, "Pendulum-v1", n_eval_episodes=4)
    assert -3000 < mean < 0 < std
    returns, lengths = evaluate_policy(model, "Pendulum-v1", n_eval_episodes=4, return_episode_rewards=True)
    assert mean == pytest.approx(np.mean(returns))
    assert lengths == [200] * 4


def test_of_a_critic_with_several_heads_the_policys_own_one_is_shown():
    model = small(MTPPO, "CartPole-v1", n_envs=2).learn(64)
    obs = torch.from_numpy(observations(dim=4))
    own = model.learner.value(obs)[:, -1:]
    assert torch.equal(model.policy.predict_values(obs), own)
    assert model.rollout_buffer.values.shape == model.rollout_buffer.returns.shape == (32, 2)
    assert model.rollout_buffer.returns == pytest.approx(
        model.rollout_buffer.advantages + model.rollout_buffer.values, abs=1e-4
    )


class AtRolloutEnd(BaseCallback):
    """Calls the function with the model."""

    def __init__(self, function: Any):
        super().__init__()
        self.function = function

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.function(self.model)


@pytest.mark.parametrize("changes", [{}, {"normalize_reward": True}, {"bootstrap_truncated": False}])
def test_a_rollouts_advantages_are_those_that_the_update_takes(changes, monkeypatch):
    model, shown, taken = small(n_envs=2, n_steps=256, n_epochs=1, gamma=0.9, **changes), [], []
    advantages = model.learner.advantages
    monkeypatch.setattr(model.learner, "advantages", lambda r: taken.append(advantages(r)[0]) or advantages(r))
    model.learn(1024, AtRolloutEnd(lambda m: (shown.append(m.rollout_buffer.advantages), taken.clear())))
    np.testing.assert_allclose(shown[-1], taken[-1].numpy(), rtol=1e-5, atol=1e-5)


def test_a_schedule_of_unequal_bounds_may_end_at_nothing():
    model = small(BPO, clip_range=lambda left: 0.2 * left, clip_range_high=0.28, n_envs=2).learn(128)
    assert model.cfg.clip_range == 0.0
    assert all(bool(p.isfinite().all()) for p in model.learner.policy.parameters())


def test_a_setting_takes_after_construction_what_the_constructor_takes():
    model = small(clip_range=lambda left: 0.2 * left, n_envs=2).learn(128)
    model.gamma = 0.5  # though the clip range has come to 0
    assert model.gamma == 0.5
    for name, value in (("gamma", 1.5), ("gae_lambda", -3.0), ("n_epochs", -1), ("max_grad_norm", -1.0)):
        with pytest.raises(ValueError, match=name):
            setattr(model, name, value)
    assert model.gamma == 0.5


def test_defaults_are_those_of_stable_baselines3():
    model = PPO("MlpPolicy", "CartPole-v1")
    cfg = model.cfg
    assert (cfg.learning_rate, cfg.n_steps, cfg.n_epochs, cfg.gamma, cfg.gae_lambda) == (3e-4, 2048, 10, 0.99, 0.95)
    assert (cfg.clip_range, cfg.ent_coef, cfg.vf_coef, cfg.max_grad_norm) == (0.2, 0.0, 0.5, 0.5)
    assert (model.batch_size, cfg.n_minibatches, model.n_envs) == (64, 32, 1)
    assert (cfg.hidden, cfg.activation, cfg.target_kl, cfg.clip_range_vf) == ([64, 64], "tanh", None, None)


def test_batch_size_becomes_equal_minibatches():
    assert small(n_envs=4, batch_size=64).cfg.n_minibatches == 2
    assert small(n_envs=1, batch_size=30).cfg.n_minibatches == 2
    assert small(n_envs=1, batch_size=1000).cfg.n_minibatches == 1


def test_learning_twice_adds_without_reset_and_starts_anew_with_it():
    model = small(learning_rate=1e-3)
    model.learn(64)
    model.learn(64, reset_num_timesteps=False)
    assert model.num_timesteps == 128
    model.learn(64)
    assert model.num_timesteps == 64


def test_two_models_with_one_seed_are_one():
    a, b, c = small().learn(96), small().learn(96), small(seed=1).learn(96)
    obs = observations()
    assert np.array_equal(a.predict(obs, deterministic=True)[0], b.predict(obs, deterministic=True)[0])
    assert not np.array_equal(a.predict(obs, deterministic=True)[0], c.predict(obs, deterministic=True)[0])


# predict -------------------------------------------------------------------------------------------------------------


def test_predict_takes_one_observation_or_a_batch_in_the_environments_units():
    model = small()
    batch = observations()
    actions, state = model.predict(batch, deterministic=True)
    assert state is None
    assert (actions.shape, actions.dtype) == ((7, 1), np.float32)
    one, _ = model.predict(batch[2], deterministic=True)
    assert one.shape == (1,)
    assert one == pytest.approx(actions[2], abs=1e-6)
    with torch.no_grad():
        mean = model.learner.policy.mean(torch.from_numpy(batch)).clamp(-1, 1)
    assert actions == pytest.approx(2.0 * mean.numpy(), abs=1e-6)  # Pendulum's torque lies in [-2, 2]


def test_predicted_actions_are_clipped_to_the_space_and_random_unless_deterministic():
    model = small(policy_kwargs={"net_arch": [8], "log_std_init": 0.5})
    actions, _ = model.predict(np.zeros((500, 3), np.float32))
    assert np.abs(actions).max() == 2.0
    assert np.unique(actions).size > 100
    assert np.unique(model.predict(np.zeros((500, 3), np.float32), deterministic=True)[0]).size == 1


def test_discrete_actions_are_integers_of_the_space():
    model = small(env="CartPole-v1")
    actions, _ = model.predict(observations(dim=4))
    assert actions.shape == (7,)
    assert np.issubdtype(actions.dtype, np.integer)
    one, _ = model.predict(observations(dim=4)[0])
    assert model.action_space.contains(one)


def test_an_observation_of_another_shape_is_refused():
    wrong = r"predict: an observation must have shape \(3,\), a batch \(n, \*\(3,\)\); got "
    for shape, said in (((2, 5), r"\(2, 5\)"), ((4,), r"\(4,\)"), ((), r"\(\)")):
        with pytest.raises(ValueError, match=wrong + said):
            small().predict(np.zeros(shape, np.float32))


def test_a_policy_is_not_evaluated_in_another_environment_s_spaces():
    with pytest.raises(ValueError, match="evaluate_policy: the model was trained with observation space"):
        evaluate_policy(small(), "CartPole-v1", n_eval_episodes=1)
    with pytest.raises(ValueError, match="evaluate_policy: n_eval_episodes must be at least 1, got 0"):
        evaluate_policy(small(), "Pendulum-v1", n_eval_episodes=0)


# save and load -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [PPO, BPO])
@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
def test_a_loaded_model_acts_bit_for_bit_as_the_saved_one(kind, env, tmp_path):
    model = small(kind, env, normalize_obs=True, normalize_reward=True).learn(64)
    model.save(tmp_path / "model")
    obs = 3.0 + observations(dim=model.observation_space.shape[0])
    expected, _ = model.predict(obs, deterministic=True)
    for again in (
        kind.load(tmp_path / "model"),
        load(tmp_path / "model.zip"),
        kind.load(str(tmp_path / "model"), env=env),
    ):
        assert type(again) is kind
        assert np.array_equal(again.predict(obs, deterministic=True)[0], expected)
        assert again.num_timesteps == 64
        assert again.cfg.normalize_obs
        assert (again.observation_space, again.action_space) == (model.observation_space, model.action_space)


def test_a_loaded_model_goes_on_learning_with_its_optimiser(tmp_path):
    model = small().learn(64)
    model.save(tmp_path / "m")
    again = PPO.load(tmp_path / "m", env="Pendulum-v1", learning_rate=5e-4)
    assert again.cfg.learning_rate == 5e-4
    assert float(again.learner.opt["actor_critic"].state_dict()["step"]) == 4.0
    again.learn(32, reset_num_timesteps=False)
    assert again.num_timesteps == 96


def test_a_changed_learning_rate_is_the_one_that_trains(tmp_path):
    small().save(tmp_path / "m")
    again = PPO.load(tmp_path / "m", learning_rate=5e-4)
    assert float(again.learner.opt["actor_critic"].learning_rate) == pytest.approx(5e-4)


def test_a_model_without_an_environment_says_how_to_give_one(tmp_path):
    small().save(tmp_path / "m")
    with pytest.raises(ValueError, match=r"load\(path, env="):
        PPO.load(tmp_path / "m").learn(10)


def test_an_environment_with_other_spaces_is_refused(tmp_path):
    small().save(tmp_path / "m")
    with pytest.raises(ValueError, match="observation space"):
        PPO.load(tmp_path / "m", env="CartPole-v1")


def test_the_wrong_class_and_a_damaged_file_are_refused(tmp_path):
    small().save(tmp_path / "m")
    with pytest.raises(ValueError, match="holds a model of ppo, not of bpo"):
        BPO.load(tmp_path / "m")
    data = (tmp_path / "m.zip").read_bytes()
    (tmp_path / "m.zip").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="not a ctrlrl model"):
        PPO.load(tmp_path / "m")


# environments --------------------------------------------------------------------------------------------------------


class Ramp(gym.Env[np.ndarray, np.ndarray]):
    """One number that the action moves; bounds are not symmetric."""

    observation_space = gym.spaces.Box(-10.0, 10.0, (1,), np.float32)
    action_space = gym.spaces.Box(0.0, 4.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.x, self.t = 0.0, 0
        return np.array([self.x], np.float32), {}

    def step(self, action: np.ndarray) -> Any:
        assert self.action_space.contains(action)
        self.x, self.t = min(self.x + float(action[0]), 10.0), self.t + 1
        return np.array([self.x], np.float32), -abs(self.x - 5.0), False, self.t == 8, {}


@pytest.mark.parametrize(
    "env",
    [
        Ramp(),
        SyncVectorEnv([Ramp, Ramp], autoreset_mode=AutoresetMode.NEXT_STEP),
        SyncVectorEnv([Ramp, Ramp], autoreset_mode=AutoresetMode.SAME_STEP),
    ],
    ids=["single", "vector-next-step", "vector-same-step"],
)
def test_gymnasium_objects_are_environments(env):
    model = small(env=env).learn(64)
    action, _ = model.predict(np.zeros(1, np.float32))
    assert Ramp.action_space.contains(action)
    _, lengths = evaluate_policy(model, Ramp(), n_eval_episodes=3, return_episode_rewards=True)
    assert lengths == [8, 8, 8]


def test_a_ctrlrl_environment_keeps_its_number_of_lanes():
    with pytest.raises(TypeError, match="pendulum: unknown setting 'gravity_scale'"):
        make_env("pendulum", gravity_scale=2.0)
    with pytest.raises(TypeError, match="LunarLander-v3: unknown setting 'gravity_scale'; "):
        make_env("LunarLander-v3", 1, gravity_scale=2.0)
    env = make_env("pendulum", 6, seed=0)
    assert small(env=env).learn(10).n_envs == 6


# what a user mistypes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: small(learning_rte=1e-3), TypeError, "learning_rate"),
        (lambda: small(name="x"), TypeError, "name"),
        (lambda: small(policy_kwargs={"net_arc": [8]}), TypeError, "net_arch"),
        (lambda: PPO("CnnPolicy", "Pendulum-v1"), ValueError, "MlpPolicy"),
        (lambda: small(gamma=2.0), ValueError, "gamma"),
        (lambda: small(device="tpu0"), ValueError, "device"),
        (lambda: small(env="Pendulm-v1"), ValueError, "Pendulm-v1"),
        (lambda: small(env=3), TypeError, "gymnasium.Env"),
        (lambda: small().learn("100"), TypeError, "PPO: total_timesteps must be a whole number, got '100'"),
        (lambda: small().learn(None), TypeError, "PPO: total_timesteps must be a whole number, got None"),
    ],
)
def test_mistakes_are_named_with_the_mend(make, error, words):
    with pytest.raises(error, match=words) as info:
        make()
    assert len(str(info.value).splitlines()) <= 2


def test_a_loaded_model_goes_on_with_another_number_of_environments(tmp_path):
    model = PPO("MlpPolicy", "Pendulum-v1", n_envs=4, n_steps=8, batch_size=8, normalize_reward=True, seed=0).learn(32)
    model.save(tmp_path / "m")
    more = PPO.load(tmp_path / "m", env="Pendulum-v1", n_envs=2)
    assert more.n_envs == 2
    more.learn(16)
    assert more.num_timesteps == 16


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("algo", None),
        ("algo", 3),
        ("config", []),
        ("spaces", {}),
        ("spaces", [{"box": [0.0, 1.0], "shape": [10**13], "dtype": "float32"}, {"discrete": 2, "start": 0}]),
        ("spaces", [{"box": [0.0, 1.0], "shape": [3], "dtype": "no such"}, {"discrete": 2, "start": 0}]),
        ("spaces", [{"box": [0.0, 1.0], "shape": [3], "dtype": "V9"}, {"discrete": 2, "start": 0}]),
        ("spaces", [{"box": [-(10**400), 1.0], "shape": [3], "dtype": "float32"}, {"discrete": 2, "start": 0}]),
        ("spaces", [{"box": [0.0, 1.0], "shape": [3], "dtype": "float32"}, {"discrete": 10**30, "start": 0}]),
        ("spaces", [{"box": [0.0, 1.0], "shape": [3], "dtype": "float32"}, {"multi_binary": [2**20, 2**20]}]),
        ("spaces", [{"dict": {str(i): {"discrete": 2**23, "start": 0} for i in range(3)}}] * 2),
        ("spaces", [{"box": [0.0, 1.0], "shape": [3], "dtype": "float32"}] * 3),
        ("num_timesteps", "many"),
        ("num_timesteps", 10**400),
        ("policy", 5),
        ("policy", "bogus"),
        ("schedules", ["bogus"]),
        ("n_updates", "z"),
        ("n_envs", "x"),
        ("seed", [0]),
        ("versions", None),
    ],
)
def test_a_model_file_with_facts_of_the_wrong_kind_is_refused_in_one_line(tmp_path, name, value):
    model = small()
    checkpoint = read_zip(saved_at(model, tmp_path / "m"))
    write_zip(tmp_path / "bad", checkpoint._replace(state={**checkpoint.state, name: value}))
    with pytest.raises(ValueError, match=rf"bad: .*{name}") as caught:
        load(tmp_path / "bad")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("name", "value"), [("hidden", "abc"), ("hidden", 64), ("vf_hidden", [0.5]), ("gamma", [1])])
def test_a_model_file_with_settings_of_the_wrong_kind_is_refused_by_name(tmp_path, name, value):
    state = (checkpoint := read_zip(saved_at(small(), tmp_path / "m"))).state
    write_zip(tmp_path / "bad", checkpoint._replace(state=state | {"config": state["config"] | {name: value}}))
    with pytest.raises(ValueError, match=rf"bad: state\.json: {name} is"):
        load(tmp_path / "bad")


@pytest.mark.parametrize(
    "change",
    [
        {"config": {"hidden": [10**6, 10**6]}},
        {"config": {"hidden": [2**62]}},
        {"config": {"vf_hidden": [4000, 4000]}},
        {"config": {"hidden": [1] * 1000}},
        {"spaces": [{"box": [0.0, 1.0], "shape": [10**6], "dtype": "float32"}]},
        {"spaces": [{"dict": {"a": {"box": [0.0, 1.0], "shape": [10**6], "dtype": "float32"}}}]},
    ],
)
def test_a_small_file_cannot_ask_for_large_networks(tmp_path, change):
    checkpoint = read_zip(saved_at(small(), tmp_path / "m"))
    state = dict(checkpoint.state)
    if "config" in change:
        state["config"] = state["config"] | change["config"]
    else:
        state["spaces"] = [*change["spaces"], state["spaces"][1]]
    write_zip(tmp_path / "bad", checkpoint._replace(state=state))
    with pytest.raises(ValueError, match=r"bad: .*weights do not fill the networks"):
        load(tmp_path / "bad")


def saved_at(model: Agent, path: Path) -> Path:
    model.save(path)
    return path


@pytest.mark.parametrize("kind", [PolicyFlow, FPO])
def test_a_flow_policy_has_no_density_to_ask_for(kind):
    model = small(kind)
    assert model.predict(observations(1), deterministic=True)[0].shape == (1, 1)
    with pytest.raises(ValueError, match="has no density to ask for"):
        model.policy.get_distribution(torch.zeros(1, 3))


@pytest.mark.parametrize("kind", [PolicyFlow, FPO])
def test_a_flow_policy_refuses_discrete_actions_by_name(kind):
    with pytest.raises(ValueError, match=f"algo={kind.algo} is for continuous actions"):
        small(kind, "CartPole-v1")

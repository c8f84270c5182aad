"""Zips of Stable-Baselines3's SAC and TD3: the same decisions, values and next step, and nothing in them ever runs."""

import json
import pickle
import warnings
import zipfile

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from ctrlrl import PPO, RLPD, SAC, TD3
from ctrlrl.types import Transition

sb3 = pytest.importorskip("stable_baselines3")
WIDE = spaces.Box(np.array([-1.0, 0.2], np.float32), np.array([3.0, 0.9], np.float32))
VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float64)
PARTS = spaces.Dict({"pose": VECTOR, "gear": spaces.Discrete(3)})


class Noise(gym.Env):
    """Random observations and rewards; the task ends now and then."""

    def __init__(self, observation=VECTOR):
        self.observation_space, self.action_space = observation, WIDE

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), float(self.np_random.normal()), self.np_random.random() < 0.1, False, {}


def trained(algo, policy="MlpPolicy", observation=VECTOR, **settings):
    kind = {"sac": sb3.SAC, "td3": sb3.TD3}[algo]
    made = {"policy_kwargs": {"net_arch": [8, 6]}, "learning_starts": 5, "batch_size": 16, "buffer_size": 500}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind(policy, Noise(observation), device="cpu", seed=1, **{**made, **settings}).learn(41)


@pytest.fixture(scope="module", params=["sac", "td3"])
def pair(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("zips") / request.param
    theirs = trained(request.param)
    theirs.save(path)
    return theirs, {"sac": SAC, "td3": TD3}[request.param].from_sb3(path)


def test_deterministic_actions_are_the_same_in_the_spaces_units(pair):
    theirs, ours = pair
    obs = np.random.default_rng(0).standard_normal((50, 3))
    np.testing.assert_allclose(
        ours.predict(obs, deterministic=True)[0], theirs.predict(obs, deterministic=True)[0], atol=1e-5
    )
    np.testing.assert_allclose(
        ours.predict(obs[0], deterministic=True)[0], theirs.predict(obs[0], deterministic=True)[0], atol=1e-5
    )


def test_critics_and_targets_have_the_same_values(pair):
    theirs, ours = pair
    obs, action = torch.randn(20, 3), 2.0 * torch.rand(20, 2) - 1.0
    nets = ours.learner.nets
    pairs = [(nets.critic, theirs.critic), (getattr(nets, "target", None) or nets.target_critic, theirs.critic_target)]
    for mine, other in pairs:
        torch.testing.assert_close(mine(obs, action), torch.stack(other(obs, action)).squeeze(-1))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(pairs[0][0](obs, action), pairs[1][0](obs, action))


def test_the_settings_come_along(pair):
    theirs, ours = pair
    for name in ("batch_size", "buffer_size", "learning_starts", "tau", "gamma"):
        assert getattr(ours.cfg, name) == getattr(theirs, name), name
    assert ours.cfg.hidden == ours.cfg.critic_hidden == [8, 6]
    assert (ours.num_timesteps, ours._n_updates, ours.seed) == (41, theirs._n_updates, 1)
    assert (ours.train_freq, ours.gradient_steps) == ((1, "step"), 1)


def test_the_next_update_along_the_same_batch_gives_the_same_weights(pair, monkeypatch):
    """Adam's moments, step counts, the temperature and where the delayed policy stands: all of it went along."""
    theirs, ours = pair
    rows = theirs.replay_buffer.sample(16)
    rows = type(rows)(*(x if x is None else x.float() for x in rows))
    data = Transition(
        rows.observations, rows.actions, rows.rewards[:, 0], rows.next_observations, rows.dones[:, 0] > 0, {}
    )
    monkeypatch.setattr(theirs.replay_buffer, "sample", lambda *_, **__: rows)
    for seed in range(2):
        torch.manual_seed(seed)
        theirs.train(gradient_steps=1, batch_size=16)
        torch.manual_seed(seed)
        told = ours.learner.update(data)
    theirs_now = [p.detach() for p in theirs.critic.parameters()]
    for mine, other in zip(ours.learner.nets.critic.parameters(), theirs_now, strict=True):
        torch.testing.assert_close(mine.detach(), other, atol=1e-5, rtol=1e-4)
    obs = torch.randn(20, 3)
    mean = ours.learner.act(obs, deterministic=True).action
    torch.testing.assert_close(mean, theirs.policy._predict(obs, deterministic=True).detach(), atol=1e-5, rtol=1e-4)
    if isinstance(ours, SAC):
        torch.testing.assert_close(ours.learner.nets.log_temperature.value.detach(), theirs.log_ent_coef.detach()[0])
        logged = theirs.logger.name_to_value["train/ent_coef_loss"]
        assert told["loss/temperature"].item() == pytest.approx(logged, rel=1e-4)


def test_a_fixed_temperature_noise_and_frequency_are_read(tmp_path):
    trained("sac", ent_coef=0.07, target_entropy=-0.3, train_freq=(3, "step"), gradient_steps=-1).save(tmp_path / "s")
    ours = SAC.from_sb3(tmp_path / "s", learning_starts=7)
    assert ours.learner.nets.log_temperature.value.exp().item() == pytest.approx(0.07)
    assert (ours.cfg.ent_coef, ours.cfg.target_entropy, ours.cfg.learning_starts) == (0.07, -0.3, 7)
    assert (ours.train_freq, ours.gradient_steps) == ((3, "step"), -1)
    noise = sb3.common.noise.NormalActionNoise(np.zeros(2), 0.25 * np.ones(2))
    trained("td3", action_noise=noise).save(tmp_path / "t")
    assert TD3.from_sb3(tmp_path / "t").cfg.action_noise == pytest.approx(0.25)


def test_a_dict_of_vectors_keeps_its_order(tmp_path):
    theirs = trained("sac", "MultiInputPolicy", PARTS)
    theirs.save(tmp_path / "s")
    ours = SAC.from_sb3(tmp_path / "s")
    obs = {"pose": np.random.default_rng(0).standard_normal((9, 3)), "gear": np.arange(9) % 3}
    np.testing.assert_allclose(
        ours.predict(obs, deterministic=True)[0], theirs.predict(obs, deterministic=True)[0], atol=1e-5
    )


def test_training_goes_on_in_an_environment(pair, tmp_path):
    theirs, _ = pair
    kind = SAC if isinstance(theirs, sb3.SAC) else TD3
    theirs.save(tmp_path / "m")
    ours = kind.from_sb3(tmp_path / "m", env=Noise())
    ours.learn(20, reset_num_timesteps=False)
    assert ours.num_timesteps == 61


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the file ran')",))


def test_a_pickle_in_the_file_never_runs(pair, tmp_path):
    import base64

    theirs, _ = pair
    theirs.save(tmp_path / "m")
    with zipfile.ZipFile(tmp_path / "m.zip") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(members["data"])
    for name in ("action_noise", "train_freq", "observation_space"):
        bomb = {":type:": "x", ":serialized:": base64.b64encode(pickle.dumps(Bomb())).decode()}
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for member, content in members.items():
                archive.writestr(member, json.dumps(data | {name: bomb}) if member == "data" else content)
        kind = SAC if isinstance(theirs, sb3.SAC) else TD3
        if name == "action_noise":
            with pytest.warns(UserWarning, match="action_noise is not read"):
                kind.from_sb3(tmp_path / f"{name}.zip")
        else:
            with pytest.raises(ValueError, match=name if name == "observation_space" else "damaged"):
                kind.from_sb3(tmp_path / f"{name}.zip")


def test_models_of_others_are_refused_by_name(pair, tmp_path):
    theirs, ours = pair
    theirs.save(tmp_path / "m")
    other = TD3 if isinstance(theirs, sb3.SAC) else SAC
    with pytest.raises(ValueError, match=f"not a model of Stable-Baselines3's {other.algo.upper()}"):
        other.from_sb3(tmp_path / "m")
    with pytest.raises(ValueError, match=r"reads PPO's, SAC\.from_sb3 and TD3\.from_sb3"):
        PPO.from_sb3(tmp_path / "m")
    with pytest.raises(ValueError, match="has no RLPD"):
        RLPD.from_sb3(tmp_path / "m")
    ours.save(tmp_path / "own")
    with pytest.raises(ValueError, match="a model of ctrlrl itself"):
        type(ours).from_sb3(tmp_path / "own.zip")

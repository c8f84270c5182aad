"""Zips of Stable-Baselines3: the same decisions, and nothing in them ever runs."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import warnings
import zipfile

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from ctrlrl import PPO
from ctrlrl.algos.ppo import PPOConfig
from ctrlrl.envs.spaces import Spaces
from ctrlrl.loops import make_learner
from ctrlrl.train import pickle_data, sb3_zip
from ctrlrl.train.pickle_data import TorchFile, array_of, read_pickle
from ctrlrl.train.sb3_values import space_of
from ctrlrl.train.sb3_weights import restore
from ctrlrl.train.sb3_zip import read_sb3

sb3 = pytest.importorskip("stable_baselines3")
CPU = torch.device("cpu")
UNIT = spaces.Box(-1.0, 1.0, (2,), np.float32)
VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float64)
ASYMMETRIC = spaces.Box(np.array([-1.0, 0.2]), np.array([3.0, 0.9]), dtype=np.float64)
IMAGE = spaces.Box(0, 255, (36, 40, 3), np.uint8)
MIXED = spaces.Dict({"view": IMAGE, "pose": VECTOR, "gear": spaces.Discrete(3), "levers": spaces.MultiDiscrete([2, 3])})


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """As conftest's, but before the fixtures of this file: they train, and spinning threads take minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Noise(gym.Env):
    """Random observations and rewards in given spaces."""

    def __init__(self, observation, action):
        self.observation_space, self.action_space = observation, action

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), float(self.np_random.normal()), False, False, {}


def trained(observation, action, policy="MlpPolicy", **settings):
    """An SB3 PPO after some Adam steps, with weights large enough that outputs differ."""
    kwargs = {"n_steps": 8, "batch_size": 4, "n_epochs": 2, "device": "cpu", "seed": 0} | settings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SB3's own advice on sizes and old forms
        model = sb3.PPO(policy, Noise(observation, action), **kwargs)
        with torch.no_grad():
            for p in model.policy.parameters():
                p.mul_(1.5).add_(0.02 * torch.randn_like(p))
        model.learn(16)
    return model


def imported(model, **given):
    """(agent, learner) of what SB3 saves."""
    buffer = io.BytesIO()
    model.save(buffer)
    agent = read_sb3(io.BytesIO(buffer.getvalue()), given)
    both = Spaces(agent.observation_space, agent.action_space)
    cfg = PPOConfig(**agent.config | given)
    learner = make_learner(cfg, both.env_spec(CPU))
    restore(learner, agent.weights, {} if agent.moments is None else {"actor_critic": agent.moments}, "zip")
    return agent, learner, both


def observations(model, n=32):
    space = model.env.unwrapped.envs[0].observation_space
    space.seed(1)
    found = [space.sample() for _ in range(n)]
    return {k: np.stack([o[k] for o in found]) for k in space} if isinstance(space, spaces.Dict) else np.stack(found)


def sized(**size):
    return {"features_extractor_kwargs": size}


CASES = {
    "box": (VECTOR, UNIT, "MlpPolicy", {}),
    "wide box": (VECTOR, spaces.Box(-2.0, 2.0, (1,), np.float32), "MlpPolicy", {}),
    "asymmetric box": (VECTOR, ASYMMETRIC, "MlpPolicy", {}),
    "flat box": (spaces.Box(-1.0, 1.0, (2, 2), np.float32), spaces.Box(-3.0, 1.0, (2, 2), np.float32), "MlpPolicy", {}),
    "discrete": (spaces.Discrete(5), spaces.Discrete(4), "MlpPolicy", {"target_kl": 0.5}),
    "multi-discrete": (spaces.MultiDiscrete([3, 2]), spaces.MultiDiscrete([2, 4, 3]), "MlpPolicy", {}),
    "multi-binary": (spaces.MultiBinary(4), spaces.MultiBinary(3), "MlpPolicy", {"normalize_advantage": False}),
    "own sizes": (VECTOR, UNIT, "MlpPolicy", {"policy_kwargs": {"net_arch": {"pi": [8], "vf": [16, 4]}}}),
    "linear": (VECTOR, UNIT, "MlpPolicy", {"policy_kwargs": {"net_arch": []}}),
    "old form": (VECTOR, UNIT, "MlpPolicy", {"policy_kwargs": {"net_arch": [{"pi": [8], "vf": [4]}]}}),
    "activation": (VECTOR, UNIT, "MlpPolicy", {"policy_kwargs": {"activation_fn": nn.ELU, "net_arch": [8]}}),
    "flat image": (IMAGE, UNIT, "MlpPolicy", {"policy_kwargs": {"net_arch": [8], "share_features_extractor": False}}),
    "image": (IMAGE, spaces.Discrete(3), "CnnPolicy", {"policy_kwargs": sized(features_dim=9)}),
    "two images": (IMAGE, UNIT, "CnnPolicy", {"policy_kwargs": {"share_features_extractor": False, "net_arch": [8]}}),
    "dict": (MIXED, UNIT, "MultiInputPolicy", {"policy_kwargs": sized(cnn_output_dim=7)}),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def pair(request):
    observation, action, policy, settings = CASES[request.param]
    torch.manual_seed(0)
    model = trained(observation, action, policy, **settings)
    return model, *imported(model)


def test_decisions_values_and_densities_are_those_of_the_saved_model(pair):
    model, _, learner, both = pair
    obs = observations(model)
    wanted, _ = model.predict(obs, deterministic=True)
    got = both.predict(lambda rows: learner.act(rows, deterministic=True).action, obs, CPU)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)
    rows = torch.from_numpy(both.obs_codec.encode(obs))
    with torch.no_grad():
        sampled, values, log_prob = model.policy(model.policy.obs_to_tensor(obs)[0])
        torch.testing.assert_close(learner.value(rows), values[:, 0], rtol=1e-5, atol=1e-5)
        taken, volume = _in_our_units(sampled, both.action)
        ours = learner.policy.log_prob(learner.features(rows), taken)
        torch.testing.assert_close(ours, log_prob + volume, rtol=1e-5, atol=1e-5)


def _in_our_units(action, space):
    """SB3's unclipped sample as ctrlrl's, and the log of how much smaller ctrlrl's unit of volume is."""
    if isinstance(space, spaces.Box):
        half, center = (space.high - space.low) / 2, (space.high + space.low) / 2
        scaled = (action.numpy() - center) / half
        return torch.from_numpy(scaled.reshape(len(scaled), -1).astype(np.float32)), float(np.log(half).sum())
    return action.long(), 0.0


def test_the_configuration_is_the_saved_one(pair):
    model, agent, _, _ = pair
    for name in ("n_steps", "n_epochs", "gamma", "gae_lambda", "vf_coef", "ent_coef", "max_grad_norm", "target_kl"):
        assert agent.config[name] == getattr(model, name), name
    assert (agent.config["learning_rate"], agent.config["clip_range"]) == (model.learning_rate, model.clip_range(1.0))
    assert agent.config["normalize_advantage"] == ("minibatch" if model.normalize_advantage else "none")
    assert (agent.batch_size, agent.n_envs, agent.seed, agent.num_timesteps) == (4, 1, 0, 16)
    assert agent.n_updates == model._n_updates
    assert agent.config["adam_eps"] == model.policy.optimizer.param_groups[0]["eps"]
    assert Spaces(agent.observation_space, agent.action_space) == (
        model.env.unwrapped.envs[0].observation_space,
        model.action_space,
    )


def test_moments_are_those_of_the_gradient_in_our_units():
    """After one Adam step from zero the moments are a tenth of the gradient and a thousandth of its square."""
    for observation, action in [(VECTOR, ASYMMETRIC), (VECTOR, spaces.MultiBinary(3)), (MIXED, UNIT)]:
        model = trained(observation, action, "MultiInputPolicy" if observation is MIXED else "MlpPolicy")
        model.policy.optimizer.state.clear()
        model.policy.optimizer.zero_grad()
        _, learner, both = imported(model)
        obs = observations(model)
        tensor, rows = model.policy.obs_to_tensor(obs)[0], torch.from_numpy(both.obs_codec.encode(obs))
        with torch.no_grad():
            sampled = model.policy(tensor)[0]
        values, log_prob, _ = model.policy.evaluate_actions(tensor, sampled)
        (log_prob.sum() + values.sum()).backward()
        model.policy.optimizer.step()
        agent, later, _ = imported(model)
        features = learner.features(rows)
        taken, _ = _in_our_units(sampled, both.action)
        loss = learner.policy.log_prob(features, taken).sum() + learner.critic(features).sum()
        names, params = zip(*learner.nets.named_parameters(), strict=True)
        for name, grad in zip(names, torch.autograd.grad(loss, params), strict=True):
            scale = grad.abs().max().item()
            torch.testing.assert_close(agent.moments.exp_avg[name], 0.1 * grad, rtol=1e-3, atol=1e-5 * scale, msg=name)
            torch.testing.assert_close(agent.moments.exp_avg_sq[name], 1e-3 * grad**2, rtol=1e-3, atol=1e-6 * scale**2)
        assert later.opt["actor_critic"].state_dict()["step"] == 1


@pytest.mark.parametrize(("observation", "policy"), [(VECTOR, "MlpPolicy"), (MIXED, "MultiInputPolicy")])
def test_training_goes_on_as_it_would_have(observation, policy):
    """One more step along the same gradient moves every weight as SB3's optimizer moves it."""
    model = trained(observation, UNIT, policy, max_grad_norm=1e6)
    _, learner, _ = imported(model)
    opt = learner.opt["actor_critic"]
    model.policy.optimizer.zero_grad()
    loss = sum((p**3).sum() for p in model.policy.parameters())
    loss.backward()
    model.policy.optimizer.step()
    opt(sum((p**3).sum() for p in learner.nets.parameters()))
    after, _, _ = imported(model)
    for name, p in learner.nets.named_parameters():
        torch.testing.assert_close(p.detach(), after.weights[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", ["asymmetric box", "multi-binary", "two images", "dict"])
def test_the_agent_predicts_judges_learns_and_saves_as_any_other(case, tmp_path):
    observation, action, policy, settings = CASES[case]
    model = trained(observation, action, policy, **settings)
    model.save(tmp_path / "sb3.zip")
    for env in (None, Noise(observation, action)):
        ours = PPO.from_sb3(tmp_path / "sb3", env=env, learning_rate=1e-3)
        assert (ours.num_timesteps, ours.batch_size, ours.learning_rate) == (16, 4, 1e-3)
        obs = observations(model, 5)
        wanted, _ = model.predict(obs, deterministic=True)
        np.testing.assert_allclose(ours.predict(obs, deterministic=True)[0], wanted, rtol=0, atol=1e-6)
        tensor = model.policy.obs_to_tensor(obs)[0]
        taken = model.policy(tensor)[0]
        for got, theirs in zip(
            ours.policy.evaluate_actions(tensor, taken), model.policy.evaluate_actions(tensor, taken), strict=True
        ):
            torch.testing.assert_close(got, theirs, rtol=1e-5, atol=1e-5)
    ours.learn(16, reset_num_timesteps=False)
    assert ours.num_timesteps == 32
    ours.save(tmp_path / "ours")
    again, _ = PPO.load(tmp_path / "ours").predict(obs, deterministic=True)
    np.testing.assert_array_equal(again, ours.predict(obs, deterministic=True)[0])


def test_statistics_given_as_arrays_normalise_as_vec_normalize_does(tmp_path):
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    env = VecNormalize(DummyVecEnv([lambda: Noise(VECTOR, UNIT)]))
    model = sb3.PPO("MlpPolicy", env, n_steps=64, batch_size=32, device="cpu").learn(64)
    model.save(tmp_path / "sb3.zip")
    np.savez(tmp_path / "stats.npz", mean=env.obs_rms.mean, var=env.obs_rms.var, count=env.obs_rms.count)
    obs = 5.0 * np.random.default_rng(0).standard_normal((20, 3))
    wanted, _ = model.predict(env.normalize_obs(obs), deterministic=True)
    ours = PPO.from_sb3(tmp_path / "sb3", obs_stats=tmp_path / "stats.npz")
    np.testing.assert_allclose(ours.predict(obs, deterministic=True)[0], wanted, rtol=0, atol=1e-6)
    assert ours.learner.normalizer.moments.count == env.obs_rms.count
    np.savez(tmp_path / "short.npz", mean=np.zeros(2), var=np.ones(2), count=1.0)
    np.savez(tmp_path / "object.npz", mean=np.array([None]), var=np.ones(2), count=1.0)
    np.savez(tmp_path / "negative.npz", mean=np.zeros(3), var=-np.ones(3), count=1.0)
    np.savez(tmp_path / "endless.npz", mean=np.full(3, np.inf), var=np.ones(3), count=1.0)
    np.savez(tmp_path / "few.npz", mean=np.zeros(3), var=np.ones(3), count=-1.0)
    np.save(tmp_path / "one.npy", np.zeros(3))
    whole = (tmp_path / "stats.npz").read_bytes()
    at = whole.index(b"PK\x01\x02")  # the list of members: flags at 8, compression at 10
    for name, place, value in [("locked.npz", at + 8, 1), ("packed.npz", at + 10, 99), ("deflated.npz", at + 10, 8)]:
        (tmp_path / name).write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
    wrong = ("short", "object", "absent", "negative", "endless", "few", "locked", "packed", "deflated")
    for name in (*(f"{name}.npz" for name in wrong), "sb3.zip", "one.npy"):
        with pytest.raises(ValueError, match=f"obs_stats=.*{name}: "):
            PPO.from_sb3(tmp_path / "sb3", obs_stats=tmp_path / name)


def test_schedules_that_can_be_read_are_and_others_are_named():
    from stable_baselines3.common.utils import LinearSchedule

    agent, _, _ = imported(trained(VECTOR, UNIT, learning_rate=LinearSchedule(1e-3, 0.0, 1.0)))
    assert (agent.config["learning_rate"], agent.config["lr_schedule"]) == (1e-3, "linear")
    own = trained(VECTOR, UNIT, learning_rate=lambda left: 1e-3 * left**2, clip_range=lambda left: 0.3)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        imported(own)
    assert [str(w.message).split(": ")[1].split(",")[0] for w in seen] == [
        "learning_rate is a function",
        "clip_range is a function",
    ]
    imported(own, learning_rate=1e-4, clip_range=0.1)  # no warning: warnings are errors here


def test_another_optimizer_is_left_out_with_a_notice():
    model = trained(VECTOR, UNIT, policy_kwargs={"optimizer_class": torch.optim.RMSprop})
    with pytest.warns(UserWarning, match="not Adam"):
        agent, _, _ = imported(model)
    assert agent.moments is None


class OwnExtractor(sb3.common.torch_layers.FlattenExtractor):
    pass


class OwnPolicy(sb3.common.policies.ActorCriticPolicy):
    pass


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: sb3.SAC("MlpPolicy", Noise(VECTOR, UNIT), buffer_size=10), "a model of SAC;"),
        (lambda: sb3.TD3("MlpPolicy", Noise(VECTOR, UNIT), buffer_size=10), "a model of TD3 or DDPG;"),
        (lambda: sb3.DQN("MlpPolicy", Noise(VECTOR, spaces.Discrete(2)), buffer_size=10), "a model of DQN;"),
        (lambda: sb3.A2C("MlpPolicy", Noise(VECTOR, UNIT)), "A2C"),
        (lambda: trained(VECTOR, UNIT, use_sde=True), "use_sde is not imported"),
        (lambda: trained(VECTOR, UNIT, policy_kwargs={"activation_fn": nn.LeakyReLU}), "LeakyReLU is not imported"),
        (lambda: trained(VECTOR, UNIT, policy_kwargs={"features_extractor_class": OwnExtractor}), "features_extractor"),
        (lambda: trained(VECTOR, UNIT, OwnPolicy), "the policy .* is not imported"),
    ],
)
def test_what_is_no_plain_ppo_is_refused_by_name(make, said, tmp_path):
    path = tmp_path / "model.zip"
    make().save(path)
    with pytest.raises(ValueError, match=said):
        read_sb3(path)


def test_statistics_of_vec_normalize_are_refused_with_the_way_to_go_on(tmp_path):
    path = tmp_path / "vec_normalize.pkl"
    path.write_bytes(pickle.dumps({"any": "thing"}))
    with pytest.raises(ValueError, match=r"a pickle .*docs/export\.md"):
        read_sb3(path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "model.zip"
    trained(VECTOR, UNIT).save(path)
    return path


def changed(path, out, **members):
    """A copy of a zip with members replaced or added."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            if name not in members:
                new.writestr(name, old.read(name))
        for name, data in members.items():
            new.writestr(name, data)
    return out


def read_or_refuse(path):
    """The agent, or None for a refusal in one line that begins with the file."""
    try:
        return read_sb3(path)
    except ValueError as error:
        said = str(error)
    assert said.startswith(str(path))
    assert "\n" not in said
    return None


class Bomb:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@pytest.fixture
def bomb(tmp_path):
    """A pickle that makes a folder when it is opened, and that folder."""
    canary = tmp_path / "canary"
    data = pickle.dumps(Bomb(canary))
    pickle.loads(data)
    canary.rmdir()  # it works
    return data, canary


@pytest.mark.parametrize(
    "attribute", ["policy_class", "policy_kwargs", "observation_space", "clip_range", "learning_rate"]
)
def test_a_bomb_in_a_field_does_not_go_off(attribute, bomb, plain, tmp_path):
    data, canary = bomb
    fields = json.loads(zipfile.ZipFile(plain).read("data"))
    fields[attribute] = {":type:": "<class 'x'>", ":serialized:": base64.b64encode(data).decode()}
    path = changed(plain, tmp_path / "evil.zip", data=json.dumps(fields))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        agent = read_or_refuse(path)
    assert agent is None or attribute not in agent.config
    assert not canary.exists()


@pytest.mark.parametrize("member", ["policy.pth", "policy.optimizer.pth"])
def test_a_bomb_among_the_weights_does_not_go_off(member, bomb, plain, tmp_path):
    data, canary = bomb
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("archive/data.pkl", data)
    for evil in (inner.getvalue(), data):  # the second: torch's format of before 2020
        with pytest.raises(ValueError, match=r"evil\.zip"):
            read_sb3(changed(plain, tmp_path / "evil.zip", **{member: evil}))
    assert not canary.exists()


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "policy.pth/../../evil", "extra.pkl"])
def test_members_that_sb3_does_not_write_are_refused(name, plain, tmp_path):
    with pytest.raises(ValueError, match="does not write"):
        read_sb3(changed(plain, tmp_path / "evil.zip", **{name: b"x"}))
    assert [p.name for p in tmp_path.iterdir()] == ["evil.zip"]


def test_a_member_larger_than_any_policy_is_not_unpacked(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(sb3_zip, "MAX_JSON", 10_000)
    with pytest.raises(ValueError, match=r"unpacks to .* more than any policy needs"):
        read_sb3(changed(plain, tmp_path / "evil.zip", data=b" " * 20_000))


def test_a_pickle_and_a_number_that_no_memory_holds_are_refused(plain, tmp_path, monkeypatch):
    fields = json.loads(zipfile.ZipFile(plain).read("data"))
    for space in (spaces.Discrete(10**12), spaces.MultiDiscrete([10**6] * 100), spaces.MultiBinary([10**5, 10**5])):
        text = base64.b64encode(pickle.dumps(space, 5)).decode()
        huge = json.dumps(fields | {"observation_space": {":type:": "", ":serialized:": text}})
        with pytest.raises(ValueError, match=r"observation_space has .* options"):
            read_sb3(changed(plain, tmp_path / "evil.zip", data=huge))
    monkeypatch.setattr(pickle_data, "MAX_PICKLE", 100)
    with pytest.raises(ValueError, match="more than any description needs"):
        read_sb3(plain)


def spaces_that_ask_for_too_much():
    box, empty = spaces.Box(-1.0, 1.0, (2**15,)), spaces.Dict({})
    yield spaces.Dict({str(i): box for i in range(400)})  # one box in the file
    for _ in range(60):
        empty = spaces.Dict({"a": empty, "b": empty})
    yield empty
    yield spaces.MultiDiscrete([2**62] * 4)  # their sum is 0 in 64 bits


def test_spaces_that_name_one_another_are_counted_together():
    for space in spaces_that_ask_for_too_much():
        with pytest.raises(ValueError, match="has more than 10,000,000 options"):
            space_of(read_pickle(pickle.dumps(space), "x"), "x")
    with pytest.raises(ValueError, match="options of no shape"):
        space_of(read_pickle(pickle.dumps(spaces.MultiBinary([1] * 9)), "x"), "x")


def repacked(data, change, compression=zipfile.ZIP_DEFLATED):
    """A file of torch.save with its members changed."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return out.getvalue()


def test_every_member_is_read_within_the_bound_and_by_deflate_only(plain, tmp_path, monkeypatch):
    """Python's zipfile unpacks bzip2 and lzma whole, whatever size the archive declares."""
    weights = zipfile.ZipFile(plain).read("policy.pth")
    for compression in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        evil = repacked(weights, lambda name, data: data, compression)
        with pytest.raises(ValueError, match="not deflate"):
            read_sb3(changed(plain, tmp_path / "evil.zip", **{"policy.pth": evil}))
    evil = repacked(weights, lambda name, data: bytes(2**20) if name.endswith("byteorder") else data)
    path = changed(plain, tmp_path / "evil.zip", **{"policy.pth": evil})
    monkeypatch.setattr(pickle_data, "MAX_BYTES", 2**19)
    with pytest.raises(ValueError, match=r"byteorder cannot be read .* more than any policy needs"):
        read_sb3(path)


def test_tensors_that_share_a_storage_are_bounded_together():
    buffer = io.BytesIO()
    torch.save(dict.fromkeys("abc", torch.zeros(1000)), buffer)
    file = TorchFile(buffer.getvalue(), "x.pth")
    file._left = 10_000
    assert file.tensor(file.content["a"]).shape == file.tensor(file.content["b"]).shape == (1000,)
    with pytest.raises(ValueError, match="more than any policy needs"):
        file.tensor(file.content["c"])


def test_layers_that_do_not_follow_each_other_build_no_network(plain, tmp_path):
    weights = torch.load(io.BytesIO(zipfile.ZipFile(plain).read("policy.pth")), weights_only=True)
    for i in (0, 2):
        weights[f"mlp_extractor.policy_net.{i}.weight"] = torch.zeros(10_000, 1)  # together: 100 million weights
    thin = io.BytesIO()
    torch.save(weights, thin)
    with pytest.raises(ValueError, match=r"evil\.zip.* a layer of the policy network takes"):
        read_sb3(changed(plain, tmp_path / "evil.zip", **{"policy.pth": thin.getvalue()}))


def test_weights_of_shapes_that_do_not_match_are_refused_with_the_file(plain, tmp_path):
    weights = torch.load(io.BytesIO(zipfile.ZipFile(plain).read("policy.pth")), weights_only=True)
    odd = io.BytesIO()
    torch.save(weights | {"action_net.bias": torch.zeros(7)}, odd)
    with pytest.warns(UserWarning, match="left out"), pytest.raises(ValueError, match=r"evil\.zip: damaged"):
        read_sb3(changed(plain, tmp_path / "evil.zip", **{"policy.pth": odd.getvalue()}))


ENDLESS = b"K\x01K\x01\x86" + b"2\x86" * 200  # a tuple of two tuples of two ...: 2^200 leaves to hash or print


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x04}" + ENDLESS + b"K\x01s.",  # as a key
        b"\x80\x04})" + b"\x85" * 290_000 + b"K\x01s.",  # hashing this takes all of the C stack
        b"\x80\x04)]\x94" + b"h\x00R" * 10 + b".",  # arguments that are copied for every object
        b"\x80\x04(" + b"))\x81" * 120_000 + b"t.",  # more objects than any description needs
        pickle.dumps({(2**61 - 1) * k: 0 for k in range(1, 9)}),  # keys of one hash
        b"\x80\x04" + b"".join(b"Np%d\n" % ((2**61 - 1) * k) for k in range(1, 9)) + b".",  # places of one hash
    ],
)
def test_a_pickle_that_would_take_all_time_or_memory_is_refused(pickled, monkeypatch):
    monkeypatch.setattr(pickle_data, "MAX_STEPS", 300_000)
    with pytest.raises(ValueError, match=r"^x: not a pickle that can be read as data"):
        read_pickle(pickled, "x")


def test_endless_values_are_neither_hashed_nor_printed(plain, tmp_path):
    fields = json.loads(zipfile.ZipFile(plain).read("data"))
    pickled = b"\x80\x04}\x8c\x0dactivation_fn" + ENDLESS + b"s."
    fields["policy_kwargs"] = {":type:": "", ":serialized:": base64.b64encode(pickled).decode()}
    with pytest.raises(ValueError, match="activation_fn function of the user's is not imported"):
        read_sb3(changed(plain, tmp_path / "evil.zip", data=json.dumps(fields)))
    assert read_pickle(b"\x80\x04\x8c\x01m" + ENDLESS + b"\x93.", "x") == ""


def test_damage_is_one_line_with_the_file_in_front(plain, tmp_path):
    """Every tenth of the file cut off, and bytes flipped all over: a refusal or the same weights, nothing else."""
    data, wanted = plain.read_bytes(), read_sb3(plain).weights
    random = np.random.default_rng(0)
    copies = [data[: len(data) * k // 10] for k in range(1, 10)]
    for _ in range(40):
        flipped = bytearray(data)
        flipped[random.integers(len(data))] ^= 1 << random.integers(8)
        copies.append(bytes(flipped))
    for copy in copies:
        path = tmp_path / "damaged.zip"
        path.write_bytes(copy)
        agent = read_or_refuse(path)
        assert agent is None or all(torch.equal(agent.weights[name], wanted[name]) for name in wanted)


def test_a_tensor_that_reaches_beyond_its_storage_is_refused():
    buffer = io.BytesIO()
    torch.save({"w": torch.arange(6.0).view(2, 3)}, buffer)
    file = TorchFile(buffer.getvalue(), "x.pth")
    torch.testing.assert_close(file.tensor(file.content["w"]), torch.arange(6.0).view(2, 3))
    storage, _, _, _, *rest = file.content["w"].args
    for offset, size, stride in [
        (1, (2, 3), (3, 1)),
        (0, (2, 4), (3, 1)),
        (0, (9,), (0,)),
        (0, (10**9, 10**9), (0, 0)),
        (-1, (2,), (1,)),
        (0, (1,) * 9, (1,) * 9),
        (0, (1 << 8_000_000,) * 20_000, (0,) * 20_000),  # one object in the file, and hours to multiply
    ]:
        file.content["w"].args = (storage, offset, size, stride, *rest)
        with pytest.raises(ValueError, match="beyond its storage"):
            file.tensor(file.content["w"])


def test_pickles_are_read_as_what_they_say():
    value = {"a": [1, -2.5, None, True, "ü", b"x", 10**30], "t": ((), (1,), (1, 2, 3, 4)), "s": {3}}
    for protocol in (3, 4, 5):
        read = read_pickle(pickle.dumps(value, protocol), "x")
        assert (read["a"], read["t"]) == (value["a"], value["t"])
        for array in (
            np.arange(6.0).reshape(2, 3),
            np.asfortranarray(np.eye(2, 3, dtype=np.float32)),
            np.int64(7),
            np.ones(2, bool),
        ):
            np.testing.assert_array_equal(array_of(read_pickle(pickle.dumps(array, protocol), "x")), array)
    assert read_pickle(pickle.dumps(os.getcwd), "x") == f"{os.getcwd.__module__}.getcwd"
    for broken in (b"", b"\x80\x04.", b"\x80\x04N", b"not a pickle", pickle.dumps([1, 2])[:-1]):
        with pytest.raises(ValueError, match=r"^x: "):
            read_pickle(broken, "x")

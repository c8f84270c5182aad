"""The NumPy shortcut of `predict` decides as torch does, at every moment of a network's life, or leaves it to torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from ctrlrl import PPO
from ctrlrl.algos.ppo import PPOConfig
from ctrlrl.envs.spaces import Spaces
from ctrlrl.judging import quick
from ctrlrl.loops import make_learner

CPU = torch.device("cpu")
VECTOR = spaces.Box(-np.inf, np.inf, (5,), np.float64)
BOX = spaces.Box(-2.0, 2.0, (3,), np.float32)


def learner_of(observation=VECTOR, action=BOX, **settings):
    learner = make_learner(PPOConfig(**settings), Spaces(observation, action).env_spec(CPU))
    change(learner)
    return learner


def change(learner):
    with torch.no_grad():
        for p in learner.nets.parameters():
            p.mul_(1.5).add_(0.1 * torch.randn_like(p))


def same(learner, act, seed=0):
    """Whether the shortcut acts as torch does within 1e-6 (relative beyond 1); None where it leaves it to torch."""
    rows = np.random.default_rng(seed).standard_normal((50, 5)).astype(np.float32)
    found = [act(row.copy()) for row in rows]
    if all(x is None for x in found):
        return None
    wanted = learner.act(torch.from_numpy(rows), deterministic=True).action.numpy()
    got = np.stack(found)
    assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
    return bool((np.abs(got - wanted) <= 1e-6 * np.maximum(1.0, np.abs(wanted))).all())


@pytest.mark.parametrize("action", [BOX, spaces.Discrete(4)])
@pytest.mark.parametrize(
    "settings", [{}, {"hidden": []}, {"hidden": [7, 90], "activation": "relu", "normalize_obs": True}]
)
def test_it_decides_as_torch_does(action, settings):
    learner = learner_of(VECTOR, action, **settings)
    if settings.get("normalize_obs"):
        learner.normalizer.merge(100.0 + 3.0 * torch.randn(30, 5))
    assert same(learner, quick(learner))


def test_it_follows_whatever_happens_to_the_weights():
    learner = learner_of(normalize_obs=True)
    act = quick(learner)
    other = learner_of(normalize_obs=True)
    first, last = learner.policy.mean[0], learner.policy.mean[-1]

    def reassign():
        last.weight.data = last.weight.data * 2.0

    events = {
        "a gradient step": lambda: learner.opt["actor_critic"](learner.policy.mean(torch.ones(1, 5)).sum() * 1e3),
        "loading": lambda: learner.load_model_state(other.model_state()),
        "new statistics": lambda: learner.normalizer.merge(torch.randn(30, 5) * 4.0 - 2.0),
        "new memory": reassign,
        "a new parameter": lambda: setattr(first, "weight", nn.Parameter(torch.randn(64, 5))),
        "a new layer": lambda: learner.policy.mean.__setitem__(1, nn.ReLU()),
    }
    row = np.ones(5, np.float32)
    for name, event in events.items():
        before = act(row)
        event()
        assert np.abs(act(row) - before).max() > 1e-4, name
        assert same(learner, act), name


def test_what_it_does_not_know_is_left_to_torch():
    image = spaces.Box(0, 255, (5, 1, 1), np.uint8)
    for unknown in (
        learner_of(activation="elu"),
        learner_of(action=spaces.MultiDiscrete([2, 3])),
        learner_of(observation=image),
        learner_of(hidden=[400, 400]),
    ):
        assert same(unknown, quick(unknown)) is None
    hooked, double = learner_of(), learner_of()
    hooked.policy.mean[1].register_forward_hook(lambda layer, x, y: y + 1.0)
    double.policy.mean.double()
    for changed in (hooked, double):
        assert quick(changed)(np.ones(5, np.float32)) is None


@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
def test_one_observation_and_a_batch_of_it_get_the_same_action(env, tmp_path):
    model = PPO("MlpPolicy", env, n_steps=16, batch_size=8, n_epochs=1, seed=0, learning_rate=0.05, normalize_obs=True)
    obs = model.observation_space.sample()
    seen = []
    for stage in ("fresh", "trained", "loaded", "copied"):
        if stage == "trained":
            model.learn(16)
        elif stage == "loaded":
            model.save(tmp_path / "model")
            model = PPO.load(tmp_path / "model")
        elif stage == "copied":
            state = model.get_parameters()
            state["policy"] = {k: v * 0.5 for k, v in state["policy"].items()}
            model.set_parameters(state)
        assert model._quick(np.asarray(obs, np.float32)) is not None
        one, many = (model.predict(x, deterministic=True)[0] for x in (obs, np.stack([obs] * 3)))
        assert (one.shape, one.dtype) == (many[0].shape, many.dtype)
        np.testing.assert_allclose(one, many[0], rtol=0, atol=1e-6)
        seen.append(one.tolist())
    if env == "Pendulum-v1":
        assert seen[0] != seen[1] == seen[2] != seen[3]

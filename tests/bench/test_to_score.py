"""When a run counts as having reached a return: looks one after another, and the seconds of the last of them."""

import math
from types import SimpleNamespace

import pytest
import torch

from ctrlrl.bench import ours, peers
from ctrlrl.config import EnvConfig


class Loop:
    """Ten iterations; the policy is judged by a list of returns."""

    learner = None
    env_steps = 0

    def __init__(self):
        self.env = SimpleNamespace(spec=SimpleNamespace(device=torch.device("cpu")))

    @property
    def done(self):
        return self.env_steps >= 10

    def iterate(self):
        self.env_steps += 1


@pytest.mark.parametrize(
    ("in_a_row", "returns", "looks"),
    [(1, [1, 5, 2, 6, 7], 2), (2, [1, 5, 2, 6, 7], 5), (2, [1, 5, 2, 6, 2, 6, 2, 6, 2, 6], None)],
)
def test_a_return_is_met_in_as_many_looks_as_asked_for(monkeypatch, in_a_row, returns, looks):
    found = iter(returns)
    cfg = SimpleNamespace(env=EnvConfig(name="pendulum"), seed=0)
    monkeypatch.setattr(ours, "replace", lambda cfg, **_: cfg)
    monkeypatch.setattr(ours, "training_loop", lambda cfg: Loop())
    monkeypatch.setattr(ours, "judged", lambda learner: None)
    told = SimpleNamespace
    monkeypatch.setattr(ours, "evaluate", lambda *_, **__: told(returns=torch.tensor([float(next(found))])))
    contender = ours.ToScore(cfg, 5.0, "evaluation", 0.0, in_a_row)
    lap, run = contender.lap(), contender.history[0]
    if looks is None:
        assert lap.value == math.inf
    else:
        assert len(run["looks"]) == looks
        assert lap.value == run["seconds"] < math.inf
    assert [score for _, score in run["looks"]] == [float(x) for x in returns[: len(run["looks"])]]


def test_the_peer_is_looked_at_after_every_update_and_after_its_last(monkeypatch):
    pytest.importorskip("stable_baselines3")
    small = {"n_envs": 2, "total": 32, "n_steps": 8, "learning_rate": 1e-3, "clip_range": 0.2, "n_epochs": 1}
    monkeypatch.setitem(peers.ZOO_PPO, "pendulum", small | {"batch_size": 16, "gamma": 0.9})
    returns = iter([1.0, 5.0])
    looks = []

    def judge(act, *_, **__):
        looks.append(act.__self__.model.num_timesteps)
        return SimpleNamespace(returns=torch.tensor([next(returns)]))

    monkeypatch.setattr(peers, "evaluate", judge)
    contender = peers.SB3ToScore("pendulum", 5.0, "evaluation", 0.0, 0, 0)
    assert contender.lap().value < math.inf
    assert looks == [16, 32]
    assert contender.history[0]["score"] == 5.0
    assert "PPO" in contender.name

"""One preference-conditioned policy learns the whole front of the quadratic bandit."""

from __future__ import annotations

from typing import Any

import torch

from ctrlrl.algos.capql import CAPQLConfig
from ctrlrl.envs.morl_motion import QuadraticBandit
from ctrlrl.functional.pareto import hypervolume
from ctrlrl.loops import make_learner
from ctrlrl.types import EnvSpec, Transition

SPEC = EnvSpec(1, 2, 0, 2, 1, 0, torch.device("cpu"), objectives=QuadraticBandit.objectives)


def test_capql_plays_the_best_action_of_every_preference():
    """w_1 wants a = (1 - w_1, 0); the concave term is even around it and leaves it there."""
    torch.manual_seed(0)
    cfg = CAPQLConfig(hidden=[32, 32], batch_size=256, reference=[-1, -1], alpha=0.01, learning_rate=2e-3)
    learner: Any = make_learner(cfg, SPEC)
    sim, n = QuadraticBandit(), 256
    start = sim.init(torch.zeros(n, 0))
    obs = sim.observe(start)
    for _ in range(1200):
        action = 2.0 * torch.rand(n, 2) - 1.0
        after, reward, terminated = sim.step(start, action)
        learner.update(
            Transition(obs, action, reward, sim.observe(after), terminated, {"preference": learner.drawn(n)})
        )
    grid = torch.linspace(0.0, 1.0, 11)
    preferences = torch.stack((grid, 1.0 - grid), 1)
    found = learner.act_for(obs[:11], preferences, deterministic=True).action
    off = torch.stack((found[:, 0] - (1.0 - grid), found[:, 1]), 1).abs()
    assert float(off.max()) < 0.2
    assert float(off.mean()) < 0.06
    _, returns, _ = sim.step(sim.init(torch.zeros(11, 0)), found)
    assert float(hypervolume(returns, torch.tensor([-1.0, -1.0]))) > 0.72  # eleven exact points: 0.783

"""A bandit with four equal optima: a flow keeps them all, a Gaussian must choose one. The point of a flow policy."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ctrlrl.envs.sim import BatchedSim, Sim
from ctrlrl.loops import make_learner, on_policy_loop
from ctrlrl.registry import ALGORITHMS, lookup

OPTIMA = torch.tensor([[0.7, 0.7], [-0.7, 0.7], [0.7, -0.7], [-0.7, -0.7]])
COMMON: dict[str, Any] = {"n_steps": 4, "n_minibatches": 4, "n_epochs": 5, "hidden": [64, 64]}
SETTINGS: dict[str, dict[str, Any]] = {
    "ppo": {"learning_rate": 3e-3, "log_std_init": -0.5},
    "policyflow": {"activation": "silu", "log_std_init": -1.0, "brownian_coef": 0.02, "ent_coef": 0.0}
    | {"desired_kl": 0.02},
}


class State(NamedTuple):
    x: Tensor  # [B]


class FourOptima(Sim):
    """Pays exp(-d^2 / 0.2) once, d the distance from the action to the nearest optimum; nothing to see."""

    obs_dim, action_dim, episode_length, n_random = 1, 2, 0, 1

    def init(self, noise: Tensor) -> State:
        return State(torch.zeros_like(noise[:, 0]))

    def step(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor]:
        distance = torch.cdist(action, OPTIMA).amin(-1)
        return state, torch.exp(-distance.square() / 0.2), torch.ones_like(distance, dtype=torch.bool)

    def observe(self, state: State) -> Tensor:
        return state.x.unsqueeze(1)


def shares(algo: str) -> Tensor:
    """Of 2000 sampled actions: the fraction within 0.3 of each optimum."""
    torch.manual_seed(0)
    env = BatchedSim(FourOptima(), 256, seed=0)
    config = lookup(ALGORITHMS, algo, "algorithm").config(**COMMON, **SETTINGS[algo])
    learner: Any = make_learner(config, env.spec)
    loop = on_policy_loop(learner, env, total_steps=150 * 1024, seed=0, staggered=False)
    while not loop.done:
        loop.iterate()
    distance = torch.cdist(learner.act(torch.zeros(2000, 1)).action, OPTIMA)
    return (distance < 0.3).float().mean(0)


@pytest.mark.slow
def test_a_flow_keeps_every_optimum_and_a_gaussian_one():
    flow, gaussian = shares("policyflow"), shares("ppo")
    assert float(flow.sum()) > 0.9
    assert float(flow.min()) > 0.1, "all four"
    assert float(gaussian.max()) > 0.9, "one takes it all"

"""From a data set into the environment, on a one-step task whose best action, 0.6, lies beyond the data's."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import ctrlrl
from ctrlrl.envs.sim import BatchedSim, Sim

BEST, LOW, HIGH = 0.6, -0.4, 0.2  # the best action; the data's are uniform between the other two
METHODS: dict[str, dict[str, Any]] = {
    "IQL": {},
    "AWAC": {"offline_share": 0.5},  # in one buffer with the data the first steps are few
    "ReBRAC": {},
    "CalQL": {"n_samples": 2, "conservative_coef": 0.1},  # at the default it stays with the data
    "FQL": {"flow_steps": 2, "alpha": 1.0},  # so does this one
}


class State(NamedTuple):
    x: Tensor  # [1, B]


class Slope(Sim):
    """Reward 1 - (a - BEST)^2, then the episode ends."""

    obs_dim, action_dim, n_random, episode_length = 1, 1, 1, 1

    def init(self, noise: Tensor) -> State:
        return State(torch.ones_like(noise).T.contiguous())

    def step(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor]:
        return state, worth(action.T[0]), torch.ones_like(action[:, 0], dtype=torch.bool)

    def observe(self, state: State) -> Tensor:
        return state.x.T


def worth(action: Any) -> Any:
    return 1.0 - (action - BEST) ** 2


@pytest.mark.parametrize("method", METHODS)
def test_the_environment_leads_beyond_the_data_and_nothing_is_lost_on_the_way(method, tmp_path):
    n = 1000
    action = np.random.default_rng(0).uniform(LOW, HIGH, (n, 1)).astype(np.float32)
    np.savez(
        tmp_path / "slope.npz",
        observations=np.ones((n, 1), dtype=np.float32),
        actions=action,
        rewards=worth(action[:, 0]),
        terminals=np.ones(n, dtype=bool),
        timeouts=np.zeros(n, dtype=bool),
    )
    small = {"hidden": [32, 32], "batch_size": 64, "learning_rate": 1e-3, "seed": 0, "device": "cpu"}
    model = getattr(ctrlrl, method)(
        "MlpPolicy", BatchedSim(Slope(), 4, seed=0), dataset=str(tmp_path / "slope.npz"), **small, **METHODS[method]
    )

    def acted() -> float:
        return float(model.predict(np.ones((1, 1), dtype=np.float32), deterministic=True)[0][0, 0])

    model.learn(300)
    before, after = acted(), []
    for _ in range(3):
        model.learn_online(200)
        after.append(acted())
    assert LOW < before < BEST - 0.1
    assert min(worth(a) for a in after) > worth(before) - 0.02
    assert after[-1] > before + 0.1

"""Equal settings, equal steps: our PPO learns what SB3's learns."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

import ctrlrl

sb3 = pytest.importorskip("stable_baselines3", reason="pip install 'ctrlrl[sb3]'")
KINDS = (ctrlrl.PPO, sb3.PPO)


class Match(gym.Env[Any, Any]):
    """Two choices that the two parts of the observation ask for; ten steps, a right choice is worth 1: at most 20."""

    observation_space = spaces.Dict({"symbol": spaces.Discrete(3), "number": spaces.Box(-1, 1, (1,), np.float32)})
    action_space = spaces.MultiDiscrete([3, 2])

    def _draw(self) -> dict[str, Any]:
        self.seen = {
            "symbol": self.np_random.integers(3),
            "number": self.np_random.uniform(-1, 1, 1).astype(np.float32),
        }
        return self.seen

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self._draw(), {}

    def step(self, action: Any) -> Any:
        reward = float(action[0] == self.seen["symbol"]) + float(action[1] == (self.seen["number"][0] > 0))
        self.t += 1
        return self._draw(), reward, False, self.t == 10, {}


def returns(kind: Any, policy: str, make: Any, steps: int, seeds: int, **settings: Any) -> list[float]:
    """Mean training return of the last 20 episodes, a seed each."""
    found = []
    for seed in range(seeds):
        model = kind(policy, make(), seed=seed, device="cpu", stats_window_size=20, **settings).learn(steps)
        found.append(float(np.mean([info["r"] for info in model.ep_info_buffer])))
    return found


@pytest.mark.slow
def test_cartpole_is_learned_as_fast_as_by_sb3():
    settings = {"n_steps": 512, "batch_size": 64, "n_epochs": 10, "learning_rate": 1e-3}
    ours, theirs = (
        np.mean(returns(kind, "MlpPolicy", lambda: gym.make("CartPole-v1"), 8192, 3, **settings)) for kind in KINDS
    )
    assert ours > 60
    assert theirs > 60
    assert 0.6 < ours / theirs < 1.7


@pytest.mark.slow
def test_a_dict_observation_with_two_choices_is_learned_as_well_as_by_sb3():
    settings = {"n_steps": 256, "batch_size": 64, "n_epochs": 10, "learning_rate": 3e-3}
    ours, theirs = (np.mean(returns(kind, "MultiInputPolicy", Match, 5120, 2, **settings)) for kind in KINDS)
    assert ours > 15  # chance is 8.3
    assert abs(ours - theirs) < 2.0

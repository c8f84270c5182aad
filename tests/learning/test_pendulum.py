"""SAC and TD3 swing the pendulum up within 10,000 steps of one environment, as the algorithms' reference codes do."""

from typing import Any

import pytest

from ctrlrl import SAC, TD3, evaluate_policy

SETTINGS: dict[str, Any] = {"policy_kwargs": {"net_arch": [64, 64]}, "learning_rate": 1e-3, "batch_size": 128}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("kind", "own"), [(SAC, {}), (TD3, {"action_noise": 0.1, "learning_starts": 1000})])
def test_pendulum_is_solved_within_ten_thousand_steps(kind, own, seed):
    model = kind("MlpPolicy", "Pendulum-v1", seed=seed, device="cpu", **SETTINGS, **own)
    best = -1e9
    while model.num_timesteps < 10_000 and best < -200.0:
        model.learn(1000, reset_num_timesteps=False)
        best = max(best, evaluate_policy(model, "Pendulum-v1", n_eval_episodes=20)[0])
    assert best >= -200.0

"""Half-blind experts: two policies that see one half of the goal each succeed together more often than alone.

python benchmarks/half_blind.py runs/half_blind [algo.sampling_steps=50 ...]

makes demonstrations, clones them with one diffusion that sees goal 1 and one that sees goal 2, and searches their
weights as GPC does. With parents that were cloned without error success is .22 alone and .56 at equal weights.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from ctrlrl.cli import main as ctrlrl

ENV_ID = "HalfBlind-v0"
REACH, NOISE, SCALE = 0.4, 0.1, 4.0  # success within, the experts' deviation, and the goal that an action of 1 means


class HalfBlind(gym.Env):
    """One step: a goal in the plane, standard normal, is shown; the action names a place."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, render_mode: str | None = None):
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.goal = self.np_random.standard_normal(2).astype(np.float32)
        return self.goal, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        error = float(np.abs(SCALE * action - self.goal).max())
        return self.goal.copy(), -error, True, False, {"success": error < REACH}


def register() -> None:
    if ENV_ID not in gym.registry:
        gym.register(ENV_ID, HalfBlind)


def demonstrations(path: Path, n: int = 20_000, seed: int = 0) -> None:
    random = np.random.default_rng(seed)
    goal = random.standard_normal((n, 2)).astype(np.float32)
    action = (goal + NOISE * random.standard_normal((n, 2)).astype(np.float32)) / SCALE
    ones = np.ones(n)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        observations=goal,
        actions=action.clip(-1.0, 1.0),
        rewards=np.zeros(n, np.float32),
        terminals=ones > 0,
        next_observations=goal,
        env_id=ENV_ID,
    )


def train(data: Path, out: Path, columns: list[int], *words: str, algo: str = "diffusion", steps: int = 4000) -> None:
    call(
        "train",
        f"algo={algo}",
        f"algo.obs_columns={columns}",
        "algo.horizon=1",
        "algo.n_obs_steps=1",
        "algo.n_action_steps=1",
        "algo.hidden=[128,128,128]",
        "algo.learning_rate=1e-3",
        "algo.warmup_steps=100",
        "algo.sampling_steps=50",
        f"gradient_steps={steps}",
        "data=file",
        f"data.path={data}",
        "env=gym",
        f"env.id={ENV_ID}",
        f"run.dir={out}",
        "run.report=false",
        "eval.every=0",
        *(["algo.prediction=noise"] if algo == "diffusion" else []),
        *words,
    )


def call(*words: str) -> None:
    try:
        ctrlrl(list(words))
    except SystemExit as done:
        if done.code:
            raise


def main(folder: Path, words: list[str]) -> None:
    register()
    data = folder / "goals.npz"
    demonstrations(data)
    for name, column in (("sees_1", 0), ("sees_2", 1)):
        train(data, folder / name, [column])
    pair = f"compose=[{folder}/sees_1,{folder}/sees_2]"
    call("eval", pair, "compose.weight=search", "compose.episodes=1000", "episodes=1000", *words)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

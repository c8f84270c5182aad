"""Stable-Baselines3's SAC and TD3 with the sizes of our configuration, on one environment as their users run them."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from ctrlrl.bench.ours import EVAL_EPISODES, FOREVER, Clock, synchronise
from ctrlrl.bench.rows import Lap, rate
from ctrlrl.config import EnvConfig, TrainConfig
from ctrlrl.loops import training_loop
from ctrlrl.registry import GYMNASIUM_IDS
from ctrlrl.tasks import make_env
from ctrlrl.train.evaluate import evaluate
from ctrlrl.types import Transition

ROWS = 50_000  # transitions in either buffer
CHUNK = 50  # updates between two looks at the clock
SHARED = ("learning_rate", "batch_size", "tau", "gamma", "ent_coef", "policy_delay", "target_policy_noise", "n_steps")


class Replaying:
    """Updates of our learner, sampling from a full replay buffer included."""

    name = "ctrlrl"

    def __init__(self, cfg: TrainConfig, seconds: float, device: torch.device):
        loop: Any = training_loop(cfg)
        loop.online_steps, self.loop = FOREVER, loop
        self.seconds, self.device = seconds, device
        self.rows = rows(self.loop.env.spec, cfg.algo.gamma, cfg.algo.n_steps)
        self.loop.buffer.fill(self.rows)
        for _ in range(3):
            self._work()

    def _work(self) -> int:
        total = 0.0
        for _ in range(CHUNK):
            metrics = self.loop.learn()
            total = total + metrics["loss/critic"]
        synchronise(self.device)
        if not np.isfinite(float(total)):
            raise RuntimeError("the updates that are timed have diverged")
        return CHUNK

    def lap(self) -> Lap:
        return rate(self._work, self.seconds)


def rows(spec: Any, gamma: float, n_steps: int) -> Transition:
    """Random transitions of an environment's shapes; their numbers do not matter to the time."""
    generator = torch.Generator().manual_seed(0)
    obs, following = torch.randn(2, ROWS, spec.obs_dim, generator=generator)
    action = 2.0 * torch.rand(ROWS, spec.action_dim, generator=generator) - 1.0
    reward, terminated = torch.randn(ROWS, generator=generator), torch.rand(ROWS, generator=generator) < 0.01
    extras = {"discount": torch.full((ROWS,), gamma**n_steps)} if n_steps > 1 else {}
    return Transition(obs, action, reward, following, terminated, extras)


def sb3_model(cfg: TrainConfig, seed: int, **own: Any) -> Any:
    """SB3's model with its own defaults where our configuration has none of the word; `own` arguments besides."""
    try:
        import gymnasium as gym
        import stable_baselines3 as sb3
    except ImportError:
        raise ValueError("vs=sb3 needs Stable-Baselines3: pip install 'ctrlrl[sb3]'") from None
    kinds = {"sac": sb3.SAC, "td3": sb3.TD3}
    if cfg.algo.name not in kinds:
        raise ValueError(f"vs=sb3 replays with algo={' or algo='.join(kinds)}, got {cfg.algo.name}")
    env_id, algo = cfg.env.id or GYMNASIUM_IDS.get(cfg.env.name), cfg.algo
    if env_id is None:
        raise ValueError(f"vs=sb3 needs a task that Gymnasium has too, got env={cfg.env.name}")
    activation = {"relu": "ReLU", "silu": "SiLU", "elu": "ELU", "tanh": "Tanh", "gelu": "GELU"}[algo.activation]
    arch = {"pi": list(algo.hidden), "qf": list(algo.hidden if algo.critic_hidden is None else algo.critic_hidden)}
    network = {"net_arch": arch, "activation_fn": getattr(torch.nn, activation), "n_critics": algo.n_critics}
    same = {name: getattr(algo, name) for name in SHARED if hasattr(algo, name)}
    return kinds[algo.name](
        "MlpPolicy", gym.make(env_id), policy_kwargs=network, seed=seed, device="cpu", **same, **own
    )


class SB3Replaying:
    """Updates of SB3's `train`, of the same rows."""

    def __init__(self, cfg: TrainConfig, seconds: float, data: Transition):
        self.name, self.seconds = f"stable-baselines3 {version('stable-baselines3')}", seconds
        from stable_baselines3.common.logger import Logger

        self.model, self.batch_size = sb3_model(cfg, 0, buffer_size=ROWS), cfg.algo.batch_size
        self.model.set_logger(Logger(None, []))
        columns = [x.numpy() for x in (data.obs, data.next_obs, data.action, data.reward, data.terminated)]
        for obs, following, action, reward, done in zip(*columns, strict=True):
            one: Any = (obs[None], following[None], action[None], np.array([reward]), np.array([done]), [{}])
            self.model.replay_buffer.add(*one)
        self._work()

    def _work(self) -> int:
        self.model.train(gradient_steps=CHUNK, batch_size=self.batch_size)
        return CHUNK

    def lap(self) -> Lap:
        return rate(self._work, self.seconds)


def sb3_score(cfg: TrainConfig, steps: int, seed: int) -> dict[str, float]:
    """SB3's return after `steps` environment steps (20 deterministic episodes) and the seconds that it learned."""
    clock = Clock()
    model = sb3_model(cfg, seed)
    model.learn(steps)
    clock.halt()
    space: Any = model.action_space

    def act(obs: torch.Tensor) -> torch.Tensor:
        action, _ = model.predict(obs.numpy(), deterministic=True)
        return torch.from_numpy(((action - space.low) / (space.high - space.low) * 2 - 1).astype(np.float32))

    test_env = make_env(EnvConfig(name=cfg.env.name), EVAL_EPISODES, seed=0, stagger=False)
    score = evaluate(act, test_env, episodes=EVAL_EPISODES, seed=1000).returns.mean().item()
    return {"seconds": clock.wall, "cpu_seconds": clock.cpu, "env_steps": float(steps), "score": score}

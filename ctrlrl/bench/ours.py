"""ctrlrl's side of each measurement."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from ctrlrl.bench.rows import Lap, rate
from ctrlrl.build import acting, make_env, make_learner, on_policy_loop, resolve_device
from ctrlrl.config import EnvConfig, TrainConfig
from ctrlrl.core.compile import resolve
from ctrlrl.train.evaluate import evaluate
from ctrlrl.types import VecEnv

EVAL_EPISODES = 20
FOREVER = 10**15  # steps of a run whose end must not come while it is timed


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Stepping:
    """A simulator alone under random actions; env-steps/s."""

    name = "ctrlrl"

    def __init__(self, env_cfg: EnvConfig, n_envs: int, device: torch.device, *, compile: bool, seconds: float):
        self.env = make_env(env_cfg, n_envs, seed=0, device=device, compile=compile)
        self.seconds, self.device = seconds, device
        self.actions = random_actions(self.env)
        self.env.reset(0)
        self.chunk = max(1, 200_000 // n_envs)  # steps between two looks at the clock
        for _ in range(5):
            self._work()

    def _work(self) -> int:
        for i in range(self.chunk):
            self.env.step(self.actions[i % len(self.actions)])
        synchronise(self.device)
        return self.chunk * self.env.spec.n_envs

    def lap(self) -> Lap:
        return rate(self._work, self.seconds)


def random_actions(env: VecEnv, n: int = 8) -> list[torch.Tensor]:
    spec = env.spec
    generator = torch.Generator().manual_seed(0)
    if spec.n_actions:
        return [torch.randint(spec.n_actions, (spec.n_envs,), generator=generator).to(spec.device) for _ in range(n)]
    shape = (spec.n_envs, spec.action_dim)
    return [(torch.rand(shape, generator=generator) * 2 - 1).to(spec.device) for _ in range(n)]


def training_loop(cfg: TrainConfig, seed: int) -> Any:
    """The loop of a training run, without run folder, log or evaluation."""
    device = resolve_device(cfg.device)
    torch.manual_seed(seed)
    mode = resolve(cfg.compile, device, cfg.total_steps)
    env = make_env(cfg.env, cfg.n_envs, seed=seed, device=device, compile=mode == "compile")
    learner = make_learner(cfg.algo, env.spec)
    learner.set_compile(mode)
    graph = mode == "graph" and device.type == "cuda"
    return on_policy_loop(learner, env, total_steps=cfg.total_steps, seed=seed, staggered=True, graph=graph)


class Training:
    """Environment steps/s with learning."""

    name = "ctrlrl"

    def __init__(self, cfg: TrainConfig, seconds: float):
        self.loop, self.seconds = training_loop(cfg, cfg.seed), seconds
        self.loop.total_steps = FOREVER
        self.device = self.loop.env.spec.device
        for _ in range(3):
            self._work()

    def _work(self) -> int:
        before = self.loop.env_steps
        self.loop.iterate()
        synchronise(self.device)
        return self.loop.env_steps - before

    def lap(self) -> Lap:
        return rate(self._work, self.seconds)


class Clock:
    """Wall and CPU time of training alone: it stands still while a policy is evaluated."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self.go()

    def go(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def halt(self) -> None:
        self.wall += time.perf_counter() - self._wall
        self.cpu += time.process_time() - self._cpu

    def now(self) -> float:
        return self.wall + time.perf_counter() - self._wall


class ToScore:
    """Seconds of training until the deterministic policy's mean return over 20 fresh episodes reaches a target.

    The clock includes building the learner and the environments, but not imports. The policy is looked at after every
    `eval_seconds` of training. A run that ends its budget short of the target counts as infinite.
    """

    name = "ctrlrl"

    def __init__(self, cfg: TrainConfig, target: float, eval_seconds: float):
        self.cfg, self.target, self.eval_seconds = cfg, target, eval_seconds
        self.seed = cfg.seed
        self.history: list[dict[str, float]] = []

    def lap(self) -> Lap:
        clock, next_look = Clock(), self.eval_seconds
        loop = training_loop(self.cfg, self.seed)
        self.seed += 1
        test_env = make_env(self.cfg.env, EVAL_EPISODES, stagger=False)
        while not loop.done:
            loop.iterate()
            if clock.now() < next_look and not loop.done:
                continue
            clock.halt()
            next_look = clock.wall + self.eval_seconds
            score = evaluate(acting(loop.learner), test_env, episodes=EVAL_EPISODES, seed=1000).returns.mean().item()
            if score >= self.target:
                self.history.append({"seconds": clock.wall, "env_steps": loop.env_steps, "score": score})
                return Lap(clock.wall, clock.wall, clock.cpu)
            clock.go()
        self.history.append({"seconds": float("inf"), "env_steps": loop.env_steps, "score": score})
        return Lap(float("inf"), clock.wall, clock.cpu)


Maker = Callable[[], Any]

"""ctrlrl's side of each measurement."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch

from ctrlrl import api
from ctrlrl.bench.rows import Lap, rate
from ctrlrl.config import DIVISION, TrainConfig
from ctrlrl.judging import judged
from ctrlrl.loops import training_loop
from ctrlrl.tasks import make_env
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

    def __init__(self, env: VecEnv, seconds: float, *, chunk: int | None = None):
        self.env, self.seconds, self.device = env, seconds, env.spec.device
        self.actions = random_actions(env)
        self.chunk = chunk or max(1, 200_000 // env.spec.n_envs)  # steps between two looks at the clock
        env.reset(0)
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
    if spec.nvec:
        options = torch.tensor(spec.nvec)
        draws = [torch.rand(spec.n_envs, len(options), generator=generator) for _ in range(n)]
        return [(u * options).long().to(spec.device) for u in draws]
    shape = (spec.n_envs, spec.action_dim)
    return [(torch.rand(shape, generator=generator) * 2 - 1).to(spec.device) for _ in range(n)]


class Training:
    """Environment steps/s with learning."""

    name = "ctrlrl"

    def __init__(self, cfg: TrainConfig, seconds: float):
        self.loop, self.seconds = training_loop(cfg), seconds
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
    """Seconds of training until a target return.

    by="training":   the mean of the last 100 whole training episodes, Gymnasium's own definition of a solved task.
    by="evaluation": the deterministic policy's mean over 20 fresh episodes, looked at after every `eval_seconds`,
                     and met in `in_a_row` looks one after another.
    The clock includes building learner and environments but not imports, and stands still while a policy is evaluated.
    A run that ends its budget short of the target counts as infinite.
    """

    name = "ctrlrl"

    def __init__(self, cfg: TrainConfig, target: float, by: str, eval_seconds: float, in_a_row: int = 1):
        self.cfg, self.target, self.by, self.eval_seconds = cfg, target, by, eval_seconds
        self.seed, self.in_a_row = cfg.seed, in_a_row
        self.history: list[dict[str, Any]] = []

    def lap(self) -> Lap:
        clock, next_look, met, score = Clock(), self.eval_seconds, 0, -math.inf
        looks: list[tuple[float, float]] = []
        loop = training_loop(replace(self.cfg, seed=self.seed))
        self.seed += 1
        test_env = make_env(self.cfg.env, EVAL_EPISODES, seed=0, device=loop.env.spec.device, stagger=False)
        while met < self.in_a_row and not loop.done:
            loop.iterate()
            if self.by == "training":
                episodes = loop.episode_metrics()
                if episodes.get("rollout/episodes", 0) >= 100:
                    score = episodes["rollout/return"]
                    met = self.in_a_row if score >= self.target else 0
            elif clock.now() >= next_look or loop.done:
                clock.halt()
                next_look = clock.wall + self.eval_seconds
                returns = evaluate(judged(loop.learner), test_env, episodes=EVAL_EPISODES, seed=1000).returns
                score = returns.mean().item()
                met = met + 1 if score >= self.target else 0
                looks.append((clock.wall, score))
                clock.go()
        clock.halt()
        seconds = clock.wall if met >= self.in_a_row else math.inf
        self.history.append({"seconds": seconds, "env_steps": loop.env_steps, "score": score, "looks": looks})
        return Lap(seconds, clock.wall, clock.cpu)


class Deciding:
    """One decision on one observation, as a program that drives one robot takes it; the median of a lap in µs."""

    warm_up, block = 200, 100  # decisions before the first lap, and between two looks at the clock

    def __init__(self, name: str, decide: Callable[[], Any], seconds: float):
        self.name, self.decide, self.seconds = name, decide, seconds
        for _ in range(self.warm_up):
            decide()

    def lap(self) -> Lap:
        wall, cpu, clock, decide = time.perf_counter(), time.process_time(), time.perf_counter_ns, self.decide
        times: list[int] = []
        while not times or time.perf_counter() - wall < self.seconds:
            for _ in range(self.block):
                begin = clock()
                decide()
                times.append(clock() - begin)
        return Lap(statistics.median(times) / 1000, time.perf_counter() - wall, time.process_time() - cpu)


def agent(cfg: TrainConfig) -> Any:
    """The Python face's agent of a configuration, on the CPU, untrained."""
    values = {k: v for k, v in asdict(cfg.algo).items() if k not in ("name", *DIVISION)}
    return api.CLASSES[cfg.algo.name]("MlpPolicy", cfg.env.id or cfg.env.name, seed=0, device="cpu", **values)

"""A policy's roll-outs as a data set: from the words of `ctrlrl data collect` to policy, environment and episodes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctrlrl.build import Spaces, widest_layer
from ctrlrl.config import EnvConfig
from ctrlrl.core.process import set_threads
from ctrlrl.data.collect import collect
from ctrlrl.data.demonstrations import demonstrations
from ctrlrl.data.episodes import Episodes, Facts
from ctrlrl.data.scores import reference
from ctrlrl.envs import metaworld
from ctrlrl.judging import acting
from ctrlrl.policies.published import PublishedPolicy
from ctrlrl.provenance import versions
from ctrlrl.registry import ENVIRONMENTS, GYMNASIUM_IDS, unknown
from ctrlrl.runs import load_run
from ctrlrl.tasks import backend_of, dynamics, make_env
from ctrlrl.train.log import Progress
from ctrlrl.types import EnvSpec

_EPISODES_A_LANE = 10  # at least so many time limits fit into a lane, so that few rows belong to cut episodes
_MOST_LANES = {"torch": 1024}  # by default; other backends 64
_STEPS = 100_000


@dataclass
class CollectOptions:
    out: str = ""
    format: str | None = None  # as for convert
    overwrite: bool = False
    run: str | None = None  # a run folder: its policy on its environment
    checkpoint: str = "last"  # or best
    policy: str | None = None  # random, expert (Meta-World's own), a weights .npz (docs/data.md), or a model's .zip
    env: str | None = None  # a name of `ctrlrl train --help` or a Gymnasium id
    steps: int | None = None  # rows of the data set; null = 100,000, or those of `episodes`
    episodes: int | None = None  # whole episodes instead
    successful: bool = False  # of these, only what the environment calls a success
    first_steps: int | None = None  # of each episode only so many: a demonstration ends where its task is done
    noise: Any = 0.0  # levels, dealt out to the environments: 0.0,0.1
    seed: int = 0
    n_envs: int | None = None  # null = as many as still give whole episodes
    threads: int | None = None  # physics threads; null = all cores
    progress: bool = True

    def __post_init__(self) -> None:
        if not self.out:
            raise ValueError("collect needs out=FILE, e.g. out=hopper-mine.npz")
        if (self.run is None) == (self.policy is None):
            raise ValueError("collect needs a policy: run=FOLDER, or env=NAME policy=random or policy=FILE")
        if self.policy is not None and self.env is None:
            raise ValueError(f"policy={self.policy} needs an environment, e.g. env=hopper-v4")
        if self.episodes is not None and self.steps is not None:
            raise ValueError("steps and episodes both give the data set's size; leave one out")
        if self.successful and self.episodes is None:
            raise ValueError("successful=true picks whole episodes; say how many, e.g. episodes=50")
        if not 0 <= self.seed < 2**62:
            raise ValueError(f"seed must lie in 0 ... 2**62 - 1, got {self.seed}")
        for name in ("steps", "episodes", "first_steps", "n_envs", "threads"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1 or null, got {value}")
        if self.steps == 1:
            raise ValueError("steps=1: a data set needs at least two rows")

    @property
    def levels(self) -> tuple[float, ...]:
        words = self.noise if isinstance(self.noise, (list, tuple)) else str(self.noise).split(",")
        try:
            return tuple(float(word) for word in words)
        except (TypeError, ValueError):
            raise ValueError(f"noise={self.noise}: must be numbers, e.g. noise=0.0,0.1") from None


@dataclass
class _Behavior:
    name: str
    act: Callable[[Tensor], Tensor]
    sample: Callable[[Tensor], Tensor] | None
    width: int  # of the widest layer


def collect_data(options: CollectOptions) -> Episodes:
    """Roll out as the options say; the progress line is on standard error."""
    levels = options.levels
    env_cfg, spec, behavior = _task(options)
    set_threads(None, behavior.width, torch.device("cpu"))
    name = env_cfg.id or env_cfg.name
    env_id = env_cfg.id or GYMNASIUM_IDS.get(env_cfg.name, env_cfg.name)
    changed = " ".join(f"{name}={value:g}" for name, value in dynamics(env_cfg).changed().items())
    origin = f"{env_id} with {changed}" if changed else None
    low, high = (None if changed else reference(env_id)) or (None, None)
    facts = Facts("rollouts", options.out, env_id, None, versions(), low, high, origin=origin)
    limit, wanted = spec.episode_length, options.episodes
    if wanted is None:
        steps = options.steps or _STEPS
        n_envs = options.n_envs or _lanes(steps, limit, len(levels), backend_of(env_cfg))
    elif limit == 0:
        raise ValueError(f"episodes={wanted}: env={name} has no time limit; give steps instead")
    else:
        n_envs = options.n_envs or -(-min(wanted, 64) // len(levels)) * len(levels)
        steps = n_envs * limit
    env = make_env(env_cfg, n_envs, seed=options.seed, stagger=False)

    def roll(seed: int) -> Episodes:
        return collect(
            behavior.act,
            env,
            facts,
            steps=steps,
            seed=seed,
            noise=levels,
            sample=behavior.sample,
            on_step=_Ticker(progress),
        )

    try:
        with Progress(f"{behavior.name} {name}", steps, enabled=options.progress) as progress:
            if wanted is None:
                episodes = roll(options.seed)
            else:
                episodes = demonstrations(
                    roll, episodes=wanted, n_envs=n_envs, seed=options.seed, successful=options.successful
                )
    finally:
        env.close()
    episodes.episode_extras["episode_policy"] = np.full(episodes.n_episodes, behavior.name)
    return episodes if options.first_steps is None else episodes.first_steps(options.first_steps)


def _task(options: CollectOptions) -> tuple[EnvConfig, EnvSpec, _Behavior]:
    """The environment, what it is like, and the policy that acts in it."""
    learner = None
    if options.run is not None:
        folder = Path(options.run)
        cfg, learner = load_run(folder, options.checkpoint)
        env_cfg = cfg.env if options.env is None else _env_config(options.env)
        if options.env is not None:
            _same_sizes(_spec(cfg.env), _spec(env_cfg), f"run={folder}", options.env)
    else:
        env_cfg = _env_config(str(options.env))
    env_cfg = replace(env_cfg, threads=options.threads or env_cfg.threads)
    spec = _spec(env_cfg)
    if learner is not None:
        return env_cfg, spec, _of_learner(folder.resolve().name, learner)
    return env_cfg, spec, _behavior(str(options.policy), spec, env_cfg.id or env_cfg.name)


def _spec(cfg: EnvConfig) -> EnvSpec:
    env = make_env(cfg, 1, stagger=False)
    env.close()
    return env.spec


def _same_sizes(mine: EnvSpec, other: EnvSpec, where: str, env: str) -> None:
    """ValueError unless a policy for one acts in the other."""
    for field in ("obs_dim", "action_dim", "n_actions", "nvec"):
        a, b = getattr(mine, field), getattr(other, field)
        if a != b:
            raise ValueError(f"{where} was trained with {field} {a}, env={env} has {b}")


class _Ticker:
    """Shows rows and rows/s, ten times a second."""

    def __init__(self, progress: Progress):
        self.progress, self.begin, self.next = progress, time.perf_counter(), 0.0

    def __call__(self, rows: int) -> None:
        now = time.perf_counter()
        if now >= self.next:
            self.next = now + 0.1
            self.progress.update(rows, {"time/steps_per_s": rows / max(now - self.begin, 1e-9)})


def _env_config(name: str) -> EnvConfig:
    if name in ENVIRONMENTS and name != "gym":
        return EnvConfig(name=name)
    if not set(name) & set(":/") and "-v" not in name:
        raise ValueError(f"{unknown('env', name, ENVIRONMENTS)} Or give a Gymnasium id, e.g. env=LunarLander-v3.")
    return EnvConfig(name="gym", id=name)


def _lanes(steps: int, limit: int, levels: int, backend: str) -> int:
    """A multiple of the number of noise levels, so that each gets the same share."""
    most = _MOST_LANES.get(backend, 64)
    whole = steps // (_EPISODES_A_LANE * limit) if limit else most
    return -(-max(1, min(most, whole)) // levels) * levels


def _behavior(name: str, spec: EnvSpec, env: str) -> _Behavior:
    if name == "random":
        return _Behavior("random", _random(spec), None, 0)
    if name == "expert":
        if not env.startswith(metaworld.PREFIX):
            raise ValueError(f"policy=expert: only the tasks of Meta-World bring one, env={env} does not")
        return _Behavior("expert", metaworld.expert(env), None, 0)
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"policy={path}: no such file; give random, expert, a weights .npz or a model's .zip")
    if path.suffix == ".zip":
        from ctrlrl.api import load

        model = load(path, device="cpu")
        own = Spaces(model.observation_space, model.action_space).env_spec(torch.device("cpu"))
        _same_sizes(own, spec, f"policy={path}", env)
        return _of_learner(path.stem, model.learner)
    policy = PublishedPolicy(path)
    policy.check(spec, env)
    return _Behavior(path.stem, policy.act, policy.sample if policy.stochastic else None, policy.width)


def _of_learner(name: str, learner: Any) -> _Behavior:
    return _Behavior(name, acting(learner), acting(learner, deterministic=False), widest_layer(learner.cfg))


def _random(spec: EnvSpec) -> Callable[[Tensor], Tensor]:
    def act(obs: Tensor) -> Tensor:
        if spec.n_actions:
            return torch.randint(spec.n_actions, (len(obs),), device=obs.device)
        return torch.rand(len(obs), spec.action_dim, device=obs.device) * 2.0 - 1.0

    return act

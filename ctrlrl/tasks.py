"""From a task's configuration, or an object that a user made, to its vectorised environment, spaces and device."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch

from ctrlrl.config import EnvConfig, TrainConfig, own_settings
from ctrlrl.envs.dynamics import Dynamics
from ctrlrl.envs.sim import BatchedSim, Sim
from ctrlrl.envs.spaces import Spaces
from ctrlrl.envs.timeout import TimedEnv
from ctrlrl.registry import (
    ALGORITHMS,
    GYMNASIUM_IDS,
    ROBOTS,
    SAME_SPACES,
    SIMULATORS,
    TOKEN_TASKS,
    lookup,
    unknown,
)
from ctrlrl.types import EnvSpec, VecEnv

ON_ANY_DEVICE = ("torch", "mujoco_warp", "tokens")  # backends that step where the learner computes


def make_env(
    cfg: EnvConfig,
    n_envs: int,
    *,
    seed: int | None = None,
    device: torch.device | str = "cpu",
    stagger: bool | None = None,
    compile: bool = False,
    render: bool = False,
    episode_length: int | None = None,
    first_lane: int = 0,
) -> VecEnv:
    """One vectorised environment of the configured task; `stagger` overrides the configuration (evaluation: False).

    first_lane: the number of the first lane, of which the random numbers on the torch and mujoco backends depend.
    episode_length: steps until truncation on the torch, mujoco and mujoco_warp backends; None is the task's own limit.
    """
    device, backend = torch.device(device), backend_of(cfg)
    if backend == "none":
        raise ValueError("env=none: only learning from a data set goes without an environment; train with env=NAME")
    if backend == "tokens":
        raise ValueError(f"env={cfg.name} is answered by a language model: use algo=grpo, or another method for tokens")
    stagger = cfg.stagger if stagger is None else stagger
    if cfg.timeout is not None and backend != "gymnasium":
        raise ValueError(f"env.timeout is for environments that Python code steps; env={cfg.name} runs on {backend}")
    changes = dynamics(cfg)
    if backend == "torch":
        return BatchedSim(
            make_sim(cfg),
            n_envs,
            first_lane=first_lane,
            seed=seed,
            device=device,
            stagger=stagger,
            compile=compile,
            episode_length=episode_length,
        )
    if backend == "mujoco_warp":
        from ctrlrl.envs.mujoco_warp import MujocoWarp

        return MujocoWarp(
            cfg.name,
            n_envs,
            seed=seed,
            device=device,
            stagger=stagger,
            episode_length=episode_length,
            room=cfg.contact_room,
            dynamics=changes,
        )
    if device.type != "cpu":
        raise ValueError(
            f"env={cfg.name} runs on {backend}, which steps on the CPU, got device={device}. Use device=cpu."
        )
    if backend == "mujoco":
        from ctrlrl.envs.mujoco_cpu import MujocoPool

        return MujocoPool(
            cfg.name,
            n_envs,
            first_lane=first_lane,
            seed=seed,
            n_threads=cfg.threads,
            exact=cfg.exact,
            stagger=stagger,
            episode_length=episode_length,
            dynamics=changes,
        )
    gym_id = cfg.id or GYMNASIUM_IDS[cfg.name]
    if backend == "envpool":
        from ctrlrl.envs.envpool import EnvPoolEnv

        return EnvPoolEnv(gym_id, n_envs=n_envs, seed=seed, n_threads=cfg.threads)
    from ctrlrl.envs.gymnasium import GymnasiumEnv

    env = GymnasiumEnv(gym_id, n_envs=n_envs, seed=seed, render_mode="rgb_array" if render else None)
    return env if cfg.timeout is None else TimedEnv(env, cfg.timeout)


def eval_env(cfg: TrainConfig) -> EnvConfig:
    """What a run is judged in: its own environment, with the settings that eval.env changes."""
    changes, own = cfg.eval.env, [f.name for f in fields(cfg.env) if f.name not in ("name", "id")]
    for name in changes:
        if name not in own:
            raise ValueError(f"eval.env: {unknown('key', name, own)}")
    try:
        found = replace(cfg.env, **changes)
        if changes:
            dynamics(found)
    except ValueError as error:
        raise ValueError(str(error).replace("env.", "eval.env.")) from None
    return found


def dynamics(cfg: EnvConfig) -> Dynamics:
    """What a robot's simulator is to have changed; ValueError where its backend cannot change anything."""
    found, backend = own_settings(cfg, Dynamics), backend_of(cfg)
    for name, value in found.changed().items():
        if backend not in ("mujoco", "mujoco_warp"):
            raise ValueError(
                f"env.{name}={value:g}: env.backend={backend} steps the robot as it is; use env.backend=mujoco"
            )
    return found


def make_sim(cfg: EnvConfig) -> Sim:
    """The torch-native simulator of a task with the settings of its configuration."""
    kind = lookup(SIMULATORS, cfg.name, "environment")
    return kind() if kind.Settings is None else kind(own_settings(cfg, kind.Settings))


def backend_of(cfg: EnvConfig) -> str:
    """The backend that `auto` stands for; ValueError where the named one does not have the task."""
    if cfg.name == "gym" and not cfg.id:
        raise ValueError("env=gym needs a Gymnasium id, e.g. env.id=LunarLander-v3")
    if cfg.name == "none":
        return "none"
    has = {"torch": cfg.name in SIMULATORS, "mujoco": cfg.name in ROBOTS}
    has["mujoco_warp"] = has["mujoco"]
    has["tokens"] = cfg.name in TOKEN_TASKS
    has["gymnasium"] = has["envpool"] = cfg.id is not None or cfg.name in GYMNASIUM_IDS
    if not any(has.values()):
        raise ValueError(unknown("environment", cfg.name, [*SIMULATORS, *ROBOTS, *TOKEN_TASKS, "gym"]))
    if cfg.backend == "auto":
        return next(name for name, there in has.items() if there)
    if not has[cfg.backend]:
        able = ", ".join(name for name, there in has.items() if there)
        raise ValueError(f"env.backend={cfg.backend} does not have env={cfg.name}; it runs on: {able}")
    return cfg.backend


def env_extras(cfg: EnvConfig) -> tuple[str, ...]:
    """What the steps of a configured task are promised to tell besides, without making the environment."""
    return lookup(SIMULATORS, cfg.name, "environment").extras if backend_of(cfg) == "torch" else ()


def env_spec(cfg: TrainConfig, device: torch.device) -> EnvSpec:
    """The task's spec with one environment, on the learner's device."""
    env = make_env(cfg.env, 1, seed=0, stagger=False, device=env_device(cfg))
    env.close()
    return env.spec._replace(device=device)


def same_spaces(cfg: TrainConfig, task: EnvConfig) -> None:
    """ValueError where the environment that judges a run has other spaces than its own."""
    if not cfg.eval.env:
        return
    here, there = (env_spec(replace(cfg, env=env), torch.device("cpu")) for env in (cfg.env, task))
    for name in ("obs_dim", "action_dim", "n_actions", "nvec"):
        if (own := getattr(here, name)) != (other := getattr(there, name)):
            changed = ", ".join(f"eval.env.{key}={value}" for key, value in cfg.eval.env.items())
            raise ValueError(f"{changed}: the policy is for {name}={own}, that environment has {other}")


def env_device(cfg: TrainConfig, env: EnvConfig | None = None) -> torch.device:
    """Where the environments of a run step, or another one of its configurations."""
    return device_of(cfg) if backend_of(env or cfg.env) in ON_ANY_DEVICE else torch.device("cpu")


def is_staggered(cfg: EnvConfig, spec: EnvSpec) -> bool:
    """Whether the first episode of every lane is cut short by design, which takes a time limit."""
    return cfg.stagger and spec.episode_length > 0 and backend_of(cfg) not in ("gymnasium", "envpool")


def resolve_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={name}: this machine has no CUDA device that torch can use. Use device=cpu.")
    if device.type == "cuda" and device.index is not None:
        if device.index >= torch.cuda.device_count():
            raise ValueError(f"device={name}: this machine has cuda:0 to cuda:{torch.cuda.device_count() - 1}")
        torch.cuda.set_device(device)  # graph capture and generators follow the current device
    return device


def device_of(cfg: TrainConfig) -> torch.device:
    """Where a run computes; `auto` is the CPU for environments that step there while learning."""
    meets_env = cfg.env_steps(lookup(ALGORITHMS, cfg.algo.name, "algorithm")) > 0
    if cfg.device == "auto" and meets_env and backend_of(cfg.env) not in ON_ANY_DEVICE:
        return torch.device("cpu")
    return resolve_device(cfg.device)


def as_vec_env(env: Any, *, seed: int | None = None, n_envs: int = 1) -> VecEnv:
    """A ctrlrl VecEnv as it is; SB3's, another simulator's or Gymnasium's environment behind its adapter.

    n_envs: how many a function makes.
    """
    if isinstance(env, VecEnv) and isinstance(env.spec, EnvSpec):
        return env
    from ctrlrl.envs.adapters import adapt
    from ctrlrl.envs.gymnasium import GymnasiumEnv
    from ctrlrl.envs.sb3 import SB3Env, is_sb3

    if is_sb3(env):
        return SB3Env(env, seed=seed)
    return adapt(env, seed=seed) or GymnasiumEnv(env, n_envs=n_envs if callable(env) else 1, seed=seed)


def spaces(cfg: EnvConfig, spec: EnvSpec) -> Spaces:
    """Observation and action space of a named task, in the units its users know."""
    gym_id = cfg.id or SAME_SPACES.get(cfg.name, GYMNASIUM_IDS.get(cfg.name))
    return Spaces.of_id(gym_id) if gym_id else Spaces.of_spec(spec)


def spaces_of(env: Any, spec: EnvSpec) -> Spaces:
    """Of an environment object; of a simulator's, those that its adapter shows."""
    from ctrlrl.envs.adapters import kinds

    return Spaces.of_spec(spec) if kinds(env) not in ([], ["envpool"]) else Spaces.of_env(env, spec)

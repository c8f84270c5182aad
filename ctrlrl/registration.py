"""Gymnasium's registry: every simulator and robot under "ctrlrl/<Name>", for `gymnasium.make_vec`."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from ctrlrl.registry import GYMNASIUM_IDS, ROBOTS, SIMULATORS, env_settings

ENTRY_POINT = "ctrlrl.registration:make_vector"


def ids() -> dict[str, str]:
    """Gymnasium id -> ctrlrl name: "ctrlrl/Pendulum", "ctrlrl/HalfCheetah" (v5 rules), "ctrlrl/HalfCheetah-v4"."""
    simulators = {f"ctrlrl/{path.rpartition(':')[2]}": name for name, path in SIMULATORS.items()}
    robots = {f"ctrlrl/{gym_id.removesuffix('-v5')}": name for name, gym_id in ROBOTS.items()}
    return simulators | robots


def register() -> None:
    """Enter all ids; those that are there already stay."""
    for gym_id, name in ids().items():
        if gym_id in gym.registry:
            continue
        known = gym.registry.get(GYMNASIUM_IDS.get(name, ""))
        spec = EnvSpec(
            gym_id,
            vector_entry_point=ENTRY_POINT,
            max_episode_steps=None if known is None else known.max_episode_steps,
            reward_threshold=None if known is None else known.reward_threshold,
            kwargs={"task": name},
        )
        # "-v4" is part of the name here: as version 4 it would be the newest, and `make_vec` would take it for
        # "ctrlrl/HalfCheetah"; gym.register refuses the pair for that reason
        spec.name, spec.version = gym_id.partition("/")[2], None
        gym.registry[gym_id] = spec


def make_vector(
    num_envs: int,
    *,
    task: str,
    device: str = "cpu",
    compile: bool = False,
    exact: bool = False,
    threads: int | None = None,
    stagger: bool = False,
    max_episode_steps: int | None = None,
    render_mode: str | None = None,
    **settings: Any,
) -> Any:
    """The vector entry point. compile: fuse a native simulator's step; exact, threads: as in `env.exact`, `env.threads`
    of the command line; stagger: spread the clocks of the first episodes; max_episode_steps: None is the task's own;
    settings: of the task itself, e.g. `size` of LotSizing.
    """
    from ctrlrl import tasks
    from ctrlrl.config import env_config_with
    from ctrlrl.envs.vector import CtrlrlVectorEnv

    kind = env_config_with(env_settings(task))
    cfg = kind(name=task, exact=exact, threads=threads, stagger=stagger, **settings)
    env = tasks.make_env(
        cfg, num_envs, device=tasks.resolve_device(device), compile=compile, episode_length=max_episode_steps
    )
    with warnings.catch_warnings():  # Gymnasium calls the v4 tasks, whose spaces are asked for, out of date
        warnings.simplefilter("ignore", DeprecationWarning)
        spaces = tasks.spaces(cfg, env.spec)
    return CtrlrlVectorEnv(env, spaces, render_mode=render_mode, stagger=stagger)

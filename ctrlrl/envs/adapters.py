"""Recognise another simulator's environment by its attributes and put it behind the VecEnv protocol.

No simulator is imported. Each rule is a list of attributes that only its own kind has; no object fits two rules, and
Gymnasium's, Stable-Baselines3's and ctrlrl's vector environments fit none.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import gymnasium as gym

from ctrlrl.envs.brax import BraxEnv
from ctrlrl.envs.envpool import EnvPoolEnv
from ctrlrl.envs.isaac import IsaacGymEnv, IsaacLabEnv
from ctrlrl.envs.maniskill import ManiSkillEnv
from ctrlrl.envs.rsl_rl import RslRlEnv
from ctrlrl.types import VecEnv


def adapt(env: Any, *, seed: int | None = None, **options: Any) -> VecEnv | None:
    """The environment behind its adapter, None where no rule knows it.

    options: the adapter's own, e.g. reset_timing for an Isaac Gym task, groups and stagger for Isaac Lab and rsl_rl,
    action_scale, n_envs for Brax. TypeError for one that the adapter does not have.
    """
    kind = next(iter(kinds(env)), None)
    if kind is None:
        return None
    adapter = ADAPTERS[kind]
    known = [name for name in inspect.signature(adapter).parameters if name not in ("env", "seed")]
    for name in options:
        if name not in known:
            raise TypeError(f"an environment of {kind} takes no option {name!r}; it takes {', '.join(known) or 'none'}")
    return adapter(env, seed=seed, **options)


def kinds(env: Any) -> list[str]:
    """Names of the rules that claim an object: one or none."""
    return [name for name, claims in RULES.items() if claims(env)]


def _is_envpool(env: Any) -> bool:
    """async_reset, recv, send and config."""
    return _has(env, "async_reset", "recv", "send", "config")


def _is_isaac_gym(env: Any) -> bool:
    """A VecTask: progress_buf, reset_buf, reset_idx and rl_device."""
    return _has(env, "progress_buf", "reset_buf", "reset_idx", "rl_device")


def _is_rsl_rl(env: Any) -> bool:
    """get_observations, num_actions and episode_length_buf: rsl_rl's own VecEnv, Isaac Lab's wrapper, legged_gym."""
    return _has(env, "get_observations", "num_actions", "episode_length_buf") and not _is_isaac_gym(env)


def _is_isaac_lab(env: Any) -> bool:
    """Innermost: episode_length_buf, single_action_space, physics_dt; not inside a wrapper for rsl_rl or SB3."""
    inner = _inner(env)
    return _has(inner, "episode_length_buf", "single_action_space", "physics_dt") and not (
        _is_rsl_rl(env) or hasattr(env, "step_async")
    )


def _is_maniskill(env: Any) -> bool:
    """Innermost: elapsed_steps and reconfiguration_freq, which only ManiSkill's BaseEnv has."""
    return _has(_inner(env), "elapsed_steps", "reconfiguration_freq")


def _is_brax(env: Any) -> bool:
    """observation_size and action_size, looked up without calling them: Brax resets to find out."""
    names = ("observation_size", "action_size", "reset", "step")
    return not isinstance(env, gym.Env | gym.vector.VectorEnv) and all(
        inspect.getattr_static(env, name, None) is not None for name in names
    )


def _has(env: Any, *names: str) -> bool:
    return all(hasattr(env, name) for name in names)


def _inner(env: Any) -> Any:
    return getattr(env, "unwrapped", env)


RULES: dict[str, Callable[[Any], bool]] = {
    "envpool": _is_envpool,
    "isaac_gym": _is_isaac_gym,
    "rsl_rl": _is_rsl_rl,
    "isaac_lab": _is_isaac_lab,
    "maniskill": _is_maniskill,
    "brax": _is_brax,
}
ADAPTERS: dict[str, Callable[..., VecEnv]] = {
    "envpool": EnvPoolEnv,
    "isaac_gym": IsaacGymEnv,
    "rsl_rl": RslRlEnv,
    "isaac_lab": IsaacLabEnv,
    "maniskill": ManiSkillEnv,
    "brax": BraxEnv,
}

"""What a user gives as an environment, and what they get back: ids, Gymnasium's, SB3's and ctrlrl's own, all ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

import torch

from ctrlrl import build, tasks
from ctrlrl.config import EnvConfig, env_config_with
from ctrlrl.envs.sb3 import SB3Env, as_sb3, is_sb3
from ctrlrl.registry import GYMNASIUM_IDS, ROBOTS, SIMULATORS, env_settings, unknown


def env_config(name: str, **options: Any) -> EnvConfig:
    """Known Gymnasium ids run on the library's own simulators, which follow the same rules; others on Gymnasium."""
    native = {gym_id: own for own, gym_id in GYMNASIUM_IDS.items()}.get(name, name)
    if native in SIMULATORS or native in GYMNASIUM_IDS:
        kind = env_config_with(env_settings(native))
        for option in options:
            if option not in (known := sorted(f.name for f in fields(kind))):
                raise TypeError(f"{name}: {unknown('setting', option, known)}")
        return kind(name=native, **options)
    for option in options:
        if option not in (known := sorted({f.name for f in fields(EnvConfig)} - {"name", "id"})):
            raise TypeError(f"{name}: {unknown('setting', option, known)}")
    return EnvConfig(name="gym", id=name, **options)


def make_env(name: str, n_envs: int = 1, *, seed: int | None = None, device: str = "cpu", **options: Any) -> Any:
    """A ctrlrl VecEnv by name ("pendulum", "halfcheetah") or Gymnasium id; options: EnvConfig's, and the task's own."""
    return tasks.make_env(env_config(name, **options), n_envs, seed=seed, device=device)


def has_sb3() -> bool:
    return find_spec("stable_baselines3") is not None


def tells_episodes(env: Any) -> bool:
    """Whether a ctrlrl VecEnv's infos may say how an episode ended better than its rewards do.

    An SB3 VecEnv, and Gymnasium environments inside a Monitor or RecordEpisodeStatistics: wrappers around those change
    the rewards that a learner sees, not the returns that are reported.
    """
    if isinstance(env, SB3Env):
        return True
    for lane in getattr(getattr(env, "env", None), "envs", ()):
        while hasattr(lane, "env"):
            if type(lane).__name__ in ("Monitor", "RecordEpisodeStatistics"):
                return True
            lane = lane.env
    return False


class Connection:
    """One environment: `env`, as the loop steps it, and `face()`, as its user does.

    spaces:    of one lane, in the user's units. staggered: the first episode of every lane is cut short.
    task:      what is known of it by name.
    """

    def __init__(
        self,
        env: Any,
        spaces: build.Spaces,
        *,
        staggered: bool = False,
        face: Any = None,
        task: EnvConfig | None = None,
    ):
        self.env, self.spaces, self.staggered, self._face = env, spaces, staggered, face
        self.task = EnvConfig() if task is None else task

    def face(self) -> Any:
        """The SB3 VecEnv that was given, else one made of `env`; `env` itself without SB3, or where it pays vectors."""
        if self._face is None:
            plain = self.env.spec.reward_dim == 1 and has_sb3()
            self._face = as_sb3(self.env, self.spaces, stagger=self.staggered) if plain else self.env
        return self._face

    def pending_seed(self) -> int | None:
        """What SB3's `seed` was called with since the last reset."""
        return (getattr(self._face, "_seeds", None) or [None])[0]

    def vec_normalize(self) -> Any:
        """SB3's VecNormalize wrapper around the environment, or None."""
        if not hasattr(self._face, "venv"):
            return None
        from stable_baselines3.common.vec_env import unwrap_vec_normalize

        return unwrap_vec_normalize(self._face)


def connect(env: Any, n_envs: int, *, seed: int | None, device: torch.device) -> Connection:
    """What a model takes as `env`, ready to be stepped. n_envs: lanes of an id or a function; an object has its own."""
    if isinstance(env, str):
        cfg = env_config(env)
        backend = tasks.backend_of(cfg)
        where = device if backend == "torch" else torch.device("cpu")
        vec_env = tasks.make_env(cfg, n_envs, seed=seed, device=where, stagger=n_envs > 1)
        staggered = n_envs > 1 and backend != "gymnasium" and vec_env.spec.episode_length > 0
        return Connection(vec_env, tasks.spaces(cfg, vec_env.spec), staggered=staggered, task=cfg)
    if type(env).__module__ == "ctrlrl.envs.sb3_face" and env._writer is None:
        # one of ours in SB3's clothes: stepped without them
        own = build.Spaces(env.observation_space, env.action_space)
        return Connection(env.env, own, face=env, task=_robot(env.env))
    vec_env = tasks.as_vec_env(env, seed=seed, n_envs=n_envs)
    gym_id = getattr(getattr(env, "spec", None), "id", None)
    task = env_config(gym_id) if isinstance(gym_id, str) else _robot(vec_env)
    staggered = bool(getattr(vec_env, "stagger", False)) and vec_env.spec.episode_length > 0
    face = env if is_sb3(env) else None
    return Connection(vec_env, tasks.spaces_of(env, vec_env.spec), staggered=staggered, face=face, task=task)


def _robot(env: Any) -> EnvConfig | None:
    """What is known by name of one of our own robots."""
    name = build.name_of(env)
    return env_config(name) if name in ROBOTS else None


def asked_for(env: Any, n_envs: int, *, seed: int | None, device: torch.device) -> Connection:
    """The same; ValueError where an object has not the number of lanes that was asked for."""
    connection = connect(env, n_envs, seed=seed, device=device)
    lanes = connection.env.spec.n_envs
    if n_envs not in (1, lanes):
        raise ValueError(
            f"n_envs={n_envs}: env is an object of {lanes} environment{'s' * (lanes > 1)}; give its id, or a function "
            "that makes one"
        )
    return connection


def check_data(episodes: build.Episodes, spaces: build.Spaces, connection: Connection | None) -> list[str]:
    """What is to be said of a data set beside an environment; ValueError where it is of another task."""
    task = EnvConfig() if connection is None else connection.task
    build.same_task(episodes, spaces.env_spec(torch.device("cpu")), str(spaces.observation))
    build.same_robot(episodes.facts, task)
    if connection is not None and tells_box(connection):
        build.same_box(episodes.facts, lambda: spaces.action, str(task.id or "the environment"))
    return build.notices(episodes.facts, task)


def tells_box(connection: Connection) -> bool:
    """Whether the bounds of actions are a task's own, not the [-1, 1] that ctrlrl's environments take."""
    from ctrlrl.envs.gymnasium import GymnasiumEnv

    box: Any = connection.spaces.action
    own_units = hasattr(box, "low") and bool((box.low == -1.0).all() and (box.high == 1.0).all())
    return isinstance(connection.env, GymnasiumEnv | SB3Env) or not own_units


def make_vec_env(
    env_id: str | Callable[..., Any],
    n_envs: int = 1,
    seed: int | None = None,
    start_index: int = 0,
    monitor_dir: str | None = None,
    wrapper_class: Callable[[Any], Any] | None = None,
    env_kwargs: dict[str, Any] | None = None,
    vec_env_cls: Any = None,
    vec_env_kwargs: dict[str, Any] | None = None,
    monitor_kwargs: dict[str, Any] | None = None,
    wrapper_kwargs: dict[str, Any] | None = None,
) -> Any:
    """SB3's make_vec_env. An id that the library's own simulators know runs on them, all lanes in one fast step.

    Anything that touches the single environments (a wrapper, env_kwargs, a vec_env_cls, ...) makes SB3's own VecEnv.
    monitor_dir: a simulator's episodes all go to one file there, monitor.csv; SB3 writes one a lane.
    Without SB3 installed the result is a ctrlrl VecEnv, and what needs SB3 is refused.
    """
    given = {
        "wrapper_class": wrapper_class,
        "env_kwargs": env_kwargs,
        "vec_env_cls": vec_env_cls,
        "vec_env_kwargs": vec_env_kwargs,
        "monitor_kwargs": monitor_kwargs,
        "wrapper_kwargs": wrapper_kwargs,
    }
    plain = not any(given.values()) and start_index == 0
    cfg = env_config(env_id) if isinstance(env_id, str) else None
    native = plain and cfg is not None and cfg.name in (*SIMULATORS, *ROBOTS)
    if not has_sb3():
        named = [name for name, value in (*given.items(), ("monitor_dir", monitor_dir)) if value]
        if named:
            raise ImportError(f"make_vec_env: {named[0]} needs Stable-Baselines3: pip install 'ctrlrl[sb3]'")
        if cfg is not None:
            return tasks.make_env(cfg, n_envs, seed=seed, stagger=False)
        from ctrlrl.envs.gymnasium import GymnasiumEnv

        return GymnasiumEnv(env_id, n_envs=n_envs, seed=seed)
    if native:
        assert cfg is not None
        env = tasks.make_env(cfg, n_envs, seed=seed, stagger=False)
        return as_sb3(env, tasks.spaces(cfg, env.spec), seed=seed, monitor_dir=monitor_dir)
    from stable_baselines3.common.env_util import make_vec_env as of_sb3

    return of_sb3(env_id, n_envs, seed, start_index, monitor_dir, **given)

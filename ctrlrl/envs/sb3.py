"""Stable-Baselines3's vector environments, both ways: an SB3 VecEnv as a ctrlrl VecEnv, and the reverse."""

from __future__ import annotations

import os
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from ctrlrl.envs.gate import SUCCESS_KEYS, Gate
from ctrlrl.envs.gymnasium import time_limit
from ctrlrl.envs.spaces import Spaces
from ctrlrl.envs.spec import Array
from ctrlrl.types import TimeStep, VecEnv

Infos = list[dict[str, Any]]


def is_sb3(env: Any) -> bool:
    """Whether `env` is a VecEnv of SB3 or has its methods. Gymnasium's asynchronous ones name two of them alike."""
    names = ("num_envs", "step_async", "step_wait", "observation_space", "action_space")
    return all(hasattr(env, name) for name in names) and not isinstance(env, gym.vector.VectorEnv)


class SB3Env:
    """The B lanes of an SB3 VecEnv (or VecEnvWrapper); float32 observations (an image: uint8) and rewards on the CPU.

    venv: DummyVecEnv, SubprocVecEnv, VecNormalize, VecFrameStack, ..., or an object with their methods.
    seed: of the first reset when that names none; SB3 gives lane i seed + i. A venv without `seed` keeps its own.

    final_obs is info["terminal_observation"] as the outermost wrapper shows it, so VecNormalize's is normalised too.
    extras["success"] [B] is as in `GymnasiumEnv`. `infos` are those of the last step, one dict a lane.
    """

    def __init__(self, venv: Any, *, seed: int | None = None) -> None:
        self.venv = venv
        lanes = _lanes(venv)
        self.name = _name(venv, lanes)
        self.observation_space, self.action_space = venv.observation_space, venv.action_space
        clock = time_limit(lanes[0]) if lanes else None
        self._gate = Gate(
            self.name,
            self.observation_space,
            self.action_space,
            n_envs=int(venv.num_envs),
            episode_length=0 if clock is None else int(clock._max_episode_steps),
        )
        self.spec = self._gate.spec
        self.infos: Infos = [{} for _ in range(self.spec.n_envs)]
        self._seed = seed
        self._started = False

    def reset(self, seed: int | None = None) -> Tensor:
        """Start all lanes anew; returns observations [B, O]."""
        seed, self._seed = (self._seed if seed is None else seed), None
        if seed is not None and hasattr(self.venv, "seed"):
            self._call("seed", seed)  # takes effect in the reset
        obs = self._call("reset")
        self._started = True
        return torch.from_numpy(self._gate.obs(obs, "reset observation"))

    def step(self, action: Tensor) -> TimeStep:
        """action [B, A] in [-1, 1], or [B] or [B, D] int64."""
        if not self._started:
            raise ValueError(f"{self.name}: step came before reset; call reset(seed) once first.")
        gate = self._gate
        raw_obs, raw_reward, raw_done, self.infos = self._step(gate.action(action))
        final_obs = obs = gate.obs(raw_obs)
        reward = gate.reward(raw_reward)
        terminated = np.array(raw_done, dtype=bool)
        truncated = np.zeros(self.spec.n_envs, dtype=bool)
        told: list[tuple[int, Any]] = []
        lanes = terminated.nonzero()[0].tolist()
        for lane in lanes:
            info = self.infos[lane]
            if info.get("TimeLimit.truncated"):
                truncated[lane], terminated[lane] = True, False
            key = next((key for key in SUCCESS_KEYS if key in info), None)
            if key is not None:
                told.append((lane, info[key]))
        if lanes:
            final_obs = gate.final_obs(obs, lanes, [self._final(self.infos[lane]) for lane in lanes])
        return gate.time_step(obs, final_obs, reward, terminated, truncated, gate.success(told))

    def render(self, lane: int = 0) -> Array:
        """The current picture of one lane, uint8 [height, width, 3]."""
        if not 0 <= lane < self.spec.n_envs:
            raise ValueError(f"{self.name}: lane must lie in 0...{self.spec.n_envs - 1}, got {lane}")
        mode = getattr(self.venv, "render_mode", None)
        if mode != "rgb_array":
            raise ValueError(f"{self.name}: pictures need render_mode 'rgb_array', got {mode!r}; make it with that.")
        return np.asarray(self._call("get_images")[lane], dtype=np.uint8)

    def state_dict(self) -> dict[str, Tensor]:
        """Empty: the state inside an SB3 environment cannot be had."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._gate.no_state(state)

    def close(self) -> None:
        self.venv.close()

    def _step(self, actions: Array) -> tuple[Any, Any, Any, Infos]:
        if hasattr(self.venv, "step"):  # what SB3's own algorithms call, so a wrapper may have overridden it
            return self._call("step", actions)
        self._call("step_async", actions)
        return self._call("step_wait")

    def _call(self, method: str, *args: Any) -> Any:
        """Call the environment; whatever it raises comes out as one line with its name on it."""
        try:
            return getattr(self.venv, method)(*args)
        except Exception as error:
            raise self._gate.failure(method, error) from error

    def _final(self, info: dict[str, Any]) -> Any:
        if info.get("terminal_observation") is None:
            raise ValueError(
                f"{self.name}: an episode ended without infos[i]['terminal_observation'], which an SB3 VecEnv must "
                "give: step_wait has to put the last observation there before it resets the lane."
            )
        return info["terminal_observation"]


def as_sb3(
    env: VecEnv,
    spaces: Spaces | None = None,
    *,
    seed: int | None = None,
    monitor_path: str | os.PathLike[str] | None = None,
    monitor_dir: str | os.PathLike[str] | None = None,
    info_keywords: tuple[str, ...] = (),
    stagger: bool = False,
) -> Any:
    """A ctrlrl VecEnv as a real `stable_baselines3.common.vec_env.VecEnv`.

    spaces:        what SB3 sees; None takes the environment's own, or else ctrlrl's units (actions in [-1, 1]).
    seed:          of the first reset; a later `seed(s)` waits for the next reset, as SB3 does it.
    monitor_path:  file for the finished episodes in SB3's Monitor format, with `info_keywords` as further columns.
    monitor_dir:   the same as monitor_dir/monitor.csv; `load_results(monitor_dir)` reads it.
    stagger:       False starts every episode at its beginning, whatever the environment was made with.

    Infos hold terminal_observation, TimeLimit.truncated, episode {r, l, t} and, where it is known, is_success.
    """
    try:
        from ctrlrl.envs.sb3_face import SB3Face
    except ImportError as error:
        raise ImportError("as_sb3 needs Stable-Baselines3: pip install 'ctrlrl[sb3]'") from error
    if monitor_dir is not None:
        if monitor_path is not None:
            raise ValueError("as_sb3: give monitor_path or monitor_dir, not both")
        monitor_path = os.path.join(monitor_dir, "monitor.csv")
    face = SB3Face(env, spaces, monitor_path=monitor_path, info_keywords=info_keywords, stagger=stagger)
    if seed is not None:
        face.seed(seed)
    return face


def _innermost(venv: Any) -> Any:
    while hasattr(venv, "venv"):
        venv = venv.venv
    return venv


def _lanes(venv: Any) -> list[gym.Env[Any, Any]]:
    """The single environments inside, where they live in this process; else empty."""
    return [lane for lane in getattr(_innermost(venv), "envs", ()) if isinstance(lane, gym.Env)]


def _name(venv: Any, lanes: list[gym.Env[Any, Any]]) -> str:
    """The registered id, else the class of the innermost environment."""
    if not lanes:
        return type(_innermost(venv)).__name__
    return lanes[0].spec.id if lanes[0].spec is not None else type(lanes[0].unwrapped).__name__

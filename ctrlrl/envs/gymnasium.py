"""Gymnasium environments as a ctrlrl VecEnv: an id, one environment, or a vector environment in any autoreset mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import TimeLimit
from torch import Tensor

from ctrlrl.envs.spec import Array, action_codec, env_spec, obs_codec
from ctrlrl.types import TimeStep

SUCCESS_KEYS = ("is_success", "success")


class GymnasiumEnv:
    """B Gymnasium environments stepped in this process; float32 observations and rewards on the CPU.

    env:            an id ("Hopper-v5"), a function that makes one environment, one gym.Env (then n_envs = 1), or a
                    gym.vector.VectorEnv, which keeps its own number of environments and its own autoreset mode.
    seed:           of the first reset when that names none; environment i gets seed + i.
    stagger:        spread the first episodes' clocks evenly over the time limit, so that not all lanes time out in one
                    step. The first episode of lane i is then shorter than the limit.
    env_kwargs:     passed to gymnasium.make for an id.
    autoreset_mode: what a given VectorEnv does at an episode's end, if its metadata does not say.

    Every step follows the SAME_STEP rule of types.TimeStep, except on a vector environment in NEXT_STEP mode: there the
    step after an episode's end is only a reset, and extras["mask"] is False for that lane (it is present at every step
    of such an environment). extras["success"] [B] holds 1 or 0 where an episode has just ended and NaN elsewhere; it is
    present from the first time the environment reports info["is_success"] or info["success"].
    """

    def __init__(
        self,
        env: str | gym.Env[Any, Any] | VectorEnv[Any, Any, Any] | Callable[[], gym.Env[Any, Any]],
        *,
        n_envs: int = 1,
        seed: int | None = None,
        stagger: bool = False,
        render_mode: str | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
        autoreset_mode: AutoresetMode | str | None = None,
    ) -> None:
        if n_envs < 1:
            raise ValueError(f"n_envs must be at least 1, got {n_envs}")
        self.env = _make(env, n_envs, render_mode, dict(env_kwargs or {}))
        self.name = env if isinstance(env, str) else _name(self.env)
        self.mode = _mode(self.env, self.name, autoreset_mode)
        self._obs = obs_codec(self.env.single_observation_space, self.name)
        self._action = action_codec(self.env.single_action_space, self.name)
        self.spec = env_spec(
            self._obs, self._action, n_envs=self.env.num_envs, episode_length=_episode_length(self.env)
        )
        self._seed = seed
        self._stagger = stagger
        self._n_steps = 0  # vector steps so far, for error messages
        self._only_reset: Array | None = None  # [B] NEXT_STEP: lanes whose next step is only a reset; None before reset
        self._success_seen = False
        if stagger and (self.spec.episode_length == 0 or len(_time_limits(self.env)) != self.env.num_envs):
            raise ValueError(
                f"{self.name}: stagger needs environments in this process with a TimeLimit wrapper, found none. "
                "Set stagger=False or wrap them in gymnasium.wrappers.TimeLimit."
            )

    def reset(self, seed: int | None = None) -> Tensor:
        """Start all lanes anew; returns float32 observations [B, O]."""
        seed, self._seed = (self._seed if seed is None else seed), None
        obs, _ = self._call("reset", seed=seed)
        self._only_reset = np.zeros(self.spec.n_envs, dtype=bool)
        if self._stagger:
            limit, n = self.spec.episode_length, self.spec.n_envs
            for lane, clock in enumerate(_time_limits(self.env)):
                clock._elapsed_steps = lane * limit // n  # type: ignore[assignment]
        return torch.from_numpy(self._encode(obs, "reset observation"))

    def step(self, action: Tensor) -> TimeStep:
        """action [B, A] in [-1, 1] or [B] int64."""
        if self._only_reset is None:
            raise ValueError(f"{self.name}: step came before reset; call reset(seed) once first.")
        if len(action) != self.spec.n_envs:
            raise ValueError(f"{self.name}: expected actions of {self.spec.n_envs} lanes, got {tuple(action.shape)}")
        self._n_steps += 1
        raw_obs, raw_reward, raw_terminated, raw_truncated, infos = self._call("step", self._action.decode(action))
        obs, reward = self._encode(raw_obs, "observation"), self._reward(raw_reward)
        terminated = np.array(raw_terminated, dtype=bool)
        truncated = np.array(raw_truncated, dtype=bool) & ~terminated  # both: the task ended, so no bootstrap
        extras: dict[str, Tensor] = {}
        final_obs = obs
        if self.mode is AutoresetMode.NEXT_STEP:
            mask = ~self._only_reset
            terminated, truncated, reward = terminated & mask, truncated & mask, np.where(mask, reward, np.float32(0))
            self._only_reset = terminated | truncated
            extras["mask"] = torch.from_numpy(mask)
        done = terminated | truncated
        success = self._success(infos, done)
        if success is not None:
            extras["success"] = torch.from_numpy(success)
        if self.mode is AutoresetMode.SAME_STEP and done.any():
            final_obs = self._final_obs(obs, infos, done)
        elif self.mode is AutoresetMode.DISABLED and done.any():
            # a copy of the mask: Gymnasium pops it out of the options, and an environment may keep it
            fresh, _ = self._call("reset", options={"reset_mask": done.copy()})
            obs = np.where(done[:, None], self._encode(fresh, "reset observation"), final_obs)
        return TimeStep(
            obs=torch.from_numpy(obs),
            final_obs=torch.from_numpy(final_obs),
            reward=torch.from_numpy(reward),
            terminated=torch.from_numpy(terminated),
            truncated=torch.from_numpy(truncated),
            extras=extras,
        )

    def render(self, lane: int = 0) -> Array:
        """The current picture of one lane, uint8 [height, width, 3]."""
        if self.env.render_mode != "rgb_array":
            raise ValueError(
                f"{self.name}: pictures need render_mode 'rgb_array', got {self.env.render_mode!r}; make it with that."
            )
        if not 0 <= lane < self.spec.n_envs:
            raise ValueError(f"{self.name}: lane must lie in 0...{self.spec.n_envs - 1}, got {lane}")
        lanes = _lanes(self.env)
        frame = lanes[lane].render() if lanes else self._call("render")[lane]
        return np.asarray(frame, dtype=np.uint8)

    def state_dict(self) -> dict[str, Tensor]:
        """Empty: the state inside a Gymnasium environment cannot be had."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state:
            raise ValueError(f"{self.name}: a Gymnasium environment has no state to restore, got {sorted(state)}")

    def close(self) -> None:
        self.env.close()

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call the environment; whatever it raises comes out as one line with its name on it."""
        try:
            return getattr(self.env, method)(*args, **kwargs)
        except Exception as error:
            # a changed shape breaks inside Gymnasium's concatenation, whose message names neither shape nor lane
            for lane, obs in enumerate(getattr(self.env.unwrapped, "_env_obs", [])):
                if obs is not None and np.shape(obs) != self._obs.shape:
                    raise ValueError(
                        f"{self.name}: observation of lane {lane} must have shape {self._obs.shape} as its "
                        f"observation_space says, got {np.shape(obs)} in {method} {self._n_steps}. "
                        "An observation may not change its shape; pad it or mend the space."
                    ) from error
            said = (str(error).strip().splitlines() or [""])[0]
            raise RuntimeError(
                f"{self.name}: environment raised {type(error).__name__}: {said} (in {method}, step {self._n_steps})"
            ) from error

    def _encode(self, raw: Any, what: str) -> Array:
        obs = self._obs.encode(raw)
        if len(obs) != self.spec.n_envs:
            raise ValueError(f"{self.name}: expected {what}s of {self.spec.n_envs} lanes, got {len(obs)}")
        return self._finite(obs, what)

    def _reward(self, raw: Any) -> Array:
        with np.errstate(over="ignore"):
            reward = np.array(raw, dtype=np.float64).astype(np.float32)
        if reward.shape != (self.spec.n_envs,):
            raise ValueError(
                f"{self.name}: reward must be one number a lane, shape ({self.spec.n_envs},), got {reward.shape}. "
                "Reward vectors come with a later release."
            )
        return self._finite(reward, "reward")

    def _finite(self, array: Array, what: str) -> Array:
        finite = np.isfinite(array)
        if not finite.all():
            where = np.argwhere(~finite)[0]
            entry = f" (entry {where[1]})" if array.ndim > 1 else ""
            raise ValueError(
                f"{self.name}: {what} of lane {where[0]} at step {self._n_steps} is {array[tuple(where)]}{entry}, "
                "wanted a finite float32. Mend the environment, or let it terminate before its state diverges."
            )
        return array

    def _final_obs(self, obs: Array, infos: Mapping[str, Any], done: Array) -> Array:
        """obs [B, O], with the rows of ended episodes replaced by the last observations of those."""
        given = infos.get("final_obs")
        has = np.asarray(infos.get("_final_obs", np.ones_like(done)), dtype=bool)
        if given is None or not has[done].all():
            raise ValueError(
                f"{self.name}: an episode ended without infos['final_obs'], which autoreset mode SAME_STEP must give. "
                "If it resets in the next step, its metadata['autoreset_mode'] should be AutoresetMode.NEXT_STEP."
            )
        rows = [np.asarray(given[lane]) for lane in np.flatnonzero(done)]
        wrong = next((row.shape for row in rows if row.shape != self._obs.shape), None)
        if wrong is not None:
            raise ValueError(f"{self.name}: final observation must have shape {self._obs.shape}, got {wrong}")
        final = obs.copy()
        final[done] = self._obs.encode(np.stack(rows))
        return self._finite(final, "final observation")

    def _success(self, infos: Mapping[str, Any], done: Array) -> Array | None:
        """1 or 0 for episodes that have just ended, NaN elsewhere; None while the environment has never told."""
        final = infos.get("final_info", {}) if self.mode is AutoresetMode.SAME_STEP else infos
        success = np.full(self.spec.n_envs, np.nan, dtype=np.float32)
        key = next((k for k in SUCCESS_KEYS if k in final), None)
        if key is not None and done.any():
            self._success_seen = True
            told = done & np.asarray(final.get(f"_{key}", np.ones_like(done)), dtype=bool)
            for lane in np.flatnonzero(told):
                success[lane] = float(final[key][lane])
        return success if self._success_seen else None


def _make(env: Any, n_envs: int, render_mode: str | None, env_kwargs: dict[str, Any]) -> VectorEnv[Any, Any, Any]:
    """A VectorEnv from whatever the user has. Own ones reset in the same step and never start a process."""
    own = {"autoreset_mode": AutoresetMode.SAME_STEP, "copy": False}  # ObsCodec.encode copies
    if not isinstance(env, str) and (render_mode is not None or env_kwargs):
        raise ValueError("render_mode and env_kwargs are for an environment given by its id; set them where it is made")
    if isinstance(env, str):
        try:
            return gym.make_vec(
                env, n_envs, vectorization_mode="sync", vector_kwargs=own, render_mode=render_mode, **env_kwargs
            )
        except (gym.error.Error, ImportError) as error:
            said = " ".join(str(error).split())
            raise ValueError(f"env.id {env!r}: Gymnasium cannot make it: {said}") from error
    if isinstance(env, VectorEnv):
        if n_envs not in (1, env.num_envs):
            raise ValueError(f"{_name(env)}: this vector environment has {env.num_envs} lanes, not n_envs={n_envs}")
        return env
    if isinstance(env, gym.Env):
        if n_envs != 1:
            raise ValueError(
                f"{_name(env)}: one environment cannot be copied into n_envs={n_envs}. "
                "Give its id, a function that makes one, or a gymnasium.vector.SyncVectorEnv."
            )
        return SyncVectorEnv([lambda: env], **own)  # type: ignore[arg-type]
    if callable(env):
        return SyncVectorEnv([env] * n_envs, **own)  # type: ignore[arg-type]
    raise TypeError(f"env must be an id, gym.Env, gym.vector.VectorEnv or a function, got {type(env).__name__}")


def _mode(env: VectorEnv[Any, Any, Any], name: str, asked: AutoresetMode | str | None) -> AutoresetMode:
    told = (env.metadata or {}).get("autoreset_mode")
    mode = asked if told is None else told
    if mode is None:
        # a guess would put resets into the data, or take a new episode's first observation for the last one's end
        raise ValueError(
            f"{name}: metadata['autoreset_mode'] is missing, so the ends of episodes cannot be told. Pass "
            "autoreset_mode='NextStep', 'SameStep' or 'Disabled' (Gymnasium's own default is 'NextStep')."
        )
    try:
        return AutoresetMode(mode)
    except ValueError:
        modes = [m.value for m in AutoresetMode]
        raise ValueError(f"{name}: autoreset_mode must be one of {modes}, got {mode!r}") from None


def _lanes(env: VectorEnv[Any, Any, Any]) -> list[gym.Env[Any, Any]]:
    """The single environments inside, where they live in this process; else empty."""
    inner = env.unwrapped
    return list(inner.envs) if isinstance(inner, SyncVectorEnv) else []


def _name(env: Any) -> str:
    """The registered id, else the class of the innermost environment."""
    lanes = _lanes(env) if isinstance(env, VectorEnv) else []
    inner = lanes[0] if lanes else env
    spec = getattr(inner, "spec", None)
    return spec.id if spec is not None else type(inner.unwrapped).__name__


def _time_limits(env: VectorEnv[Any, Any, Any]) -> list[TimeLimit[Any, Any]]:
    """The TimeLimit wrapper of every lane that has one."""
    found = []
    for lane in _lanes(env):
        wrapper: Any = lane
        while isinstance(wrapper, gym.Wrapper) and not isinstance(wrapper, TimeLimit):
            wrapper = wrapper.env
        if isinstance(wrapper, TimeLimit):
            found.append(wrapper)
    return found


def _episode_length(env: VectorEnv[Any, Any, Any]) -> int:
    """The time limit in steps, 0 where none is known."""
    clocks = _time_limits(env)
    if clocks:
        return int(clocks[0]._max_episode_steps)
    specs = [getattr(inner, "spec", None) for inner in (env, *_lanes(env)[:1])]
    return next((int(s.max_episode_steps) for s in specs if s is not None and s.max_episode_steps), 0)

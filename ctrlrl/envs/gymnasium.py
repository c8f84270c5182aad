"""Gymnasium environments as a ctrlrl VecEnv: an id, one environment, or a vector environment in any autoreset mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import TimeLimit
from torch import Tensor

from ctrlrl.envs import metaworld
from ctrlrl.envs.gate import SUCCESS_KEYS, Gate
from ctrlrl.envs.sim import Sim
from ctrlrl.envs.spec import Array
from ctrlrl.envs.sync_lanes import SyncLanes
from ctrlrl.types import TimeStep

# ids that gymnasium-robotics registers when it is imported; it has no entry point by which Gymnasium would find it
MULTI_OBJECTIVE = ("mo-", "breakable-bottles", "deep-sea-treasure", "fishwood", "four-room", "fruit-tree", "minecart",
                   "resource-gathering", "water-reservoir")  # fmt: skip  # ids of mo-gymnasium, likewise
ROBOTICS = ("AdroitHand", "AntMaze", "Fetch", "FrankaKitchen", "HandManipulate", "HandReach", "PointMaze")


class GymnasiumEnv:
    """B Gymnasium environments stepped in this process; float32 observations (an image: uint8) and rewards on the CPU.

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
        self.observation_space, self.action_space = self.env.single_observation_space, self.env.single_action_space
        self._gate = Gate(
            self.name,
            self.observation_space,
            self.action_space,
            n_envs=self.env.num_envs,
            episode_length=_episode_length(self.env),
            reward_dim=_reward_dim(self.env),
        )
        self.spec = self._gate.spec
        self.stagger = stagger
        self.infos: Mapping[str, Any] = {}  # of the last step, in the form of Gymnasium's vector environments
        self._seed = seed
        self._only_reset: Array | None = None  # [B] NEXT_STEP: lanes whose next step is only a reset; None before reset
        if stagger and (self.spec.episode_length == 0 or len(_time_limits(self.env)) != self.env.num_envs):
            raise ValueError(
                f"{self.name}: stagger needs environments in this process with a TimeLimit wrapper, found none. "
                "Set stagger=False or wrap them in gymnasium.wrappers.TimeLimit."
            )

    def reset(self, seed: int | None = None) -> Tensor:
        """Start all lanes anew; returns observations [B, O]."""
        seed, self._seed = (self._seed if seed is None else seed), None
        obs, _ = self._call("reset", seed=seed)
        self._only_reset = np.zeros(self.spec.n_envs, dtype=bool)
        if self.stagger:
            limit, n = self.spec.episode_length, self.spec.n_envs
            for lane, clock in enumerate(_time_limits(self.env)):
                clock._elapsed_steps = lane * limit // n  # type: ignore[assignment]
        return torch.from_numpy(self._gate.obs(obs, "reset observation"))

    def step(self, action: Tensor) -> TimeStep:
        """action [B, A] in [-1, 1], or [B] or [B, D] int64."""
        if self._only_reset is None:
            raise ValueError(f"{self.name}: step came before reset; call reset(seed) once first.")
        gate = self._gate
        raw_obs, raw_reward, raw_terminated, raw_truncated, infos = self._call("step", gate.action(action))
        self.infos = infos
        final_obs = obs = gate.obs(raw_obs)
        reward = gate.reward(raw_reward)
        terminated = gate.flags(raw_terminated, "terminated")
        truncated = gate.flags(raw_truncated, "truncated") & ~terminated  # both: the task ended, so no bootstrap
        extras: dict[str, Tensor] = {}
        if self.mode is AutoresetMode.NEXT_STEP:
            mask = ~self._only_reset
            terminated, truncated = terminated & mask, truncated & mask
            reward = np.where(mask if reward.ndim == 1 else mask[:, None], reward, np.float32(0))
            self._only_reset = terminated | truncated
            extras["mask"] = torch.from_numpy(mask)
        lanes = (terminated | truncated).nonzero()[0]
        extras |= gate.success(self._told(infos, lanes))
        if len(lanes) and self.mode is AutoresetMode.SAME_STEP:
            final_obs = gate.final_obs(obs, lanes, self._final_rows(infos, lanes))
        elif len(lanes) and self.mode is AutoresetMode.DISABLED:
            # a mask of its own: Gymnasium pops it out of the options, and an environment may keep it
            done = terminated | truncated
            fresh, _ = self._call("reset", options={"reset_mask": done.copy()})
            obs = np.where(done[:, None], gate.obs(fresh, "reset observation"), final_obs)
        return gate.time_step(obs, final_obs, reward, terminated, truncated, extras)

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
        self._gate.no_state(state)

    def close(self) -> None:
        self.env.close()

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call the environment; whatever it raises comes out as one line with its name on it."""
        try:
            return getattr(self.env, method)(*args, **kwargs)
        except Exception as error:
            # a changed shape breaks inside Gymnasium's concatenation, whose message names neither shape nor lane
            shape = self._gate.obs_shape
            for lane, obs in enumerate(getattr(self.env.unwrapped, "_env_obs", [])):
                if obs is not None and shape is not None and np.shape(obs) != shape:
                    raise ValueError(
                        f"{self.name}: observation of lane {lane} must have shape {shape} as its "
                        f"observation_space says, got {np.shape(obs)} in {method} {self._gate.n_steps}. "
                        "An observation may not change its shape; pad it or mend the space."
                    ) from error
            raise self._gate.failure(method, error) from error

    def _final_rows(self, infos: Mapping[str, Any], lanes: Array) -> list[Any]:
        """The last observations of the episodes that ended in `lanes`."""
        given, told = infos.get("final_obs"), infos.get("_final_obs")
        if given is None or (told is not None and not np.asarray(told)[lanes].all()):
            raise ValueError(
                f"{self.name}: an episode ended without infos['final_obs'], which autoreset mode SAME_STEP must give. "
                "If it resets in the next step, its metadata['autoreset_mode'] should be AutoresetMode.NEXT_STEP."
            )
        return [given[lane] for lane in lanes]

    def _told(self, infos: Mapping[str, Any], lanes: Array) -> list[tuple[int, Any]]:
        """(lane, whether it succeeded) of the ended episodes for which the environment says so."""
        if not len(lanes):
            return []
        final = infos.get("final_info", {}) if self.mode is AutoresetMode.SAME_STEP else infos
        key = next((k for k in SUCCESS_KEYS if k in final), None)
        if key is None:
            return []
        told = final.get(f"_{key}")
        return [(int(lane), final[key][lane]) for lane in lanes if told is None or told[lane]]


def _make(env: Any, n_envs: int, render_mode: str | None, env_kwargs: dict[str, Any]) -> VectorEnv[Any, Any, Any]:
    """A VectorEnv from whatever the user has. Own ones reset in the same step and never start a process."""
    own: Any = {"autoreset_mode": AutoresetMode.SAME_STEP, "copy": False}  # ObsCodec.encode copies
    if not isinstance(env, str) and (render_mode is not None or env_kwargs):
        raise ValueError("render_mode and env_kwargs are for an environment given by its id; set them where it is made")
    if isinstance(env, str):
        try:
            if env not in gym.registry or not env_kwargs:
                register(env)
            if _pays_vectors(env):  # Gymnasium's checker takes them for a mistake
                env_kwargs = {"disable_env_checker": True, **env_kwargs}
            if render_mode is not None:  # an environment need not know the word
                env_kwargs = {"render_mode": render_mode, **env_kwargs}
            return SyncLanes([lambda: gym.make(env, **env_kwargs)] * n_envs, **own)
        except (gym.error.Error, ImportError, TypeError) as error:
            said = " ".join(str(error).split())
            raise ValueError(f"env.id {env!r}: Gymnasium cannot make it: {said}") from error
        except Exception as error:
            raise _not_made(f"env.id {env!r}", error) from error
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
        return _lanes_of(_name(env), [lambda: env], own)
    if isinstance(env, type) and issubclass(env, Sim):
        raise TypeError(f"env: {env.__name__} is a simulator; wrap it: BatchedSim({env.__name__}(), n_envs)")
    if callable(env):
        return _lanes_of(getattr(env, "__name__", "env"), [env] * n_envs, own)
    wrapped = f"; wrap it: BatchedSim({type(env).__name__}(), n_envs)" if isinstance(env, Sim) else ""
    known = "an id, a gymnasium.Env, a gymnasium.vector.VectorEnv or a function"
    raise TypeError(f"env must be {known}, got {type(env).__name__}{wrapped}")


def _lanes_of(name: str, functions: list[Any], own: dict[str, Any]) -> SyncLanes:
    try:
        return SyncLanes(functions, **own)
    except Exception as error:
        raise _not_made(name, error) from error


def _not_made(name: str, error: Exception) -> ValueError:
    said = (str(error).strip().splitlines() or ["no message"])[0]
    return ValueError(f"{name}: making it raised {type(error).__name__}: {said}")


def register(gym_id: str) -> None:
    """Import the package that an id comes from, where the id tells and Gymnasium does not know it."""
    if gym_id.startswith(metaworld.PREFIX):
        metaworld.register(gym_id)
    elif gym_id not in gym.registry and gym_id.startswith(ROBOTICS):
        try:
            import_module("gymnasium_robotics")
        except ImportError:
            raise ImportError("it is gymnasium-robotics'; pip install 'ctrlrl[robotics]'") from None
    elif gym_id not in gym.registry and gym_id.startswith(MULTI_OBJECTIVE):
        try:
            import_module("mo_gymnasium")
        except ImportError:
            raise ImportError("it is mo-gymnasium's; pip install 'ctrlrl[mo]'") from None


def _pays_vectors(gym_id: str) -> bool:
    return gym_id.startswith(MULTI_OBJECTIVE) or gym_id.startswith("mo_gymnasium:")


def _reward_dim(env: VectorEnv[Any, Any, Any]) -> int:
    """M where the environment states a `reward_space` and nothing around it adds the M rewards up; else 1."""
    lanes = _lanes(env)
    inner: Any = lanes[0] if lanes else env
    while type(inner).__name__ != "LinearReward":  # mo-gymnasium's
        space = getattr(inner, "reward_space", None)
        if space is not None:
            return int(np.prod(space.shape, dtype=np.int64))
        if inner is inner.unwrapped:
            break
        inner = inner.env
    return 1


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


def time_limit(env: Any) -> TimeLimit[Any, Any] | None:
    """The TimeLimit wrapper of a single environment, if it has one."""
    while isinstance(env, gym.Wrapper) and not isinstance(env, TimeLimit):
        env = env.env
    return env if isinstance(env, TimeLimit) else None


def _time_limits(env: VectorEnv[Any, Any, Any]) -> list[TimeLimit[Any, Any]]:
    return [clock for clock in map(time_limit, _lanes(env)) if clock is not None]


def _episode_length(env: VectorEnv[Any, Any, Any]) -> int:
    """The time limit in steps, 0 where none is known."""
    clocks = _time_limits(env)
    if clocks:
        return int(clocks[0]._max_episode_steps)
    specs = [getattr(inner, "spec", None) for inner in (env, *_lanes(env)[:1])]
    return next((int(s.max_episode_steps) for s in specs if s is not None and s.max_episode_steps), 0)

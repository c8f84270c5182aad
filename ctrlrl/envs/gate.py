"""What crosses between an environment that speaks NumPy and ctrlrl: turned by codecs, and checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ctrlrl.envs.spec import Array, action_codec, env_spec, obs_codec
from ctrlrl.types import TimeStep

FORMS = {
    "reset": "reset returns (observation, info)",
    "step": "step returns (observation, reward, terminated, truncated, info)",
}
SUCCESS_KEYS = ("is_success", "success")


class Gate:
    """Both directions of one adapter. Whatever is wrong is refused in one line with the environment's name on it.

    spec:    of the environment, on the CPU.
    n_steps: vector steps so far, for those lines.
    """

    def __init__(
        self,
        name: str,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *,
        n_envs: int,
        episode_length: int,
        reward_dim: int = 1,
    ) -> None:
        self.name = name
        self._obs = obs_codec(observation_space, name)
        self._action = action_codec(action_space, name)
        self.spec = env_spec(self._obs, self._action, n_envs=n_envs, episode_length=episode_length)
        self.spec = self.spec._replace(reward_dim=reward_dim)
        self.n_steps = 0
        self._success_seen = False

    @property
    def obs_shape(self) -> tuple[int, ...] | None:
        """Of one observation, as the environment gives it; None for a Dict or Tuple."""
        return self._obs.shape

    def action(self, action: Tensor) -> Array:
        """[B, A] in [-1, 1], or [B] or [B, D] int64, to what the environment's next step takes."""
        decoded = self._action.decode(action)
        if len(decoded) != self.spec.n_envs:
            raise ValueError(f"{self.name}: expected actions of {self.spec.n_envs} lanes, got {tuple(action.shape)}")
        self.n_steps += 1
        return decoded

    def failure(self, method: str, error: Exception) -> RuntimeError:
        """What to raise from whatever the environment raised."""
        said = (str(error).strip().splitlines() or [""])[0]
        if isinstance(error, EOFError | ConnectionError):
            said = "a worker process ended; what it said stands above"
        if isinstance(error, ValueError) and "to unpack" in said and method in FORMS:
            said += f"; of a Gymnasium environment {FORMS[method]}. One of the older Gym needs shimmy's wrapper"
        return RuntimeError(
            f"{self.name}: environment raised {type(error).__name__}: {said} (in {method}, step {self.n_steps})"
        )

    def obs(self, raw: Any, what: str = "observation") -> Array:
        """A batch of the environment's observations as a new [B, O]."""
        obs = self._obs.encode(raw)
        if len(obs) != self.spec.n_envs:
            raise ValueError(f"{self.name}: expected {what}s of {self.spec.n_envs} lanes, got {len(obs)}")
        return self._finite(obs, what)

    def reward(self, raw: Any) -> Array:
        """New float32 [B], or [B, M] of an environment that pays vectors."""
        if getattr(raw, "dtype", None) == np.float32:
            reward = raw.copy()
        else:
            with np.errstate(over="ignore"):  # beyond float32 becomes inf, which is refused by name
                try:
                    reward = np.array(raw, dtype=np.float32)
                except (TypeError, ValueError):
                    raise ValueError(f"{self.name}: rewards must be numbers, got {str(raw)[:60]}") from None
        n, m = self.spec.n_envs, self.spec.reward_dim
        wanted = (n,) if m == 1 else (n, m)
        if reward.shape != wanted:
            raise ValueError(
                f"{self.name}: rewards of {n} lanes must have shape {wanted}, got {reward.shape}. An environment that "
                "pays vectors says so by a `reward_space`, as mo-gymnasium's do."
            )
        return self._finite(reward, "reward")

    def flags(self, raw: Any, what: str) -> Array:
        """New bool [B]."""
        flags = np.array(raw, dtype=bool)
        n = self.spec.n_envs
        if flags.shape != (n,):
            raise ValueError(
                f"{self.name}: {what} of {n} lanes must have shape {(n,)}, got {flags.shape}. "
                f"An environment returns bool({what})."
            )
        return flags

    def final_obs(self, obs: Array, lanes: Array | list[int], rows: Sequence[Any]) -> Array:
        """obs [B, O], with the rows of `lanes`, whose episodes ended, replaced by single observations."""
        shape = self._obs.shape
        alike = shape is not None and all(getattr(row, "shape", None) == shape for row in rows)
        for row in () if alike or shape is None else rows:
            if np.shape(row) != shape and not self._obs.is_single(row):
                raise ValueError(f"{self.name}: final observation must have shape {shape}, got {np.shape(row)}")
        final = obs.copy()
        final[lanes] = self._obs.encode(self._obs.lanes(rows))
        return self._finite(final, "final observation")

    def success(self, told: Sequence[tuple[int, Any]]) -> dict[str, Tensor]:
        """extras["success"] [B] from (lane, whether it succeeded): NaN elsewhere; empty until one has been told."""
        told = [(lane, value) for lane, value in told if value is not None]
        if not told and not self._success_seen:
            return {}
        self._success_seen = True
        success = torch.full((self.spec.n_envs,), torch.nan)
        for lane, value in told:
            try:
                success[lane] = float(np.asarray(value).item())
            except (TypeError, ValueError):
                raise ValueError(
                    f"{self.name}: info['{SUCCESS_KEYS[0]}'] or ['{SUCCESS_KEYS[1]}'] must be a bool, got {value!r}"
                ) from None
        return {"success": success}

    def time_step(
        self,
        obs: Array,
        final_obs: Array,
        reward: Array,
        terminated: Array,
        truncated: Array,
        extras: dict[str, Tensor],
    ) -> TimeStep:
        """Tensors over the given arrays' memory."""
        tensor = torch.from_numpy
        seen = tensor(obs)
        final = seen if final_obs is obs else tensor(final_obs)
        return TimeStep(seen, final, tensor(reward), tensor(terminated), tensor(truncated), extras)

    def no_state(self, state: dict[str, Tensor]) -> None:
        """The state inside such an environment cannot be had, so there is none to restore."""
        if state:
            raise ValueError(f"{self.name}: this environment has no state to restore, got {sorted(state)}")

    def _finite(self, array: Array, what: str) -> Array:
        if array.dtype == np.uint8:  # an image
            return array
        if not math.isfinite(np.add.reduce(array, axis=None)) and not (finite := np.isfinite(array)).all():
            where = np.argwhere(~finite)[0]
            entry = f" (entry {where[1]})" if array.ndim > 1 else ""
            raise ValueError(
                f"{self.name}: {what} of lane {where[0]} at step {self.n_steps} is {array[tuple(where)]}{entry}, "
                "wanted a finite float32. Mend the environment, or let it terminate before its state diverges."
            )
        return array

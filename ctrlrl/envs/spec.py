"""From Gymnasium spaces to what ctrlrl speaks: float32 [B, O] observations, actions in [-1, 1] or int64 from 0.

A codec is made once for an environment and then turns arrays both ways. NumPy, because Gymnasium environments are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from ctrlrl.types import EnvSpec

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ObsCodec:
    """Box observations are flattened, Discrete ones become one-hot."""

    name: str  # of the environment, for error messages
    shape: tuple[int, ...]  # of one observation as the environment gives it
    dim: int  # O
    n: int = 0  # number of discrete observations; 0 = a Box
    start: int = 0

    def encode(self, obs: Any) -> Array:
        """Observations [B, *shape] of the environment -> new float32 [B, O]."""
        array = np.asarray(obs)
        if array.shape[1:] != self.shape:
            raise ValueError(
                f"{self.name}: observation must have shape {self.shape} as its observation_space says, "
                f"got {array.shape[1:]}. An observation may not change its shape; pad it or mend the space."
            )
        if self.n == 0:
            with np.errstate(over="ignore"):  # beyond float32 becomes inf, which the caller refuses by name
                return array.reshape(len(array), self.dim).astype(np.float32)
        index = array.astype(np.int64) - self.start
        if ((index < 0) | (index >= self.n)).any():
            wrong = array[(index < 0) | (index >= self.n)][0]
            raise ValueError(
                f"{self.name}: observation {wrong} lies outside Discrete({self.n}, start={self.start}); mend the space."
            )
        return np.eye(self.n, dtype=np.float32)[index]


@dataclass(frozen=True)
class ActionCodec:
    """Box: [-1, 1] <-> [low, high], affine per dimension and clipped. Discrete: 0 ... n-1 <-> start ... start+n-1."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    action_dim: int  # A; 0 for discrete actions
    n_actions: int = 0
    start: int = 0
    low: Array = field(default_factory=lambda: np.zeros(0))  # [A] float64
    high: Array = field(default_factory=lambda: np.zeros(0))

    def decode(self, action: Any) -> Array:
        """ctrlrl actions ([B, A] float or [B] int64; tensor or array) -> actions [B, *shape] for the environment."""
        array = action.detach().cpu().numpy() if isinstance(action, torch.Tensor) else np.asarray(action)
        if self.n_actions:
            if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
                raise ValueError(
                    f"{self.name}: discrete actions must be integers of shape [B], got {array.dtype} {array.shape}. "
                    "Draw them from a categorical policy, without a trailing axis."
                )
            if ((array < 0) | (array >= self.n_actions)).any():
                wrong = int(array[(array < 0) | (array >= self.n_actions)][0])
                raise ValueError(f"{self.name}: discrete actions must lie in 0...{self.n_actions - 1}, got {wrong}")
            return (array + self.start).astype(self.dtype)
        if array.ndim != 2 or array.shape[1] != self.action_dim:
            raise ValueError(f"{self.name}: actions must have shape [B, {self.action_dim}], got {array.shape}")
        if not np.isfinite(array).all():
            lane = int(np.argwhere(~np.isfinite(array))[0, 0])
            raise ValueError(
                f"{self.name}: action of lane {lane} is not finite ({array[lane].tolist()}); the policy has diverged, "
                "try a lower learning_rate or max_grad_norm."
            )
        unit = (np.clip(array.astype(np.float64), -1.0, 1.0) + 1.0) / 2.0
        scaled = self.low * (1.0 - unit) + self.high * unit  # exact at both ends, also where high - low would overflow
        return scaled.astype(self.dtype).reshape(len(array), *self.shape)

    def encode(self, action: Any) -> Array:
        """The inverse of `decode`: actions [B, *shape] of the environment -> float32 [B, A] in [-1, 1] or int64 [B]."""
        array = np.asarray(action)
        if self.n_actions:
            return array.astype(np.int64) - self.start
        width = self.high - self.low
        flat = array.reshape(len(array), self.action_dim).astype(np.float64)
        unit = (flat - self.low) / np.where(width > 0, width, 1.0)  # a dimension that cannot move sits at 0
        return np.where(width > 0, np.clip(2.0 * unit - 1.0, -1.0, 1.0), 0.0).astype(np.float32)


def obs_codec(space: spaces.Space[Any], name: str = "environment") -> ObsCodec:
    """The codec of one environment's observation space; ValueError for what is not supported."""
    if isinstance(space, spaces.Box):
        return ObsCodec(name, space.shape, dim=int(np.prod(space.shape, dtype=np.int64)))
    if isinstance(space, spaces.Discrete):
        return ObsCodec(name, (), dim=int(space.n), n=int(space.n), start=int(space.start))
    raise _unsupported(name, "observation_space", space, "gymnasium.wrappers.FlattenObservation makes a Box of it")


def action_codec(space: spaces.Space[Any], name: str = "environment") -> ActionCodec:
    """The codec of one environment's action space; ValueError for what is not supported."""
    if isinstance(space, spaces.Discrete):
        return ActionCodec(name, (), space.dtype, 0, n_actions=int(space.n), start=int(space.start))
    if isinstance(space, spaces.Box):
        if not np.issubdtype(space.dtype, np.floating):
            raise ValueError(
                f"{name}: action_space must be a Box of floats, got {space}. "
                "Wrap it with gymnasium.wrappers.TransformAction that rounds."
            )
        if not space.is_bounded():
            raise ValueError(
                f"{name}: action_space must have finite bounds, got {space}. Wrap it with gymnasium.wrappers."
                "TransformAction(env, func, Box(-1, 1, shape)); RescaleAction does where the bounds are finite."
            )
        low, high = (bound.astype(np.float64).reshape(-1) for bound in (space.low, space.high))
        return ActionCodec(name, space.shape, space.dtype, low.size, low=low, high=high)
    raise _unsupported(name, "action_space", space, "gymnasium.wrappers.TransformAction maps a Box or Discrete to it")


def env_spec(obs: ObsCodec, action: ActionCodec, *, n_envs: int, episode_length: int = 0) -> EnvSpec:
    """The EnvSpec of `n_envs` such environments on the CPU; episode_length in steps, 0 = no time limit."""
    return EnvSpec(
        obs_dim=obs.dim,
        action_dim=action.action_dim,
        n_actions=action.n_actions,
        reward_dim=1,
        n_envs=n_envs,
        episode_length=episode_length,
        device=torch.device("cpu"),
    )


def _unsupported(name: str, which: str, space: Any, mend: str) -> ValueError:
    return ValueError(
        f"{name}: {which} {type(space).__name__} is not supported, only Box and Discrete are (Dict, MultiDiscrete and "
        f"the others come with a later release). Until then, {mend}."
    )

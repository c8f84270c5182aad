"""From Gymnasium spaces to what ctrlrl speaks: [B, O] observations, actions in [-1, 1] or int64 from 0.

A codec is made once for an environment and then turns arrays both ways. NumPy, because Gymnasium environments are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from ctrlrl.types import EnvSpec, ObsPart

Array = np.ndarray[Any, Any]
Path = tuple[str | int, ...]  # where an array lies inside a Dict or Tuple observation; () = it is the observation


@dataclass(frozen=True)
class PartCodec:
    """One array of an observation: Box and MultiBinary are flattened, discrete ones become one-hot, images CHW."""

    name: str  # of the environment, for error messages
    path: Path
    shape: tuple[int, ...]  # as the environment gives it
    part: ObsPart  # as ctrlrl keeps it
    nvec: Array | None = None  # [D] options of discrete observations
    start: Array | None = None  # [D]
    channels_last: bool = False

    @cached_property
    def dim(self) -> int:
        return math.prod(self.part.shape)

    @property
    def key(self) -> str:
        return f" {self.part.name!r}" if self.path else ""

    @cached_property
    def turned(self) -> tuple[int, ...] | None:
        """An image's shape with its channels at the other end, which is taken too: SB3 transposes images unasked."""
        if not self.part.image:
            return None
        return self.part.shape if self.channels_last else (*self.shape[1:], self.shape[0])

    def encode(self, obs: Any) -> Array:
        """[B, *shape] -> [B, dim], float32, or uint8 for an image."""
        array = np.asarray(obs)
        if array.shape[1:] not in (self.shape, self.turned):
            raise ValueError(
                f"{self.name}: observation{self.key} must have shape {self.shape} as its observation_space says, "
                f"got {array.shape[1:]}. An observation may not change its shape; pad it or mend the space."
            )
        n = len(array)
        if self.part.image:
            chw = array if array.shape[1:] == self.part.shape else np.moveaxis(array, -1, 1)
            rows = chw.reshape(n, -1).astype(np.uint8)  # a copy, as everywhere here
            if array.dtype != np.uint8 and not np.array_equal(rows, chw.reshape(n, -1)):
                raise ValueError(
                    f"{self.name}: image{self.key} must hold whole numbers 0 ... 255, as uint8; do not scale it"
                )
            return rows
        if self.nvec is None:
            rows = array.reshape(n, self.dim)
            if rows.dtype == np.float32:
                return rows.copy()
            with np.errstate(over="ignore"):  # beyond float32 becomes inf, which the caller refuses by name
                return rows.astype(np.float32)
        assert self.start is not None
        index = array.reshape(n, -1).astype(np.int64) - self.start
        outside = (index < 0) | (index >= self.nvec)
        if outside.any():
            wrong, space = array.reshape(n, -1)[outside][0], f"{self.nvec.tolist()} options from {self.start.tolist()}"
            raise ValueError(f"{self.name}: observation{self.key} {wrong} lies outside {space}; mend the space.")
        hot = np.zeros((n, self.dim), dtype=np.float32)
        np.put_along_axis(hot, index + np.cumsum(self.nvec) - self.nvec, 1.0, axis=1)
        return hot


@dataclass(frozen=True)
class ObsCodec:
    """The arrays of an observation, one after another in one row."""

    name: str
    parts: tuple[PartCodec, ...]

    @property
    def dim(self) -> int:
        return sum(p.dim for p in self.parts)

    @cached_property
    def shape(self) -> tuple[int, ...] | None:
        """Of an observation that is one array, as the environment gives it; None for a Dict or Tuple."""
        return self.parts[0].shape if self.parts[0].path == () else None

    def encode(self, obs: Any) -> Array:
        """Observations of the environment, every array with a leading [B] -> new [B, O], float32 or one uint8 image."""
        if self.shape is not None:
            return self.parts[0].encode(obs)
        columns = [p.encode(self._find(obs, p.path)) for p in self.parts]
        if len({len(c) for c in columns}) > 1:
            raise ValueError(f"{self.name}: the arrays of an observation have different numbers of lanes")
        return np.concatenate(columns, axis=1, dtype=np.float32)

    def lanes(self, obs: Any) -> Any:
        """A list of single observations as one batch, in the structure of the space."""
        if self.shape is not None:
            return np.array(obs)
        return _Leaves({p.path: np.stack([np.asarray(self._find(o, p.path)) for o in obs]) for p in self.parts})

    def is_single(self, obs: Any) -> bool:
        """Whether `obs` is one observation, not a batch."""
        first = self.parts[0]
        return np.shape(self._find(obs, first.path)) in (first.shape, first.turned)

    def _find(self, obs: Any, path: Path) -> Any:
        if isinstance(obs, _Leaves):
            return obs.arrays[path]
        for key in path:
            try:
                obs = obs[key]
            except (KeyError, IndexError, TypeError):
                raise ValueError(f"{self.name}: the observation has no {key!r}, its space does") from None
        return obs


@dataclass(frozen=True)
class _Leaves:
    arrays: dict[Path, Array]


@dataclass(frozen=True)
class ActionCodec:
    """Box: [-1, 1] <-> [low, high], affine per dimension and clipped. Discrete: 0 ... n-1 <-> start ... start+n-1."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    action_dim: int  # A; 0 for discrete actions
    n_actions: int = 0
    start: Any = 0  # [D] for several discrete actions
    low: Array = field(default_factory=lambda: np.zeros(0))  # [A] float64
    high: Array = field(default_factory=lambda: np.zeros(0))
    nvec: tuple[int, ...] = ()

    def decode(self, action: Any) -> Array:
        """ctrlrl actions ([B, A] float, [B] or [B, D] int64; tensor or array) -> [B, *shape] for the environment."""
        array = action.numpy(force=True) if isinstance(action, torch.Tensor) else np.asarray(action)
        if self.n_actions or self.nvec:
            return self._decode_discrete(array)
        if array.ndim != 2 or array.shape[1] != self.action_dim:
            raise ValueError(f"{self.name}: actions must have shape [B, {self.action_dim}], got {array.shape}")
        if not np.isfinite(array).all():
            lane = int(np.argwhere(~np.isfinite(array))[0, 0])
            raise ValueError(
                f"{self.name}: action of lane {lane} is not finite ({array[lane].tolist()}); the policy has diverged, "
                "try a lower learning_rate or max_grad_norm."
            )
        clipped = np.minimum(np.maximum(array, -1.0), 1.0).astype(np.float64)  # np.clip takes three times as long
        if self._symmetric:
            scaled = self.high * clipped
        else:
            unit = (clipped + 1.0) / 2.0
            scaled = self.low * (1.0 - unit) + self.high * unit  # exact at both ends; high - low might overflow
        return scaled.astype(self.dtype).reshape(len(array), *self.shape)

    @cached_property
    def _symmetric(self) -> bool:
        return bool((self.low == -self.high).all())

    @cached_property
    def _sizes(self) -> Array:
        return np.array(self.nvec or self.n_actions, dtype=np.uint64)

    def _decode_discrete(self, array: Array) -> Array:
        wanted = f"[B, {len(self.nvec)}]" if self.nvec else "[B]"
        right = array.ndim == 2 and array.shape[1] == len(self.nvec) if self.nvec else array.ndim == 1
        if not right or array.dtype.kind not in "iu":
            raise ValueError(
                f"{self.name}: discrete actions must be integers of shape {wanted}, got {array.dtype} {array.shape}. "
                "Draw them from a categorical policy, without a trailing axis."
            )
        sizes = self._sizes
        unsigned = array.astype(np.uint64)  # where -1 is the largest number of all: one comparison for both ends
        if (unsigned >= sizes).any():
            outside = unsigned >= sizes
            bound = int(np.broadcast_to(sizes, array.shape)[outside][0]) - 1
            raise ValueError(f"{self.name}: discrete actions must lie in 0...{bound}, got {int(array[outside][0])}")
        return (array + self.start).astype(self.dtype, copy=False).reshape(len(array), *self.shape)

    def encode(self, action: Any) -> Array:
        """The inverse of `decode`: [B, *shape] of the environment -> float32 [B, A] in [-1, 1], int64 [B] or [B, D]."""
        array = np.asarray(action)
        if self.nvec:
            return array.reshape(len(array), -1).astype(np.int64) - self.start
        if self.n_actions:
            return array.astype(np.int64) - self.start
        width = self.high - self.low
        flat = array.reshape(len(array), self.action_dim).astype(np.float64)
        unit = (flat - self.low) / np.where(width > 0, width, 1.0)  # a dimension that cannot move sits at 0
        return np.where(width > 0, np.clip(2.0 * unit - 1.0, -1.0, 1.0), 0.0).astype(np.float32)


def obs_codec(space: spaces.Space[Any], name: str = "environment") -> ObsCodec:
    """The codec of one environment's observation space; ValueError for what is not supported."""
    parts = tuple(_part(leaf, path, name) for path, leaf in _leaves(space, ()))
    if not parts:
        raise ValueError(f"{name}: observation_space {space} is empty")
    return ObsCodec(name, parts)


def action_codec(space: spaces.Space[Any], name: str = "environment") -> ActionCodec:
    """The codec of one environment's action space; ValueError for what is not supported."""
    if isinstance(space, spaces.Discrete):
        return ActionCodec(name, (), space.dtype, 0, n_actions=int(space.n), start=int(space.start))
    if isinstance(space, spaces.MultiDiscrete):
        nvec, start = tuple(int(n) for n in space.nvec.reshape(-1)), np.asarray(space.start).reshape(-1)
        return ActionCodec(name, space.shape, space.dtype, 0, start=start, nvec=nvec)
    if isinstance(space, spaces.MultiBinary):
        n = int(np.prod(space.shape, dtype=np.int64))
        return ActionCodec(name, space.shape, space.dtype, 0, nvec=(2,) * n)
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
    raise _unsupported(
        name, "action_space", space, "Box, Discrete, MultiDiscrete and MultiBinary", "TransformAction maps one of them"
    )


def env_spec(obs: ObsCodec, action: ActionCodec, *, n_envs: int, episode_length: int = 0) -> EnvSpec:
    """The EnvSpec of `n_envs` such environments on the CPU; episode_length in steps, 0 = no time limit."""
    plain = obs.shape is not None and not obs.parts[0].part.image
    return EnvSpec(
        obs_dim=obs.dim,
        action_dim=action.action_dim,
        n_actions=action.n_actions,
        reward_dim=1,
        n_envs=n_envs,
        episode_length=episode_length,
        device=torch.device("cpu"),
        nvec=action.nvec,
        obs_parts=() if plain else tuple(p.part for p in obs.parts),
    )


def is_image(space: spaces.Space[Any]) -> bool:
    """SB3's rule: uint8, three axes, bounds 0 and 255."""
    return (
        isinstance(space, spaces.Box)
        and space.dtype == np.uint8
        and len(space.shape) == 3
        and bool((space.low == 0).all() and (space.high == 255).all())
    )


def _leaves(space: spaces.Space[Any], path: Path) -> Iterator[tuple[Path, spaces.Space[Any]]]:
    if isinstance(space, spaces.Dict):
        for key, inner in space.spaces.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(space, spaces.Tuple):
        for i, inner in enumerate(space.spaces):
            yield from _leaves(inner, (*path, i))
    else:
        yield path, space


def _part(space: spaces.Space[Any], path: Path, name: str) -> PartCodec:
    key = ".".join(map(str, path))
    if is_image(space):
        shape = space.shape
        assert shape is not None
        channels_last = shape[-1] == min(shape) and shape[0] != min(shape)  # SB3's rule: the smallest axis is channels
        chw = (shape[-1], *shape[:-1]) if channels_last else tuple(shape)
        return PartCodec(name, path, tuple(shape), ObsPart(key, chw, image=True), channels_last=channels_last)
    if isinstance(space, spaces.Box):
        return PartCodec(name, path, tuple(space.shape), ObsPart(key, tuple(space.shape)))
    if isinstance(space, spaces.MultiBinary):
        return PartCodec(name, path, tuple(space.shape), ObsPart(key, tuple(space.shape)))
    if isinstance(space, spaces.Discrete):
        part = ObsPart(key, (int(space.n),))
        return PartCodec(name, path, (), part, nvec=np.array([space.n]), start=np.array([space.start]))
    if isinstance(space, spaces.MultiDiscrete):
        nvec, start = space.nvec.reshape(-1), np.asarray(space.start).reshape(-1)
        return PartCodec(name, path, tuple(space.shape), ObsPart(key, (int(nvec.sum()),)), nvec=nvec, start=start)
    known = "Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of them"
    mend = "FlattenObservation makes a Box of many others"
    raise _unsupported(name, f"observation_space{f' {key!r}' if path else ''}", space, known, mend)


def _unsupported(name: str, which: str, space: Any, known: str, mend: str) -> ValueError:
    return ValueError(
        f"{name}: {which} {type(space).__name__} is not supported; supported are {known}. gymnasium.wrappers.{mend}."
    )

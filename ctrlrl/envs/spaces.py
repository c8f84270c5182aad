"""The two spaces of a task: how a saved model remembers what it sees and does, and how `predict` speaks NumPy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ctrlrl.envs.spec import ActionCodec, Array, ObsCodec, PartCodec, action_codec, env_spec, obs_codec
from ctrlrl.types import EnvSpec

MOST = 2**24  # numbers that the two spaces of a file may have
EACH = 2**10  # of them, what a space counts for by itself
MAX_AXES = 32


class _Pair(NamedTuple):
    observation: spaces.Space[Any]
    action: spaces.Space[Any]


class Spaces(_Pair):
    @cached_property
    def obs_codec(self) -> ObsCodec:
        return obs_codec(self.observation)

    @cached_property
    def action_codec(self) -> ActionCodec:
        return action_codec(self.action)

    @classmethod
    def of_id(cls, gym_id: str) -> Spaces:
        with warnings.catch_warnings():
            # D4RL's data are of the v4 rules: who asks for them knows that there are newer ones
            warnings.filterwarnings("ignore", ".*is out of date", DeprecationWarning)
            env = gym.make(gym_id)
        found = cls(env.observation_space, env.action_space)
        env.close()
        return found

    @classmethod
    def of_spec(cls, spec: EnvSpec) -> Spaces:
        """Of a task that has no other than ctrlrl's own units: unbounded observations, actions in [-1, 1]."""
        obs = spaces.Box(-np.inf, np.inf, (spec.obs_dim,), np.float32)
        if spec.n_actions:
            return cls(obs, spaces.Discrete(spec.n_actions))
        if spec.nvec:
            return cls(obs, spaces.MultiDiscrete(list(spec.nvec)))
        return cls(obs, spaces.Box(-1.0, 1.0, (spec.action_dim,), np.float32))

    @classmethod
    def of_env(cls, env: Any, spec: EnvSpec) -> Spaces:
        """What an environment object states of one lane, where that is what its `spec` says; else `of_spec`."""
        for prefix in ("single_", ""):
            obs, action = (getattr(env, f"{prefix}{name}_space", None) for name in cls._fields)
            if isinstance(obs, spaces.Space) and isinstance(action, spaces.Space) and cls(obs, action).fits(spec):
                return cls(obs, action)
        return cls.of_spec(spec)

    def fits(self, spec: EnvSpec) -> bool:
        """Whether an environment of this spec can be shown in these spaces."""
        try:
            mine = self.env_spec(spec.device)
        except ValueError:  # not supported, e.g. an action without bounds
            return False
        sizes = ("obs_dim", "action_dim", "n_actions", "nvec")
        return all(getattr(mine, size) == getattr(spec, size) for size in sizes)

    def env_spec(self, device: torch.device) -> EnvSpec:
        return env_spec(self.obs_codec, self.action_codec, n_envs=1)._replace(device=device)

    def predict(
        self,
        act: Callable[[Tensor], Tensor],
        observation: Any,
        device: torch.device,
        quick: Callable[[Array], Array | None] | None = None,
    ) -> Array:
        """One observation or a batch (leading axis n) to actions of the action space, clipped to its bounds.

        quick: acts in the place of `act` on a single row [O], where it can: not where it returns None.
        """
        codec, given = self.obs_codec, observation
        if not self.structured and isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], dict):
            raise ValueError("predict: got (observation, info), as Gymnasium's reset returns it; give the observation")
        single = codec.is_single(observation)
        if single:
            observation = codec.lanes([observation]) if self.structured else np.asarray(observation)[None]
        try:
            rows = codec.encode(observation)
        except ValueError:
            self._refuse(given)
            raise
        found = quick(rows[0]) if quick is not None and single else None
        try:
            action = self.action_codec.decode(act(torch.from_numpy(rows).to(device)) if found is None else found[None])
        except ValueError:
            if not np.isfinite(rows).all():
                raise ValueError(
                    f"predict: nan or inf in observation {int(np.isfinite(rows).all(1).argmin())}"
                ) from None
            raise
        return action[0] if single else action

    def _refuse(self, observation: Any) -> None:
        """ValueError where an array given to `predict` has another shape than the space says."""
        wanted, shape = self.obs_codec.shape, np.shape(observation)
        if not self.structured and wanted is not None and shape[len(shape) - len(wanted) :] != wanted:
            raise ValueError(
                f"predict: an observation must have shape {wanted}, a batch (n, *{wanted}); got {shape}"
            ) from None

    def rows(self, observation: Any) -> Tensor:
        """A batch of observations (arrays or tensors in the structure of the space) as [B, O], on the CPU."""
        return torch.from_numpy(self.obs_codec.encode(_map(_array, observation)))

    def observations(self, rows: Tensor) -> Any:
        """The inverse of `rows`, in new arrays of the space's own shapes and types."""
        array = rows.detach().cpu().numpy()
        ends = np.cumsum([part.dim for part in self.obs_codec.parts])
        columns = zip(self.obs_codec.parts, np.split(array, ends[:-1], axis=-1), strict=True)
        return _gathered(self.observation, columns)

    def network_space(self) -> spaces.Space[Any]:
        """The observation space as networks see it: images channel-first."""
        return _channels_first(self.observation, iter(self.obs_codec.parts))

    def network_tensors(self, observation: Any, device: torch.device) -> tuple[Any, bool]:
        """Observations as tensors with a leading axis, images channel-first, and whether there was such an axis."""
        single = self.obs_codec.is_single(observation)
        batch = _map(lambda x: np.asarray(x)[None], observation) if single else observation
        arrays = (self.obs_codec._find(batch, part.path) for part in self.obs_codec.parts)
        columns = zip(self.obs_codec.parts, (np.asarray(x) for x in arrays), strict=True)
        leaves = iter([torch.as_tensor(_turned(part, x)).to(device) for part, x in columns])
        return _rebuilt(self.observation, leaves), not single

    def unscaled(self, action: Tensor) -> Tensor:
        """Actions of a policy ([B, A] unclipped, [B] or [B, D]) in the units of the action space; keeps gradients."""
        codec = self.action_codec
        if codec.action_dim:
            low, high = self._bounds(action)
            action = low + (action + 1.0) / 2.0 * (high - low)
        else:
            action = action + torch.as_tensor(codec.start, device=action.device)
        return action.reshape(-1, *codec.shape)

    def scaled(self, action: Tensor) -> Tensor:
        """The inverse of `unscaled`; not clipped."""
        codec = self.action_codec
        if not codec.action_dim:
            flat = action.reshape(-1, len(codec.nvec)) if codec.nvec else action.reshape(-1)
            return flat.long() - torch.as_tensor(codec.start, device=action.device)
        low, high = self._bounds(action)
        flat = action.reshape(-1, codec.action_dim).float()
        return torch.where(high > low, 2.0 * (flat - low) / (high - low).where(high > low, 1.0) - 1.0, 0.0)

    @property
    def structured(self) -> bool:
        """Whether an observation is a Dict or Tuple of arrays."""
        return self.obs_codec.shape is None

    @cached_property
    def log_volume(self) -> float:
        """log |d action / d scaled action|, nats: what densities change by between the two units; 0 for choices."""
        half = (self.action_codec.high - self.action_codec.low) / 2.0
        return float(np.log(half[half > 0]).sum())

    def _bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        codec = self.action_codec
        low, high = (torch.as_tensor(x, dtype=torch.float32, device=like.device) for x in (codec.low, codec.high))
        return low, high

    def same(self, other: Spaces, where: str) -> None:
        """ValueError unless a policy for these spaces can act in `other`; an observation's bounds do not matter."""
        mine, theirs = (_form(s.obs_codec) for s in (self, other))
        equal = (type(self.observation) is type(other.observation) and mine == theirs, _same_action(self, other))
        for name, fits, own, given in zip(self._fields, equal, self, other, strict=True):
            if not fits:
                raise ValueError(
                    f"{where}: the model was trained with {name} space {own}, the environment has {given}."
                )

    def to_json(self) -> list[dict[str, Any]]:
        return [_to_json(space) for space in self]

    @classmethod
    def from_json(cls, data: list[dict[str, Any]], where: str) -> Spaces:
        """The inverse of `to_json`; ValueError that begins with `where` for anything else."""
        try:
            if sum(map(_numbers, data)) > MOST:
                raise ValueError(f"more than {MOST:,} numbers")
            found = cls(*map(_from_json, data))
            found.env_spec(torch.device("cpu"))
        except Exception as error:  # NumPy and Gymnasium each have their own
            text = f"{type(error).__name__}: {error}".splitlines()[0][:100]
            raise ValueError(f"{where}: its spaces cannot be read ({text})") from None
        return found


def _to_json(space: spaces.Space[Any]) -> dict[str, Any]:
    if isinstance(space, spaces.Box):
        bounds = [_bound(space.low), _bound(space.high)]
        return {"box": bounds, "shape": list(space.shape), "dtype": str(space.dtype)}
    if isinstance(space, spaces.Discrete):
        return {"discrete": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"multi_discrete": space.nvec.tolist(), "start": space.start.tolist(), "dtype": str(space.dtype)}
    if isinstance(space, spaces.MultiBinary):
        return {"multi_binary": space.n if isinstance(space.n, int) else list(space.shape)}
    if isinstance(space, spaces.Dict):
        return {"dict": {key: _to_json(inner) for key, inner in space.spaces.items()}}
    if isinstance(space, spaces.Tuple):
        return {"tuple": [_to_json(inner) for inner in space.spaces]}
    raise ValueError(f"cannot save the space {space}")


def _bound(values: Array) -> Any:
    """One number where all are equal: an image has thousands."""
    flat = values.astype(float).reshape(-1)
    return float(flat[0]) if len(flat) and (flat == flat[0]).all() else values.astype(float).tolist()


def _numbers(data: dict[str, Any]) -> int:
    """Of a saved space and those inside it; ValueError where a size is no count."""
    if "dict" in data or "tuple" in data:
        return EACH + sum(map(_numbers, data["dict"].values() if "dict" in data else data["tuple"]))
    kind = next(name for name in ("shape", "discrete", "multi_discrete", "multi_binary") if name in data)
    sizes = np.ravel(data[kind]).tolist()
    summed = kind == "multi_discrete"
    if not all(type(n) is int and 0 <= n <= MOST for n in sizes) or (len(sizes) > MAX_AXES and not summed):
        raise ValueError(f"{kind} {sizes!s:.40}")
    return EACH + (sum(sizes) if summed else math.prod(sizes))


def _dtype(data: dict[str, Any]) -> np.dtype[Any]:
    dtype = np.dtype(data["dtype"])
    if dtype.kind not in "biuf":
        raise TypeError(f"numbers of type {dtype}")
    return dtype


def _from_json(data: dict[str, Any]) -> spaces.Space[Any]:
    if "box" in data:
        dtype, shape = _dtype(data), tuple(data["shape"])
        low, high = (np.broadcast_to(np.array(x, dtype=dtype), shape).copy() for x in data["box"])
        return spaces.Box(low, high, shape, dtype.type)
    if "discrete" in data:
        return spaces.Discrete(data["discrete"], start=data["start"])
    if "multi_discrete" in data:
        nvec, start = np.array(data["multi_discrete"]), np.array(data["start"])
        return spaces.MultiDiscrete(nvec, dtype=_dtype(data).type, start=start)
    if "multi_binary" in data:
        return spaces.MultiBinary(data["multi_binary"])
    if "dict" in data:
        # the order of the keys is the order in [O]
        return spaces.Dict({key: _from_json(inner) for key, inner in data["dict"].items()}, sort_keys=False)
    return spaces.Tuple([_from_json(inner) for inner in data["tuple"]])


def _form(codec: ObsCodec) -> list[tuple[Any, ...]]:
    return [
        (p.path, p.part, *(None if x is None else tuple(x.tolist()) for x in (p.nvec, p.start))) for p in codec.parts
    ]


def _same_action(mine: Spaces, other: Spaces) -> bool:
    a, b = mine.action_codec, other.action_codec
    numbers = ((a.low, b.low), (a.high, b.high), (np.asarray(a.start), np.asarray(b.start)))
    shapes = (a.shape, a.n_actions, a.nvec) == (b.shape, b.n_actions, b.nvec)
    return shapes and all(x.shape == y.shape and np.allclose(x, y) for x, y in numbers)


def _map(f: Callable[[Any], Any], tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _map(f, value) for key, value in tree.items()}
    return tuple(_map(f, value) for value in tree) if isinstance(tree, tuple) else f(tree)


def _array(x: Any) -> Array:
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)


def _rebuilt(space: spaces.Space[Any], leaves: Iterator[Any]) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _rebuilt(inner, leaves) for key, inner in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_rebuilt(inner, leaves) for inner in space.spaces)
    return next(leaves)


def _gathered(space: spaces.Space[Any], columns: Iterator[tuple[PartCodec, Array]]) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _gathered(inner, columns) for key, inner in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_gathered(inner, columns) for inner in space.spaces)
    part, array = next(columns)
    n = len(array)
    if part.nvec is not None:
        assert part.start is not None
        hot = np.split(array, np.cumsum(part.nvec)[:-1], axis=1)
        array = np.stack([one.argmax(1) for one in hot], axis=1) + part.start
    elif part.channels_last:
        array = np.moveaxis(array.reshape(n, *part.part.shape), 1, -1)
    return array.reshape(n, *part.shape).astype(space.dtype, order="C")


def _turned(part: PartCodec, array: Array) -> Array:
    return np.moveaxis(array, -1, 1).copy() if part.part.image and array.shape[1:] != part.part.shape else array


def _channels_first(space: spaces.Space[Any], parts: Iterator[PartCodec]) -> spaces.Space[Any]:
    if isinstance(space, spaces.Dict):
        inner = {key: _channels_first(one, parts) for key, one in space.spaces.items()}
        return spaces.Dict(inner, sort_keys=False)
    if isinstance(space, spaces.Tuple):
        return spaces.Tuple([_channels_first(one, parts) for one in space.spaces])
    part = next(parts)
    if not part.channels_last:
        return space
    assert isinstance(space, spaces.Box)
    low, high = (np.moveaxis(bound, -1, 0) for bound in (space.low, space.high))
    return spaces.Box(low, high, part.part.shape, np.uint8)

"""The two spaces of a task: how a saved model remembers what it sees and does, and how `predict` speaks NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ctrlrl.envs.spec import Array, action_codec, env_spec, obs_codec
from ctrlrl.types import EnvSpec


class Spaces(NamedTuple):
    observation: spaces.Space[Any]
    action: spaces.Space[Any]

    @classmethod
    def of_id(cls, gym_id: str) -> Spaces:
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
        return cls(obs, spaces.Box(-1.0, 1.0, (spec.action_dim,), np.float32))

    def env_spec(self, device: torch.device) -> EnvSpec:
        return env_spec(obs_codec(self.observation), action_codec(self.action), n_envs=1)._replace(device=device)

    def predict(self, act: Callable[[Tensor], Tensor], observation: Any, device: torch.device) -> Array:
        """One observation or a batch [n, *shape] to actions of the action space, clipped to its bounds."""
        codec, array = obs_codec(self.observation), np.asarray(observation)
        single = array.shape == codec.shape
        obs = torch.from_numpy(codec.encode(array[None] if single else array)).to(device)
        action = action_codec(self.action).decode(act(obs).cpu())
        return action[0] if single else action

    def same(self, other: Spaces, where: str) -> None:
        for name, mine, given in zip(self._fields, self, other, strict=True):
            if mine != given and (mine.shape != given.shape or type(mine) is not type(given)):
                raise ValueError(
                    f"{where}: the model was trained with {name} space {mine}, the environment has {given}."
                )

    def to_json(self) -> list[dict[str, Any]]:
        return [_to_json(space) for space in self]

    @classmethod
    def from_json(cls, data: list[dict[str, Any]]) -> Spaces:
        return cls(*(_from_json(d) for d in data))


def _to_json(space: spaces.Space[Any]) -> dict[str, Any]:
    if isinstance(space, spaces.Box):
        low, high = space.low.astype(float).tolist(), space.high.astype(float).tolist()
        return {"box": [low, high], "shape": list(space.shape), "dtype": str(space.dtype)}
    if isinstance(space, spaces.Discrete):
        return {"discrete": int(space.n), "start": int(space.start)}
    raise ValueError(f"cannot save the space {space}")


def _from_json(data: dict[str, Any]) -> spaces.Space[Any]:
    if "box" in data:
        dtype = np.dtype(data["dtype"])
        low, high = (np.array(x, dtype=dtype).reshape(data["shape"]) for x in data["box"])
        return spaces.Box(low, high, tuple(data["shape"]), dtype.type)
    return spaces.Discrete(data["discrete"], start=data["start"])

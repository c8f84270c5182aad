"""Gymnasium environments one after another in this process, with less around each step than SyncVectorEnv has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from gymnasium.vector.utils import concatenate

from ctrlrl.envs.spec import Array


class SyncLanes(SyncVectorEnv):
    """SyncVectorEnv in SAME_STEP mode; a step's infos tell of the ended episodes only (final_obs, final_info)."""

    def __init__(self, env_fns: Sequence[Callable[[], Any]], **words: Any):
        super().__init__(env_fns, **words)
        if len({id(env.unwrapped) for env in self.envs}) < len(self.envs):
            raise ValueError(
                f"{type(self.envs[0].unwrapped).__name__}: the function gives the same environment every time, so that "
                f"{len(self.envs)} lanes would step one; make a new one inside it"
            )

    def step(self, actions: Any) -> tuple[Any, Array, Array, Array, dict[str, Any]]:
        infos: dict[str, Any] = {}
        seen, rewards, terminations, truncations = self._env_obs, [], [], []
        for i, (env, action) in enumerate(zip(self.envs, actions, strict=True)):
            seen[i], reward, terminated, truncated, info = env.step(action)
            rewards.append(reward)
            terminations.append(terminated)
            truncations.append(truncated)
            if terminated or truncated:
                infos = self._add_info(infos, {"final_obs": deepcopy(seen[i]), "final_info": info}, i)
                seen[i], _ = env.reset()  # which may write over the array that it gave before
        if isinstance(self.single_observation_space, spaces.Box):
            obs: Any = np.array(seen)
        else:
            obs = self._observations = concatenate(self.single_observation_space, seen, self._observations)
        return obs, np.array(rewards), np.array(terminations, dtype=bool), np.array(truncations, dtype=bool), infos

    def _add_info(self, vector_infos: dict[str, Any], env_info: dict[str, Any], env_num: int) -> dict[str, Any]:
        """Arrays of one key whose shapes differ from lane to lane stand in a column of objects."""
        for key, value in env_info.items():
            column = vector_infos.get(key)
            if isinstance(column, np.ndarray) and column.dtype != object and column.shape[1:] != np.shape(value):
                vector_infos[key] = np.empty(self.num_envs, dtype=object)
                vector_infos[key][:] = list(column)
        return super()._add_info(vector_infos, env_info, env_num)

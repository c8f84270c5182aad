"""Gymnasium environments one after another in this process, with less around each step than SyncVectorEnv has."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from gymnasium.vector.utils import concatenate

from ctrlrl.envs.spec import Array


class SyncLanes(SyncVectorEnv):
    """SyncVectorEnv in SAME_STEP mode; a step's infos tell of the ended episodes only (final_obs, final_info)."""

    def step(self, actions: Any) -> tuple[Any, Array, Array, Array, dict[str, Any]]:
        infos: dict[str, Any] = {}
        seen, rewards, terminations, truncations = self._env_obs, [], [], []
        for i, (env, action) in enumerate(zip(self.envs, actions, strict=True)):
            seen[i], reward, terminated, truncated, info = env.step(action)
            rewards.append(reward)
            terminations.append(terminated)
            truncations.append(truncated)
            if terminated or truncated:
                infos = self._add_info(infos, {"final_obs": seen[i], "final_info": info}, i)
                seen[i], _ = env.reset()
        if isinstance(self.single_observation_space, spaces.Box):
            obs: Any = np.array(seen)
        else:
            obs = self._observations = concatenate(self.single_observation_space, seen, self._observations)
        return obs, np.array(rewards), np.array(terminations, dtype=bool), np.array(truncations, dtype=bool), infos

"""The SB3 VecEnv that `as_sb3` gives out; a file of its own, because only it imports Stable-Baselines3."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnv as SB3VecEnv

from ctrlrl.envs.face import Face
from ctrlrl.envs.monitor import MonitorWriter, episode_info
from ctrlrl.envs.spaces import Spaces
from ctrlrl.envs.spec import Array
from ctrlrl.types import VecEnv

Indices = None | int | Iterable[int]


class SB3Face(SB3VecEnv):
    """See `ctrlrl.envs.sb3.as_sb3`. Its lanes are rows of one environment, which SB3's attribute access must know:

    get_attr, set_attr and env_method reach the single environments where there are such (Gymnasium's, in this process);
    else the environment, its simulator or task, as one value for all lanes. A render of a lane is that lane's.
    """

    def __init__(
        self,
        env: VecEnv,
        spaces: Spaces | None,
        *,
        monitor_path: str | os.PathLike[str] | None,
        info_keywords: tuple[str, ...],
        stagger: bool,
    ) -> None:
        self.env = env
        self._face = Face(env, spaces, stagger=stagger)
        if env.spec.reward_dim > 1:
            raise ValueError(
                f"{self._face.name}: it pays {env.spec.reward_dim} rewards a step; Stable-Baselines3 learns from one"
            )
        self._single = list(getattr(getattr(env, "env", None), "envs", ()))
        super().__init__(env.spec.n_envs, self._face.spaces.observation, self._face.spaces.action)
        self.metadata |= {"render_fps": self._face.metadata["render_fps"]}
        self._actions: Any = None
        self._start = time.time()
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, dtype=np.int64)
        self._keywords = info_keywords
        self._writer = None
        if monitor_path is not None:
            self._writer = MonitorWriter(
                monitor_path, env_id=self._face.name, extra_keys=info_keywords, start=self._start
            )

    def reset(self) -> Any:
        if any(self._options):
            raise ValueError(f"{self._face.name}: reset takes no options, got {self._options[0]}")
        obs = self._face.reset(self._seeds[0])  # one seed for all: the environment derives its lanes' own
        self._reset_seeds()
        self._returns[:], self._lengths[:] = 0, 0
        return obs

    def step_async(self, actions: Array) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[Any, Array, Array, list[dict[str, Any]]]:
        step = self._face.step(self._actions)
        self._returns += step.reward
        self._lengths += 1
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for lane, final_obs in zip(step.ended.tolist(), step.final_obs, strict=True):
            info = infos[lane]
            info["terminal_observation"] = final_obs
            info["TimeLimit.truncated"] = bool(step.truncated[lane])
            if lane in step.success:
                info["is_success"] = step.success[lane]
            info["episode"] = episode_info(self._returns[lane], self._lengths[lane], self._start)
            info["episode"] |= {key: info[key] for key in self._keywords}
            if self._writer is not None:
                self._writer.write(info["episode"])
        self._returns[step.ended], self._lengths[step.ended] = 0, 0
        return step.obs, step.reward, step.terminated | step.truncated, infos

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self.env.close()

    def get_images(self) -> Sequence[Array | None]:
        return [self._face.render(lane) for lane in range(self.num_envs)]

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        lanes = list(self._get_indices(indices))
        if attr_name == "render_mode":
            return [self._face.render_mode for _ in lanes]
        if self._single:
            return [self._single[lane].get_wrapper_attr(attr_name) for lane in lanes]
        return [getattr(self._holder(attr_name), attr_name) for _ in lanes]

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        lanes = list(self._get_indices(indices))
        if self._single:
            for lane in lanes:
                self._single[lane].set_wrapper_attr(attr_name, value)
        else:
            self._all(lanes, f"set_attr({attr_name!r})")
            setattr(self._holder(attr_name), attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any
    ) -> list[Any]:
        lanes = list(self._get_indices(indices))
        if self._single:
            methods = [self._single[lane].get_wrapper_attr(method_name) for lane in lanes]
            return [method(*method_args, **method_kwargs) for method in methods]
        if method_name == "render":
            return [self._face.render(lane) for lane in lanes]
        self._all(lanes, f"env_method({method_name!r})")
        result = getattr(self._holder(method_name), method_name)(*method_args, **method_kwargs)
        return [result for _ in lanes]

    def env_is_wrapped(self, wrapper_class: Any, indices: Indices = None) -> list[bool]:
        lanes = list(self._get_indices(indices))
        if issubclass(wrapper_class, Monitor):  # infos hold the episode, as they do behind a Monitor
            return [True for _ in lanes]
        if not self._single:
            return [False for _ in lanes]
        return [is_wrapped(self._single[lane], wrapper_class) for lane in lanes]

    def _holder(self, name: str) -> Any:
        """What has an attribute: the environment, its simulator or its task."""
        for holder in (self.env, getattr(self.env, "sim", None), getattr(self.env, "task", None)):
            if holder is not None and hasattr(holder, name):
                return holder
        raise AttributeError(f"{self._face.name}: the environment has no attribute {name!r}")

    def _all(self, lanes: list[int], what: str) -> None:
        if sorted(lanes) != list(range(self.num_envs)):
            raise ValueError(f"{self._face.name}: {what} is for all lanes at once: they share one environment")

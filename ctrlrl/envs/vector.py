"""Any ctrlrl VecEnv as a `gymnasium.vector.VectorEnv`; `gymnasium.make_vec("ctrlrl/Pendulum", n)` gives one."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from ctrlrl.envs.face import Face
from ctrlrl.envs.spaces import Spaces
from ctrlrl.envs.spec import Array
from ctrlrl.types import VecEnv


class CtrlrlVectorEnv(VectorEnv[Any, Any, Array]):
    """B lanes of one ctrlrl environment; NumPy in and out, autoreset mode SAME_STEP.

    env:         any ctrlrl VecEnv, on any device.
    spaces:      of one lane; None takes the environment's own, or else ctrlrl's units (actions in [-1, 1]).
    render_mode: None, or "rgb_array" for a tuple of one picture a lane.
    stagger:     False starts every episode at its beginning, whatever the environment was made with.

    An int seed fixes all lanes; the native simulators derive each lane's own from it. Where episodes ended, infos hold
    final_obs (an object array) and final_info with the masks _final_obs and _final_info; final_info["is_success"] where
    the environment tells it. Returned arrays are the caller's: the next step writes into new ones. Gymnasium's
    observation wrappers (NormalizeObservation, ...) take no environment of this mode, its own ones included.
    """

    def __init__(
        self,
        env: VecEnv,
        spaces: Spaces | None = None,
        *,
        render_mode: str | None = None,
        stagger: bool = False,
    ) -> None:
        self._face = face = Face(env, spaces, stagger=stagger)
        self.vec_env = env
        if render_mode not in (None, face.render_mode):
            raise ValueError(f"{face.name}: render_mode must be one of {[None, face.render_mode]}, got {render_mode!r}")
        self.render_mode = render_mode
        self.num_envs = face.n_envs
        self.single_observation_space, self.single_action_space = face.spaces
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        if env.spec.reward_dim > 1:  # as mo-gymnasium's environments say it
            self.reward_space = Box(-np.inf, np.inf, (env.spec.reward_dim,), np.float32)
        self.metadata = {**face.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if options:
            raise ValueError(f"{self._face.name}: reset takes no options, got {sorted(options)}")
        if seed is not None and not isinstance(seed, int | np.integer):
            raise TypeError(f"{self._face.name}: seed must be one int for all lanes, got {type(seed).__name__}")
        seed = None if seed is None else int(seed)
        super().reset(seed=seed)
        return self._face.reset(seed), {}

    def step(self, actions: Any) -> tuple[Any, Array, Array, Array, dict[str, Any]]:
        step = self._face.step(actions)
        infos: dict[str, Any] = {}
        if len(step.ended):
            final_obs = np.full(self.num_envs, None, dtype=object)
            for lane, obs in zip(step.ended, step.final_obs, strict=True):
                final_obs[lane] = obs
            ended = step.terminated | step.truncated
            infos = {"final_obs": final_obs, "_final_obs": ended, "final_info": {}, "_final_info": ended.copy()}
            for lane, success in step.success.items():
                self._add_info(infos["final_info"], {"is_success": success}, lane)
        return step.obs, step.reward, step.terminated, step.truncated, infos

    def render(self) -> tuple[Array, ...] | None:
        if self.render_mode is None:
            return None
        return tuple(self._face.render(lane) for lane in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        self.vec_env.close()

"""ManiSkill 3 behind its own vector wrapper; read from its sources, tested with a stand-in, imported by nobody."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ctrlrl.envs.tensor_env import TensorEnv, actor_group, bounded_actions
from ctrlrl.types import TimeStep


class ManiSkillEnv(TensorEnv):
    """A ManiSkillVectorEnv: step gives (obs, reward [B], terminated [B], truncated [B], infos), tensors on its device.

    Lanes are reset in the same step; in a step with an end, infos["final_observation"] (or "final_obs") holds the last
    observations of all lanes, so nothing is lost. extras["success"] is 1 or 0 where an episode has just ended, NaN
    elsewhere, from the first end of a task that tells it. Observations must be one tensor: obs_mode="state".
    Whether terminations end an episode is the wrapper's ignore_terminations.
    """

    def __init__(self, env: Any, *, seed: int | None = None, action_scale: float = 1.0) -> None:
        super().__init__(env)
        if not hasattr(env, "auto_reset"):
            raise ValueError(
                f"{self.name}: a ManiSkill environment must stand in its vector wrapper: "
                "mani_skill.vector.wrappers.gymnasium.ManiSkillVectorEnv(env)"
            )
        if not env.auto_reset:
            raise ValueError(f"{self.name}: make the ManiSkillVectorEnv with auto_reset=True")
        self._seed = seed
        self._tells_success = False
        obs = actor_group(self, self._first(seed))
        device = obs.device if isinstance(obs, Tensor) else torch.device("cpu")
        action_dim, self._actions = bounded_actions(env.single_action_space, device, scale=action_scale, name=self.name)
        limit = getattr(getattr(env, "spec", None), "max_episode_steps", None) or 0
        self._set_spec(obs, action_dim=action_dim, episode_length=int(limit), n_envs=int(env.num_envs))

    def reset(self, seed: int | None = None) -> Tensor:
        seed, self._seed = (self._seed if seed is None else seed), None
        return self.rows(actor_group(self, self._first(seed)))

    def step(self, action: Tensor) -> TimeStep:
        """action [B, A], in [-1, 1] where the action space has bounds."""
        answer = self.call(self.env.step, self._actions(self._action_rows(action)))
        raw, reward, terminated, truncated, infos = self.parts(answer, 5)
        self._n_steps += 1
        obs, reward = self.rows(actor_group(self, raw)), self.lanes("rewards", reward).float()
        terminated = self.lanes("terminated", terminated).bool()
        truncated = self.lanes("truncated", truncated).bool() & ~terminated
        last = next((infos[key] for key in ("final_observation", "final_obs") if key in infos), None)
        final_obs = obs
        if last is not None:  # for all lanes, in a step in which at least one ended
            done = terminated | truncated
            final_obs = torch.where(done.unsqueeze(1), self.rows(actor_group(self, last)), obs)
        extras = self._success(infos, terminated | truncated)
        return TimeStep(obs, final_obs, reward, terminated, truncated, extras)

    def _success(self, infos: Any, done: Tensor) -> dict[str, Tensor]:
        told = infos.get("final_info", {}).get("success")
        self._tells_success |= told is not None
        if not self._tells_success:
            return {}
        nan = torch.full(done.shape, float("nan"), device=done.device)
        return {"success": nan if told is None else torch.where(done, self.lanes("success", told).float(), nan)}

    def _first(self, seed: int | None) -> Any:
        answer = self.call(self.env.reset, seed=seed)
        return answer[0] if isinstance(answer, tuple) else answer

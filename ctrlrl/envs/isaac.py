"""Isaac Gym tasks and Isaac Lab environments. The user makes the task (Isaac Gym comes before torch); nothing of
either is imported here. Written against IsaacGymEnvs 1.5 and Isaac Lab 2.3, tested with stand-ins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ctrlrl.envs.tensor_env import LOST, TensorEnv, actor_group, bounded_actions, length_of, scaled_actions
from ctrlrl.types import TimeStep

TIMINGS = ("next_step", "same_step")
SAME_STEP_TASKS = ("AnymalTerrain",)  # of IsaacGymEnvs; subclasses included. All others reset in the next step


class IsaacGymEnv(TensorEnv):
    """A VecTask of IsaacGymEnvs (Preview 4): step gives ({"obs": [B, O]}, reward [B], reset [B] long, extras).

    reset_timing: when a lane flagged in step t is reset.
        "next_step" (Ant, Humanoid, Cartpole, hands, ...): inside step t+1, before its observation. So the observation
        of step t is the true last one; step t+1 is no transition and has extras["mask"] False for that lane.
        "same_step" (AnymalTerrain and what is written like it): inside step t, so its last observation is lost.
        None: by the task's class, "same_step" for SAME_STEP_TASKS and subclasses of them, else "next_step".
    action_scale: the policy's samples, times this, go to the task, which clips them at its own clip_actions: one unit
        of the policy is one unit of the task, as with rl_games and rsl_rl, whatever clip_actions is.

    A time-out is a reset at the task's step limit (its own extras["time_outs"] comes too late from tasks that reset in
    the same step); an episode that also fails in that very step counts as timed out, since the task does not say.
    The seed of a reset is not used: a task draws from torch's global generator.
    """

    def __init__(
        self, env: Any, *, seed: int | None = None, reset_timing: str | None = None, action_scale: float = 1.0
    ) -> None:
        super().__init__(env)
        family = [kind.__name__ for kind in type(env).__mro__]
        if any(name.startswith("HumanoidAMP") for name in family):
            raise ValueError(f"{self.name}: AMP tasks are reset by their own learner (reset_done), not in step")
        if reset_timing is None:
            reset_timing = "same_step" if any(name in SAME_STEP_TASKS for name in family) else "next_step"
            self.notice(f"resets are taken to happen in the {reset_timing.replace('_', ' ')}; reset_timing=... says so")
        if reset_timing not in TIMINGS:
            raise ValueError(f"{self.name}: reset_timing must be one of {', '.join(TIMINGS)}, got {reset_timing!r}")
        self.same_step = reset_timing == "same_step"
        if self.same_step:
            self.notice(LOST)
        self._actions = scaled_actions(action_scale)
        n_actions = int(env.num_actions if hasattr(env, "num_actions") else env.num_acts)
        self._zero = torch.zeros(int(env.num_envs), n_actions, device=torch.device(env.rl_device))
        self._limit = length_of(env.max_episode_length)
        obs = self._observe(self.call(env.reset))
        self._set_spec(obs, action_dim=n_actions, episode_length=self._limit - 1, n_envs=int(env.num_envs))
        self._pending = torch.zeros(self.spec.n_envs, dtype=torch.bool, device=self.spec.device)

    def reset(self, seed: int | None = None) -> Tensor:
        """Start all lanes anew. One step without action makes the first observations: a task gives none before."""
        env = self.env
        if self.same_step:
            self.call(env.reset_idx, torch.arange(self.spec.n_envs, device=env.progress_buf.device))
        else:
            env.reset_buf[:] = 1  # the step does it
        raw, _, reset, _ = self.parts(self.call(env.step, self._zero), 4)
        self._pending = self._due(reset)
        self._acted_on.copy_(self.rows(self._observe(raw)))
        return self._acted_on.clone()

    def step(self, action: Tensor) -> TimeStep:
        """action [B, A]: the policy's sample."""
        env, masked = self.env, self._pending
        late = (env.progress_buf + 1 >= self._limit - 1).to(self.spec.device)  # a reset in this step sets it to 0
        raw, reward, reset, _ = self.parts(self.call(env.step, self._actions(self._action_rows(action))), 4)
        self._n_steps += 1
        obs, reward = self.rows(self._observe(raw)), self.lanes("rewards", reward).float()
        done = self.lanes("reset flags", reset).bool()
        if self.same_step:
            truncated = done & late
            return TimeStep(obs, self._before_reset(obs, done), reward, done & ~late, truncated, {})
        self._pending = self._due(reset)
        counts = ~masked
        reward = torch.where(counts, reward, 0.0)
        return TimeStep(obs, obs, reward, done & ~late & counts, done & late & counts, {"mask": counts})

    def _due(self, reset: Tensor) -> Tensor:
        """Lanes that the next step only resets; a copy, because the task writes into its flags."""
        return torch.zeros_like(self._pending) if self.same_step else self.lanes("reset flags", reset).bool().clone()

    def _observe(self, obs: Any) -> Any:
        return actor_group(self, obs, ("obs",))


class IsaacLabEnv(TensorEnv):
    """A DirectRLEnv or ManagerBasedRLEnv: step gives (groups, reward [B], terminated [B], time_out [B], extras).

    Lanes are reset in the same step, before observations: the last observation is lost (see LOST in tensor_env).
    groups:       observation groups the policy sees, side by side; None = "policy". Others are ignored with a notice.
    stagger:      spread the first episodes' clocks over the time limit; those episodes are then shorter.
    action_scale: where the action space has no bounds, the policy's samples are sent times this, unclipped, as rsl_rl
                  does. Finite bounds take [-1, 1] to [low, high] instead.

    With cfg.is_finite_horizon a time-out is an end of the task, as Isaac Lab tells its learners.
    """

    def __init__(
        self,
        env: Any,
        *,
        seed: int | None = None,
        groups: Sequence[str] | None = None,
        stagger: bool = False,
        action_scale: float = 1.0,
    ) -> None:
        super().__init__(env)
        self._inner = getattr(env, "unwrapped", env)
        self._groups, self._stagger, self._seed = groups, stagger, seed
        self.notice(LOST)
        self._finite = bool(getattr(getattr(self._inner, "cfg", None), "is_finite_horizon", False))
        if self._finite:
            self.notice("cfg.is_finite_horizon is set: a time-out counts as a termination")
        raw, _ = self.parts(self.call(env.reset, seed=seed), 2)
        obs, inner = actor_group(self, raw, groups), self._inner
        device = obs.device if isinstance(obs, Tensor) else torch.device("cpu")
        space = inner.single_action_space
        action_dim, self._actions = bounded_actions(space, device, scale=action_scale, name=self.name)
        limit = length_of(inner.max_episode_length)
        self._set_spec(obs, action_dim=action_dim, episode_length=limit, n_envs=int(inner.num_envs))

    def reset(self, seed: int | None = None) -> Tensor:
        seed, self._seed = (self._seed if seed is None else seed), None
        raw, _ = self.parts(self.call(self.env.reset, seed=seed), 2)
        if self._stagger:
            self._spread_clocks(self._inner)
        self._acted_on.copy_(self.rows(actor_group(self, raw, self._groups)))
        return self._acted_on.clone()

    def step(self, action: Tensor) -> TimeStep:
        """action [B, A]: the policy's sample."""
        answer = self.call(self.env.step, self._actions(self._action_rows(action)))
        raw, reward, terminated, time_out, _ = self.parts(answer, 5)
        self._n_steps += 1
        obs, reward = self.rows(actor_group(self, raw, self._groups)), self.lanes("rewards", reward).float()
        terminated = self.lanes("terminated", terminated).bool()
        time_out = self.lanes("time_out", time_out).bool()
        done = terminated | time_out
        if self._finite:
            terminated = done
        # both flags may be set: the task ended
        return TimeStep(obs, self._before_reset(obs, done), reward, terminated, done & ~terminated, {})

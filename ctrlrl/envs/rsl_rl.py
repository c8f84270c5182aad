"""Environments written for rsl_rl: its VecEnv of release 5 (TensorDict of groups), and the older forms, legged_gym's
included: plain tensors, (obs, extras) pairs, and steps with five values. Imports none of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ctrlrl.envs.tensor_env import LOST, NO_TIME_OUTS, TensorEnv, actor_group, flag, length_of, scaled_actions
from ctrlrl.types import TimeStep


class RslRlEnv(TensorEnv):
    """An object with num_envs, num_actions, episode_length_buf, max_episode_length, get_observations() and step().

    step gives (obs, reward [B], done [B], extras), or (obs, privileged obs, reward, done, extras) in release 1.
    Lanes are reset in the same step: the last observation is lost (see LOST in tensor_env). done & extras["time_outs"]
    is a truncation, the rest of done a termination; where both ends fall on one step only the simulator knows.
    groups:       observation groups the policy sees, side by side; None = "policy", else "actor". Others are ignored.
    stagger:      spread the first episodes' clocks over the time limit; those episodes are then shorter.
    action_scale: the policy's samples are sent times this, unclipped, as rsl_rl's runner does; simulators of this kind
                  clip them themselves.

    Making the adapter resets the environment and makes one step without action: shapes are checked there, and whether
    time-outs are told. An environment without reset() goes on where it stands.
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
        self._groups, self._stagger, self._seed = groups, stagger, seed
        self._actions = scaled_actions(action_scale)
        self._told_time_outs = False
        inner = getattr(env, "env", None)  # Isaac Lab's wrapper for rsl_rl 5 has no reset of its own
        self._reset = getattr(env, "reset", None) or getattr(inner, "reset", None)
        self.notice(LOST)
        if self._reset is None:
            self.notice("it has no reset(): episodes go on where they stand")
        obs, limit = self._start(seed), length_of(env.max_episode_length)
        self._set_spec(obs, action_dim=int(env.num_actions), episode_length=limit, n_envs=int(env.num_envs))
        self.step(torch.zeros(self.spec.n_envs, self.spec.action_dim, device=self.spec.device))
        if not self._told_time_outs:
            self.notice(NO_TIME_OUTS)

    def reset(self, seed: int | None = None) -> Tensor:
        seed, self._seed = (self._seed if seed is None else seed), None
        obs = self.rows(self._start(seed))
        if self._stagger:
            self._spread_clocks(self.env)
        self._acted_on.copy_(obs)
        return self._acted_on.clone()

    def step(self, action: Tensor) -> TimeStep:
        """action [B, A]: the policy's sample."""
        answer = self.parts(self.call(self.env.step, self._actions(self._action_rows(action))), 4, 5)
        raw, reward, done, extras = (answer[0], *answer[-3:])
        self._n_steps += 1
        obs, reward = self.rows(actor_group(self, raw, self._groups)), self.lanes("rewards", reward).float()
        done = self.lanes("dones", done).bool()
        time_outs = flag(extras, "time_outs")
        if time_outs is None:
            truncated = torch.zeros_like(done)
        else:
            self._told_time_outs = True
            # legged_gym leaves the time-outs of an earlier step in its extras: they count only with a done
            truncated = done & self.lanes("time_outs", time_outs).bool()
        return TimeStep(obs, self._before_reset(obs, done), reward, done & ~truncated, truncated, {})

    def _start(self, seed: int | None) -> Any:
        env = self.env
        if seed is not None and hasattr(env, "seed"):
            self.call(env.seed, seed)
        if self._reset is not None:
            self.call(self._reset)
        obs = self.call(env.get_observations)
        return actor_group(self, obs[0] if isinstance(obs, tuple) else obs, self._groups)

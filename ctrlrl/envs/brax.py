"""Functional environments in the form of Brax and MuJoCo Playground: reset(key) -> state, step(state, action) -> state.

JAX is imported by whoever made the environment; it is found among the loaded modules. Arrays cross both ways through
DLPack, without a copy where the devices allow it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ctrlrl.envs.tensor_env import LOST, NO_TIME_OUTS, TensorEnv, actor_group, flag
from ctrlrl.types import TimeStep


class BraxEnv(TensorEnv):
    """A batched environment with automatic resets: brax.envs.create(name, batch_size=B), or training.wrap(env).

    state has obs [B, O] (or a dict of groups), reward [B], done [B] and info. Lanes are reset in the same step, by
    Brax's wrapper to their first state: the last observation is lost (see LOST in tensor_env). done covers both kinds
    of ends; info["truncation"] tells time-outs, and without it an end is a termination.

    n_envs:  how many, where the environment has no batch_size of its own: its reset then takes keys [B].
    groups:  of a dict observation, side by side; None = "state". Others are ignored with a notice.
    Actions are in [-1, 1], clipped, as Brax's own learners give them. A key is jax.random.PRNGKey(seed), and `step` is
    compiled with jax.jit; without JAX in the process (a functional environment in torch), a key is the seed itself.
    """

    def __init__(
        self,
        env: Any,
        *,
        seed: int | None = None,
        n_envs: int | None = None,
        groups: Sequence[str] | None = None,
    ) -> None:
        super().__init__(env)
        self._jax = sys.modules.get("jax")
        self._groups = groups
        batch = getattr(env, "batch_size", None)
        if batch is None and n_envs is None:
            raise ValueError(
                f"{self.name}: give it a batch: brax.envs.create(name, batch_size=...), or n_envs=... where its reset "
                "takes a key for every lane"
            )
        if batch is not None and n_envs not in (None, batch):
            raise ValueError(f"{self.name}: this environment has batch_size={batch}, not n_envs={n_envs}")
        self._split = None if batch is not None else n_envs
        jit = self._jax.jit if self._jax is not None else lambda function: function
        self._reset_state, self._step_state = jit(env.reset), jit(env.step)
        self._seed = _drawn() if seed is None else seed
        self._state = self.call(self._reset_state, self._key(self._seed))
        info = self._state.info
        if not any(str(key).endswith("first_obs") for key in info):
            raise ValueError(
                f"{self.name}: its lanes are not reset at an end; wrap it with Brax's AutoResetWrapper "
                "(brax.envs.create does it with auto_reset=True)"
            )
        self.notice(LOST)
        if "truncation" not in info:
            self.notice(NO_TIME_OUTS)
        limit = getattr(env, "episode_length", 0) or 0
        wanted = int(batch if batch is not None else n_envs or 0)
        self._set_spec(self._observe(), action_dim=int(env.action_size), episode_length=int(limit), n_envs=wanted)

    def reset(self, seed: int | None = None) -> Tensor:
        """Fresh episodes; without a seed, of the seed after the last one."""
        self._seed = self._seed + 1 if seed is None and self._n_steps else self._seed if seed is None else seed
        self._state = self.call(self._reset_state, self._key(self._seed))
        self._acted_on.copy_(self.rows(self._observe()))
        return self._acted_on.clone()

    def step(self, action: Tensor) -> TimeStep:
        """action [B, A] in [-1, 1]."""
        ours = self._action_rows(action).detach().clamp(-1.0, 1.0).contiguous()
        theirs = ours if self._jax is None else self._jax.dlpack.from_dlpack(ours)
        self._state = state = self.call(self._step_state, self._state, theirs)
        self._n_steps += 1
        obs, reward = self.rows(self._observe()), self.lanes("rewards", _tensor(state.reward)).float()
        done = self.lanes("done", _tensor(state.done)).bool()
        time_outs = flag(state.info, "truncation")
        truncated = torch.zeros_like(done)
        if time_outs is not None:
            truncated = done & self.lanes("truncation", _tensor(time_outs)).bool()
        return TimeStep(obs, self._before_reset(obs, done), reward, done & ~truncated, truncated, {})

    def _observe(self) -> Any:
        obs = self._state.obs
        groups = {name: _tensor(value) for name, value in obs.items()} if hasattr(obs, "items") else _tensor(obs)
        return actor_group(self, groups, self._groups)

    def _key(self, seed: int) -> Any:
        if self._jax is None:
            return seed
        key = self._jax.random.PRNGKey(seed)
        return key if self._split is None else self._jax.random.split(key, self._split)


def _tensor(array: Any) -> Any:
    return torch.from_dlpack(array) if hasattr(array, "__dlpack__") else array


def _drawn() -> int:
    """A seed from torch's global generator."""
    return int(torch.randint(2**31 - 1, ()))

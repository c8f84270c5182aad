"""EnvPool: C++ environments on a pool of threads. A pool that the user made, or one made from an id."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctrlrl.envs.spec import Array, action_codec, env_spec, obs_codec
from ctrlrl.types import TimeStep


class EnvPoolEnv:
    """B environments of one EnvPool; float32 observations (an image: uint8) and rewards on the CPU.

    env:       an id ("CartPole-v1"), or what envpool.make(id, env_type="gymnasium", num_envs=B) gave.
    n_envs, seed, n_threads: for an id. n_threads=None leaves it to EnvPool. A seed given to `reset` makes that pool
               anew, because EnvPool fixes its seeds then; a user's pool keeps those it has (see `notices`).

    EnvPool resets a lane in the step after its end, ignoring that step's action: extras["mask"] is False there, and the
    observation of the step before is the true last one. Non-finite numbers are left to the training loop to find.
    """

    def __init__(self, env: Any, *, n_envs: int = 1, seed: int | None = None, n_threads: int | None = None) -> None:
        self._id = env if isinstance(env, str) else None
        self._n_envs, self._n_threads = n_envs, n_threads
        self.notices: tuple[str, ...] = ()
        if self._id is None:
            self.env = env
        else:
            self._seed = int(torch.randint(2**31 - 1, ())) if seed is None else seed
            self.env = self._make(self._seed)
        self.name = self._id or str(self.env.config.get("task_id") or type(self.env).__name__)
        config, env_type = self.env.config, getattr(self.env, "metadata", {}).get("autoreset_mode")
        if env_type is None:
            raise ValueError(f"{self.name}: make the pool with env_type='gymnasium'")
        n = int(config["num_envs"])
        if config["batch_size"] not in (0, n):
            raise ValueError(
                f"{self.name}: every step must answer for all {n} lanes, got batch_size={config['batch_size']} "
                "(EnvPool's asynchronous mode). Leave batch_size out."
            )
        if self._id is None:
            self.notices = (f"{self.name}: EnvPool fixed its seeds when the pool was made; reset(seed) keeps them",)
        observation, actions = _spaces(self.env)
        self._obs, self._action = obs_codec(observation, self.name), action_codec(actions, self.name)
        limit = int(config.get("max_episode_steps", 0))
        self.spec = env_spec(self._obs, self._action, n_envs=n, episode_length=limit)
        self._only_reset: Array | None = None  # [B] lanes whose next step is only a reset; None before reset
        self._fresh = True  # the pool has not stepped since it was made
        self._n_steps = 0

    def reset(self, seed: int | None = None) -> Tensor:
        """Start all lanes anew; returns observations [B, O]."""
        if self._id is not None and seed is not None and not (self._fresh and seed == self._seed):
            self.env.close()
            self._seed, self.env = seed, self._make(seed)
        obs, _ = self._call(self.env.reset)
        self._fresh, self._only_reset = False, np.zeros(self.spec.n_envs, dtype=bool)
        return torch.from_numpy(self._obs.encode(obs))

    def step(self, action: Tensor) -> TimeStep:
        """action [B, A] in [-1, 1], or [B] or [B, D] int64."""
        if self._only_reset is None:
            raise ValueError(f"{self.name}: step came before reset; call reset(seed) once first.")
        if len(action) != self.spec.n_envs:
            raise ValueError(f"{self.name}: expected actions of {self.spec.n_envs} lanes, got {tuple(action.shape)}")
        self._n_steps += 1
        raw_obs, reward, terminated, truncated, _ = self._call(self.env.step, self._action.decode(action))
        obs = torch.from_numpy(self._obs.encode(raw_obs))
        mask, self._only_reset = ~self._only_reset, terminated | truncated  # a reset has no flags and pays 0
        truncated = truncated & ~terminated  # both: the task ended, so no bootstrap
        return TimeStep(
            obs=obs,
            final_obs=obs,
            reward=torch.from_numpy(reward.astype(np.float32)),
            terminated=torch.from_numpy(terminated),
            truncated=torch.from_numpy(truncated),
            extras={"mask": torch.from_numpy(mask)},
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Empty: the state inside a pool cannot be had."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state:
            raise ValueError(f"{self.name}: an EnvPool has no state to restore, got {sorted(state)}")

    def close(self) -> None:
        self.env.close()

    def _make(self, seed: int) -> Any:
        try:
            import envpool
        except ImportError:
            raise ValueError("env.backend=envpool needs the envpool package: pip install 'ctrlrl[envpool]'") from None
        if self._id not in envpool.list_all_envs():
            raise ValueError(f"env.id={self._id}: EnvPool does not have it; use env.backend=gymnasium")
        threads = {} if self._n_threads is None else {"num_threads": self._n_threads}
        pool = envpool.make(self._id, env_type="gymnasium", num_envs=self._n_envs, seed=seed, **threads)
        _spaces(pool)
        return pool

    def _call(self, function: Any, *args: Any) -> Any:
        try:
            return function(*args)
        except Exception as error:
            said = (str(error).strip().splitlines() or [""])[0]
            raise RuntimeError(
                f"{self.name}: environment raised {type(error).__name__}: {said} (in step {self._n_steps})"
            ) from error


def _spaces(pool: Any) -> tuple[Any, Any]:
    """Both spaces of one lane. A pool makes them when first asked, and Gymnasium warns that it rounds their bounds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return pool.observation_space, pool.action_space

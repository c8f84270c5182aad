"""A ctrlrl VecEnv in NumPy and in its users' spaces: what its SB3 and its Gymnasium face have in common."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ctrlrl.envs.spaces import Spaces
from ctrlrl.envs.spec import Array, action_codec
from ctrlrl.types import VecEnv


class HostStep(NamedTuple):
    """A TimeStep in NumPy; nothing in it is overwritten by a later step."""

    obs: Any  # [B, *shape], or a dict or tuple of such
    reward: Array  # [B] or [B, M] float32
    terminated: Array  # [B] bool
    truncated: Array  # [B] bool
    ended: Array  # lanes whose episode ended
    final_obs: list[Any]  # of each of those, a single observation
    success: dict[int, bool]  # of those for which it is known


class Face:
    """env:     any ctrlrl VecEnv that resets within the step.
    spaces:  of one lane; None takes the environment's own, or else ctrlrl's units (actions in [-1, 1]).
    stagger: False starts every episode at its beginning, whatever the environment was made with.
    """

    def __init__(self, env: VecEnv, spaces: Spaces | None, *, stagger: bool) -> None:
        self.env, self.name, self.n_envs = env, name_of(env), env.spec.n_envs
        self.spaces = Spaces.of_env(env, env.spec) if spaces is None else spaces
        self._action = action_codec(self.spaces.action, self.name)
        if not self.spaces.fits(env.spec):
            raise ValueError(f"{self.name}: {self.spaces} cannot show an environment of {env.spec}")
        if not stagger and hasattr(env, "stagger"):
            env.stagger = False
        self.render_mode = render_mode_of(env)
        self.metadata: dict[str, Any] = {
            "render_modes": [self.render_mode] if self.render_mode else [],
            "render_fps": round(getattr(env, "frames_per_second", 30.0)),
        }

    def reset(self, seed: int | None) -> Any:
        return self.spaces.observations(self.env.reset(seed))

    def step(self, actions: Any) -> HostStep:
        """actions: [B, *shape] in the units of the action space."""
        step = self.env.step(torch.from_numpy(self._to_env(actions)).to(self.env.spec.device))
        if "mask" in step.extras:
            raise ValueError(
                f"{self.name}: its resets take a step of their own, which this face would show as transitions. "
                "Make the vector environment with autoreset_mode='SameStep'."
            )
        terminated, truncated = _own(step.terminated), _own(step.truncated)
        ended = (terminated | truncated).nonzero()[0]
        final_obs: list[Any] = []
        success: dict[int, bool] = {}
        if len(ended):
            lanes = torch.from_numpy(ended).to(self.env.spec.device)
            final_obs = self._rows(self.spaces.observations(step.final_obs[lanes]), len(ended))
            if "success" in step.extras:
                told = step.extras["success"][lanes].tolist()
                success = {int(i): bool(x) for i, x in zip(ended, told, strict=True) if x == x}  # NaN: not known
        return HostStep(
            self.spaces.observations(step.obs), _own(step.reward), terminated, truncated, ended, final_obs, success
        )

    def render(self, lane: int) -> Array:
        """uint8 [height, width, 3]; ValueError where the environment has no picture."""
        if self.render_mode is None:
            raise ValueError(f"{self.name}: this environment has no pictures to show")
        return self.env.render(lane)  # type: ignore[attr-defined]

    def _to_env(self, actions: Any) -> Array:
        array, space, codec = np.asarray(actions), self.spaces.action, self._action
        if array.shape != (self.n_envs, *codec.shape):
            raise ValueError(
                f"{self.name}: actions must have shape {(self.n_envs, *codec.shape)}, one of {space} a lane, "
                f"got {array.shape}"
            )
        encoded = codec.encode(array)
        if codec.action_dim:
            if not np.isfinite(array).all():
                raise ValueError(f"{self.name}: an action is not finite; the policy has diverged")
        elif ((encoded < 0) | (encoded >= (codec.nvec or codec.n_actions))).any():
            raise ValueError(f"{self.name}: an action lies outside {space}")
        return encoded

    def _rows(self, obs: Any, n: int) -> list[Any]:
        """A batch of n observations as n single ones."""
        if isinstance(obs, dict):
            columns = {key: self._rows(value, n) for key, value in obs.items()}
            return [{key: column[i] for key, column in columns.items()} for i in range(n)]
        if isinstance(obs, tuple):
            return list(zip(*(self._rows(value, n) for value in obs), strict=True))
        return list(obs)


def name_of(env: VecEnv) -> str:
    """For messages and files: the environment's name, its task's or its simulator's."""
    task = getattr(env, "task", None)
    if getattr(env, "name", None) or task is not None:
        return str(getattr(env, "name", None) or task.name)  # type: ignore[union-attr]
    return type(getattr(env, "sim", env)).__name__


def render_mode_of(env: VecEnv) -> str | None:
    """ "rgb_array" where `env.render(lane)` gives a picture."""
    if not hasattr(env, "render"):
        return None
    inner = getattr(env, "env", getattr(env, "venv", None))  # an adapter draws what it was given
    return "rgb_array" if inner is None or getattr(inner, "render_mode", None) == "rgb_array" else None


def _own(values: Tensor) -> Array:
    return values.cpu().numpy() if values.device.type != "cpu" else values.numpy().copy()

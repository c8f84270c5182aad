"""Meta-World's tasks under Gymnasium ids, "Meta-World/reach-v3", and the scripted experts that come with them."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from ctrlrl.envs.mujoco_engine import import_mujoco
from ctrlrl.envs.spec import Array

PREFIX = "Meta-World/"
EPISODE_LENGTH = 500  # steps; a task ends its episodes at its clock alone
_WELD = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 5.0)  # anchor, relative pose, torque scale: metaworld 3.1.1


class MetaWorldTask(gym.Wrapper[Any, Any, Any, Any]):
    """One task with its goal in the last three of 39 numbers, a new start and goal at every reset.

    The package draws a start and a goal for `Meta-World/MT1` fifty times when an environment is made, and ignores the
    seed of a reset. Here each reset draws from the task's own space, and `reset(seed)` fixes all that follow.
    info["success"]: 1 from the first step on at which the task was solved, so at an episode's end whether it ever was.
    """

    def __init__(self, task: str, render_mode: str | None = None):
        kind = _table("metaworld.env_dict", "ALL_V3_ENVIRONMENTS")[task]
        # the package writes a weld's eleven numbers onto all of a row, which has twelve since MuJoCo 4
        inner = type(kind.__name__, (kind,), {"reset_mocap_welds": _reset_mocap_welds})(render_mode=render_mode)
        inner._partially_observable = False
        del inner.sawyer_observation_space  # cached, without the goal's bounds
        inner.observation_space = inner.sawyer_observation_space
        inner.seeded_rand_vec = inner._set_task_called = True
        self._solved = 0.0
        super().__init__(inner)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        task: Any = self.env
        if seed is not None:
            task.seed(seed)
        task._freeze_rand_vec = False
        task.reset_model()  # draws until the start is one that the task accepts
        task._freeze_rand_vec = True  # a reset places everything twice, which must be in the same places
        self._solved = 0.0
        return task.reset()

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._solved = max(self._solved, float(info["success"]))
        return obs, float(reward), terminated, truncated, info | {"success": self._solved}


def register(gym_id: str) -> None:
    """Make an id "Meta-World/<task>" known to Gymnasium. Its own, Meta-World/MT1, needs to be told which task."""
    tasks = _table("metaworld.env_dict", "ALL_V3_ENVIRONMENTS")
    task = gym_id.removeprefix(PREFIX)
    if task not in tasks:
        near = difflib.get_close_matches(task, tasks, n=3, cutoff=0.4) or ["reach-v3", "push-v3"]
        raise gym.error.NameNotFound(
            f"a task of Meta-World is its own id here: {', '.join(f'{PREFIX}{name}' for name in near)}, ..."
        )
    if gym_id in gym.registry:
        return
    gym.register(
        gym_id,
        f"{__name__}:{MetaWorldTask.__name__}",
        max_episode_steps=EPISODE_LENGTH,
        kwargs={"task": task},
        disable_env_checker=True,  # it finds starts outside of the package's own bounds
    )


def expert(gym_id: str) -> Callable[[Tensor], Tensor]:
    """The task's scripted expert: observations [B, 39] to actions [B, 4], clipped to [-1, 1].

    It moves by a multiple of the way that is left, which reaches five times the box.
    """
    policy = _table("metaworld.policies", "ENV_POLICY_MAP")[gym_id.removeprefix(PREFIX)]()

    def act(obs: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Constant\\(s\\) may be too high")
            rows = [policy.get_action(row) for row in obs.double().cpu().numpy()]
        return torch.from_numpy(np.stack(rows).astype(np.float32)).clamp(-1.0, 1.0).to(obs.device)

    return act


def _reset_mocap_welds(env: Any) -> None:
    env.model.eq_data[env.model.eq_type == import_mujoco().mjtEq.mjEQ_WELD, : len(_WELD)] = _WELD


def _table(module: str, name: str) -> dict[str, Any]:
    import_mujoco()
    try:
        return getattr(import_module(module), name)
    except ImportError as error:
        if error.name != "metaworld":
            raise
        raise ImportError("it is Meta-World's; pip install 'ctrlrl[metaworld]' (docs/environments.md)") from None

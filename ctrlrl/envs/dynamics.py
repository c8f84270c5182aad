"""A robot's simulator with changed dynamics: the settings, their place in a MuJoCo model, and noise on the joints.

To learn in a simulator that is not like reality: H2O's "gravity x2", "friction x0.3" and "joint noise",
arXiv:2206.13464. Everything changes once, before the first environment is made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ctrlrl.envs import lane_random

_NOISE_KEY = 0x4A6F696E74  # apart from the stream of the resets
_DRAW_SIZE = 16_384  # numbers


@dataclass
class Dynamics:
    """What differs from the robot as Gymnasium ships it; as it stands, nothing."""

    gravity_scale: float = 1.0  # times every component of the gravity
    friction_scale: float = 1.0  # times sliding, torsional and rolling friction of every geom, the ground's too
    density_scale: float = 1.0  # times the density of every geom and of the medium
    joint_noise: float = 0.0  # standard deviation of what is added to every actuator's action in [-1, 1]

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = name == "density_scale"
            number = isinstance(value, int | float)
            if not number or not (math.isfinite(value) and 0.0 <= value <= 1000.0 and (value or not least)):
                raise ValueError(f"env.{name} must lie in {'(' if least else '['}0, 1000], got {value!r}")

    def changed(self) -> dict[str, float]:
        """The settings that differ from the robot's own."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}


def change_density(spec: Any, scale: float, robot: str) -> None:
    """Of an MjSpec that is not compiled yet: masses and inertias follow from densities there."""
    if spec.compiler.settotalmass > 0.0:
        raise ValueError(
            f"env.density_scale={scale:g}: env={robot} always weighs {spec.compiler.settotalmass:g} kg, "
            "whatever its density"
        )
    spec.option.density *= scale
    for geom in spec.geoms:
        geom.density *= scale


def change_model(model: Any, changes: Dynamics, robot: str) -> None:
    """Gravity and friction of a compiled MjModel, in place."""
    if changes.gravity_scale != 1.0:
        if not model.opt.gravity.any():
            raise ValueError(f"env.gravity_scale={changes.gravity_scale:g}: env={robot} has no gravity")
        if not _weighs(model):
            raise ValueError(
                f"env.gravity_scale={changes.gravity_scale:g}: env={robot} lies flat, gravity moves none of its joints"
            )
        model.opt.gravity *= changes.gravity_scale
    if changes.friction_scale != 1.0:
        if not (model.geom_contype.any() and (model.geom_condim > 1).any()):
            raise ValueError(f"env.friction_scale={changes.friction_scale:g}: env={robot} touches nothing that rubs")
        model.geom_friction *= changes.friction_scale


def _weighs(model: Any) -> bool:
    """Whether gravity pulls at a joint, at rest and away from upright, where a pendulum would stand still."""
    import mujoco

    data = mujoco.MjData(model)
    mujoco.mj_integratePos(model, data.qpos, [0.3] * model.nv, 1.0)  # m, rad
    mujoco.mj_forward(model, data)
    return bool(abs(data.qfrc_bias).max() > 1e-9)  # N, N m


class JointNoise:
    """std * N(0, 1) for every lane, step and actuator, a function of (seed, lane, step) alone."""

    def __init__(self, std: float, lanes: Tensor, n_actuators: int):
        """lanes: [B] int64, their numbers among those of all processes."""
        self.std, self._lanes, self._n = std, lanes, n_actuators
        self._ahead = max(1, _DRAW_SIZE // (len(lanes) * n_actuators))  # steps that one draw is for
        self._drawn: tuple[int, int] | None = None  # seed, and index of the draw
        self._rows = torch.empty(0)

    def __call__(self, seed: int, step: int) -> Tensor:
        """[B, n_actuators] float64, in units of an action."""
        draw, row = divmod(step, self._ahead)
        if self._drawn != (seed, draw):
            steps = draw * self._ahead + torch.arange(self._ahead, device=self._lanes.device)
            n = len(self._lanes)
            rows = lane_random.normal(
                seed ^ _NOISE_KEY, self._lanes.repeat(self._ahead), steps.repeat_interleave(n), self._n
            )
            self._rows, self._drawn = self.std * rows.view(self._ahead, n, self._n), (seed, draw)
        return self._rows[row]

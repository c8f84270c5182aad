"""Gymnasium's MuJoCo robot tasks as torch functions of the physics state: observation, reward, termination, reset.

Written once for every engine: `mujoco_cpu.py` and a GPU engine fill the same `Physics`. A task names the MjData fields
it reads beyond positions and velocities in `needs`, so the planar robots pay for nothing. Everything is in SI units,
batched over B. The rules and numbers are those of gymnasium/envs/mujoco/*_v5.py and *_v4.py (Gymnasium 1.x).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ctrlrl.types import EnvSpec


class Physics(NamedTuple):
    """What a task may read. Fields have MuJoCo's layout and lag: they belong to the last evaluation inside mj_step."""

    qpos: Tensor  # [B, nq]
    qvel: Tensor  # [B, nv]
    control: Tensor  # [B, nu] what the actuators got, in control units
    before: Tensor  # [B] or [B, K] task.progress of the state before the step, m
    fields: dict[str, Tensor]  # what task.needs names, [B, ...] as in MjData
    body_mass: Tensor  # [nbody] kg


def _norm(x: Tensor) -> Tensor:
    return x.square().sum(-1).sqrt()


@dataclass(frozen=True)
class Task:
    """A robot that is paid for moving along x; the base of all others.

    `reset` takes uniform numbers in [0, 1) and standard normal ones, so that the caller owns the randomness.
    """

    name: str
    model: str  # file in gymnasium/envs/mujoco/assets
    obs_dim: int
    action_dim: int
    frame_skip: int
    timestep: float  # s, of the model
    noise: float  # half-width (or standard deviation) of the reset noise
    normal_velocity: bool = False  # velocities of a reset are normal instead of uniform
    episode_length: int = 1000
    needs: tuple[str, ...] = ()
    skip: int = 1  # leading positions the observation leaves out
    forward_weight: float = 1.0
    control_weight: float = 0.0
    healthy_reward: float = 0.0
    pay_unhealthy: bool = False  # v4 pays the healthy reward on the terminal step too
    objectives: tuple[str, ...] = ()  # names of the M entries of a vector reward; () = the reward is one number
    choices: tuple[tuple[float, ...], ...] = ()  # controls in [-1, 1] of each discrete action; () = continuous actions
    targets: tuple[tuple[float, float], ...] = ()  # m, of a model with several
    stands_at: float = 0.0  # m, the height that the model begins at

    @property
    def dt(self) -> float:
        """Seconds of one control step."""
        return self.timestep * self.frame_skip

    def spec(self, n_envs: int, limit: int, device: torch.device) -> EnvSpec:
        if limit < 0:
            raise ValueError(f"episode_length must be >= 0 (0 = no limit), got {limit}")
        m, n = len(self.objectives) or 1, len(self.choices)
        return EnvSpec(self.obs_dim, self.action_dim, n, m, n_envs, limit, device, objectives=self.objectives)

    @property
    def progress_shape(self) -> tuple[int, ...]:
        return ()

    def n_uniform(self, nq: int, nv: int) -> int:
        return nq if self.normal_velocity else nq + nv

    def n_normal(self, nv: int) -> int:
        return nv if self.normal_velocity else 0

    def progress(self, p: Physics) -> Tensor:
        """[B] m; its change over a step is the forward velocity. A task may compare more than that, [B, K]."""
        return p.qpos[:, 0]

    def observation(self, p: Physics) -> Tensor:
        return torch.cat((p.qpos[:, self.skip :], p.qvel), 1)

    def terminated(self, p: Physics) -> Tensor:
        return torch.zeros(len(p.qpos), dtype=torch.bool, device=p.qpos.device)

    def reward(self, p: Physics, terminated: Tensor) -> Tensor:
        forward = (self.progress(p) - p.before) * (self.forward_weight / self.dt)
        reward = torch.sub(forward, p.control.square().sum(1), alpha=self.control_weight)
        if self.healthy_reward == 0.0:
            return reward
        if self.pay_unhealthy:
            return reward + self.healthy_reward
        return torch.add(reward, ~terminated, alpha=self.healthy_reward)

    def contact_cost(self, p: Physics) -> Tensor | float:
        return 0.0

    def vector_reward(self, p: Physics, terminated: Tensor) -> Tensor:
        """[B, M]: what `objectives` name, unweighted; what a robot is paid for its health counts in each.

        forward, sideways: velocity, m/s; height: 10 times the m above where the model begins; effort: minus the sum of
        squared controls. Where no objective is the effort, its weighted cost counts in each as well.
        Source: mo-gymnasium's v5 tasks.
        """
        velocity = ((self.progress(p) - p.before) / self.dt).view(len(p.qpos), -1)
        effort = -p.control.square().sum(1)
        shared = self.healthy_reward * ~terminated - self.contact_cost(p)
        if "effort" not in self.objectives:
            shared = shared + self.control_weight * effort
        told = {"forward": velocity[:, 0], "sideways": velocity[:, -1], "effort": effort}
        told["height"] = 10.0 * (p.qpos[:, 1] - self.stands_at)
        return torch.stack([told[name] + shared for name in self.objectives], 1)

    def reset(self, uniform: Tensor, normal: Tensor, qpos0: Tensor, qvel0: Tensor) -> tuple[Tensor, Tensor]:
        """uniform [n, n_uniform], normal [n, n_normal] -> positions [n, nq], velocities [n, nv] of new episodes."""
        nq = qpos0.shape[0]
        qpos = qpos0 + self.noise * (2.0 * uniform[:, :nq] - 1.0)
        qvel = qvel0 + self.noise * (normal if self.normal_velocity else 2.0 * uniform[:, nq:] - 1.0)
        return qpos, qvel


@dataclass(frozen=True)
class Planar(Task):
    """Hopper and Walker2d: healthy while height, pitch and (Hopper) all other coordinates stay in an open range."""

    height: tuple[float, float] = (-math.inf, math.inf)  # m
    pitch: float = math.inf  # rad
    state_bound: float = math.inf

    def observation(self, p: Physics) -> Tensor:
        return torch.cat((p.qpos[:, 1:], p.qvel.clamp(-10.0, 10.0)), 1)

    def terminated(self, p: Physics) -> Tensor:
        low, high = self.height
        z = p.qpos[:, 1]
        healthy = (z > low) & (p.qpos[:, 2].abs() < self.pitch)
        if high < math.inf:
            healthy &= z < high
        if self.state_bound < math.inf:
            state = torch.cat((p.qpos[:, 2:], p.qvel), 1)
            healthy &= torch.linalg.vector_norm(state, math.inf, 1) < self.state_bound  # NaN stays NaN: unhealthy
        return ~healthy


@dataclass(frozen=True)
class Ant(Task):
    """v5 observes the contact forces of every body but the world, clipped to [-1, 1], and charges for them."""

    height: tuple[float, float] = (0.2, 1.0)  # m, closed
    contact_weight: float = 0.0

    @property
    def progress_shape(self) -> tuple[int, ...]:
        return (2,) if "sideways" in self.objectives else ()

    def progress(self, p: Physics) -> Tensor:
        torso = p.fields["xpos"][:, 1]
        return torso[:, :2] if "sideways" in self.objectives else torso[:, 0]

    def observation(self, p: Physics) -> Tensor:
        if self.contact_weight == 0.0:
            return super().observation(p)
        forces = p.fields["cfrc_ext"][:, 1:].clamp(-1.0, 1.0).flatten(1)
        return torch.cat((p.qpos[:, 2:], p.qvel, forces), 1)

    def terminated(self, p: Physics) -> Tensor:
        z = p.qpos[:, 2]
        finite = torch.isfinite(p.qpos).all(1) & torch.isfinite(p.qvel).all(1)
        return ~(finite & (z >= self.height[0]) & (z <= self.height[1]))

    def reward(self, p: Physics, terminated: Tensor) -> Tensor:
        reward = super().reward(p, terminated)
        if self.contact_weight == 0.0:
            return reward
        return torch.sub(reward, self._forces(p), alpha=self.contact_weight)

    def contact_cost(self, p: Physics) -> Tensor:
        return self.contact_weight * self._forces(p)

    def _forces(self, p: Physics) -> Tensor:
        return p.fields["cfrc_ext"].clamp(-1.0, 1.0).square().sum((1, 2))


@dataclass(frozen=True)
class Humanoid(Task):
    """v5 leaves out the zero rows of the world body and the root joint; v4 keeps them and pays no contact cost."""

    height: tuple[float, float] = (1.0, 2.0)  # m, open
    contact_weight: float = 5e-7
    first_body: int = 1
    first_force: int = 6

    def progress(self, p: Physics) -> Tensor:
        return p.fields["xipos"][:, :, 0] @ p.body_mass / p.body_mass.sum()  # centre of mass

    def observation(self, p: Physics) -> Tensor:
        f, first = p.fields, self.first_body
        return torch.cat(
            (
                p.qpos[:, 2:],
                p.qvel,
                f["cinert"][:, first:].flatten(1),
                f["cvel"][:, first:].flatten(1),
                f["qfrc_actuator"][:, self.first_force :],
                f["cfrc_ext"][:, first:].flatten(1),
            ),
            1,
        )

    def terminated(self, p: Physics) -> Tensor:
        z = p.qpos[:, 2]
        return ~((z > self.height[0]) & (z < self.height[1]))

    def contact_cost(self, p: Physics) -> Tensor:
        return (self.contact_weight * p.fields["cfrc_ext"].square().sum((1, 2))).clamp(max=10.0)

    def reward(self, p: Physics, terminated: Tensor) -> Tensor:
        reward = super().reward(p, terminated)
        return reward if self.contact_weight == 0.0 else reward - self.contact_cost(p)


@dataclass(frozen=True)
class HumanoidStandup(Humanoid):
    """Paid for the height of the torso over the model's time step, as Gymnasium writes it, plus one."""

    def progress(self, p: Physics) -> Tensor:
        return p.qpos[:, 2]

    def terminated(self, p: Physics) -> Tensor:
        return torch.zeros(len(p.qpos), dtype=torch.bool, device=p.qpos.device)

    def reward(self, p: Physics, terminated: Tensor) -> Tensor:
        up = p.qpos[:, 2] / self.timestep
        return up - self.control_weight * p.control.square().sum(1) - self.contact_cost(p) + 1.0


@dataclass(frozen=True)
class Reacher(Task):
    """Two links and a target that is drawn evenly from a disc of 0.2 m."""

    def _offset(self, p: Physics) -> Tensor:
        return p.fields["xpos"][:, 3] - p.fields["xpos"][:, 4]  # fingertip - target

    def observation(self, p: Physics) -> Tensor:
        angle = p.qpos[:, :2]
        return torch.cat((angle.cos(), angle.sin(), p.qpos[:, 2:], p.qvel[:, :2], self._offset(p)[:, :2]), 1)

    def reward(self, p: Physics, terminated: Tensor) -> Tensor:
        return -_norm(self._offset(p)) - self.control_weight * p.control.square().sum(1)

    def reset(self, uniform: Tensor, normal: Tensor, qpos0: Tensor, qvel0: Tensor) -> tuple[Tensor, Tensor]:
        qpos = qpos0 + 0.1 * (2.0 * uniform[:, :4] - 1.0)
        qvel = qvel0 + 0.005 * (2.0 * uniform[:, 4:] - 1.0)
        # the last two numbers of each row are free: the target's own are overwritten; polar form instead of rejection
        radius, angle = 0.2 * uniform[:, 2].sqrt(), 2.0 * math.pi * uniform[:, 3]
        qpos[:, 2], qpos[:, 3] = radius * angle.cos(), radius * angle.sin()
        qvel[:, 2:] = 0.0
        return qpos, qvel


@dataclass(frozen=True)
class ManyTargets(Task):
    """mo-reacher-v5: two links among fixed targets, each of which is an objective: 1 - 4 m^-1 times the way to it.

    The reward is that of the state before the step, and actions are discrete, as mo-gymnasium has it.
    """

    def observation(self, p: Physics) -> Tensor:
        angle = p.qpos[:, :2]
        return torch.cat((angle.cos(), angle.sin(), 0.1 * p.qvel[:, :2]), 1)

    @property
    def progress_shape(self) -> tuple[int, ...]:
        return (len(self.targets),)

    def progress(self, p: Physics) -> Tensor:
        tip, targets = p.fields["xpos"][:, 3:4, :2], p.fields["xpos"][:, 4:, :2]
        return 1.0 - 4.0 * _norm(tip - targets)

    def vector_reward(self, p: Physics, terminated: Tensor) -> Tensor:
        return p.before.clone()  # overwritten at the end of the step

    def reset(self, uniform: Tensor, normal: Tensor, qpos0: Tensor, qvel0: Tensor) -> tuple[Tensor, Tensor]:
        place = [x for target in self.targets for x in target]
        qpos = qpos0.repeat(len(uniform), 1)
        qpos[:, :2] = qpos.new_tensor([0.0, 3.1415 / 2])  # their digits of pi
        qpos[:, 2:] = qpos.new_tensor(place)
        qvel = qvel0 + 0.005 * (2.0 * uniform[:, len(qpos0) :] - 1.0)
        qvel[:, 2:] = 0.0
        return qpos, qvel


@dataclass(frozen=True)
class Pusher(Task):
    """A seven-joint arm pushes a cylinder to the goal; the cylinder starts at least 0.17 m from it."""

    tries: int = 32  # a try is accepted with probability 0.62: all 32 fail in 3e-14 of the resets

    def n_uniform(self, nq: int, nv: int) -> int:
        return nv + 2 * self.tries

    def observation(self, p: Physics) -> Tensor:
        xpos = p.fields["xpos"]  # bodies 10, 11, 12: tips_arm, object, goal
        return torch.cat((p.qpos[:, :7], p.qvel[:, :7], xpos[:, 10], xpos[:, 11], xpos[:, 12]), 1)

    def reward(self, p: Physics, terminated: Tensor) -> Tensor:
        xpos = p.fields["xpos"]
        near, far = _norm(xpos[:, 11] - xpos[:, 10]), _norm(xpos[:, 11] - xpos[:, 12])
        return -far - 0.1 * p.control.square().sum(1) - 0.5 * near

    def reset(self, uniform: Tensor, normal: Tensor, qpos0: Tensor, qvel0: Tensor) -> tuple[Tensor, Tensor]:
        n, nv = uniform.shape[0], qvel0.shape[0]
        tries = uniform[:, nv:].view(n, self.tries, 2)
        spot = torch.stack((-0.3 + 0.3 * tries[..., 0], -0.2 + 0.4 * tries[..., 1]), -1)
        first = (_norm(spot) > 0.17).to(torch.uint8).argmax(1)
        qpos = qpos0.repeat(n, 1)
        qpos[:, -4:-2] = spot[torch.arange(n, device=spot.device), first]
        qpos[:, -2:] = 0.0
        qvel = qvel0 + 0.005 * (2.0 * uniform[:, :nv] - 1.0)
        qvel[:, -4:] = 0.0
        return qpos, qvel


@dataclass(frozen=True)
class InvertedPendulum(Task):
    def terminated(self, p: Physics) -> Tensor:
        finite = torch.isfinite(p.qpos).all(1) & torch.isfinite(p.qvel).all(1)
        return ~finite | (p.qpos[:, 1].abs() > 0.2)

    def reward(self, p: Physics, terminated: Tensor) -> Tensor:
        return (~terminated).to(p.qpos.dtype)


@dataclass(frozen=True)
class InvertedDoublePendulum(Task):
    """Observes sines and cosines, and the force that stops the cart at the end of its rail."""

    def observation(self, p: Physics) -> Tensor:
        angle = p.qpos[:, 1:]
        force = p.fields["qfrc_constraint"][:, :1].clamp(-10.0, 10.0)
        return torch.cat((p.qpos[:, :1], angle.sin(), angle.cos(), p.qvel.clamp(-10.0, 10.0), force), 1)

    def terminated(self, p: Physics) -> Tensor:
        return p.fields["site_xpos"][:, 0, 2] <= 1.0  # m, the tip

    def reward(self, p: Physics, terminated: Tensor) -> Tensor:
        tip = p.fields["site_xpos"][:, 0]
        distance = 0.01 * tip[:, 0].square() + (tip[:, 2] - 2.0).square()
        speed = 1e-3 * p.qvel[:, 1].square() + 5e-3 * p.qvel[:, 2].square()
        return self.healthy_reward * ~terminated - distance - speed

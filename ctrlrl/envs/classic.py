"""Classic control as batched tensor functions: physics, rewards and terminations of Gymnasium 1.x; two linear tasks.

Angles in rad, lengths in m, times in s. Lanes are the last axis of a state field (see sim.py). Several sums are written
with `alpha=` and `addcmul`: one operation instead of two, which is what a step of a few hundred lanes costs.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor

from ctrlrl.envs.sim import Sim, columns


def wrap_angle(angle: Tensor) -> Tensor:
    """To [-pi, pi), keeping NaN; by floor, because `remainder` costs as much as the rest of a pendulum's step."""
    turns = torch.floor(angle * (0.5 / math.pi) + 0.5)
    return torch.add(angle, turns, alpha=-2.0 * math.pi)


def never(like: Tensor) -> Tensor:
    """terminated [B] of a task that only the clock ends."""
    return torch.zeros(like.shape[-1:], dtype=torch.bool, device=like.device)


class CartPoleState(NamedTuple):
    x: Tensor  # m
    x_dot: Tensor
    theta: Tensor  # rad, 0 = upright
    theta_dot: Tensor


class CartPole(Sim):
    """CartPole-v1: push a cart left (0) or right (1) to keep its pole upright; reward 1 a step."""

    obs_dim, n_actions, episode_length, n_random = 4, 2, 500, 4
    gravity, cart_mass, pole_mass, half_length, force, dt = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
    max_x, max_theta = 2.4, 12 * 2 * math.pi / 360

    def init(self, noise: Tensor) -> CartPoleState:
        return CartPoleState(*(noise * 0.1 - 0.05).unbind(1))

    def step(self, state: CartPoleState, action: Tensor) -> tuple[CartPoleState, Tensor, Tensor]:
        x, x_dot, theta, theta_dot = state
        mass = self.cart_mass + self.pole_mass
        moment = self.pole_mass * self.half_length
        force = action.to(x.dtype) * (2.0 * self.force / mass) - self.force / mass
        cos, sin = torch.cos(theta), torch.sin(theta)
        push = torch.addcmul(force, theta_dot * theta_dot, sin, value=moment / mass)
        inertia = self.half_length * (4.0 / 3.0 - self.pole_mass / mass * cos * cos)
        theta_acc = torch.addcmul(sin * self.gravity, cos, push, value=-1.0) / inertia
        x_acc = torch.addcmul(push, theta_acc, cos, value=-moment / mass)
        after = CartPoleState(  # explicit Euler: positions move with the old speeds
            torch.add(x, x_dot, alpha=self.dt),
            torch.add(x_dot, x_acc, alpha=self.dt),
            torch.add(theta, theta_dot, alpha=self.dt),
            torch.add(theta_dot, theta_acc, alpha=self.dt),
        )
        terminated = (after.x.abs() > self.max_x) | (after.theta.abs() > self.max_theta)
        return after, torch.ones_like(x), terminated

    def observe(self, state: CartPoleState) -> Tensor:
        return columns(*state)


class PendulumState(NamedTuple):
    theta: Tensor  # rad, 0 = upright, not wrapped
    theta_dot: Tensor


class Pendulum(Sim):
    """Pendulum-v1: swing up with at most 2 N m; the cost is that of the state before the step."""

    obs_dim, action_dim, episode_length, n_random = 3, 1, 200, 2
    gravity, mass, length, max_torque, max_speed, dt = 10.0, 1.0, 1.0, 2.0, 8.0, 0.05

    def init(self, noise: Tensor) -> PendulumState:
        unit = 2.0 * noise - 1.0
        return PendulumState(unit[:, 0] * math.pi, unit[:, 1])

    def step(self, state: PendulumState, action: Tensor) -> tuple[PendulumState, Tensor, Tensor]:
        torque = action[:, 0] * self.max_torque
        # Steps start from the wrapped angle, so float32 keeps its precision over long episodes.
        theta, speed = wrap_angle(state.theta), state.theta_dot
        cost = torch.addcmul(theta * theta, speed, speed, value=0.1)
        cost = torch.addcmul(cost, torque, torque, value=0.001)
        pull = 1.5 * self.gravity / self.length * self.dt
        lever = 3.0 / (self.mass * self.length**2) * self.dt
        speed = torch.add(speed, torch.sin(theta), alpha=pull)
        speed = torch.add(speed, torque, alpha=lever).clamp(-self.max_speed, self.max_speed)
        return PendulumState(torch.add(theta, speed, alpha=self.dt), speed), -cost, never(theta)

    def observe(self, state: PendulumState) -> Tensor:
        return columns(torch.cos(state.theta), torch.sin(state.theta), state.theta_dot)


class MountainCarState(NamedTuple):
    position: Tensor
    velocity: Tensor  # per step


class MountainCar(Sim):
    """MountainCar-v0: left (0), coast (1), right (2) out of a valley; reward -1 a step."""

    obs_dim, n_actions, episode_length, n_random = 2, 3, 200, 1
    min_position, max_position, max_speed, goal, force, gravity = -1.2, 0.6, 0.07, 0.5, 0.001, 0.0025

    def init(self, noise: Tensor) -> MountainCarState:
        position = noise[:, 0] * 0.2 - 0.6
        return MountainCarState(position, torch.zeros_like(position))

    def move(self, state: MountainCarState, push: Tensor) -> tuple[MountainCarState, Tensor]:
        """The car after `push` [B] (change of velocity by the engine), and whether it is at the goal [B]."""
        velocity = torch.add(state.velocity + push, torch.cos(3.0 * state.position), alpha=-self.gravity)
        velocity = velocity.clamp(-self.max_speed, self.max_speed)
        position = (state.position + velocity).clamp(self.min_position, self.max_position)
        # the left wall stops the car
        velocity = velocity.masked_fill((position <= self.min_position) & (velocity < 0.0), 0.0)
        return MountainCarState(position, velocity), (position >= self.goal) & (velocity >= 0.0)

    def step(self, state: MountainCarState, action: Tensor) -> tuple[MountainCarState, Tensor, Tensor]:
        after, terminated = self.move(state, (action - 1).to(state.position.dtype) * self.force)
        return after, torch.full_like(after.position, -1.0), terminated

    def observe(self, state: MountainCarState) -> Tensor:
        return columns(*state)


class MountainCarContinuous(MountainCar):
    """MountainCarContinuous-v0: 100 at the goal, minus 0.1 u^2 a step."""

    action_dim, n_actions, episode_length = 1, 0, 999
    goal, force = 0.45, 0.0015

    def step(self, state: MountainCarState, action: Tensor) -> tuple[MountainCarState, Tensor, Tensor]:
        u = action[:, 0]
        after, terminated = self.move(state, u * self.force)
        return after, torch.addcmul(terminated * 100.0, u, u, value=-0.1).to(u.dtype), terminated


class AcrobotState(NamedTuple):
    theta1: Tensor  # rad, 0 = hanging down
    theta2: Tensor  # rad, relative to the first link
    speed1: Tensor
    speed2: Tensor


class Acrobot(Sim):
    """Acrobot-v1 with the dynamics of the book: torque -1, 0, 1 N m on the middle joint; reward -1 until the tip is up.

    Both links weigh 1 kg, are 1 m long, have their centre at 0.5 m and an inertia of 1 kg m^2.
    Source: Sutton and Barto 2018, section 11.3 of the first edition; gymnasium acrobot.py.
    """

    obs_dim, n_actions, episode_length, n_random = 6, 3, 500, 4
    gravity, dt, max_speed1, max_speed2 = 9.8, 0.2, 4 * math.pi, 9 * math.pi

    def init(self, noise: Tensor) -> AcrobotState:
        return AcrobotState(*(noise * 0.2 - 0.1).unbind(1))

    def derivative(self, state: AcrobotState, torque: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        theta1, theta2, speed1, speed2 = state
        cos2, half_sin2 = torch.cos(theta2), 0.5 * torch.sin(theta2)
        d1 = cos2 + 3.5  # m1 lc1^2 + m2 (l1^2 + lc2^2 + 2 l1 lc2 cos) + I1 + I2
        d2 = 0.5 * cos2 + 1.25  # m2 (lc2^2 + l1 lc2 cos) + I2
        phi2 = 0.5 * self.gravity * torch.sin(theta1 + theta2)
        phi1 = torch.add(phi2, torch.sin(theta1), alpha=1.5 * self.gravity)
        phi1 = phi1 - half_sin2 * speed2 * (speed2 + 2.0 * speed1)
        ratio = d2 / d1
        acc2 = (torque + ratio * phi1 - half_sin2 * speed1 * speed1 - phi2) / (1.25 - ratio * d2)
        return speed1, speed2, -(d2 * acc2 + phi1) / d1, acc2

    def step(self, state: AcrobotState, action: Tensor) -> tuple[AcrobotState, Tensor, Tensor]:
        torque = (action - 1).to(state.theta1.dtype)

        def shifted(slope: tuple[Tensor, ...], h: float) -> AcrobotState:
            return AcrobotState(*(torch.add(x, k, alpha=h) for x, k in zip(state, slope, strict=True)))

        k1 = self.derivative(state, torque)  # fourth-order Runge-Kutta
        k2 = self.derivative(shifted(k1, self.dt / 2), torque)
        k3 = self.derivative(shifted(k2, self.dt / 2), torque)
        k4 = self.derivative(shifted(k3, self.dt), torque)
        slope = tuple(a + d + 2.0 * (b + c) for a, b, c, d in zip(k1, k2, k3, k4, strict=True))
        theta1, theta2, speed1, speed2 = shifted(slope, self.dt / 6)
        after = AcrobotState(
            wrap_angle(theta1),
            wrap_angle(theta2),
            speed1.clamp(-self.max_speed1, self.max_speed1),
            speed2.clamp(-self.max_speed2, self.max_speed2),
        )
        terminated = -torch.cos(after.theta1) - torch.cos(after.theta2 + after.theta1) > 1.0
        return after, terminated.to(theta1.dtype) - 1.0, terminated

    def observe(self, state: AcrobotState) -> Tensor:
        theta1, theta2, speed1, speed2 = state
        return columns(torch.cos(theta1), torch.sin(theta1), torch.cos(theta2), torch.sin(theta2), speed1, speed2)


class PointMassState(NamedTuple):
    position: Tensor  # [2, B] m, relative to the goal
    velocity: Tensor  # [2, B] m/s


class PointMass(Sim):
    """Bring a point in the plane to rest at the goal: x'' = 2 u m/s^2, |u_i| <= 1, held for 0.05 s (exact integration).

    Positions are relative to the goal, which makes every goal the same task; episodes start at rest, uniform in the
    square [-1, 1]^2. reward = -dt (|x|^2 + 0.1 |v|^2 + 0.01 |u|^2) of the state before the step. It never terminates.
    """

    obs_dim, action_dim, episode_length, n_random = 4, 2, 100, 2
    acceleration, dt, speed_cost, action_cost = 2.0, 0.05, 0.1, 0.01

    def init(self, noise: Tensor) -> PointMassState:
        position = (2.0 * noise - 1.0).T.contiguous()
        return PointMassState(position, torch.zeros_like(position))

    def step(self, state: PointMassState, action: Tensor) -> tuple[PointMassState, Tensor, Tensor]:
        x, v, u, dt = state.position, state.velocity, action.T, self.dt
        cost = torch.addcmul(x * x, v, v, value=self.speed_cost)
        cost = torch.addcmul(cost, u, u, value=self.action_cost).sum(0)
        after = PointMassState(
            torch.add(torch.add(x, v, alpha=dt), u, alpha=0.5 * self.acceleration * dt * dt),
            torch.add(v, u, alpha=self.acceleration * dt),
        )
        return after, cost * -dt, never(x)

    def observe(self, state: PointMassState) -> Tensor:
        return torch.cat((state.position, state.velocity)).T


class LQRState(NamedTuple):
    x: Tensor  # [S, B]


class LQR(Sim):
    """Linear dynamics x <- A x + B u with u = action_scale * action; reward = -(x' Q x + u' R u) before the step.

    A [S, S], B [S, A], Q [S, S], R [A, A]; episodes start uniform in [-1, 1]^S and never terminate. The default is a
    double integrator (dt = 0.1) whose optimal feedback does not reach the action bounds, so that the infinite-horizon
    Riccati solution is the optimum of the bounded task as well.
    """

    def __init__(
        self,
        A: Tensor | None = None,
        B: Tensor | None = None,
        Q: Tensor | None = None,
        R: Tensor | None = None,
        *,
        action_scale: float = 8.0,
        episode_length: int = 100,
    ) -> None:
        f64 = torch.float64
        self.A = torch.tensor([[1.0, 0.1], [0.0, 1.0]], dtype=f64) if A is None else A
        self.B = torch.tensor([[0.005], [0.1]], dtype=f64) if B is None else B
        s, a = self.B.shape
        self.Q = torch.eye(s, dtype=f64) if Q is None else Q
        self.R = 0.1 * torch.eye(a, dtype=f64) if R is None else R
        for name, matrix, shape in (("A", self.A, (s, s)), ("Q", self.Q, (s, s)), ("R", self.R, (a, a))):
            if tuple(matrix.shape) != shape:
                raise ValueError(f"LQR: {name} must be {shape} to fit B {(s, a)}, got {tuple(matrix.shape)}")
        self.action_scale, self.episode_length = action_scale, episode_length
        self.obs_dim, self.action_dim, self.n_random = s, a, s

    def to(self, device: torch.device, dtype: torch.dtype) -> LQR:
        moved = copy.copy(self)
        moved.A, moved.B, moved.Q, moved.R = (m.to(device, dtype) for m in (self.A, self.B, self.Q, self.R))
        return moved

    def init(self, noise: Tensor) -> LQRState:
        return LQRState((2.0 * noise - 1.0).T.contiguous())

    def step(self, state: LQRState, action: Tensor) -> tuple[LQRState, Tensor, Tensor]:
        x, u = state.x, action.T * self.action_scale
        cost = (x * (self.Q @ x)).sum(0) + (u * (self.R @ u)).sum(0)
        return LQRState(self.A @ x + self.B @ u), -cost, never(x)

    def observe(self, state: LQRState) -> Tensor:
        return state.x.T


CLASSIC: dict[str, type[Sim]] = {
    "cartpole": CartPole,
    "pendulum": Pendulum,
    "mountaincar": MountainCar,
    "mountaincar_continuous": MountainCarContinuous,
    "acrobot": Acrobot,
    "pointmass": PointMass,
    "lqr": LQR,
}

"""Multi-objective tasks of motion and allocation: mo-gymnasium's minecart and mountain car, and three of our own.

The pendulum splits Pendulum-v1's reward; the bandit and the irrigation have fronts that are known in closed form.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor

from ctrlrl.envs.classic import MountainCar, MountainCarState, Pendulum, PendulumState, never, wrap_angle
from ctrlrl.envs.lane_random import stream
from ctrlrl.envs.sim import Sim, columns


class MOMountainCar(MountainCar):
    """mo-mountaincar-v0: reward (-1 until the goal, -1 for reversing, -1 for driving forward)."""

    objectives = ("time", "reverse", "forward")

    def step(self, state: MountainCarState, action: Tensor) -> tuple[MountainCarState, Tensor, Tensor]:
        after, _, terminated = super().step(state, action)
        paid = (~terminated, action == 0, action == 2)
        return after, columns(*(-flag.to(after.position.dtype) for flag in paid)), terminated


class MOPendulum(Pendulum):
    """Pendulum-v1 with its cost in two: reward (-(theta^2 + 0.1 theta'^2), -torque^2), 0 = upright, torque in N m.

    The weights (1, 0.001) give Pendulum-v1's reward. Both are of the state before the step.
    """

    objectives = ("upright", "effort")

    def step(self, state: PendulumState, action: Tensor) -> tuple[PendulumState, Tensor, Tensor]:
        after, _, terminated = super().step(state, action)
        theta = wrap_angle(state.theta)
        off = torch.addcmul(theta * theta, state.theta_dot, state.theta_dot, value=0.1)
        return after, columns(-off, -(action[:, 0] * self.max_torque).square()), terminated


class BanditState(NamedTuple):
    played: Tensor  # [B] 0, after the only step 1


class QuadraticBandit(Sim):
    """One step; r_1 = -|a|^2, r_2 = -|a - (1, 0)|^2 of the action a [2].

    Pareto-optimal are a = (u, 0), 0 <= u <= 1, with returns (-u^2, -(1 - u)^2); the weight w_1 prefers u = 1 - w_1. The
    front's hypervolume over (-1, -1) is 5/6, its expected utility over uniform weights -1/6. Observation: 0, then 1.
    """

    obs_dim, action_dim, episode_length, n_random = 1, 2, 0, 0
    objectives = ("near_origin", "near_one")

    def init(self, noise: Tensor) -> BanditState:
        return BanditState(torch.zeros(len(noise), dtype=noise.dtype, device=noise.device))

    def step(self, state: BanditState, action: Tensor) -> tuple[BanditState, Tensor, Tensor]:
        x, y = action[:, 0], action[:, 1]
        reward = columns(-(x.square() + y.square()), -((x - 1.0).square() + y.square()))
        return BanditState(torch.ones_like(state.played)), reward, torch.ones_like(x, dtype=torch.bool)

    def observe(self, state: BanditState) -> Tensor:
        return columns(state.played)

    def pareto_front(self, gamma: float, n: int = 1001) -> Tensor:
        """[n, 2] float64, at equal steps of u; one step is not discounted."""
        u = torch.linspace(0.0, 1.0, n, dtype=torch.float64)
        return torch.stack((-u.square(), -(1.0 - u).square()), 1)


class IrrigationState(NamedTuple):
    moisture: Tensor  # [9, B]


class Irrigation(Sim):
    """Nine fields share one unit of water a step; the objective of each is its own growth, the root of its moisture.

    A field loses the share `loss` of its moisture in a step and then gets softmax(4 action) of the water. Fields begin
    with moisture uniform in [0, 1), and never die. Observation: the moistures.
    A share s_i held for ever brings moisture s_i / loss_i, so the steady rewards are those with sum_i loss_i r_i^2 = 1:
    an ellipsoid's corner in nine dimensions, on which every weight w has one best point, r_i proportional to
    w_i / loss_i. A field that gets next to nothing grows next to nothing.
    """

    loss = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
    obs_dim, action_dim, episode_length, n_random = len(loss), len(loss), 50, len(loss)
    objectives = tuple(f"field_{i + 1}" for i in range(len(loss)))

    def __init__(self) -> None:
        self.kept = 1.0 - torch.tensor(self.loss, dtype=torch.float64).unsqueeze(1)  # [9, 1]

    def to(self, device: torch.device, dtype: torch.dtype) -> Irrigation:
        moved = copy.copy(self)
        moved.kept = self.kept.to(device, dtype)
        return moved

    def init(self, noise: Tensor) -> IrrigationState:
        return IrrigationState(noise.T.contiguous())

    def step(self, state: IrrigationState, action: Tensor) -> tuple[IrrigationState, Tensor, Tensor]:
        moisture = torch.addcmul(torch.softmax(4.0 * action.T, 0), state.moisture, self.kept)
        return IrrigationState(moisture), moisture.sqrt().T, never(moisture)

    def observe(self, state: IrrigationState) -> Tensor:
        return state.moisture.T

    def best_growth(self, weight: Tensor) -> Tensor:
        """Steady rewards [..., 9] that the weights [..., 9] >= 0 prefer."""
        ratio = weight / torch.tensor(self.loss, dtype=weight.dtype, device=weight.device)
        return ratio / (weight * ratio).sum(-1, keepdim=True).sqrt()


class MinecartState(NamedTuple):
    place: Tensor  # [2, B]
    speed: Tensor  # a frame
    angle: Tensor  # degrees
    content: Tensor  # [2, B] of either ore
    departed: Tensor  # [B] bool: has left the base
    key: Tensor  # [B] int64, of what the mines give
    t: Tensor  # [B] int64, steps taken


class Minecart(Sim):
    """minecart-v0: fetch two kinds of ore from five mines in a cart of limited capacity, and spare the fuel.

    Actions: mine, left, right, accelerate, brake, nothing, each for four frames. Reward (first ore brought home, second
    ore brought home, fuel <= 0); being home again terminates. Observation: place, speed, sine and cosine of the
    direction, how full the cart is of either ore. Source: Abels et al. 2019, arXiv:1809.07803.
    """

    obs_dim, n_actions, episode_length, n_random = 7, 6, 1000, 1
    objectives = ("ore_1", "ore_2", "fuel")
    MINE, LEFT, RIGHT, ACCELERATE, BRAKE = range(5)
    frames, capacity, mine_radius, base_radius = 4, 1.5, 0.14, 0.15
    turn, push, still, spread = 10.0, 0.0075, 0.001, 0.05  # degrees; speed; speed of a cart at rest; of an ore's yield
    fuel = (-0.055, -0.005, -0.005, -0.03, -0.005, -0.005)  # a frame, by action

    def __init__(self) -> None:
        f64 = torch.float64
        self.mines = torch.tensor([[0.16, 0.5, 0.84, 0.84, 0.84], [0.84, 0.84, 0.84, 0.5, 0.16]], dtype=f64)  # [2, 5]
        self.yields = torch.tensor([[0.2, 0.15, 0.2, 0.1, 0.0], [0.0, 0.1, 0.2, 0.15, 0.2]], dtype=f64)  # means [2, 5]
        self.burnt = self.frames * torch.tensor(self.fuel, dtype=f64)  # [6]

    def to(self, device: torch.device, dtype: torch.dtype) -> Minecart:
        moved = copy.copy(self)
        for name in ("mines", "yields", "burnt"):
            setattr(moved, name, getattr(self, name).to(device, dtype))
        return moved

    def init(self, noise: Tensor) -> MinecartState:
        zero = torch.zeros(2, len(noise), dtype=noise.dtype, device=noise.device)
        key = (noise[:, 0] * 2.0**53).long()
        angle = torch.full_like(zero[0], 45.0)
        departed = torch.zeros_like(key, dtype=torch.bool)
        return MinecartState(zero, zero[0].clone(), angle, zero.clone(), departed, key, torch.zeros_like(key))

    def step(self, state: MinecartState, action: Tensor) -> tuple[MinecartState, Tensor, Tensor]:
        u = stream(state.key, state.t, 4 * self.frames)
        radius, turn = (-2.0 * torch.log1p(-u[: 2 * self.frames])).sqrt(), (2.0 * math.pi) * u[2 * self.frames :]
        normal = (radius * turn.cos()).to(self.mines.dtype)
        return self.drive(state, action, normal.view(self.frames, 2, -1))

    def drive(self, state: MinecartState, action: Tensor, normal: Tensor) -> tuple[MinecartState, Tensor, Tensor]:
        """normal: [frames, 2, B], what the yields of either ore deviate by, in standard deviations."""
        action = action.clamp(0, self.n_actions - 1)
        over = stopped = torch.zeros_like(state.departed)
        sold = torch.zeros_like(state.content)
        for noise in normal:
            # a cart that came home in the last frame is steered once more before it stands still
            state = _where(stopped, state, self._steered(state, action, noise))
            stopped = over
            moved = _where(stopped, state, self._moved(state))
            near = moved.place.square().sum(0) < self.base_radius**2
            home = near & moved.departed & ~stopped
            sold = torch.where(home, moved.content, sold)
            state = moved._replace(
                content=moved.content.masked_fill(home, 0.0), departed=moved.departed | (~near & ~stopped)
            )
            over = over | home
        return state._replace(t=state.t + 1), torch.cat((sold, self.burnt[action].unsqueeze(0))).T, over

    def _steered(self, state: MinecartState, action: Tensor, noise: Tensor) -> MinecartState:
        left, right = action == self.LEFT, action == self.RIGHT
        turned = torch.remainder(state.angle + self.turn * (right.to(noise.dtype) - left.to(noise.dtype)), 360.0)
        angle = torch.where(left | right, turned, state.angle)
        pushed = torch.where(action == self.ACCELERATE, state.speed + self.push, state.speed).clamp(max=1.0)
        speed = pushed.masked_fill(action == self.BRAKE, 0.0)
        away = (state.place.unsqueeze(1) - self.mines.unsqueeze(2)).square().sum(0)  # [5, B]
        distance, mine = away.min(0)
        digs = (action == self.MINE) & (speed < self.still) & (distance <= self.mine_radius**2)
        mined = torch.add(self.yields[:, mine], noise, alpha=self.spread).clamp(min=0.0)
        room, total = self.capacity - state.content.sum(0), mined.sum(0)
        mined = torch.where(total > room, mined * (room / total), mined)
        return state._replace(angle=angle, speed=speed, content=state.content + torch.where(digs, mined, 0.0))

    def _moved(self, state: MinecartState) -> MinecartState:
        """One frame of motion; at a border that is not met head-on the cart turns along it."""
        radians = state.angle * (math.pi / 180.0)
        velocity = state.speed * torch.stack((radians.cos(), radians.sin()))
        (x, y), (vx, vy) = state.place, velocity
        inside_x, inside_y = (x != 0.0) & (x != 1.0), (y != 0.0) & (y != 1.0)
        by_x = ((x == 1.0) & (vx > 0.0)).to(x.dtype) - ((x == 0.0) & (vx < 0.0)).to(x.dtype)
        by_y = ((y == 0.0) & (vy < 0.0)).to(x.dtype) - ((y == 1.0) & (vy > 0.0)).to(x.dtype)
        slid = by_x * vy.sign() * (inside_y & (vy.abs() > self.still)) + by_y * vx.sign() * (
            inside_x & (vx.abs() > self.still)
        )
        place = (state.place + velocity).clamp(0.0, 1.0)
        speed = (state.place - place).square().sum(0).sqrt()
        moves = state.speed >= self.still
        return state._replace(
            place=torch.where(moves, place, state.place),
            speed=torch.where(moves, speed, state.speed),
            angle=torch.where(moves, torch.add(state.angle, slid, alpha=self.turn), state.angle),
        )

    def observe(self, state: MinecartState) -> Tensor:
        radians = state.angle * (math.pi / 180.0)
        return columns(*state.place, state.speed, radians.sin(), radians.cos(), *(state.content / self.capacity))


def _where(keep: Tensor, old: MinecartState, new: MinecartState) -> MinecartState:
    return MinecartState(*(torch.where(keep, a, b) for a, b in zip(old, new, strict=True)))

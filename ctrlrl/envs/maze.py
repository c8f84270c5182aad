"""PointMaze: push a ball through a maze to a goal, in torch; the task and the physics of gymnasium-robotics 1.4.2.

MuJoCo simulates there a ball on two slide joints among boxes. Its soft contacts without friction are, for two degrees
of freedom and at most three walls at once, a small problem with an exact answer: one step differs from MuJoCo's by
rounding alone. Sources: point_maze.py, maze_v4.py, point.xml; MuJoCo's documentation, "Computation".
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ctrlrl.envs.classic import never
from ctrlrl.envs.lane_random import uniform
from ctrlrl.envs.maze_maps import MAPS, read_maze
from ctrlrl.envs.sim import Sim
from ctrlrl.types import Extras, ObsPart, Scene

MASS = 4.0 / 3.0 * math.pi * 0.1**3 * 1000.0  # kg: a ball of water
FORCE, DAMPING, DT, MAX_SPEED = 100.0, 1.0, 0.01, 5.0  # N, N s/m, s, m/s by coordinate
RADIUS, MARGIN = 0.1, 0.004  # m; a contact acts from this distance between ball and wall on
# solref (0.02 s, 1) and solimp (0.9, 0.95, 1 mm, 0.5, 2): a critically damped spring whose grip grows over a millimetre
STIFFNESS, BRAKE = 1.0 / (0.95 * 0.02) ** 2, 2.0 / (0.95 * 0.02)  # 1/s^2, 1/s
NOISE, REACH = 0.25, 0.45  # m: of a start or goal around its cell's centre; at the goal
_NEWTON_STEPS = 3  # enough for any of the cases that three walls make
_CANDIDATES = 8  # places tried for a new goal in one step


@dataclass
class PointMazeConfig:
    """Settings `env.<field>=` of env=pointmaze; the default is PointMaze_Medium_Diverse_GDense-v3."""

    maze: str = "medium_diverse_g"  # name of a map, or rows of 1 0 r g c such as 11111/1r0g1/11111
    reward: str = "dense"  # exp(-distance), or "sparse": 1 at the goal
    continuing_task: bool = True  # false: reaching the goal terminates
    reset_target: bool = False  # with continuing_task: a reached goal is replaced by a new one
    episode_length: int | None = None  # steps; null = the map's own, 600 for other mazes

    def __post_init__(self) -> None:
        read_maze(self.maze)
        if self.reward not in ("dense", "sparse"):
            raise ValueError(f"env.reward must be dense or sparse, got {self.reward!r}")
        if self.episode_length is not None and self.episode_length < 1:
            raise ValueError(f"env.episode_length must be at least 1 or null, got {self.episode_length}")


class PointMazeState(NamedTuple):
    position: Tensor  # [2, B] m
    velocity: Tensor  # [2, B] m/s
    goal: Tensor  # [2, B] m
    key: Tensor  # [B] whole numbers below 2^24, of the episode's goals to come
    n_goals: Tensor  # [B] goals drawn so far


class PointMaze(Sim):
    """Observation achieved_goal, desired_goal, (x, y, vx, vy), as a Dict's sorted keys; action = force.

    extras["success"]: the ball is within 0.45 m of the goal.
    """

    obs_dim, action_dim, n_random = 8, 2, 7
    obs_parts = (ObsPart("achieved_goal", (2,)), ObsPart("desired_goal", (2,)), ObsPart("observation", (4,)))
    Settings, extras = PointMazeConfig, ("success",)

    def __init__(self, cfg: PointMazeConfig | None = None) -> None:
        self.cfg = cfg = PointMazeConfig() if cfg is None else cfg
        maze = read_maze(cfg.maze)
        limit = MAPS[cfg.maze][1] if cfg.maze in MAPS else 600
        self.episode_length = limit if cfg.episode_length is None else cfg.episode_length
        self.walls = torch.tensor(maze.walls)  # [rows, columns]
        self.goals = torch.tensor([maze.place(cell) for cell in maze.goals], dtype=torch.float64)  # [G, 2]
        # an episode never starts in its goal's cell
        starts = [[maze.place(cell) for cell in maze.starts if cell != goal] for goal in maze.goals]
        longest = max(map(len, starts))
        self.n_starts = torch.tensor([len(row) for row in starts])  # [G]
        self.starts = torch.tensor([row + row[:1] * (longest - len(row)) for row in starts], dtype=torch.float64)
        y, x = (n / 2 for n in maze.shape)
        boxes = (maze.place((i, j)) for i, row in enumerate(maze.walls) for j, wall in enumerate(row) if wall)
        self.scene = Scene(
            (-x, x, -y, y),
            self.goals,
            REACH,
            target=slice(2, 4),
            walls=tuple((x - 0.5, x + 0.5, y - 0.5, y + 0.5) for x, y in boxes),
        )

    def to(self, device: torch.device, dtype: torch.dtype) -> PointMaze:
        moved = copy.copy(self)
        moved.walls, moved.n_starts = self.walls.to(device), self.n_starts.to(device)
        moved.goals, moved.starts = self.goals.to(device, dtype), self.starts.to(device, dtype)
        return moved

    def init(self, noise: Tensor) -> PointMazeState:
        which = (noise[:, 0] * len(self.goals)).long()
        start = self.starts[which, (noise[:, 1] * self.n_starts[which]).long()]
        spread = (2.0 * noise[:, 2:6] - 1.0) * NOISE
        position, goal = (start + spread[:, :2]).T.contiguous(), (self.goals[which] + spread[:, 2:]).T.contiguous()
        key = torch.floor(noise[:, 6] * 2**24)
        return PointMazeState(position, torch.zeros_like(position), goal, key, torch.zeros_like(key))

    def step(self, state: PointMazeState, action: Tensor) -> tuple[PointMazeState, Tensor, Tensor, Extras]:
        if self.cfg.continuing_task and self.cfg.reset_target and len(self.goals) > 1:
            state = self._next_goal(state)
        velocity = state.velocity.clamp(-MAX_SPEED, MAX_SPEED)
        push = torch.add(FORCE / MASS * action.T, velocity, alpha=-DAMPING / MASS)  # m/s^2
        acceleration = self._touch(state.position, velocity, push)
        # Euler's step of MuJoCo: the damping is that of the new velocity
        velocity = torch.add(velocity, acceleration, alpha=DT * MASS / (MASS + DT * DAMPING))
        after = state._replace(position=torch.add(state.position, velocity, alpha=DT), velocity=velocity)
        distance = _distance(after)
        there = distance <= REACH
        success = there.to(distance.dtype)
        reward = torch.exp(-distance) if self.cfg.reward == "dense" else success
        return after, reward, never(distance) if self.cfg.continuing_task else there, {"success": success}

    def observe(self, state: PointMazeState) -> Tensor:
        return torch.cat((state.position, state.goal, state.position, state.velocity)).T

    def _touch(self, position: Tensor, velocity: Tensor, push: Tensor) -> Tensor:
        """Acceleration [2, B] of a ball with `push` [2, B] alone, when walls press back; m/s^2.

        Minimises |a - push|^2 + sum_k w_k max(0, r_k - n_k a)^2 over the walls k near by, r_k what MuJoCo's spring and
        brake ask for along the normal n_k: Newton's method, exact for this piecewise quadratic function.
        """
        n_rows, n_columns = self.walls.shape
        grid = torch.stack((position[0] + n_columns / 2, n_rows / 2 - position[1]))  # columns, rows
        cell = torch.floor(grid)
        offset = grid - cell - 0.5
        side = torch.where(offset < 0.0, -1.0, 1.0).to(offset.dtype)  # of the nearest walls
        j, i = cell.long()
        j, i = j.clamp(1, n_columns - 2), i.clamp(1, n_rows - 2)
        beside_j, beside_i = j + side[0].long(), i + side[1].long()
        wall = torch.stack((self.walls[i, beside_j], self.walls[beside_i, j], self.walls[beside_i, beside_j]))
        # In coordinates that point to those walls: beside the ball in x, in y, and the corner between both.
        sign = torch.stack((side[0], -side[1]))
        v, pushed = velocity * sign, push * sign
        gap = 0.5 - offset.abs()
        corner = torch.hypot(gap[0], gap[1]).clamp(min=1e-6)
        flat = torch.zeros_like(corner)
        nx, ny = torch.stack((flat - 1.0, flat, -gap[0] / corner)), torch.stack((flat, flat - 1.0, -gap[1] / corner))
        depth = torch.stack((gap[0], gap[1], corner)) - (RADIUS + MARGIN)  # m, negative in contact
        grip = _impedance(depth)
        wanted = -BRAKE * (nx * v[0] + ny * v[1]) - STIFFNESS * grip * depth
        weight = torch.where(wall & (depth < 0.0), grip / (1.0 - grip), 0.0)
        ax, ay = pushed
        for _ in range(_NEWTON_STEPS):
            w = weight * (nx * ax + ny * ay < wanted)
            xx, yy, xy = 1.0 + (w * nx * nx).sum(0), 1.0 + (w * ny * ny).sum(0), (w * nx * ny).sum(0)
            bx, by = pushed[0] + (w * nx * wanted).sum(0), pushed[1] + (w * ny * wanted).sum(0)
            det = xx * yy - xy * xy
            ax, ay = (yy * bx - xy * by) / det, (xx * by - xy * bx) / det
        return torch.stack((ax, ay)) * sign

    def _next_goal(self, state: PointMazeState) -> PointMazeState:
        """A new goal where the old one is reached: the first of some candidates that is not, else the old one."""
        draws = uniform(0, state.key.long(), state.n_goals.long(), 3 * _CANDIDATES).to(state.goal.dtype)
        draws = draws.T.unflatten(0, (3, _CANDIDATES))  # [3, K, B]
        which = (draws[0] * len(self.goals)).long().clamp(max=len(self.goals) - 1)
        places = self.goals[which].movedim(-1, 0) + (2.0 * draws[1:] - 1.0) * NOISE  # [2, K, B]
        fine = torch.hypot(*(places - state.position.unsqueeze(1))) > REACH
        first = fine.int().argmax(0)  # [B]
        place = places.gather(1, first.expand(2, 1, -1)).squeeze(1)
        reached = _distance(state) <= REACH
        goal = torch.where(reached & fine.any(0), place, state.goal)
        return state._replace(goal=goal, n_goals=state.n_goals + reached)


def _distance(state: PointMazeState) -> Tensor:
    away = state.position - state.goal
    return torch.hypot(away[0], away[1])


def _impedance(depth: Tensor) -> Tensor:
    """MuJoCo's solimp (0.9, 0.95, 0.001, 0.5, 2) at `depth` in m: the share of a contact's demand that is met."""
    z = (depth.abs() * 1000.0).clamp(max=1.0)
    return 0.9 + 0.05 * torch.where(z < 0.5, 2.0 * z * z, 1.0 - 2.0 * (1.0 - z).square())

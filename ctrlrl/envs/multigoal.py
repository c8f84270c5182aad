"""MultiGoal: a point in the plane among goals on a circle, any of which will do; a test of multimodal policies.

Yang et al. 2026, arXiv:2602.01156; dynamics, reward and settings as in the authors' code and its run configuration.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ctrlrl.envs.sim import Sim
from ctrlrl.types import Scene


@dataclass
class MultiGoalConfig:
    """Settings `env.<field>=` of env=multigoal."""

    n_goals: int = 6  # at equal angles
    max_acceleration: float = 5.0  # m/s^2 of an action of 1; beyond it actions are clipped
    push_limit: float | None = None  # m/s^2 by coordinate that move, where an action of 1 asks and pays for more
    goal_weight: float = 1.0  # of exp(-0.3 d^2) + exp(-0.1 d^2), d in m to the nearest goal
    action_weight: float = -0.01  # of the squared acceleration, (m/s^2)^2
    nonnegative_reward: bool = False  # clip the reward of a step at 0
    dt: float = 0.1  # s
    episode_length: int = 50  # steps

    def __post_init__(self) -> None:
        if self.n_goals < 1:
            raise ValueError(f"env.n_goals must be at least 1, got {self.n_goals}")
        if self.episode_length < 1:
            raise ValueError(f"env.episode_length must be at least 1, got {self.episode_length}")
        for name in ("max_acceleration", "dt"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"env.{name} must be positive, got {getattr(self, name)}")
        if self.push_limit is not None and not 0.0 < self.push_limit <= self.max_acceleration:
            raise ValueError(
                f"env.push_limit must be above 0 and at most env.max_acceleration={self.max_acceleration}, or null, "
                f"got {self.push_limit}"
            )
        if not math.isfinite(self.goal_weight) or not -math.inf < self.action_weight <= 0.0:
            raise ValueError(
                f"env.goal_weight must be a number and env.action_weight at most 0, "
                f"got {self.goal_weight} and {self.action_weight}"
            )


class MultiGoalState(NamedTuple):
    position: Tensor  # [2, B] m
    velocity: Tensor  # [2, B] m/s


class MultiGoal(Sim):
    """Observation x, y, vx, vy; action = acceleration. Leaving the square |x|, |y| <= 8 terminates.

    The action that moves and costs is the clipped one, as everywhere in ctrlrl; the authors move by at most 5 m/s^2 and
    charge the sample before clipping, which is max_acceleration=20, push_limit=5 but for samples beyond 20 m/s^2.
    Episodes start at rest, uniform in [-7, 7]^2; trials at rest in the origin.
    """

    obs_dim, action_dim, n_random = 4, 2, 2
    Settings = MultiGoalConfig
    radius, bound, reach = 5.0, 8.0, 0.5  # m: circle of the goals, half the square, "at" a goal

    def __init__(self, cfg: MultiGoalConfig | None = None) -> None:
        self.cfg = MultiGoalConfig() if cfg is None else cfg
        self.episode_length = self.cfg.episode_length
        angle = torch.arange(self.cfg.n_goals, dtype=torch.float64) * (2.0 * math.pi / self.cfg.n_goals)
        self.goals = self.radius * torch.stack((torch.cos(angle), torch.sin(angle)), 1)  # [G, 2]
        side = (-self.bound, self.bound)
        self.scene = Scene((*side, *side), self.goals, self.reach)
        self.spread = 7.0  # m; episodes start at most this far from the origin, by coordinate

    def to(self, device: torch.device, dtype: torch.dtype) -> MultiGoal:
        moved = copy.copy(self)
        moved.goals = self.goals.to(device, dtype)
        return moved

    def trial(self) -> MultiGoal:
        trial = copy.copy(self)
        trial.spread = 0.0
        return trial

    def init(self, noise: Tensor) -> MultiGoalState:
        position = ((2.0 * noise - 1.0) * self.spread).T.contiguous()
        return MultiGoalState(position, torch.zeros_like(position))

    def step(self, state: MultiGoalState, action: Tensor) -> tuple[MultiGoalState, Tensor, Tensor]:
        cfg, push = self.cfg, self.cfg.max_acceleration * action.T
        effort = push.square().sum(0)
        if cfg.push_limit is not None:
            push = push.clamp(-cfg.push_limit, cfg.push_limit)
        position = torch.add(state.position, state.velocity, alpha=cfg.dt)  # with the velocity before the push
        velocity = torch.add(state.velocity, push, alpha=cfg.dt)
        away = (position.unsqueeze(0) - self.goals.unsqueeze(2)).square().sum(1).amin(0)  # m^2 to the nearest goal
        near = torch.exp(-0.3 * away) + torch.exp(-0.1 * away)
        reward = torch.add(cfg.goal_weight * near, effort, alpha=cfg.action_weight) * cfg.dt
        if cfg.nonnegative_reward:
            reward = reward.clamp(min=0.0)
        return MultiGoalState(position, velocity), reward, position.abs().amax(0) > self.bound

    def observe(self, state: MultiGoalState) -> Tensor:
        return torch.cat((state.position, state.velocity)).T

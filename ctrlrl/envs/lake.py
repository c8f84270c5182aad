"""A frozen lake that is slippery after the move, as a batched simulator. arXiv:2504.05150.

The chosen move always succeeds; then, with probability 0.5, the ice carries on in a direction of its own. The cell
between both is the post-decision state: `post_obs` shows it, `reward_split` pays its nearness to the goal apart.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ctrlrl.envs.lane_random import stream
from ctrlrl.envs.sim import Sim
from ctrlrl.types import Extras

SIDE = 10  # cells
FROZEN = 0.8  # probability of a cell that is no hole
SLIP = 0.5
ICE_SEED = 42  # of every cell's directions, on any map
MOVES = ((0, -1), (1, 0), (0, 1), (-1, 0))  # left, down, right, up: rows and columns


@dataclass
class SlipperyLakeSettings:
    map_seed: int = 0  # of the holes; the authors draw a new map for every run

    def __post_init__(self) -> None:
        if not 0 <= self.map_seed < 2**32:
            raise ValueError(f"env.map_seed must lie in 0 ... 2**32 - 1, got {self.map_seed}")


class SlipperyLakeState(NamedTuple):
    cell: Tensor  # [B] int64, row by row; 0 = start, the last = goal
    key: Tensor  # [B] int64, of the episode's slips
    t: Tensor  # [B] int64, steps taken


class SlipperyLake(Sim):
    """Reach the far corner of a 10 x 10 lake. Every arrival pays 1 / (1 + distance to the goal), a hole takes 1 / 20.

    An episode terminates at the goal, and with the first step out of a hole: that step moves nothing and pays 0.
    Observations are one-hot. As in the authors' code the decision's reward of that last step still is that of the cell
    aimed at; the other part takes it back.
    """

    Settings = SlipperyLakeSettings
    extras = ("post_obs", "reward_split")
    obs_dim, n_actions, episode_length, n_random = SIDE * SIDE, len(MOVES), 100, 1

    def __init__(self, settings: SlipperyLakeSettings | None = None) -> None:
        self.hole = torch.from_numpy(_holes((settings or SlipperyLakeSettings()).map_seed))  # [S]
        self.after = torch.from_numpy(_neighbors())  # [S, 4] cell that a move leads to
        row, column = np.divmod(np.arange(self.obs_dim), SIDE)
        distance = (SIDE - 1 - row) + (SIDE - 1 - column)
        self.nearness = torch.from_numpy(1.0 / (1.0 + distance))  # [S]; 1 at the goal
        self.arrival = self.nearness - self.hole.double() / (2 * SIDE)
        directions = np.random.RandomState(ICE_SEED).dirichlet(np.ones(4), size=self.obs_dim)
        self.slips = torch.from_numpy(directions.cumsum(1)[:, :3].copy())  # [S, 3] borders between the directions
        self.cells = torch.arange(self.obs_dim).unsqueeze(1)

    def to(self, device: torch.device, dtype: torch.dtype) -> SlipperyLake:
        moved = copy.copy(self)
        for name in ("nearness", "arrival"):
            setattr(moved, name, getattr(self, name).to(device, dtype))
        for name in ("hole", "after", "slips", "cells"):
            setattr(moved, name, getattr(self, name).to(device))
        return moved

    def init(self, noise: Tensor) -> SlipperyLakeState:
        key = (noise[:, 0] * 2.0**53).long()
        return SlipperyLakeState(torch.zeros_like(key), key, torch.zeros_like(key))

    def move(self, state: SlipperyLakeState, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The cell aimed at, the cell reached and the reward, [B] each; noise [2, B] uniform: whether, and where to."""
        goal = self.obs_dim - 1
        aimed = self.after[state.cell, action.clamp(0, len(MOVES) - 1)]
        slips = (noise[0] < SLIP) & (aimed != goal)
        direction = (noise[1].unsqueeze(1) >= self.slips[aimed]).sum(1)
        carried = self.after[aimed, direction]
        reward = self.arrival[aimed] + torch.where(slips, self.arrival[carried], 0.0)
        stuck = self.hole[state.cell]
        reached = torch.where(stuck, state.cell, torch.where(slips, carried, aimed))
        return aimed, reached, reward.masked_fill(stuck, 0.0)

    def step(self, state: SlipperyLakeState, action: Tensor) -> tuple[SlipperyLakeState, Tensor, Tensor, Extras]:
        aimed, cell, reward = self.move(state, action, stream(state.key, state.t, 2))
        known = self.nearness[aimed]
        terminated = self.hole[state.cell] | (cell == self.obs_dim - 1)
        extras = {"post_obs": self._one_hot(aimed), "reward_split": torch.stack((known, reward - known)).T}
        return SlipperyLakeState(cell, state.key, state.t + 1), reward, terminated, extras

    def observe(self, state: SlipperyLakeState) -> Tensor:
        return self._one_hot(state.cell)

    def _one_hot(self, cell: Tensor) -> Tensor:
        return (self.cells == cell).to(self.nearness.dtype).T


def _neighbors() -> np.ndarray:
    """[S, 4] int64; the walls keep a cell."""
    row, column = np.divmod(np.arange(SIDE * SIDE), SIDE)
    last = SIDE - 1
    return np.stack([np.clip(row + r, 0, last) * SIDE + np.clip(column + c, 0, last) for r, c in MOVES], axis=1)


def _holes(seed: int) -> np.ndarray:
    """[S] bool, with a way from the start to the goal; drawn as Gymnasium's older `generate_random_map` did."""
    rng = np.random.RandomState(seed)
    while True:
        holes = rng.choice(2, (SIDE, SIDE), p=[FROZEN, 1.0 - FROZEN]).astype(bool).reshape(-1)
        holes[[0, -1]] = False
        seen = np.arange(SIDE * SIDE) == 0
        for _ in range(SIDE * SIDE):
            seen[_neighbors()[seen].reshape(-1)] = True
            seen &= ~holes
        if seen[-1]:
            return holes

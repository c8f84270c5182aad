"""Multi-objective tasks on grids and trees: the rules and numbers of mo-gymnasium 1.3, whose rewards are vectors.

Each knows the returns of its Pareto-optimal policies, discounted as asked for.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from ctrlrl.envs.fruits import FRUITS
from ctrlrl.envs.lane_random import stream
from ctrlrl.envs.sim import Sim, columns

MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))  # up, down, left, right: rows and columns


def _neighbors(rows: int, cols: int, closed: frozenset[tuple[int, int]] = frozenset()) -> Tensor:
    """[S, 4] int64 cell that a move leads to, row by row; borders and closed cells keep the mover where it is."""

    def after(row: int, col: int, move: tuple[int, int]) -> int:
        r, c = row + move[0], col + move[1]
        free = 0 <= r < rows and 0 <= c < cols and (r, c) not in closed
        return r * cols + c if free else row * cols + col

    return torch.tensor([[after(r, c, move) for move in MOVES] for r in range(rows) for c in range(cols)])


class CellState(NamedTuple):
    cell: Tensor  # [B] int64, row by row


class DeepSeaTreasure(Sim):
    """deep-sea-treasure-v0: a submarine dives for one of ten treasures; the richer ones are further away.

    Reward (treasure, -1). The episode terminates with the treasure. Observation: row and column of the 11 x 11 sea.
    Source: the map of Yang et al. 2019, arXiv:1908.08342; its front is convex.
    """

    obs_dim, n_actions, episode_length, n_random = 2, 4, 100, 0
    objectives = ("treasure", "time")
    side = 11
    depth = (1, 2, 3, 4, 4, 4, 7, 7, 9, 10)  # row of the treasure of each column; below it is rock
    treasure = (0.7, 8.2, 11.5, 14.0, 15.1, 16.1, 19.6, 20.3, 22.4, 23.7)

    def __init__(self) -> None:
        n = self.side
        rock = frozenset((row, col) for col, depth in enumerate(self.depth) for row in range(depth + 1, n))
        self.after = _neighbors(n, n, rock)  # [S, 4]
        self.value = torch.zeros(n * n, dtype=torch.float64)  # [S]
        for col, (row, value) in enumerate(zip(self.depth, self.treasure, strict=True)):
            self.value[row * n + col] = value

    def to(self, device: torch.device, dtype: torch.dtype) -> DeepSeaTreasure:
        moved = copy.copy(self)
        moved.after, moved.value = self.after.to(device), self.value.to(device, dtype)
        return moved

    def init(self, noise: Tensor) -> CellState:
        return CellState(torch.zeros(len(noise), dtype=torch.int64, device=noise.device))

    def step(self, state: CellState, action: Tensor) -> tuple[CellState, Tensor, Tensor]:
        cell = self.after[state.cell, action.clamp(0, len(MOVES) - 1)]
        found = self.value[cell]
        return CellState(cell), columns(found, torch.full_like(found, -1.0)), found > 0.0

    def observe(self, state: CellState) -> Tensor:
        row, col = state.cell // self.side, state.cell % self.side
        return columns(row, col).to(self.value.dtype)

    def pareto_front(self, gamma: float) -> Tensor:
        """[10, 2] float64 returns of the straight ways to every treasure, nearest first."""
        rows = []
        for col, (row, value) in enumerate(zip(self.depth, self.treasure, strict=True)):
            steps = row + col
            rows.append([value * gamma ** (steps - 1), -sum(gamma**t for t in range(steps))])
        return torch.tensor(rows, dtype=torch.float64)


class DeepSeaTreasureConcave(DeepSeaTreasure):
    """deep-sea-treasure-concave-v0: no weighted sum prefers any but the first and the last of its treasures.

    Source: the map of Vamplew et al. 2018, in the sea of Yang et al.
    """

    treasure = (1.0, 2.0, 3.0, 5.0, 8.0, 16.0, 24.0, 50.0, 74.0, 124.0)


class GatheringState(NamedTuple):
    cell: Tensor  # [B] int64, row by row
    gold: Tensor  # [B] bool, carried
    diamond: Tensor  # [B] bool
    key: Tensor  # [B] int64, of the episode's fights
    t: Tensor  # [B] int64, steps taken


class ResourceGathering(Sim):
    """resource-gathering-v0: fetch gold and a diamond past two enemies, each of which kills with probability 0.1.

    Reward (-1 when killed, 1 for gold brought home, 1 for a diamond brought home); being home or killed terminates.
    Observation: row and column of the 5 x 5 field, whether gold and diamond are carried. Source: Barrett and Narayanan
    2008.
    """

    obs_dim, n_actions, episode_length, n_random = 4, 4, 100, 1
    objectives = ("survival", "gold", "diamond")
    side = 5
    home, gold, diamond, enemies = 22, 2, 9, (3, 7)  # cells
    death = 0.1
    dtype = torch.float64

    def __init__(self) -> None:
        self.after = _neighbors(self.side, self.side)

    def to(self, device: torch.device, dtype: torch.dtype) -> ResourceGathering:
        moved = copy.copy(self)
        moved.after, moved.dtype = self.after.to(device), dtype
        return moved

    def init(self, noise: Tensor) -> GatheringState:
        key = (noise[:, 0] * 2.0**53).long()
        empty = torch.zeros_like(key, dtype=torch.bool)
        return GatheringState(torch.full_like(key, self.home), empty, empty.clone(), key, torch.zeros_like(key))

    def move(self, state: GatheringState, action: Tensor, u: Tensor) -> tuple[GatheringState, Tensor, Tensor]:
        """u: [B] uniform, what decides a fight."""
        cell = self.after[state.cell, action.clamp(0, len(MOVES) - 1)]
        gold, diamond = state.gold | (cell == self.gold), state.diamond | (cell == self.diamond)
        killed = ((cell == self.enemies[0]) | (cell == self.enemies[1])) & (u < self.death)
        back = cell == self.home
        reward = columns(-killed.to(self.dtype), (back & gold).to(self.dtype), (back & diamond).to(self.dtype))
        return GatheringState(cell, gold, diamond, state.key, state.t + 1), reward, killed | back

    def step(self, state: GatheringState, action: Tensor) -> tuple[GatheringState, Tensor, Tensor]:
        return self.move(state, action, stream(state.key, state.t, 1)[0])

    def observe(self, state: GatheringState) -> Tensor:
        row, col = state.cell // self.side, state.cell % self.side
        return columns(row, col, state.gold.long(), state.diamond.long()).to(self.dtype)

    def pareto_front(self, gamma: float) -> Tensor:
        """[n, 3] float64 expected returns of the ways that no other dominates: which are worth it depends on gamma."""
        live = 1.0 - self.death

        def way(steps: int, gold: float, diamond: float, fights: tuple[int, ...]) -> list[float]:
            """fights: the steps, counted from 0, at which an enemy is met."""
            lost = -sum(self.death * live**i * gamma**t for i, t in enumerate(fights))
            alive = live ** len(fights) * gamma**steps
            return [lost, gold * alive, diamond * alive]

        returns = torch.tensor(
            [
                way(10, 0, 1, ()),
                way(12, 1, 1, (7, 9)),
                way(8, 1, 0, (3, 5)),
                way(14, 1, 1, (7,)),
                way(12, 1, 0, ()),
                way(10, 1, 0, (7,)),
            ],
            dtype=torch.float64,
        )
        one, other = returns.unsqueeze(1), returns.unsqueeze(0)
        dominated = (one <= other).all(2) & (one < other).any(2)
        return returns[~dominated.any(1)]


class TreeState(NamedTuple):
    row: Tensor  # [B] int64, 0 = the root
    place: Tensor  # [B] int64 in the row, from the left


class FruitTree(Sim):
    """fruit-tree-v0: go left (0) or right (1) six times in a full binary tree; each of its 64 leaves bears a fruit.

    Reward: six nutrients of the fruit at the leaf, 0 before; the leaf terminates. Observation: depth, and place in the
    row. Source: Yang et al. 2019, arXiv:1908.08342.
    """

    obs_dim, n_actions, episode_length, n_random = 2, 2, 0, 0
    objectives = ("protein", "carbohydrates", "fats", "vitamins", "minerals", "water")
    depth = 6

    def __init__(self) -> None:
        self.fruits = torch.tensor(FRUITS, dtype=torch.float64)  # [64, 6]

    def to(self, device: torch.device, dtype: torch.dtype) -> FruitTree:
        moved = copy.copy(self)
        moved.fruits = self.fruits.to(device, dtype)
        return moved

    def init(self, noise: Tensor) -> TreeState:
        top = torch.zeros(len(noise), dtype=torch.int64, device=noise.device)
        return TreeState(top, top.clone())

    def step(self, state: TreeState, action: Tensor) -> tuple[TreeState, Tensor, Tensor]:
        row, place = state.row + 1, 2 * state.place + action.clamp(0, 1)
        leaf = row == self.depth
        return TreeState(row, place), torch.where(leaf, self.fruits.T[:, place], 0.0).T, leaf

    def observe(self, state: TreeState) -> Tensor:
        return columns(*state).to(self.fruits.dtype)

    def pareto_front(self, gamma: float) -> Tensor:
        """[64, 6] float64: no fruit dominates another."""
        return self.fruits.double() * gamma ** (self.depth - 1)

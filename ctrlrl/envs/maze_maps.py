"""Mazes as gymnasium-robotics describes them: cells of side 1 m, 1 a wall, 0 free, r start, g goal, c both.

The maps and time limits are those of its PointMaze tasks (maps.py and the registrations of release 1.4.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

Cell = tuple[int, int]  # row from the top, column from the left

MAPS: dict[str, tuple[str, int]] = {  # rows from top to bottom, and the time limit in steps
    "umaze": ("11111/10001/11101/10001/11111", 300),
    "open": ("1111111/1000001/1000001/1000001/1111111", 300),
    "open_diverse_g": ("1111111/1rgggg1/1ggggg1/1ggggg1/1111111", 300),
    "open_diverse_gr": ("1111111/1ccccc1/1ccccc1/1ccccc1/1111111", 300),
    "medium": ("11111111/10011001/10010001/11000111/10010001/10100101/10001001/11111111", 600),
    "medium_diverse_g": ("11111111/1r011001/100100g1/11000111/10010001/1g100101/10001g01/11111111", 600),
    "medium_diverse_gr": ("11111111/1c011001/100100c1/11000111/10010001/1c100101/10001c01/11111111", 600),
    "large": (
        "111111111111/100001000001/101101010101/100000010001/101111011101/100101000001/110101010111/100100010001/"
        "111111111111",
        800,
    ),
    "large_diverse_g": (
        "111111111111/1r0001g00001/101101010101/10000g0100g1/101111011101/10g101000001/110101010111/1001g0g10g01/"
        "111111111111",
        800,
    ),
    "large_diverse_gr": (
        "111111111111/1c0001c00001/101101010101/10000c0100c1/101111011101/10c101000001/110101010111/1001c0c10c01/"
        "111111111111",
        800,
    ),
}


class Maze(NamedTuple):
    walls: tuple[tuple[bool, ...], ...]  # rows from top to bottom
    goals: tuple[Cell, ...]  # where a goal may lie
    starts: tuple[Cell, ...]  # where an episode may start

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.walls), len(self.walls[0])

    def place(self, cell: Cell) -> tuple[float, float]:
        """x, y of a cell's centre in m; the maze's centre is the origin, y points up."""
        n_rows, n_columns = self.shape
        return cell[1] + 0.5 - n_columns / 2, n_rows / 2 - cell[0] - 0.5


def read_maze(layout: str | Sequence[Sequence[int | str]]) -> Maze:
    """A named map, rows separated by `/`, or rows of cells. Without r, g or c cells any free one serves, as there.

    ValueError for what is no maze: other cells, rows of several lengths, an open border, nowhere to start or go.
    """
    text = MAPS[layout][0] if isinstance(layout, str) and layout in MAPS else layout
    if isinstance(text, str) and "/" not in text:
        raise ValueError(
            f"env.maze={text}: no such map; there are {', '.join(MAPS)}, or rows such as 11111/1r0g1/11111"
        )
    rows = [[str(cell).lower() for cell in row] for row in (text.split("/") if isinstance(text, str) else text)]
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"env.maze: rows must have one length, got {[len(row) for row in rows]}")
    odd = {cell for row in rows for cell in row} - set("10rgc")
    if odd:
        raise ValueError(f"env.maze: cells are 1, 0, r, g or c, got {', '.join(sorted(odd))}")
    border = [*rows[0], *rows[-1], *(row[0] for row in rows), *(row[-1] for row in rows)]
    if set(border) != {"1"}:
        raise ValueError("env.maze: every cell of the border must be a wall (1), or the ball leaves the maze")

    def cells(kinds: str) -> tuple[Cell, ...]:
        return tuple((i, j) for i, row in enumerate(rows) for j, cell in enumerate(row) if cell in kinds)

    free, both = cells("0"), cells("c")
    goals, starts = cells("g"), cells("r")
    if not goals and not both:
        goals = free
    if not starts and not both:
        starts = free
    goals, starts = goals + both, starts + both
    if not goals or any(set(starts) <= {goal} for goal in goals):
        raise ValueError("env.maze: every goal needs a cell to start from besides its own; add 0, r or c cells")
    return Maze(tuple(tuple(cell == "1" for cell in row) for row in rows), goals, starts)

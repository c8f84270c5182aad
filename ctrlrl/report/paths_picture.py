"""The paths of a task in the plane from above, coloured by the goal they ended at."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from ctrlrl.report.drawing import LIGHT, picture
from ctrlrl.report.runs import Array
from ctrlrl.types import Scene

_SHOWN = 200  # paths; more hide each other
_POINTS = 400  # of a path
_WIDTH = 6.0  # inches
_WALL = "#cbd2da"


def paths_png(title: str, scene: Scene, paths: Tensor, reached: Tensor) -> bytes:
    """paths: [T + 1, N, 2] m. reached: [N] the goal each ended at, -1 = none, drawn in grey. PNG bytes.

    The shares beside the goals are those of all N paths, of which the first 200 are drawn.
    """
    low, high = scene.bounds[:2]
    left, right = scene.bounds[2:]
    height = _WIDTH * (right - left) / (high - low) + 0.25  # the title

    def draw(figure: Any) -> None:
        ax = figure.subplots()
        figure.suptitle(title, x=0.02, ha="left", fontsize=10, fontweight="bold")
        _ground(ax, scene)
        _paths(ax, paths, reached.numpy())
        _goals(ax, scene, reached.numpy())

    return picture(draw, LIGHT, (_WIDTH, height), transparent=False)


def _color(goal: int) -> str:
    return LIGHT.muted if goal < 0 else LIGHT.series[goal % len(LIGHT.series)]


def _ground(ax: Any, scene: Scene) -> None:
    from matplotlib.patches import Rectangle

    x_low, x_high, y_low, y_high = scene.bounds
    ax.set_xlim(x_low, x_high)
    ax.set_ylim(y_low, y_high)
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.add_patch(Rectangle((x_low, y_low), x_high - x_low, y_high - y_low, fill=False, ec=LIGHT.grid, lw=1.5))
    for left, right, bottom, top in scene.walls:
        ax.add_patch(Rectangle((left, bottom), right - left, top - bottom, fc=_WALL, ec=_WALL, lw=0.5))


def _paths(ax: Any, paths: Tensor, reached: Array) -> None:
    from matplotlib.collections import LineCollection

    shown = paths[:: max(1, len(paths) // _POINTS), :_SHOWN]
    lines = shown.transpose(0, 1).cpu().numpy()  # [N, T, 2]
    ends = paths[-1, :_SHOWN].cpu().numpy()
    colors = [_color(int(goal)) for goal in reached[:_SHOWN]]
    ax.add_collection(LineCollection(list(lines), colors=colors, linewidths=0.7, alpha=0.45))
    ax.scatter(*lines[:, 0].T, s=9, color=LIGHT.text, linewidths=0, zorder=3)
    ax.scatter(*ends.T, s=14, color=colors, edgecolors="white", linewidths=0.4, zorder=3)


def _goals(ax: Any, scene: Scene, reached: Array) -> None:
    from matplotlib.patches import Circle

    for goal, place in enumerate(scene.goals.tolist()):
        ax.add_patch(Circle(place, scene.reach, fc="none", ec=_color(goal), lw=1.6, zorder=4))
        share = np.mean(reached == goal)
        ax.annotate(f"{100 * share:.0f} %", place, xytext=(0, 17), textcoords="offset points", ha="center",
                    fontsize=8, color=LIGHT.text, zorder=5)  # fmt: skip

"""Fronts of several objectives: a plane for two, a picture in depth for three, parallel coordinates for more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ctrlrl.functional.pareto import non_dominated
from ctrlrl.report.drawing import NARROW, WIDE, Theme, picture
from ctrlrl.report.runs import Array, Run


class Front(NamedTuple):
    """The return vectors of a set of policies."""

    algo: str
    seed: str
    points: Array  # [n, M]


class Task(NamedTuple):
    """Fronts to be seen together."""

    env: str
    names: tuple[str, ...]  # of the M objectives
    fronts: list[Front]


def front_tasks(runs: Sequence[Run]) -> list[Task]:
    """The fronts that runs left, by environment and number of objectives; unnamed objectives are numbered from 1."""
    found: dict[tuple[str, int], Task] = {}
    for run in runs:
        points = np.array(run.result.get("front") or [], dtype=np.float64)
        if points.ndim != 2 or points.shape[1] < 2:
            continue
        m, told = points.shape[1], run.result.get("objectives") or []
        names = [str(x).replace("_", " ") for x in told]
        if len(names) != m:
            names = [f"objective {i + 1}" for i in range(m)]
        task = found.setdefault((run.env, m), Task(run.env, tuple(names), []))
        task.fronts.append(Front(run.algo, run.seed, points))
    return list(found.values())


def front_png(
    fronts: Sequence[Front], names: Sequence[str], theme: Theme, *, narrow: bool = False, transparent: bool = True
) -> bytes:
    """PNG bytes; `names` are those of the M objectives, all of which are better when higher."""
    m, width = len(names), NARROW if narrow else WIDE
    draw = _plane if m == 2 else _depth if m == 3 else _parallel
    height = {2: 0.62 * width, 3: 0.8 * width}.get(m, 0.46 * width)

    def body(figure: Any) -> None:
        draw(figure, fronts, names, theme)

    return picture(body, theme, (width, max(height, 3.2)), transparent=transparent)


def _looks(fronts: Sequence[Front], theme: Theme) -> list[tuple[Front, str, str]]:
    """Each front with a color, its algorithm's, and a marker, another one for each of that algorithm's fronts."""
    algos = list(dict.fromkeys(front.algo for front in fronts))
    seen: dict[str, int] = {}
    looks = []
    for front in fronts:
        nth = seen[front.algo] = seen.get(front.algo, -1) + 1
        looks.append((front, theme.series[algos.index(front.algo) % len(theme.series)], "osD^vP*"[nth % 7]))
    return looks


def _legend(figure: Any, fronts: Sequence[Front], theme: Theme) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for front, color, marker in _looks(fronts, theme):
        n = len(front.points)
        label = f"{front.algo}, seed {front.seed}: {n} polic{'y' if n == 1 else 'ies'}"
        handles.append(Line2D([], [], color=color, marker=marker, ms=5, lw=0, label=label))
    n_columns = min(len(handles), 3 if figure.get_figwidth() > NARROW else 1)
    figure.legend(handles=handles, loc="outside upper left", ncols=n_columns)


def _plane(figure: Any, fronts: Sequence[Front], names: Sequence[str], theme: Theme) -> None:
    """The line is the border of what a front dominates."""
    ax = figure.subplots()
    for front, color, marker in _looks(fronts, theme):
        best = front.points[non_dominated(torch.from_numpy(front.points)).numpy()]
        best = best[np.argsort(best[:, 0], kind="stable")]
        ax.step(*best.T, where="pre", color=color, lw=1.0, alpha=0.45)
        ax.plot(*front.points.T, marker, color=color, ms=5.0, lw=0, alpha=0.9, mec="none")
    ax.set_xlabel(f"return: {names[0]}")
    ax.set_ylabel(f"return: {names[1]}")
    ax.grid()
    _legend(figure, fronts, theme)


def _depth(figure: Any, fronts: Sequence[Front], names: Sequence[str], theme: Theme) -> None:
    """Stems to the floor tell where a point stands; the same points seen along every axis lie beside it."""
    from matplotlib.ticker import MaxNLocator

    grid = figure.add_gridspec(3, 3)
    ax = figure.add_subplot(grid[:, :2], projection="3d", computed_zorder=False)
    every = np.concatenate([front.points for front in fronts])
    floor = every[:, 2].min() - 0.05 * max(float(np.ptp(every[:, 2])), 1e-9)
    for front, color, marker in _looks(fronts, theme):
        for x, y, z in front.points:
            ax.plot((x, x), (y, y), (floor, z), color=color, lw=0.6, alpha=0.3)
        ax.scatter(*front.points.T, color=color, marker=marker, s=22, depthshade=False, linewidths=0)
    ax.view_init(elev=24, azim=-128)
    ax.set_box_aspect((4, 4, 3), zoom=0.86)  # room for the labels
    for axis, name in zip((ax.xaxis, ax.yaxis, ax.zaxis), names, strict=True):
        axis.set_label_text(name)
        axis.set_pane_color((0.0, 0.0, 0.0, 0.0))
        axis.set_major_locator(MaxNLocator(4))
        axis.line.set_color(theme.grid)
        axis._axinfo["grid"]["color"] = theme.grid
    for row, (a, b) in enumerate(((0, 1), (0, 2), (1, 2))):
        side = figure.add_subplot(grid[row, 2])
        for front, color, marker in _looks(fronts, theme):
            side.plot(front.points[:, a], front.points[:, b], marker, color=color, ms=3.0, lw=0, alpha=0.8, mec="none")
        side.set_xlabel(names[a], fontsize=8)
        side.set_ylabel(names[b], fontsize=8)
        side.tick_params(labelsize=7)
        side.xaxis.set_major_locator(MaxNLocator(4))
        side.yaxis.set_major_locator(MaxNLocator(4))
        side.grid()
    _legend(figure, fronts, theme)


def _parallel(figure: Any, fronts: Sequence[Front], names: Sequence[str], theme: Theme) -> None:
    """One line a policy; every objective has its own scale, from the worst to the best return that is shown.

    Lines of a single front have the color of the objective that they are nearest to the best of.
    """
    ax = figure.subplots()
    every = np.concatenate([front.points for front in fronts])
    low, high = every.min(0), every.max(0)
    spread = np.where(high > low, high - low, 1.0)
    x, alone = np.arange(len(names)), len(fronts) == 1
    for front, color, _ in _looks(fronts, theme):
        heights = (front.points - low) / spread
        own = [theme.series[i % len(theme.series)] for i in heights.argmax(1)] if alone else [color] * len(heights)
        faint = max(0.2, 0.9 / len(heights) ** 0.25)
        for line, shade in zip(heights, own, strict=True):
            ax.plot(x, line, color=shade, lw=1.0, alpha=faint)
    digits = 2 if figure.get_figwidth() <= NARROW else 4
    for place, worst, best in zip(x, low, high, strict=True):
        ax.axvline(place, color=theme.grid, lw=1.0, zorder=0)
        for value, y, up in ((best, 1.0, 4), (worst, 0.0, -11)):
            ax.annotate(f"{value:.{digits}g}", (place, y), xytext=(0, up), textcoords="offset points", ha="center",
                        fontsize=7, color=theme.muted)  # fmt: skip
    turned = len(names) > 6 or figure.get_figwidth() <= NARROW
    ax.set_xticks(x, names, rotation=30 if turned else 0, ha="right" if turned else "center")
    if alone:
        for i, label in enumerate(ax.get_xticklabels()):
            label.set_color(theme.series[i % len(theme.series)])
    ax.set_yticks([])
    ax.set_ylim(-0.12, 1.1)
    ax.set_xlim(-0.4, len(names) - 0.6)
    if not alone:
        _legend(figure, fronts, theme)

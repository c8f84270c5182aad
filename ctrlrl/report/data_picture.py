"""A data set as one picture: histograms of its returns, its episode lengths and its actions."""

from __future__ import annotations

from typing import Any

import numpy as np

from ctrlrl.report.drawing import LIGHT, picture
from ctrlrl.report.runs import Array

_SIZE = (10.2, 3.3)  # inches
_MAX_LINES = 8  # action dimensions that have a line each
_BINS = 40


def data_png(title: str, returns: Array, lengths: Array, actions: Array, marks: dict[str, float]) -> bytes:
    """returns, lengths [E]; actions [N, A] or [N] discrete; marks: returns to draw a line at, by name. PNG bytes.

    What is nan or inf is left out.
    """
    returns = returns[np.isfinite(returns)]
    if actions.ndim > 1:
        actions = actions[np.isfinite(actions).all(1)]

    def draw(figure: Any) -> None:
        left, middle, right = figure.subplots(1, 3)
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        _episodes(left, "return of an episode", returns, LIGHT.series[0])
        _marks(left, marks)
        _episodes(middle, "steps of an episode", lengths, LIGHT.series[2])
        _actions(right, actions)

    return picture(draw, LIGHT, _SIZE, transparent=False)


def _episodes(ax: Any, label: str, values: Array, color: str) -> None:
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    if low == high:
        low, high = low - max(1.0, 0.1 * abs(low)), high + max(1.0, 0.1 * abs(high))
    ax.hist(values, bins=_BINS, range=(low, high), color=color, alpha=0.85)
    ax.set_xlabel(label)
    ax.set_ylabel("episodes")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    ax.locator_params(axis="x", nbins=5)
    ax.locator_params(axis="y", nbins=6, integer=True)
    ax.grid(axis="y")


def _marks(ax: Any, marks: dict[str, float]) -> None:
    """Lines at the reference returns, their names on the side where there is room."""
    for value in marks.values():
        ax.axvline(value, color=LIGHT.muted, lw=1.0, ls=(0, (5, 4)))
    middle = sum(ax.get_xlim()) / 2
    for name, value in marks.items():
        side, shift = ("left", 3) if value < middle else ("right", -3)
        ax.annotate(name, (value, 1.0), xycoords=("data", "axes fraction"), xytext=(shift, -9), ha=side, fontsize=7.5,
                    textcoords="offset points", color=LIGHT.muted)  # fmt: skip


def _actions(ax: Any, actions: Array) -> None:
    ax.set_ylabel("share of rows")
    ax.grid(axis="y")
    if actions.ndim == 1:
        counts = np.bincount(actions) / len(actions)
        ax.bar(np.arange(len(counts)), counts, color=LIGHT.series[3], alpha=0.85)
        ax.locator_params(axis="x", nbins=6, integer=True)
        ax.set_xlabel("action")
        return
    edges = np.linspace(actions.min(initial=-1.0), actions.max(initial=1.0), _BINS + 1)
    n = actions.shape[1]
    if n > _MAX_LINES:
        counts = np.histogram(actions, edges)[0] / max(1, actions.size)
        ax.stairs(counts, edges, color=LIGHT.series[3], fill=True, alpha=0.85)
        ax.set_xlabel(f"action, all {n} dimensions together")
        return
    for d in range(n):
        counts = np.histogram(actions[:, d], edges)[0] / max(1, len(actions))
        ax.stairs(counts, edges, color=LIGHT.series[d % len(LIGHT.series)], lw=1.3, label=f"{d}")
    ax.legend(ncols=2, title="dimension", title_fontsize=7.5, fontsize=7.5, handlelength=1.0)
    ax.set_xlabel("action")

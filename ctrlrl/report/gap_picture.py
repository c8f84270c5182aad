"""Where a simulator differs from reality: the estimated gap by region of the state, beside the real data."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ctrlrl.report.drawing import LIGHT, picture
from ctrlrl.report.runs import Array

_SIZE = (8.4, 3.7)  # inches
_CELLS = 28  # along each axis
_LEAST = 3  # simulated steps that a cell's mean is shown from
_QUANTILES = (0.005, 0.995)  # of each coordinate that the picture spans
_WARM = ("#fff1e6", LIGHT.series[1], "#4a1403")
_COOL = ("#e6efff", LIGHT.series[0], "#0b1e4a")


class Axis(NamedTuple):
    """One coordinate of the picture."""

    column: int  # of an observation
    label: str


def telling_axes(obs: Array, gap: Array) -> tuple[Axis, Axis]:
    """The two columns of obs [N, O] that explain most of the variance of gap [N], by means over twenty even parts.

    A single column is both.
    """
    explained = np.zeros(obs.shape[1])
    for column, x in enumerate(obs.T):
        parts = np.array_split(gap[np.argsort(x, kind="stable")], 20)
        explained[column] = np.ptp(x) > 0 and np.var([part.mean() for part in parts if len(part)])
    order = np.argsort(-explained, kind="stable").tolist()
    first, second = order[0], order[:2][-1]
    return Axis(first, f"observation[{first}]"), Axis(second, f"observation[{second}]")


def cell_means(x: Array, y: Array, gap: Array, edges: tuple[Array, Array]) -> Array:
    """[cells of y, cells of x] mean gap; NaN where fewer than three rows lie."""
    count = _counts(x, y, edges)
    total = _counts(x, y, edges, gap)
    return np.where(count >= _LEAST, total / np.maximum(count, 1), np.nan)


def _counts(x: Array, y: Array, edges: tuple[Array, Array], weights: Array | None = None) -> Array:
    """[cells of y, cells of x] rows, or the sum of their weights."""
    return np.histogram2d(y, x, bins=[edges[1], edges[0]], weights=weights)[0]


def gap_png(title: str, axes: tuple[Axis, Axis], sim: Array, gap: Array, real: Array) -> bytes:
    """sim [N, O] simulated states, gap [N] of the steps from them, nats; real [M, O] the data's states. PNG bytes."""
    across, up = (np.concatenate((sim[:, axis.column], real[:, axis.column])) for axis in axes)
    edges = _edges(across), _edges(up)
    means = cell_means(sim[:, axes[0].column], sim[:, axes[1].column], gap, edges)
    rows = _counts(real[:, axes[0].column], real[:, axes[1].column], edges)

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2, sharex=True, sharey=True)
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        _map(figure, left, edges, means, _WARM)
        left.set_title("estimated gap of simulated steps, nats")
        bar = _map(figure, right, edges, np.where(rows > 0, np.log10(np.maximum(rows, 1)), np.nan), _COOL)
        bar.formatter = lambda value, _: f"{10**value:,.0f}"
        bar.update_ticks()
        right.set_title("rows of real data")
        left.set_ylabel(axes[1].label)
        for ax in (left, right):
            ax.set_xlabel(axes[0].label)

    return picture(draw, LIGHT, _SIZE, transparent=False)


def _edges(x: Array) -> Array:
    low, high = np.quantile(x, _QUANTILES)
    return np.linspace(low, max(high, low + 1e-6), _CELLS + 1)


def _map(figure: Any, ax: Any, edges: Any, values: Array, shades: tuple[str, ...]) -> Any:
    """The cells and their color bar, which is returned."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.ticker import MaxNLocator

    high = max(1e-6, float(np.nanmax(values, initial=0.0)))
    low = min(0.0, float(np.nanmin(values, initial=0.0)))
    shown = ax.pcolormesh(*edges, values, cmap=LinearSegmentedColormap.from_list("", shades), vmin=low, vmax=high)
    bar = figure.colorbar(shown, ax=ax, fraction=0.05, pad=0.02)
    bar.outline.set_visible(False)
    bar.locator = MaxNLocator(5, integer=high > 3.0)
    bar.update_ticks()
    return bar

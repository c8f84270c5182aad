"""Learning curves as PNG pictures: one panel a task, one colour an algorithm, every seed visible."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ctrlrl.report.published import published, task_key
from ctrlrl.report.runs import Array, Run, read_run
from ctrlrl.report.stats import MIN_SEEDS, mean_and_interval, on_common_grid


class Theme(NamedTuple):
    """Colours of a picture; the background is transparent on the page."""

    text: str
    muted: str
    grid: str
    background: str
    series: tuple[str, ...]  # told apart also by colour-blind readers


LIGHT = Theme(
    "#1f2328", "#6b7280", "#e5e7eb", "#ffffff", ("#2563eb", "#d9480f", "#0f8a6d", "#9333ea", "#b45309", "#475569")
)
DARK = Theme(
    "#e6e8eb", "#9aa3ad", "#2b3138", "#14171a", ("#6ea8fe", "#ff9f6b", "#4fd1b0", "#c79bff", "#f2c063", "#a9b4c0")
)

UNITS = {"env_steps": "environment steps", "gradient_steps": "gradient steps"}


def write_curve(run: Path, out: Path) -> None:
    """Write curve.png of one run folder."""
    Path(out).write_bytes(curve_png([read_run(run)], LIGHT, transparent=False))


def curve_png(runs: Sequence[Run], theme: Theme, *, transparent: bool = True) -> bytes:
    """The learning curves of all runs as PNG bytes: thin lines seeds, thick lines means, dots evaluations."""
    figure_class, style = _matplotlib()
    panels: dict[str, list[Run]] = {}
    for run in runs:
        panels.setdefault(task_key(run.env), []).append(run)
    algos = list(dict.fromkeys(run.algo for run in runs))
    n_columns = 1 if len(panels) == 1 else 2
    n_rows = -(-len(panels) // n_columns)
    with style(_rc(theme)):
        figure = figure_class(figsize=(8.4, 3.9 if n_columns == 1 else 3.1 * n_rows), dpi=200, layout="constrained")
        figure.patch.set_alpha(0.0 if transparent else 1.0)
        figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06, wspace=0.04, hspace=0.04)
        axes = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
        for ax, members in zip(axes, panels.values(), strict=False):
            _panel(ax, members, algos, theme)
            if n_columns > 1:
                ax.set_title(members[0].env)
        _legend(figure, runs, algos, theme)
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", transparent=transparent)
    return buffer.getvalue()


def _panel(ax: Any, runs: Sequence[Run], algos: Sequence[str], theme: Theme) -> None:
    present = list(dict.fromkeys(run.algo for run in runs))
    drawn = [_algorithm(ax, [run for run in runs if run.algo == a], _color(a, algos, theme)) for a in present]
    ax.set_xlabel(UNITS[runs[0].x_name])
    ax.set_ylabel("return")
    ax.xaxis.set_major_formatter(lambda value, _: steps(value))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:,g}" if abs(value) < 1e15 else f"{value:g}")
    ax.grid(axis="y")
    last = max((run.progress[run.x_name].max() for run in runs if len(run.progress["env_steps"])), default=0.0)
    ax.set_xlim(0.0, 1.02 * last or 1.0)
    if any(drawn):
        _references(ax, present, runs[0].env, algos, theme)
    else:
        ax.text(0.5, 0.5, "no return measured yet", transform=ax.transAxes, ha="center", color=theme.muted)


def _color(algo: str, algos: Sequence[str], theme: Theme) -> str:
    return theme.series[algos.index(algo) % len(theme.series)]


def _legend(figure: Any, runs: Sequence[Run], algos: Sequence[str], theme: Theme) -> None:
    """One legend above all panels, where it covers no data."""
    from matplotlib.lines import Line2D

    handles = []
    for algo in algos:
        color, own = _color(algo, algos, theme), [run for run in runs if run.algo == algo]
        if any(len(run.curve("rollout/return")[0]) > 1 for run in own):
            handles.append(Line2D([], [], color=color, lw=2.0, label=f"{algo} training"))
        if any(len(run.curve("eval/return_mean")[0]) for run in own):
            handles.append(Line2D([], [], color=color, lw=0, marker="o", ms=5, label=f"{algo} evaluation"))
    if handles:
        figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), 6))


def _algorithm(ax: Any, runs: Sequence[Run], color: str) -> bool:
    """Draw one algorithm's seeds; False when nothing was measured."""
    training = [run.curve("rollout/return") for run in runs]
    training = [(x, y) for x, y in training if len(x) > 1]
    evaluations = [(*run.curve("eval/return_mean"), run) for run in runs]
    evaluations = [(x, y, run) for x, y, run in evaluations if len(x)]
    alone = len(runs) == 1
    for x, y in training:
        ax.plot(x, y, color=color, lw=1.5 if alone else 0.8, alpha=0.9 if alone else 0.35)
    if len(training) > 1 and (band := _mean(training)) is not None:
        grid, mean, low, high = band
        ax.fill_between(grid, low, high, color=color, alpha=0.16, lw=0)
        ax.plot(grid, mean, color=color, lw=2.0)
    for x, y, run in evaluations:
        if alone:
            spread = np.interp(x, *run.curve("eval/return_std")) if len(run.curve("eval/return_std")[0]) else None
            ax.errorbar(x, y, yerr=spread, fmt="o", color=color, ms=5.5, mec=ax.get_figure().get_facecolor(), mew=0.8,
                        elinewidth=1.0, alpha=0.95, zorder=4)  # fmt: skip
        else:
            ax.plot(x, y, "o", color=color, ms=3.4, alpha=0.75, lw=0, zorder=4)
    return bool(training or evaluations)


def _mean(curves: Sequence[tuple[Array, Array]]) -> tuple[Array, Array, Array, Array] | None:
    """Mean over seeds; its 95 % interval from MIN_SEEDS seeds on, else just the range. None without a common range."""
    if max(x[0] for x, _ in curves) >= min(x[-1] for x, _ in curves):
        return None
    grid, values = on_common_grid(curves)
    if len(curves) >= MIN_SEEDS:
        return (grid, *mean_and_interval(values))
    return grid, values.mean(0), values.min(0), values.max(0)


def _references(ax: Any, present: Sequence[str], env: str, algos: Sequence[str], theme: Theme) -> None:
    """Published end values as dashed lines, where they do not flatten the curve; close ones share a label."""
    low, high = ax.get_ylim()
    room = 0.35 * (high - low)
    shown = [p for algo in present for p in published(algo, env) if low - room <= p.value <= high + room]
    shown.sort(key=lambda p: -p.value)
    labels: list[tuple[float, str]] = []  # (highest value, text)
    for p in shown:
        ax.axhline(p.value, color=_color(p.algo, algos, theme), lw=1.0, ls=(0, (5, 4)), alpha=0.75, zorder=1)
        label = f"{p.algo.upper()}, {p.source}" + (f", {steps(p.env_steps)}" if p.env_steps else "")
        if labels and labels[-1][0] - p.value < 0.08 * (high - low):
            labels[-1] = (labels[-1][0], f"{labels[-1][1]} · {label}")
        else:
            labels.append((p.value, label))
    for value, label in labels:  # on the left, where a curve that learns has not arrived yet
        ax.annotate(label, (0.01, value), xycoords=("axes fraction", "data"), xytext=(0, 2.5),
                    textcoords="offset points", fontsize=7.5, color=theme.muted)  # fmt: skip


def steps(value: float) -> str:
    """A count of steps as "0", "250k" or "1.5M"."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:g}"


def _rc(theme: Theme) -> dict[str, Any]:
    return {
        "font.size": 9,
        "font.family": ["DejaVu Sans"],
        "text.color": theme.text,
        "axes.labelcolor": theme.muted,
        "axes.edgecolor": theme.grid,
        "axes.facecolor": "none",
        "figure.facecolor": theme.background,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlecolor": theme.text,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.axisbelow": True,
        "grid.color": theme.grid,
        "grid.linewidth": 0.8,
        "xtick.color": theme.grid,
        "ytick.color": theme.grid,
        "xtick.labelcolor": theme.muted,
        "ytick.labelcolor": theme.muted,
        "ytick.left": False,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "legend.labelcolor": theme.text,
        "path.simplify": True,
    }


def _matplotlib() -> tuple[Any, Any]:
    """(Figure, rc_context) without pyplot: no global state, no display, safe beside a user's own figures."""
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("a report needs matplotlib to draw its curves: pip install 'ctrlrl[report]'") from None

    def figure(**kwargs: Any) -> Any:
        made = Figure(**kwargs)
        FigureCanvasAgg(made)
        return made

    return figure, rc_context

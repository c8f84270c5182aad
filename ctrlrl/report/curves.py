"""Learning curves as PNG pictures: one panel a task, one colour an algorithm, every seed visible."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ctrlrl.disk import write_named
from ctrlrl.report.drawing import LIGHT, NARROW, WIDE, Theme, picture
from ctrlrl.report.published import published_beside, task_key
from ctrlrl.report.results import algo_of, task_of
from ctrlrl.report.runs import SCORE, Array, Run, read_run
from ctrlrl.report.stats import MIN_SEEDS, mean_and_interval, on_common_grid

UNITS = {
    "env_steps": "environment steps",
    "gradient_steps": "gradient steps",
    "steps": "offline gradient steps, then environment steps",
}
RETURN = "eval/return_mean"
HYPERVOLUME = "front/hypervolume"  # column of progress.csv, of runs that look for a front; or else JUDGED
JUDGED = "eval/hypervolume"  # of the evaluations, of a policy for all preferences
LABELS = {RETURN: "return", SCORE: "normalised score", HYPERVOLUME: "hypervolume"}


def write_curve(run: Path, out: Path) -> None:
    """Write curve.png of one run folder."""
    read = read_run(run)
    column = HYPERVOLUME if seeks_front(read) else None
    write_named(Path(out), curve_png([read], LIGHT, transparent=False, column=column))


def seeks_front(run: Run) -> bool:
    """Whether a run is judged by a set of policies, not by a return."""
    return HYPERVOLUME in run.progress or JUDGED in run.progress


def metric_of(runs: Sequence[Run]) -> str:
    """The result that stands for a run where seeds are taken together."""
    return "hypervolume" if runs and all(map(seeks_front, runs)) else "final_return_mean"


def _measured(run: Run, column: str, x_name: str | None) -> tuple[Array, Array]:
    return run.curve(JUDGED if column == HYPERVOLUME and column not in run.progress else column, x_name)


def curve_png(
    runs: Sequence[Run], theme: Theme, *, narrow: bool = False, transparent: bool = True, column: str | None = None
) -> bytes:
    """The learning curves of all runs as PNG bytes: thin lines seeds, thick lines means, dots evaluations.

    narrow: one column, for a phone. column: of progress.csv; None is the return, or the score where all runs have one.
    """
    panels: dict[str, list[Run]] = {}
    for run in runs:
        panels.setdefault(_panel_key(run), []).append(run)
    algos = list(dict.fromkeys(algo_of(run.result) for run in runs))
    n_columns = 1 if len(panels) == 1 or narrow else 2
    n_rows = -(-len(panels) // n_columns)
    height = 3.9 if n_columns == 1 and not narrow else 3.1
    legend = 0.25 * (len(algos) // (2 if narrow else 4))

    def draw(figure: Any) -> None:
        axes = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
        for ax, members in zip(axes, panels.values(), strict=False):
            _panel(ax, members, algos, theme, column or _column(members))
            if len(panels) > 1:
                ax.set_title(task_of(members[0].result) if members[0].offline else members[0].env)
        shown = [(run, column or _column(members)) for members in panels.values() for run in members]
        _legend(figure, shown, algos, theme, n_columns=2 if narrow else 6)
        for ax in axes[len(panels) :]:
            ax.set_axis_off()

    size = (NARROW if narrow else WIDE, height * n_rows + legend)
    return picture(draw, theme, size, transparent=transparent)


def _panel_key(run: Run) -> str:
    return task_of(run.result) if run.offline or run.result.get("task") else task_key(run.env)


def _column(runs: Sequence[Run]) -> str:
    """What one panel shows where no column is asked for."""
    return SCORE if all(len(run.curve(SCORE)[0]) for run in runs) else RETURN


def _panel(ax: Any, runs: Sequence[Run], algos: Sequence[str], theme: Theme, column: str) -> None:
    present = list(dict.fromkeys(algo_of(run.result) for run in runs))
    units = {run.x_name for run in runs}
    x_name = "env_steps" if units == {"env_steps", "steps"} else None  # begun on data beside begun with nothing
    drawn = [
        _algorithm(ax, [run for run in runs if algo_of(run.result) == a], _color(a, algos, theme), column, x_name)
        for a in present
    ]
    ax.set_xlabel(UNITS[x_name or runs[0].x_name])
    ax.set_ylabel(LABELS[column])
    ax.xaxis.set_major_formatter(lambda value, _: steps(value))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:,g}" if abs(value) < 1e15 else f"{value:g}")
    ax.grid(axis="y")
    last = max(
        (run.progress[x_name or run.x_name].max() for run in runs if len(run.progress["env_steps"])), default=0.0
    )
    ax.set_xlim(0.0, 1.02 * last or 1.0)
    if not any(drawn):
        ax.text(0.5, 0.5, f"no {LABELS[column]} measured yet", transform=ax.transAxes, ha="center", color=theme.muted)
    elif column == RETURN:
        _references(ax, runs, algos, theme)


def _color(algo: str, algos: Sequence[str], theme: Theme) -> str:
    return theme.series[algos.index(algo) % len(theme.series)]


def _legend(
    figure: Any, shown: Sequence[tuple[Run, str]], algos: Sequence[str], theme: Theme, *, n_columns: int
) -> None:
    """One legend above all panels, where it covers no data. shown: every run and the column of its panel."""
    from matplotlib.lines import Line2D

    handles = []
    for algo in algos:
        color, own = _color(algo, algos, theme), [(run, c) for run, c in shown if algo_of(run.result) == algo]
        trained = any(len(x) > 1 for run, column in own for x, _ in _training([run], column, None))
        if trained:
            handles.append(Line2D([], [], color=color, lw=2.0, label=f"{algo} training"))
        if any(len(_measured(run, column, None)[0]) for run, column in own):
            look, label = {"lw": 0} if trained else {"lw": 2.0}, f"{algo} evaluation" if trained else algo
            handles.append(Line2D([], [], color=color, marker="o", ms=5, label=label, **look))
    if handles:
        figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), n_columns))


def _training(runs: Sequence[Run], column: str, x_name: str | None) -> list[tuple[Array, Array]]:
    """Curves of the training episodes, which are returns; there are none of a score or a hypervolume."""
    return [run.curve("rollout/return", x_name) for run in runs] if column == RETURN else []


def _algorithm(ax: Any, runs: Sequence[Run], color: str, column: str, x_name: str | None) -> bool:
    """Draw one algorithm's seeds; False when nothing was measured."""
    training = [(x, y) for x, y in _training(runs, column, x_name) if len(x) > 1]
    evaluations = [(*_measured(run, column, x_name), run) for run in runs]
    evaluations = [(x, y, run) for x, y, run in evaluations if len(x)]
    alone = len(runs) == 1
    lines = training or [(x, y) for x, y, _ in evaluations]
    for x, y in lines:
        ax.plot(x, y, color=color, lw=1.5 if alone else 0.8, alpha=0.9 if alone else 0.35)
    if len(lines) > 1 and (band := _mean(lines)) is not None:
        grid, mean, low, high = band
        ax.fill_between(grid, low, high, color=color, alpha=0.16, lw=0)
        ax.plot(grid, mean, color=color, lw=2.0)
    for x, y, run in evaluations:
        if alone and column == RETURN:
            spreads = run.curve("eval/return_std", x_name)
            spread = np.interp(x, *spreads) if len(spreads[0]) else None
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


def _references(ax: Any, runs: Sequence[Run], algos: Sequence[str], theme: Theme) -> None:
    """Published end values as dashed lines, where they do not flatten the curve; close ones share a label."""
    low, high = ax.get_ylim()
    room = 0.35 * (high - low)
    plain = [run.result for run in runs if algo_of(run.result) == run.algo]
    shown = [p for p in dict.fromkeys(chain(*map(published_beside, plain))) if low - room <= p.value <= high + room]
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

"""Runs that began on a data set and went on in the environment: what became of the offline score at the switch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ctrlrl.report.benchmark import by_number
from ctrlrl.report.results import algo_of, measured, task_of
from ctrlrl.report.runs import SCORE, SUCCESS, Run
from ctrlrl.report.tables import NONE, Table, number

WINDOW = 10_000  # environment steps after the switch in which a collapse would show
CURVES = {SCORE: 1.0, SUCCESS: 100.0, "eval/return_mean": 1.0}  # what is told, by preference, and in which unit
FINE_TUNING_TITLE = "From the data set to the environment"
FINE_TUNING_NOTE = (
    f"Before: the last evaluation without environment steps. Worst: the lowest within {WINDOW:,} environment steps, "
    "where there was one. Scores where the runs have them, else success in percent (of run folders), else "
    "returns; seeds in their order. Regret: mean of 1 - score / 100 after the switch."
)


def fine_tuning(runs: Sequence[Run]) -> Table | None:
    """One row an algorithm and task, finished seeds side by side; None where no run was evaluated on either side."""
    found: dict[tuple[str, str], dict[str, tuple[str, ...]]] = {}
    for run in runs:
        if run.result.get("status", "finished") == "finished" and (cells := _switch(run)):
            found.setdefault((task_of(run.result), algo_of(run.result)), {})[run.seed] = cells
    if not found:
        return None
    each = {names: [cells[seed] for seed in sorted(cells, key=by_number)] for names, cells in found.items()}
    rows = tuple((*names, *map(" · ".join, zip(*seeds, strict=True))) for names, seeds in each.items())
    columns = ("task", "algo", "before", "worst", "worst / before", "last", "regret")
    return Table(columns, rows, (False, False, *(True for _ in columns[2:])))


def _switch(run: Run) -> tuple[str, ...]:
    """before, worst, their quotient, last, regret; empty for a run without evaluations before and after the switch."""
    name = next((name for name in CURVES if len(run.curve(name)[0])), None)
    if run.x_name != "steps" or name is None:
        return ()
    kept = np.isfinite(run.progress[name])
    values, online = CURVES[name] * run.progress[name][kept], run.progress["env_steps"][kept]
    before, after, early = values[online <= 0], values[online > 0], values[(online > 0) & (online <= WINDOW)]
    if not len(before) or not len(after):
        return ()
    worst = float(early.min()) if len(early) else None
    regret = run.result.get("regret")
    return (
        number(float(before[-1])),
        number(worst),
        NONE if worst is None or before[-1] <= 0 else f"{100 * worst / before[-1]:.0f} %",
        number(float(after[-1])),
        number(regret if measured(regret) else None, 3),
    )

"""Runs that began on a data set and went on in the environment: what became of the offline score at the switch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ctrlrl.report.results import algo_of, measured, task_of
from ctrlrl.report.runs import SCORE, Run
from ctrlrl.report.tables import NONE, Table, number

WINDOW = 10_000  # environment steps after the switch in which a collapse would show
FINE_TUNING_TITLE = "From the data set to the environment"
FINE_TUNING_NOTE = (
    f"Before: the last evaluation without environment steps. Worst: the lowest within {WINDOW:,} environment steps. "
    "Scores where the runs have them, else returns; seeds in their order. Regret: mean of 1 - score / 100 after the "
    "switch."
)


def fine_tuning(runs: Sequence[Run]) -> Table | None:
    """One row an algorithm and task, seeds side by side; None where no run has an evaluation on either side."""
    found: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    for run in runs:
        if cells := _switch(run):
            found.setdefault((task_of(run.result), algo_of(run.result)), []).append(cells)
    if not found:
        return None
    rows = tuple((*names, *map(" · ".join, zip(*seeds, strict=True))) for names, seeds in found.items())
    columns = ("task", "algo", "before", "worst", "worst / before", "last", "regret")
    return Table(columns, rows, (False, False, *(True for _ in columns[2:])))


def _switch(run: Run) -> tuple[str, ...]:
    """before, worst, their quotient, last, regret; empty for a run without evaluations before and after the switch."""
    name = SCORE if len(run.curve(SCORE)[0]) else "eval/return_mean"
    if run.x_name != "steps" or not len(run.curve(name)[0]):
        return ()
    kept = np.isfinite(run.progress[name])
    values, online = run.progress[name][kept], run.progress["env_steps"][kept]
    before, after = values[online <= 0], values[(online > 0) & (online <= WINDOW)]
    if not len(before) or not len(after):
        return ()
    share = f"{100 * after.min() / before[-1]:.0f} %" if before[-1] > 0 else NONE
    regret = run.result.get("regret")
    return (
        number(float(before[-1])),
        number(float(after.min())),
        share,
        number(float(values[-1])),
        number(regret if measured(regret) else None, 3),
    )

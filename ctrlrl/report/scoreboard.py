"""A benchmark as tables: tasks x algorithms, aggregates with intervals, published scores beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pstdev

from ctrlrl.report.aggregate import STATISTICS, Estimate, estimate, probability_of_improvement
from ctrlrl.report.benchmark import BEST, LAST, RETURN, SCORE, SUCCESS, Benchmark, Metric
from ctrlrl.report.published_offline import SOURCES, OfflineScore, d4rl_id, last_stage, published_name, published_score
from ctrlrl.report.stats import MIN_SEEDS
from ctrlrl.report.tables import NONE, Table, number

TITLES = {LAST: "Last {}: the final evaluation", BEST: "Best {}: the best evaluation of each run"}
SEEDS_NOTE = (
    f"Mean ± standard deviation over seeds from {MIN_SEEDS} seeds on; with fewer there is no mean, and the values "
    "of the seeds stand in their order."
)
NOT_D4RL = (
    "Scores are on D4RL's scale (0 = random, 100 = expert return), but the data of {} are not D4RL's: no published "
    "score is of the same task."
)
INTERVALS = "[ ]: 95 % percentile interval, bootstrap over seeds within each task (stratified), 2,000 draws"


def matrix(bench: Benchmark, stage: str, metric: Metric | None = None) -> Table:
    """Tasks x algorithms of the last or the best evaluation."""
    key = (metric or bench.metric).keys[stage]
    rows = [(task, *(seeds_text(bench.values(algo, task, key)) for algo in bench.algos)) for task in bench.tasks]
    return Table(("task", *bench.algos), tuple(rows), (False, *(True for _ in bench.algos)))


def seeds_text(values: Sequence[float]) -> str:
    """ "48.1 ± 0.4 (5)" from MIN_SEEDS seeds on, "48.0 · 47.9 · 48.5" below."""
    if not values:
        return NONE
    digits = 1 if max(map(abs, values)) < 1000 else 0
    if len(values) < MIN_SEEDS:
        return " · ".join(number(v, digits) for v in values)
    return f"{number(fmean(values), digits)} ± {number(pstdev(values), digits)} ({len(values)})"


def every_task(bench: Benchmark) -> Table:
    """One row a task and algorithm, with all numbers by name."""
    metrics = (SCORE, SUCCESS, RETURN)
    columns = ("task", "algo", "seeds", *(f"{stage} {metric.name}" for metric in metrics for stage in (LAST, BEST)))
    rows = []
    for task in bench.tasks:
        for algo in bench.algos:
            if task in bench.runs[algo]:
                keys = [metric.keys[stage] for metric in metrics for stage in (LAST, BEST)]
                cells = [seeds_text(bench.values(algo, task, key)) for key in keys]
                rows.append((task, algo, str(len(bench.runs[algo][task])), *cells))
    filled = [i for i in range(len(columns)) if i < 3 or any(row[i] != NONE for row in rows)]
    return Table(
        tuple(columns[i] for i in filled),
        tuple(tuple(row[i] for i in filled) for row in rows),
        tuple(i >= 2 for i in filled),
    )


def aggregates(bench: Benchmark) -> Table | None:
    """Each algorithm over the tasks that all have; None where there is nothing to aggregate.

    Returns of different tasks have different units and are never averaged.
    """
    if bench.metric is RETURN and len(bench.tasks) > 1:
        return None
    names = ["IQM"] if bench.metric is RETURN else list(STATISTICS)
    last, best = (bench.matrices(bench.metric.keys[stage]) for stage in (LAST, BEST))
    rows = []
    for algo, scores in last[1].items():
        n_seeds, n_tasks = scores.shape
        cells = [interval(estimate(scores, STATISTICS[name]), n_seeds) for name in names]
        at_best = best[1].get(algo)
        top = NONE if at_best is None else interval(estimate(at_best), len(at_best))
        rows.append((algo, f"{n_tasks} x {n_seeds}", *cells, top))
    if not rows:
        return None
    columns = ("algo", "tasks x seeds", *(f"last: {name}" for name in names), "best: IQM")
    return Table(columns, tuple(rows), (False, True, *(True for _ in columns[2:])))


def improvements(bench: Benchmark) -> Table | None:
    """P(a run of the row's algorithm beats one of the column's), over the tasks that all have, by last evaluations."""
    _, found = bench.matrices(bench.metric.keys[LAST])
    if len(found) < 2:
        return None
    rows = []
    for algo, ours in found.items():
        cells = [
            NONE
            if other == algo
            else interval(probability_of_improvement(ours, theirs), min(len(ours), len(theirs)), 2)
            for other, theirs in found.items()
        ]
        rows.append((algo, *cells))
    return Table(("P(row > column)", *found), tuple(rows), (False, *(True for _ in found)))


def beside(bench: Benchmark) -> Table | None:
    """Ours and what is published for the same algorithm on the same data set; None where nothing is."""
    columns = ("task", "algo", "source", "ours, last", "published, last", "ours, best", "published, best")
    rows = []
    for task in bench.tasks:
        for algo in bench.algos:
            seeds = bench.runs[algo].get(task, {})
            same = {(published_name(r), d4rl_id(r), last_stage(r)) for r in seeds.values()}
            if len(same) != 1:
                continue
            ((known, name, stage),) = same
            for last in published_score(known, name, stage):
                best = [p for p in published_score(known, name, BEST) if p.source == last.source and stage == LAST]
                ours = [seeds_text(bench.values(algo, task, SCORE.keys[stage])) for stage in (LAST, BEST)]
                rows.append((task, algo, last.source, ours[0], _printed(last), ours[1], _printed(*best)))
    return Table(columns, tuple(rows), (False, False, False, True, True, True, True)) if rows else None


def sources_of(table: Table) -> dict[str, str]:
    """The sources in a table of `beside`, with what they are."""
    return {name: SOURCES[name] for name in dict.fromkeys(row[2] for row in table.rows)}


def incomparable(bench: Benchmark) -> str:
    """The line that keeps scores on other data from being read as D4RL scores; empty where it is not needed."""
    if bench.metric is not SCORE:
        return ""
    cells = [(task, r) for tasks in bench.runs.values() for task, seeds in tasks.items() for r in seeds.values()]
    other = dict.fromkeys(task for task, r in cells if d4rl_id(r) is None)
    return NOT_D4RL.format(", ".join(other) if len(other) < len(bench.tasks) else "these tasks") if other else ""


def interval(e: Estimate, n_seeds: int, digits: int | None = None) -> str:
    """A single seed has nothing to draw from, and no interval."""
    digits = digits if digits is not None else 1 if abs(e.value) < 1000 else 0
    value = number(e.value, digits)
    return value if n_seeds < 2 else f"{value} [{number(e.low, digits)}, {number(e.high, digits)}]"


def _printed(*scores: OfflineScore) -> str:
    return " · ".join(f"{s.mean:.1f} ± {number(s.std, 1)}" for s in scores) or NONE

"""Result dicts (result.json) as tables: one row a seed, and a pooled row where there are seeds enough."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

from ctrlrl.functional.pareto import non_dominated
from ctrlrl.report.published import published_beside
from ctrlrl.report.published_offline import d4rl_id, last_stage, published_name, published_score
from ctrlrl.report.results import Result, algo_of, data_of, expand, is_offline, measured, task_of
from ctrlrl.report.stats import MIN_SEEDS, bootstrap_interval, iqm

NONE = "\u2013"  # not measured


class Table(NamedTuple):
    """Text cells. `rows` is [rows][columns]; numeric columns align to the right."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[bool, ...]


def _digits(x: float) -> int:
    """Decimals that leave about four digits."""
    return 0 if isinstance(x, int) or abs(x) >= 1000 else 1 if abs(x) >= 10 else 2 if abs(x) >= 1 else 3


def number(x: Any, digits: int | None = None) -> str:
    """A number for people: thousands separated, about four digits, an en dash for None and NaN."""
    if x is None or (isinstance(x, float) and math.isnan(x)):
        return NONE
    if isinstance(x, bool) or not isinstance(x, int | float):
        return str(x)
    return f"{x:,.{_digits(x) if digits is None else digits}f}"


def front_size(result: Result) -> int:
    """How many of the policies in result["front"] no other one dominates."""
    return int(non_dominated(torch.tensor(result["front"])).sum())


def duration(seconds: float | None) -> str:
    """Seconds as "48 s", "3 min 05 s" or "2 h 07 min"."""
    if seconds is None:
        return NONE
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def results_table(results: Iterable[Result]) -> Table:
    """Last and best return of every seed, beside what is published; columns nobody filled are left out."""
    entries = [_row(r) for r in expand(results)]
    names = list(dict.fromkeys(name for entry in entries for name in entry))
    usual = {name: (NONE, "finished") if name == "status" else (NONE,) for name in names}  # says nothing new
    used = [name for name in names if any(entry[name] not in usual[name] for entry in entries)]
    rows = tuple(tuple(entry[name] for name in used) for entry in entries)
    words = {"algo", "task", "env", "data", "seed", "status", "published"}
    return Table(tuple(used), rows, tuple(name not in words for name in used))


def pooled_table(results: Iterable[Result], *, metric: str = "final_return_mean") -> Table:
    """Per algorithm and task over finished seeds: mean and IQM with 95 % bootstrap intervals, from MIN_SEEDS seeds on.

    With fewer, the seeds' own values are listed and nothing is pooled.
    """
    rows = []
    for (algo, env), group in grouped(results).items():
        whole = [r for r in group if r.get("status", "finished") == "finished"]  # half a run is no sample
        finished = {(str(r.get("seed")), r.get("config_hash", i)): r for i, r in enumerate(whole)}.values()  # no copies
        values = [float(r[metric]) for r in finished if measured(r.get(metric))]
        if len(values) < MIN_SEEDS:
            listed = ", ".join(number(v) for v in values) or NONE
            rows.append((algo, env, str(len(values)), listed, f"n<{MIN_SEEDS}: no interval"))
            continue
        mean = sum(values) / len(values)
        mean_low, mean_high = bootstrap_interval(values, lambda x: float(x.mean()))
        low, high = bootstrap_interval(values)
        rows.append(
            (algo, env, str(len(values)), _interval(mean, mean_low, mean_high), _interval(iqm(values), low, high))
        )
    name = "last return" if metric == "final_return_mean" else metric
    columns = ("algo", "env", "seeds", f"{name}: mean [95 %], or each seed", "IQM [95 %]")
    return Table(columns, tuple(rows), (False, False, True, False, False))


def grouped(results: Iterable[Result]) -> dict[tuple[str, str], list[Result]]:
    """Results by (algorithm, task, with its data set where there is one), in order of appearance."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for r in expand(results):
        groups.setdefault((algo_of(r), task_of(r)), []).append(r)
    return groups


def markdown(table: Table) -> str:
    """A GitHub table."""
    rule = ["---:" if right else "---" for right in table.numeric]
    lines = [table.columns, rule, *table.rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def text(table: Table) -> str:
    """Aligned columns for a terminal."""
    lines: Sequence[Sequence[str]] = [table.columns, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]
    rule = ["─" * width for width in widths]

    def join(line: Sequence[str]) -> str:
        cells = zip(line, widths, table.numeric, strict=True)
        return "  ".join(cell.rjust(w) if right else cell.ljust(w) for cell, w, right in cells).rstrip()

    return "\n".join(join(line) for line in [lines[0], rule, *lines[1:]]) + "\n"


def _row(r: Result) -> dict[str, str]:
    success = r.get("success_rate")
    offline = is_offline(r) and not r.get("env_steps")
    return {
        "algo": algo_of(r),
        "task": str(r.get("task") or NONE),
        "env": str(r["env"]),
        "data": data_of(r) or NONE,
        "seed": str(r["seed"]),
        "status": str(r.get("status") or NONE),
        "steps": number(r.get("gradient_steps") if offline else r.get("env_steps")),
        "last return": plus_minus(r.get("final_return_mean"), r.get("final_return_std")),
        "best return": number(r.get("best_return_mean")),
        "last score": number(r.get("normalized_score"), 1),
        "best score": number(r.get("best_normalized_score"), 1),
        "hypervolume": number(r.get("hypervolume")),
        "expected utility": number(r.get("expected_utility")),
        "sparsity": number(r.get("sparsity")),
        "policies": number(front_size(r)) if r.get("front") else NONE,
        "regret": number(r.get("regret"), 3),
        "success": NONE if success is None else f"{100 * success:.0f} %",
        "held-out error": number(r.get("held_out_action_error"), 4),
        "wall time": duration(r.get("wall_seconds")),
        "steps/s": number(r.get("updates_per_second" if offline else "steps_per_second"), 0),
        "published": _published(r) or NONE,
    }


def _published(r: Result) -> str:
    """Of the same data set, and as much of it, for a run that learned from one; of the same environment for others."""
    if is_offline(r):
        scores = published_score(published_name(r), d4rl_id(r), last_stage(r))
        return " · ".join(f"score {number(p.mean, 1)} {p.source}" for p in scores)
    return " · ".join(f"{number(p.value)} {p.source}" for p in published_beside(r))


def plus_minus(mean: Any, std: Any) -> str:
    """Both with the mean's decimals; an en dash for a mean that was not measured."""
    if not measured(mean):
        return NONE
    return f"{number(mean)} ± {number(std, _digits(mean))}" if measured(std) else number(mean)


def _interval(value: float, low: float, high: float) -> str:
    return f"{number(value)} [{number(low, _digits(value))}, {number(high, _digits(value))}]"

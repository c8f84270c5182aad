"""Results of several algorithms on several tasks: which runs can be compared, and with what is published."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ctrlrl.report.results import Result, algo_of, expand, measured, task_of

Array = np.ndarray[Any, Any]
LAST, BEST = "last", "best"


class Metric(NamedTuple):
    """What is compared: the normalised score if every run has one, else the success rate (OGBench), else the return."""

    name: str
    keys: Mapping[str, str]  # last, best -> key of a result


SCORE = Metric("score", {LAST: "normalized_score", BEST: "best_normalized_score"})
SUCCESS = Metric("success in %", {LAST: "success_percent", BEST: "best_success_percent"})
RETURN = Metric("return", {LAST: "final_return_mean", BEST: "best_return_mean"})

RATES = {"success_percent": "success_rate", "best_success_percent": "best_success_rate"}


class Benchmark(NamedTuple):
    """Finished runs as algorithm -> task -> seed -> result, in order of appearance."""

    runs: dict[str, dict[str, dict[str, Result]]]
    tasks: list[str]
    left_out: list[str]  # runs that are not finished or have no evaluation, one line each

    @property
    def algos(self) -> list[str]:
        return list(self.runs)

    @property
    def metric(self) -> Metric:
        """The first that all runs have: what has one scale on all tasks before the return."""
        results = [r for tasks in self.runs.values() for seeds in tasks.values() for r in seeds.values()]
        common = (m for m in (SCORE, SUCCESS) if results and all(measured(r.get(m.keys[LAST])) for r in results))
        return next(common, RETURN)

    @property
    def stages(self) -> list[str]:
        """Last, and best where some run knows it: result rows of success rates do not."""
        keys = self.metric.keys
        return [s for s in keys if any(self.values(a, t, keys[s]) for a in self.algos for t in self.tasks)]

    def values(self, algo: str, task: str, key: str) -> list[float]:
        """One value a seed, in the order of the seeds; empty where a seed has none."""
        seeds = self.runs[algo].get(task, {})
        found: list[Any] = [seeds[seed].get(key) for seed in sorted(seeds, key=by_number)]
        return [float(x) for x in found] if all(map(measured, found)) else []

    def matrices(self, key: str) -> tuple[list[str], dict[str, Array]]:
        """(tasks that every algorithm has, algorithm -> scores [seeds, tasks] of the seeds it has on all of them).

        An algorithm with fewer than half of the tasks is left out, so that it does not leave out the others' tasks.
        """
        algos = [a for a in self.algos if 2 * self._n_tasks(a, key) >= len(self.tasks)]
        common = [t for t in self.tasks if all(self.values(algo, t, key) for algo in algos)]
        found = {}
        for algo in algos:
            seeds = [set(self.runs[algo][task]) for task in common]
            kept = sorted(set.intersection(*seeds), key=by_number) if seeds else []
            found[algo] = np.array([[self.runs[algo][task][seed][key] for task in common] for seed in kept])
        return common, {algo: scores for algo, scores in found.items() if scores.size}

    def _n_tasks(self, algo: str, key: str) -> int:
        return sum(bool(self.values(algo, task, key)) for task in self.tasks)

    def not_aggregated(self) -> list[str]:
        """What `matrices` leaves out of the last evaluations, one line each."""
        if self.metric is RETURN and len(self.tasks) > 1:
            return []  # nothing is aggregated
        key = self.metric.keys[LAST]
        common, found = self.matrices(key)
        n, told = len(self.tasks), []
        for algo in self.algos:
            seeds = max(len(self.values(algo, task, key)) for task in self.tasks)
            if algo not in found:
                told.append(f"{algo}: {self._n_tasks(algo, key)} of {n} tasks, left out of all tasks together")
            elif len(found[algo]) < seeds:
                told.append(f"{algo}: {len(found[algo])} of {seeds} seeds have all tasks, the others are left out")
        if found and len(common) < n:
            missing = ", ".join(task for task in self.tasks if task not in common)
            told.append(f"all tasks together: {len(common)} of {n}, not every algorithm has {missing}")
        return told


def benchmark(results: Iterable[Result]) -> Benchmark:
    """Sort results by algorithm, task and seed; the later of two with the same three stays.

    Where their settings differ that is told.
    """
    runs: dict[str, dict[str, dict[str, Result]]] = {}
    tasks: dict[str, None] = {}
    left_out = []
    for r in expand(results):
        if "front" in r:
            continue  # worth what its whole front is, which no return tells
        algo, task, seed = algo_of(r), task_of(r), str(r["seed"])
        if r.get("status", "finished") != "finished" or not measured(r.get("final_return_mean")):
            left_out.append(f"{algo}, {task}, seed {seed}: {r.get('status', 'finished')}, left out")
            continue
        tasks[task] = None
        seeds = runs.setdefault(algo, {}).setdefault(task, {})
        if seed in seeds and seeds[seed].get("config_hash") != r.get("config_hash"):
            left_out.append(f"{algo}, {task}, seed {seed}: two runs with different settings, the earlier left out")
        seeds[seed] = {**r, **{key: 100.0 * r[rate] for key, rate in RATES.items() if measured(r.get(rate))}}
    return Benchmark(runs, list(tasks), left_out)


def by_number(seed: str) -> tuple[int, str]:
    return (int(seed), "") if seed.isdecimal() else (2**62, seed)

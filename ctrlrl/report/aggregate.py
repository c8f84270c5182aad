"""Whole benchmarks in one number, with the definitions and the interval of rliable (arXiv:2108.13264).

Scores are [seeds, tasks] of one algorithm; an interval draws seeds with replacement within each task, never tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ctrlrl.report.stats import bootstrap_interval, iqm

Array = np.ndarray[Any, Any]


class Estimate(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


class Profile(NamedTuple):
    """Share of runs above each score, [T] each, with its 95 % interval at every score."""

    taus: Array
    share: Array
    low: Array
    high: Array


def mean_of_tasks(scores: Array) -> float:
    """Mean over tasks of their means."""
    return float(np.mean(np.mean(scores, axis=0)))


def median_of_tasks(scores: Array) -> float:
    """Median over tasks of their means."""
    return float(np.median(np.mean(scores, axis=0)))


def optimality_gap(scores: Array, *, target: float = 100.0) -> float:
    """How far runs stay below `target` on average, in the scores' unit; what lies above it counts as reached."""
    return float(target - np.mean(np.minimum(scores, target)))


STATISTICS: dict[str, Callable[[Array], float]] = {
    "IQM": iqm,
    "median": median_of_tasks,
    "mean": mean_of_tasks,
    "optimality gap": optimality_gap,
}


def estimate(scores: Array, statistic: Callable[[Array], float] = iqm, *, n: int = 2000, seed: int = 0) -> Estimate:
    """A statistic of [seeds, tasks] scores with its stratified percentile bootstrap interval."""
    table = _table("estimate", scores)
    return Estimate(float(statistic(table)), *bootstrap_interval(table, statistic, n=n, seed=seed))


def performance_profile(scores: Array, taus: Array, *, n: int = 2000, seed: int = 0) -> Profile:
    """Run-score distribution: the share of all (seed, task) runs that score more than tau, for every tau."""
    table, taus = _table("performance_profile", scores), np.asarray(taus, dtype=np.float64)
    above = table[None] > taus[:, None, None]  # [T, seeds, tasks]
    share = above.mean((1, 2))
    drawn = np.empty((n, len(taus)))
    generator, tasks = np.random.default_rng(seed), np.arange(table.shape[1])
    for i in range(n):
        drawn[i] = above[:, generator.integers(len(table), size=table.shape), tasks].mean((1, 2))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return Profile(taus, share, low, high)


def probability_of_improvement(x: Array, y: Array, *, n: int = 2000, seed: int = 0) -> Estimate:
    """P(a run of x beats a run of y on a task), a draw counted as half, averaged over tasks.

    x, y: [seeds, tasks] of two algorithms on the same tasks in the same order; their seeds are drawn independently.
    """
    ours, theirs = _table("probability_of_improvement", x), _table("probability_of_improvement", y)
    if ours.shape[1] != theirs.shape[1]:
        raise ValueError(f"probability_of_improvement: {ours.shape[1]} tasks against {theirs.shape[1]}")
    wins = (ours[:, None] > theirs[None]) + 0.5 * (ours[:, None] == theirs[None])  # [seeds of x, seeds of y, tasks]
    generator, tasks = np.random.default_rng(seed), np.arange(ours.shape[1])
    drawn = np.empty(n)
    for i in range(n):
        a, b = (np.asarray(generator.integers(len(table), size=table.shape)) for table in (ours, theirs))
        drawn[i] = wins[a[:, None], b[None], tasks].mean()
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(float(wins.mean()), float(low), float(high))


def _table(where: str, scores: Any) -> Array:
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or table.size == 0 or not np.isfinite(table).all():
        raise ValueError(f"{where}: wanted finite scores [seeds, tasks], got shape {table.shape}")
    return table

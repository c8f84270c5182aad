"""Interquartile means and bootstrap intervals over seeds, as rliable defines them (arXiv:2108.13264)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

MIN_SEEDS = 5  # fewer say nothing about the spread: no pooled number is printed


class Band(NamedTuple):
    """A curve over seeds: its mean, and the interval around it, each [X]."""

    mean: Array
    low: Array
    high: Array


def iqm(x: Any) -> float:
    """Mean of the middle half: the lowest and highest floor(n / 4) of all entries are cut off."""
    values = np.sort(_scores("iqm", x), axis=None)
    cut = values.size // 4
    return float(values[cut : values.size - cut].mean())


def bootstrap_interval(
    scores: Any,
    statistic: Callable[[Array], float] = iqm,
    *,
    n: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of `statistic`, seeds drawn with replacement within each task (stratified).

    scores: [seeds, tasks], or [seeds] for one task. statistic: of a [seeds, tasks] array.
    """
    table = _scores("bootstrap_interval", scores)
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2:
        raise ValueError(f"bootstrap_interval: scores must be [seeds] or [seeds, tasks], got shape {table.shape}")
    tail = _tail("bootstrap_interval", n, level)
    generator = np.random.default_rng(seed)
    tasks = np.arange(table.shape[1])
    drawn = [statistic(table[generator.integers(len(table), size=table.shape), tasks]) for _ in range(n)]
    low, high = np.quantile(drawn, [tail, 1.0 - tail])
    return float(low), float(high)


def mean_and_interval(curves: Any, *, n: int = 2000, level: float = 0.95, seed: int = 0) -> Band:
    """Mean over seeds and its percentile bootstrap interval at every point; curves [seeds, X].

    Whole seeds are drawn, so that neighbouring points share their noise as they do in the runs.
    """
    table = _scores("mean_and_interval", curves)
    if table.ndim != 2:
        raise ValueError(f"mean_and_interval: curves must be [seeds, X], got shape {table.shape}")
    tail = _tail("mean_and_interval", n, level)
    count = len(table)
    picks = np.random.default_rng(seed).multinomial(count, np.full(count, 1.0 / count), size=n)  # [n, seeds]
    low, high = np.quantile(picks @ table / count, [tail, 1.0 - tail], axis=0)
    return Band(table.mean(0), low, high)


def welch(a: Any, b: Any) -> tuple[float, float]:
    """t statistic and two-sided p-value of Welch's test that two groups of seeds have one mean; variances may differ.

    a, b: [seeds], at least two each. With x = sqrt(dof) tan(angle) the tail of Student's density is the integral of
    cos(angle)^(dof - 1), here by Gauss-Legendre quadrature. Source: Welch 1947, Biometrika 34.
    """
    groups = [_scores("welch", x) for x in (a, b)]
    if min(x.size for x in groups) < 2 or max(x.std() for x in groups) == 0.0:
        raise ValueError("welch: wanted at least two seeds in each group, and a group whose seeds differ")
    shares = [float(x.var(ddof=1)) / x.size for x in groups]  # of the variance of the difference of means
    t = float(groups[0].mean() - groups[1].mean()) / math.sqrt(sum(shares))
    dof = sum(shares) ** 2 / sum(s**2 / (x.size - 1) for s, x in zip(shares, groups, strict=True))
    low, high = math.atan(abs(t) / math.sqrt(dof)), 0.5 * math.pi
    nodes, weights = np.polynomial.legendre.leggauss(200)
    angle = 0.5 * (low + high) + 0.5 * (high - low) * nodes
    tail = 0.5 * (high - low) * float(weights @ np.cos(angle) ** (dof - 1.0))
    scale = math.exp(math.lgamma(0.5 * (dof + 1.0)) - math.lgamma(0.5 * dof)) / math.sqrt(math.pi)
    return t, 2.0 * scale * tail


def on_common_grid(curves: Sequence[tuple[Array, Array]], n_points: int = 200) -> tuple[Array, Array]:
    """Curves (x, y) measured at different x -> grid [X] where all of them have data, and values [seeds, X].

    Linear in between; points that are not finite are left out.
    """
    clean = []
    for x, y in curves:
        keep = np.isfinite(x) & np.isfinite(y)
        if not keep.any():
            raise ValueError("on_common_grid: a curve has no finite point; leave it out.")
        clean.append((x[keep], y[keep]))
    start, end = max(x[0] for x, _ in clean), min(x[-1] for x, _ in clean)
    if start > end:
        raise ValueError(f"on_common_grid: the curves share no range (latest start {start:g}, earliest end {end:g}).")
    grid = np.linspace(start, end, n_points)
    return grid, np.stack([np.interp(grid, x, y) for x, y in clean])


def _scores(where: str, x: Any) -> Array:
    values = np.asarray(x, dtype=np.float64)
    if values.size == 0 or not np.isfinite(values).all():
        what = "nothing" if values.size == 0 else "nan or inf"
        raise ValueError(f"{where}: wanted finite scores, got {what}; leave out the runs that have none.")
    return values


def _tail(where: str, n: int, level: float) -> float:
    if n < 1 or not 0.0 < level < 1.0:
        raise ValueError(f"{where}: wanted n >= 1 and level in (0, 1), got n={n}, level={level}")
    return (1.0 - level) / 2.0

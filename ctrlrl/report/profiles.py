"""Performance profiles as PNG pictures: the share of runs above each score, one line an algorithm."""

from __future__ import annotations

from typing import Any

import numpy as np

from ctrlrl.report.aggregate import performance_profile
from ctrlrl.report.benchmark import LAST, Benchmark
from ctrlrl.report.drawing import NARROW, WIDE, Theme, picture

POINTS = 101


def profile_png(bench: Benchmark, theme: Theme, *, narrow: bool = False) -> bytes | None:
    """Run-score distributions of the last scores with 95 % bands; None where no algorithm has scores on all tasks."""
    _, found = bench.matrices(bench.metric.keys[LAST])
    if not found:
        return None
    low = min(0.0, *(float(scores.min()) for scores in found.values()))
    high = max(float(scores.max()) for scores in found.values())
    taus = np.linspace(low, high, POINTS)

    def draw(figure: Any) -> None:
        ax = figure.subplots()
        for algo, scores in found.items():
            color = theme.series[bench.algos.index(algo) % len(theme.series)]
            profile = performance_profile(scores, taus)
            ax.fill_between(taus, profile.low, profile.high, color=color, alpha=0.12, lw=0)
            ax.plot(taus, profile.share, color=color, lw=1.8, label=algo)
        ax.set_xlabel(f"last {bench.metric.name} τ")
        ax.set_ylabel("share of runs above τ")
        ax.set_xlim(low, high)
        ax.set_ylim(0.0, 1.02)
        ax.grid(axis="y")
        figure.legend(loc="outside upper left", ncols=min(len(found), 3 if narrow else 6))

    return picture(draw, theme, (NARROW, 3.4) if narrow else (WIDE, 3.6))

"""The curve of a weight search: success against the first parent's weight, and what fresh roll-outs then said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ctrlrl.report.drawing import LIGHT, picture

_SIZE = (6.4, 3.6)  # inches


def weights_png(result: dict[str, Any]) -> bytes:
    """result: that of a composed evaluation of two parents with a search. PNG bytes.

    The band is the standard error of a share of that many roll-outs; without success rates returns are drawn.
    """
    search = result["search"]
    x = np.array([weights[0] for weights in search["weights"]])
    told = None not in search["success_rate"]
    name = "success_rate" if told else "return_mean"
    y = np.array(search[name])

    def draw(figure: Any) -> None:
        ax = figure.subplots()
        ax.set_title(f"{result['env']}: {search['budget']}")
        if told:
            error = np.sqrt(y * (1.0 - y) / search["episodes"])
            band = np.maximum(y - error, 0.0), np.minimum(y + error, 1.0)
            ax.fill_between(x, *band, color=LIGHT.series[0], alpha=0.15, lw=0)
            ax.set_ylim(-0.03, 1.03)
        ax.plot(x, y, color=LIGHT.series[0], marker="o", ms=4, label="search")
        alone = [parent[name] for parent in result["alone"]]
        first, second = (Path(run).name for run in result["parents"])
        if result["settings"]["mode"] == "product":
            for run, line, height in zip((first, second), ("--", ":"), alone, strict=True):
                ax.axhline(height, color=LIGHT.text, lw=1.2, ls=line, label=f"{run}, fresh seeds")
            ax.set_xlabel(f"weight of {first} and of {second}")
        else:
            ax.scatter([1.0, 0.0], alone, color=LIGHT.text, marker="D", s=34, zorder=3, label="parents, fresh seeds")
            ax.set_xlabel(f"weight of {first}; the rest to 1 is that of {second}")
        best = result["weights"][0], result["composed"][name]
        ax.scatter(*best, color=LIGHT.series[1], marker="D", s=40, zorder=4, label="composed, fresh seeds")
        ax.set_ylabel("success" if told else "return")
        ax.grid(axis="y")
        ax.legend(loc="best")

    return picture(draw, LIGHT, _SIZE, transparent=False)

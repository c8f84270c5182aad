"""Published offline scores beside ours, matched by algorithm and data set. `published_offline.csv` holds them.

Sources: tinkoff-ai/CORL @ 6afec904, README (Apache-2.0): last and best scores of ten algorithms on thirty D4RL data
sets, 4 seeds, 1,000,000 updates; before, after and regret of five fine-tuning algorithms. takuseno/d3rlpy-benchmarks @
1771c9b2, d4rl_table.csv (MIT): last and best scores on v0 and v2 data sets, 10 seeds, 500,000 updates (PLAS 1,000,000).
All on D4RL's 0-100 scale. A number counts as the same task only under the data set's full id, version included.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

VERSION = 1  # of the file's columns and rows
SOURCES = {
    "CORL": "tinkoff-ai/CORL @ 6afec90484bb, README: mean and standard deviation over 4 seeds",
    "d3rlpy": "takuseno/d3rlpy-benchmarks @ 1771c9b23322, d4rl_table.csv: mean and standard deviation over 10 seeds",
}


class OfflineScore(NamedTuple):
    """One published row, D4RL's 0-100 scale."""

    source: str  # key of SOURCES
    task: str  # full D4RL id
    algo: str  # our name of the algorithm
    printed: str  # the source's name of it
    stage: str  # last | best | before | after | regret
    mean: float
    std: float | None


@cache
def offline_scores() -> tuple[OfflineScore, ...]:
    """Every packed row."""
    with open(Path(__file__).with_name("published_offline.csv"), encoding="utf-8", newline="") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        return tuple(
            OfflineScore(
                r["source"], r["task"], r["algo"], r["printed"], r["stage"], float(r["mean"]),
                float(r["std"]) if r["std"] else None,
            )
            for r in rows
        )  # fmt: skip


def published_score(algo: str | None, data: str | None, stage: str) -> list[OfflineScore]:
    """What the literature reports for this algorithm on exactly this data set; empty for any other file."""
    return [p for p in offline_scores() if (p.algo, p.task, p.stage) == (algo, data, stage)]


def published_name(result: Mapping[str, Any]) -> str | None:
    """What a run's algorithm is called where it is published; None for settings that are published nowhere."""
    fraction, variant = result.get("best_fraction") or 1.0, result.get("variant")
    if fraction == 1.0:
        return None if variant else str(result["algo"])
    ten_percent = (result["algo"], fraction) == ("bc", 0.1) and variant in (None, "best_fraction=0.1")
    return "bc10" if ten_percent else None


def last_stage(result: Mapping[str, Any]) -> str:
    """What its last score is called where it is published: of the data set alone, or after environment steps too."""
    return "after" if result.get("env_steps") else "last"


def d4rl_id(result: Mapping[str, Any]) -> str | None:
    """The D4RL id of the data that a run learned from; None for other data, and files that the loader gave no id."""
    for key in ("data_id", "data"):
        name = str(result.get(key) or "")
        if name in {p.task for p in offline_scores()} or re.fullmatch(
            r"(halfcheetah|hopper|walker2d|ant|antmaze|maze2d|pen|door|hammer|relocate|kitchen)-[a-z-]+-v[0-2]", name
        ):
            return name
    return None

"""Timing to be trusted: contenders in turn (A B A B ...), the median of pair ratios, CPU time beside wall time."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ctrlrl.disk import strict_json
from ctrlrl.provenance import commit, machine, versions

DISTURBED = 1.3  # a one-thread contender whose wall time exceeds its CPU time by this factor did not have its core


class Lap(NamedTuple):
    """One measured stretch of work."""

    value: float  # in the row's unit
    wall_seconds: float
    cpu_seconds: float


class Contender(Protocol):
    """Something to measure; warm when it is handed over."""

    name: str  # with its version, for a peer

    def lap(self) -> Lap: ...


def rate(work: Callable[[], int], seconds: float) -> Lap:
    """Units of work a second: calls `work`, which returns the units it did, until `seconds` have passed."""
    wall, cpu, units = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - wall < seconds:
        units += work()
    elapsed = time.perf_counter() - wall
    return Lap(units / elapsed, elapsed, time.process_time() - cpu)


def compare(ours: Contender, peer: Contender | None, pairs: int, *, note: Callable[[str], None]) -> dict[str, Any]:
    """The measured fields of a row. The ratio is ours / peer, pair by pair."""
    mine, theirs = [], []
    for i in range(pairs):
        mine.append(ours.lap())
        if peer is not None:
            theirs.append(peer.lap())
        shown = f"{mine[-1].value:,.1f}" + (f" against {theirs[-1].value:,.1f}" if peer is not None else "")
        note(f"  pair {i + 1}/{pairs}: {shown}")
    return measured(mine, theirs if peer is not None else None, None if peer is None else peer.name)


def measured(mine: list[Lap], theirs: list[Lap] | None, peer: str | None) -> dict[str, Any]:
    """The same of laps that were taken in turn."""
    values = [lap.value for lap in mine]
    fields: dict[str, Any] = {
        "value": statistics.median(values),
        "spread": [min(values), max(values)],
        "peer": None,
        "peer_value": None,
        "peer_spread": None,
        "ratio": None,
        "pairs": len(mine),
        "cpu_seconds": round(statistics.median(lap.cpu_seconds for lap in mine), 3),
        "wall_seconds": round(statistics.median(lap.wall_seconds for lap in mine), 3),
    }
    if theirs is not None:
        others = [lap.value for lap in theirs]
        ratios = [a / b for a, b in zip(values, others, strict=True) if math.isfinite(a) or math.isfinite(b)]
        fields |= {
            "peer": peer,
            "peer_value": statistics.median(others),
            "peer_spread": [min(others), max(others)],
            "ratio": statistics.median(ratios) if ratios else None,  # None: no pair reached its target
            "peer_cpu_seconds": round(statistics.median(lap.cpu_seconds for lap in theirs), 3),
            "peer_wall_seconds": round(statistics.median(lap.wall_seconds for lap in theirs), 3),
            "disturbed": any(lap.wall_seconds > DISTURBED * lap.cpu_seconds for lap in theirs),
        }
    return fields


def append(rows: list[dict[str, Any]], out: Path) -> None:
    """One JSON line a row at the end of the file."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "a") as file:
        file.writelines(strict_json(row) + "\n" for row in rows)


def identity() -> dict[str, Any]:
    """What every row says of the software and the processor."""
    return {"versions": versions(), "commit": commit(), "machine": machine()}

"""Finished episodes in the CSV format of SB3's Monitor, which its load_results and the tools around it read."""

from __future__ import annotations

import csv
import json
import os
import time
from pathlib import Path
from typing import Any

SUFFIX = "monitor.csv"
COLUMNS = ("r", "l", "t")


class MonitorWriter:
    """Writes `#` and JSON, then the header r,l,t, then one row an episode; rows are on the disk when written.

    path:       a file, ".monitor.csv" is appended where it does not end in monitor.csv; or a folder, for monitor.csv in
                it. An existing file is replaced.
    env_id:     for the first line.
    extra_keys: further columns.
    start:      seconds since the epoch from which `t` counts; None is now.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        env_id: str,
        extra_keys: tuple[str, ...] = (),
        start: float | None = None,
    ) -> None:
        self.path = _file(Path(path))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "w", newline="")  # noqa: SIM115  as long as the writer
        facts = {"t_start": time.time() if start is None else start, "env_id": env_id}
        self._file.write(f"#{json.dumps(facts)}\n")
        self._rows = csv.DictWriter(self._file, (*COLUMNS, *extra_keys), lineterminator="\n")
        self._rows.writeheader()
        self._file.flush()

    def write(self, episode: dict[str, Any]) -> None:
        """One row; `episode` has the keys r, l, t and the extra ones, no others."""
        self._rows.writerow(episode)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def episode_info(episode_return: float, length: int, start: float) -> dict[str, Any]:
    """{"r", "l", "t"}: return, length in steps, seconds since `start`; rounded as SB3's Monitor does."""
    return {"r": round(float(episode_return), 6), "l": int(length), "t": round(time.time() - start, 6)}


def _file(path: Path) -> Path:
    if path.name.endswith(SUFFIX):
        return path
    return path / SUFFIX if path.is_dir() else path.with_name(f"{path.name}.{SUFFIX}")

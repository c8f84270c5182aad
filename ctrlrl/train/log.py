"""The run folder's files and the live progress line. Metrics reach the host here, once a log interval."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from ctrlrl.disk import naming, write_atomic
from ctrlrl.train.trackers import TRACKERS, Tracker, first_line

FIRST = ("env_steps", "gradient_steps", "wall_seconds")


class RunFolder:
    """`progress.csv` and `result.json` of one run; its rows go to the trackers, too.

    trackers: names in TRACKERS. settings: what they are told of the run. clock: the column that orders the rows.
    """

    def __init__(
        self,
        path: Path,
        *,
        trackers: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
        clock: str = "env_steps",
    ):
        self.path, self.clock = path, clock
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"run.dir={path} cannot be made ({error.strerror}); name a folder elsewhere") from None
        self.columns = list(FIRST)
        self.rows: list[dict[str, float]] = []
        self._trackers: dict[str, Tracker] = {name: TRACKERS[name](path, settings or {}) for name in trackers}

    def resume(self, step: int) -> None:
        """Read the rows written so far and forget those after the checkpoint that training goes on from."""
        file = self.path / "progress.csv"
        if not file.exists():
            return
        lines = file.read_bytes().decode(errors="replace").splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):
            lines.pop()  # cut short by a crash
        for count, row in enumerate(csv.DictReader(lines), 2):
            try:
                values = {k: float(v) if set(v) - set("0123456789") else int(v) for k, v in row.items() if v}
                if values[self.clock] <= step:
                    self.rows.append(values)
            except (ValueError, TypeError, KeyError):
                raise ValueError(f"{file}: line {count} is not a row of numbers; mend it or remove the file") from None
        self.columns = list(dict.fromkeys([*FIRST, *(k for row in self.rows for k in row)]))
        self._rewrite()

    def has_rows(self) -> bool:
        return (self.path / "progress.csv").exists()

    @property
    def last_step(self) -> float:
        """What the clock showed at the last row."""
        return self.rows[-1][self.clock] if self.rows else 0

    def sync(self) -> None:
        """Bring the rows to the disk."""
        file = self.path / "progress.csv"
        if file.exists():
            with naming(file), open(file, "rb") as f:
                os.fsync(f.fileno())

    def write_row(self, row: Mapping[str, float]) -> None:
        self.rows.append(dict(row))
        new = [k for k in row if k not in self.columns]
        if new or len(self.rows) == 1:
            self.columns += new
            self._rewrite()
        else:
            file = self.path / "progress.csv"
            with naming(file), open(file, "a", newline="") as f:
                csv.DictWriter(f, self.columns).writerow(row)
        values = {k: v for k, v in row.items() if k != self.clock}
        self._tell(lambda tracker: tracker.write(values, int(row[self.clock])))

    def write_result(self, result: Mapping[str, Any]) -> None:
        write_atomic(self.path / "result.json", json.dumps(result, indent=2, default=str).encode())

    def close(self) -> None:
        self._tell(lambda tracker: tracker.close())

    def _tell(self, news: Callable[[Tracker], None]) -> None:
        """To all trackers; a service that is away ends no run."""
        for name, tracker in list(self._trackers.items()):
            try:
                news(tracker)
            except Exception as error:
                del self._trackers[name]
                said = f"log.{name}: {first_line(error)}; from here on rows go to progress.csv alone"
                warnings.warn(said, stacklevel=3)

    def _rewrite(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomic(self.path / "progress.csv", text.getvalue().encode())


class OthersFolder(RunFolder):
    """The run folder as a rank sees it that does not write."""

    def __init__(self, path: Path, *, clock: str = "env_steps"):
        self.path, self.clock = path, clock
        self.rows = []

    def resume(self, step: int) -> None:
        pass

    def sync(self) -> None:
        pass

    def write_row(self, row: Mapping[str, float]) -> None:
        pass

    def write_result(self, result: Mapping[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


class Progress:
    """One live line: a bar, steps, steps/s, return or hypervolume, time left.

    Off a terminal: a plain line at each evaluation. The speed is the row's "time/steps_per_s", else the mean since the
    line appeared.
    """

    def __init__(
        self, title: str, total: int, *, enabled: bool, unit: str = "env_steps", console: Console | None = None
    ):
        self.title, self.total, self.enabled = title, total, enabled
        self.unit = {"gradient_steps": "updates", "env_steps": "steps"}.get(unit, unit)
        self.console = console or Console(stderr=True)
        self._live = Live(console=self.console, transient=True, auto_refresh=False) if self._shows(enabled) else None
        self._begun = time.perf_counter()

    def _shows(self, enabled: bool) -> bool:
        return enabled and self.console.is_terminal

    def __enter__(self) -> Progress:
        self._begun = time.perf_counter()
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, done: int, row: Mapping[str, float]) -> None:
        if self._live is None:
            return
        speed = row.get("time/steps_per_s", done / max(time.perf_counter() - self._begun, 1e-9))
        left = (self.total - done) / speed if speed else math.inf
        line = Table.grid(padding=(0, 2))
        line.add_row(
            self.title,
            ProgressBar(total=self.total, completed=min(done, self.total), width=28),
            f"{done:,} / {self.total:,} {self.unit}",
            f"{speed:,.0f} {self.unit}/s",
            _worth(row),
            f"{_clock(left)} left",
        )
        self._live.update(line, refresh=True)

    def evaluation(self, text: str) -> None:
        """A line that stays, unless progress was turned off."""
        if self.enabled:
            self.note(text)

    def note(self, text: str) -> None:
        self.console.print(text, highlight=False)


def _worth(row: Mapping[str, float]) -> str:
    """What a row tells of how well the policies do."""
    for name in ("front/hypervolume", "eval/hypervolume"):
        if name in row:
            return f"hypervolume {row[name]:.4g}"
    mean = row.get("rollout/return", row.get("eval/return_mean"))
    return "return –" if mean is None else f"return {mean:.1f}"


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "–"
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"

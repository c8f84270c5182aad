"""Read a run folder: what was asked, what came out, and the curve in between."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

FIRST_COLUMNS = ("env_steps", "gradient_steps", "wall_seconds")
SCORE = "eval/normalized_score"  # column of progress.csv, D4RL's 0-100 scale
SUCCESS = "eval/success_rate"  # column of progress.csv, 0 to 1


class Run(NamedTuple):
    """One run folder in memory."""

    path: Path
    result: dict[str, Any]  # result.json
    progress: dict[str, Array]  # column -> [rows] float64, NaN where not measured
    config: str  # config.yaml as it stands
    overrides: str  # what was typed; empty when the run came from Python

    @property
    def algo(self) -> str:
        return str(self.result["algo"])

    @property
    def env(self) -> str:
        return str(self.result["env"])

    @property
    def seed(self) -> str:
        return str(self.result["seed"])

    @property
    def offline(self) -> bool:
        """Learned from a data set."""
        return bool(self.result.get("data")) or self.x_name == "gradient_steps"

    @property
    def x_name(self) -> str:
        """Progress is counted in environment steps, in gradient steps where there were none (offline), or in both."""
        steps = self.progress
        if "steps" in steps:
            return "steps"
        return "gradient_steps" if steps["gradient_steps"].any() and not steps["env_steps"].any() else "env_steps"

    def curve(self, name: str, x_name: str | None = None) -> tuple[Array, Array]:
        """(steps, values) of the rows where a column was measured; empty when it never was.

        x_name: "env_steps" counts these alone; what was measured before the first of them is its last value, at 0.
        """
        values = self.progress.get(name)
        if values is None:
            return np.empty(0), np.empty(0)
        keep, x = np.isfinite(values), self.progress[x_name or self.x_name]
        if x_name is not None:
            keep[np.flatnonzero(keep & (x == 0.0))[:-1]] = False
        return x[keep], values[keep]


def read_run(path: Path) -> Run:
    """Read the run folder at `path`; ValueError names the file that is missing or damaged."""
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"{path}: no such run folder. A run folder holds config.yaml, progress.csv and result.json.")
    overrides = path / "overrides.txt"
    return with_best(
        Run(
            path,
            _read_result(path / "result.json"),
            _read_progress(path / "progress.csv"),
            _read_text(path / "config.yaml"),
            _read_text(overrides).strip() if overrides.exists() else "",
        )
    )


def with_best(run: Run) -> Run:
    """The run with its best normalised score and success rate in the result, where its curve has them."""
    curves = {f"best_{column.removeprefix('eval/')}": run.curve(column)[1] for column in (SCORE, SUCCESS)}
    found = {key: float(values.max()) for key, values in curves.items() if len(values)}
    return run._replace(result=run.result | {k: v for k, v in found.items() if run.result.get(k) is None})


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: damaged, not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror}); is {file.parent} a run folder?") from None


def _read_result(file: Path) -> dict[str, Any]:
    try:
        result = json.loads(_read_text(file))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: damaged, not JSON (line {error.lineno}: {error.msg})") from None
    missing = [key for key in ("algo", "env", "seed") if not isinstance(result, dict) or key not in result]
    if missing:
        raise ValueError(f"{file}: damaged, {', '.join(missing)} missing")
    return dict(result)


def _read_progress(file: Path) -> dict[str, Array]:
    text = _read_text(file)
    if text and not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]  # a row still being written: its last number may be cut short
    rows = list(csv.reader(text.splitlines()))
    header = rows[0] if rows else []
    missing = [name for name in FIRST_COLUMNS if name not in header]
    if missing:
        raise ValueError(f"{file}: damaged, column {missing[0]} missing from its first line")
    columns: dict[str, list[float]] = {name: [] for name in header}
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise ValueError(f"{file}: damaged, line {number} has {len(row)} cells, the header {len(header)}")
        for name, cell in zip(header, row, strict=True):
            try:
                columns[name].append(float(cell) if cell else math.nan)
            except ValueError:
                raise ValueError(f"{file}: damaged, line {number}, column {name}: {cell!r} is no number") from None
    return {name: np.asarray(values, dtype=np.float64) for name, values in columns.items()}

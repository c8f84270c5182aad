"""What is known of a sweep's cells: their states in cells.json, their progress in their run folders, their rows."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ctrlrl.disk import write_atomic
from ctrlrl.report.results import typed_words
from ctrlrl.report.runs import SCORE, Run
from ctrlrl.report.sources import read_sources
from ctrlrl.sweep.cells import NOT_SETTINGS, Cell, key_of

TAIL = 2**16  # bytes of progress.csv that hold its last row


@dataclass
class Record:
    """One cell and where it stands."""

    cell: Cell
    state: str = "waiting"  # waiting | running | finished | interrupted | failed
    error: str | None = None  # first line of what it failed with


class Progress(NamedTuple):
    """How far a cell has come."""

    steps: int = 0
    total: int | None = None
    score: str = ""
    left: float | None = None  # seconds


def read_cells(folder: Path) -> dict[str, dict[str, Any]]:
    """cells.json: cell name -> {algo, task, seed, variant, words, state, error, log}; empty where there is none."""
    file = folder / "cells.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {str(entry["name"]): entry for entry in found}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file}: damaged; remove it, the run folders beside it hold the results") from None


def write_cells(folder: Path, before: Mapping[str, dict[str, Any]], records: Iterable[Record]) -> None:
    """Write cells.json; cells of earlier calls that this one did not ask for stay in it."""
    entries = dict(before)
    for record in records:
        cell = record.cell
        facts = asdict(record) | cell._asdict() | {"log": f"logs/{cell.name}.log"}
        del facts["cell"]
        entries[cell.name] = facts
    write_atomic(folder / "cells.json", json.dumps(list(entries.values()), indent=1).encode())


def check_same(folder: Path, before: Mapping[str, dict[str, Any]], cells: Iterable[Cell]) -> None:
    """ValueError where a cell of this name was made with other settings."""
    for cell in cells:
        was, now = _settings_before(folder, before, cell), cell.settings()
        for key in sorted(was.keys() | now.keys()):
            if was.get(key) != now.get(key):
                raise ValueError(
                    f"sweep.dir={folder}: {cell.name} was made with {key}={was.get(key, '(default)')}, "
                    f"now {key}={now.get(key, '(default)')}. Use another sweep.dir."
                )


def _settings_before(folder: Path, before: Mapping[str, dict[str, Any]], cell: Cell) -> dict[str, str]:
    """Those that cells.json has, or else the cell's own folder; the new ones where the cell has not begun."""
    if cell.name in before:
        return Cell(**{k: before[cell.name][k] for k in Cell._fields}).settings()
    now, typed = cell.settings(), folder / cell.name / "overrides.txt"
    if not typed.exists():
        return now
    was = cell._replace(words=tuple(typed.read_text(encoding="utf-8").splitlines())).settings()
    path, wanted = was.get("data.path", ""), now.get("data.path", "")
    if path and Path(path).name == Path(wanted).name:  # the folder of data sets may have moved
        was["data.path"] = wanted
    return was


def result_of(folder: Path) -> dict[str, Any]:
    """result.json of a cell's folder; empty where there is none yet."""
    try:
        found = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def state_of(folder: Path) -> str:
    """What a folder that nobody works on says of its cell: finished, interrupted (to be resumed) or waiting."""
    if result_of(folder).get("status") == "finished":
        return "finished"
    return "interrupted" if (folder / "config.yaml").exists() else "waiting"


def progress_of(folder: Path, totals: Mapping[str, int | None]) -> Progress:
    """Steps, last score and time left; totals: length of the run by clock (env_steps, gradient_steps, steps)."""
    result = result_of(folder)
    row = _last_row(folder / "progress.csv")
    clock = next((name for name in ("steps", "env_steps") if row.get(name)), "gradient_steps")
    steps, total, seconds = int(row.get(clock, 0)), totals.get(clock), row.get("wall_seconds", 0.0)
    left = seconds * (total - steps) / steps if steps and total else None
    return Progress(steps, total, score_of(result), left)


def score_of(result: Mapping[str, Any]) -> str:
    """The last normalised score, else the success rate in percent, the return or the hypervolume; with its name."""
    for name, key in (("score", "normalized_score"), ("success", "success_rate"), ("return", "final_return_mean")):
        if isinstance(result.get(key), int | float):
            return f"{name} {100 * result[key]:,.0f} %" if name == "success" else f"{name} {result[key]:,.1f}"
    volume = result.get("hypervolume")
    return f"hypervolume {volume:.4g}" if isinstance(volume, int | float) else ""


def _last_row(file: Path) -> dict[str, float]:
    try:
        with open(file, "rb") as f:
            header = f.readline().decode().strip().split(",")
            f.seek(max(f.tell(), os.path.getsize(file) - TAIL))
            lines = f.read().decode(errors="replace").splitlines(keepends=True)
    except OSError:
        return {}
    for line in reversed(lines):
        cells = line.strip().split(",")
        if line.endswith("\n") and len(cells) == len(header):
            try:
                return {name: float(cell) for name, cell in zip(header, cells, strict=True) if cell}
            except ValueError:
                return {}
    return {}


def rows_of(cell: Cell, folder: Path, sweep: str, data_dir: str) -> list[dict[str, Any]]:
    """A finished cell as result rows, one a seed: result.json, cell, and evaluations [steps, return, score or null].

    The folder of data sets is written as {data_dir}: where it lies on this machine is nobody's business.
    """
    return [_row(run, cell, sweep, data_dir) for run in read_sources([folder])]


def _row(run: Run, cell: Cell, sweep: str, data_dir: str) -> dict[str, Any]:
    steps, returns = run.curve("eval/return_mean")
    scores = dict(zip(*(x.tolist() for x in run.curve(SCORE)), strict=True))
    row = {
        "kind": "offline" if run.offline else "online",
        "sweep": sweep or None,
        "cell": cell.name,
        "task": cell.task,
        "variant": cell.variant or None,
        "command": f"ctrlrl train {' '.join(cell.words)}",
        **run.result,
        "clock": run.x_name,
        "evaluations": [[x, y, scores.get(x)] for x, y in zip(steps.tolist(), returns.tolist(), strict=True)],
    }
    text = json.dumps(row, default=str)
    for folder in (str(Path(data_dir).absolute()), data_dir.rstrip("/")):
        text = re.sub(rf"(?<![\w./-]){re.escape(folder)}/", "{data_dir}/", text)  # at the beginning of a path alone
    return json.loads(text)


def append_row(file: Path, row: Mapping[str, Any]) -> bool:
    """Append one JSON line; False where the file has it already: this cell with the same settings and seed.

    ValueError where what it has is another result: of other code or data, or of a run that went on.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    key = _same(row)
    with open(file, "a+b") as f:
        _wait_for(f)
        f.seek(0)
        content = f.read()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            f.truncate(len(whole))  # a row that a crash cut short
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                old = json.loads(line)
            except ValueError:
                raise ValueError(f"{file}: line {number} is not JSON; mend it or name another file") from None
            if isinstance(old, dict) and _same(old) == key:
                if any(old[k] != row[k] for k in old.keys() & row.keys() - {"command"}):
                    told = f"line {number} holds another result of it, of commit {old.get('commit')}"
                    raise ValueError(f"{file}: {told}; remove that line, and the same command writes the new one")
                return False
        f.write(json.dumps(row, default=str).encode() + b"\n")
        f.flush()
        os.fsync(f.fileno())
    return True


def _same(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What two rows of one result share: their words in any order, without those that leave its numbers as they are."""
    words = typed_words(str(row.get("command")).removeprefix("ctrlrl train "))
    kept = sorted(word for word in words if not key_of(word).startswith(NOT_SETTINGS))
    return row.get("sweep"), row.get("cell"), row.get("seed"), kept


def _wait_for(file: Any) -> None:
    """Two sweeps may write to one file of rows."""
    try:
        import fcntl
    except ImportError:
        return
    fcntl.flock(file, fcntl.LOCK_EX)

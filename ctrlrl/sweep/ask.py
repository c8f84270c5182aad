"""What was typed after `ctrlrl sweep`, checked before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ctrlrl import settings
from ctrlrl.registry import ALGORITHMS, lookup, unknown
from ctrlrl.sweep.cells import DATA, Cell, key_of
from ctrlrl.sweep.plan import Plan, read_plan

OPTIONS = ("sweep", "sweep.dir", "launcher", "jobs", "rows", "task", "data_dir")

Totals = dict[str, int | None]  # length of a run by clock: env_steps, gradient_steps


@dataclass
class Options:
    """What `ctrlrl sweep` takes besides the words for its cells."""

    plan: Plan
    folder: Path
    launcher: str
    settings: list[str]  # launcher.KEY=VALUE
    jobs: int | None
    rows: Path | None
    task: str
    data_dir: str
    words: list[str]  # for the cells


def read_options(words: Sequence[str]) -> Options:
    """Tell a sweep's own words from those for `ctrlrl train`; ValueError for what does not fit."""
    own: dict[str, str] = {}
    rest: list[str] = []
    for word in words:
        key, sign, value = word.partition("=")
        if not sign:
            raise ValueError(f"expected key=value, got {word!r}")
        if key in OPTIONS:
            own[key] = value
        elif key.startswith("sweep."):
            raise ValueError(unknown("key", key, OPTIONS))
        elif key_of(word) in ("run.dir", "run.resume"):
            raise ValueError(f"{key}: a sweep names the folders of its cells itself. Use sweep.dir=FOLDER.")
        elif not key.startswith("launcher."):
            rest.append(word)
    jobs = own.get("jobs")
    if jobs is not None and (not jobs.isdecimal() or int(jobs) < 1):
        raise ValueError(f"jobs must be a whole number of at least 1, got {jobs!r}")
    plan = read_plan(own["sweep"]) if own.get("sweep") else Plan("")
    folder = Path(own.get("sweep.dir") or f"runs/sweep-{plan.name or 'typed'}")
    return Options(
        plan,
        folder,
        own.get("launcher", "local"),
        [word for word in words if word.startswith("launcher.")],
        None if jobs is None else int(jobs),
        Path(own["rows"]) if own.get("rows") else None,
        own.get("task", "*"),
        str(Path(own.get("data_dir", "data")).expanduser()),
        rest,
    )


def check(cells: Sequence[Cell], data_dir: str) -> dict[str, Totals]:
    """Compose every cell's configuration, so that a mistyped word stops the sweep and not a cell; its clocks' ends."""
    totals: dict[str, Totals] = {}
    known: dict[frozenset[str], Totals] = {}
    for cell in cells:
        if not cell.seed.isdecimal():
            raise ValueError(f"seed must be a whole number, got {cell.seed!r}")
        words = cell.arguments(data_dir)
        same = frozenset(word for word in words if key_of(word) not in ("seed", *DATA))
        if same not in known:
            try:
                raw = settings.train_config(words)
                cfg = settings.typed(raw)
            except ValueError as error:
                raise ValueError(f"{cell.name}: {error}") from None
            steps, updates = cfg.env_steps(lookup(ALGORITHMS, cfg.algo.name, "algorithm")), cfg.gradient_steps
            known[same] = {"env_steps": steps, "gradient_steps": updates, "steps": steps + updates}
        totals[cell.name] = known[same]
    return totals


def check_files(cells: Sequence[Cell], data_dir: str) -> None:
    """A data set that is missing stops the sweep before its first cell, not hours later."""
    files = [word.partition("=")[2] for cell in cells for word in cell.words if "={data_dir}" in word]
    if files and not Path(data_dir).is_dir():
        raise ValueError(f"data_dir={data_dir}: no such folder; the sweep's data sets are read from there")
    for file in dict.fromkeys(files):
        name = file.removeprefix("{data_dir}/")
        if not (Path(data_dir) / name).exists():
            raise ValueError(f"data_dir={data_dir}: no {name} in it; task=PATTERN takes some of the tasks alone")

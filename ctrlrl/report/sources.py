"""What `ctrlrl report` is given: run folders, sweep folders, folders of run folders, files of result rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctrlrl.report.results import algo_of, task_of, typed_words
from ctrlrl.report.runs import FIRST_COLUMNS, SCORE, Run, read_run, with_best

# settings that a config_hash is of, and the presets of them
DECIDING = "algo env data n_envs total_steps iterations gradient_steps device dtype eval experiment".split()


def read_sources(paths: Sequence[Path]) -> list[Run]:
    """Every run behind the given paths; ValueError names the path that holds none."""
    if not paths:
        raise ValueError("report: no run folder given; name one or more, e.g. `ctrlrl report runs/a runs/b`.")
    found: dict[Any, Run] = {}
    for path in {Path(path).resolve(): Path(path) for path in paths}.values():
        for number, run in enumerate(_runs(path)):
            found.setdefault(run.path.resolve() if run.path.is_dir() else (path, number), run)
    return told_apart(list(found.values()))


def told_apart(runs: Sequence[Run]) -> list[Run]:
    """The runs; where settings differ within an algorithm and task, as variants named by the typed words that differ.

    Runs typed alike stay together: a version of the library may change the config_hash and no setting.
    """
    typed: dict[tuple[str, str], dict[str, list[str]]] = {}  # words that all runs of a config_hash share
    for run in runs:
        if digest := run.result.get("config_hash"):
            same, words = typed.setdefault(_group(run), {}), _deciding(run)
            same[digest] = [word for word in same.get(digest, words) if word in words]
    return [_variant(run, typed.get(_group(run), {})) for run in runs]


def _variant(run: Run, typed: dict[str, list[str]]) -> Run:
    own = typed.get(run.result.get("config_hash") or "", [])
    differing = [w.removeprefix("algo.") for w in own if any(w not in words for words in typed.values())]
    if not differing:
        return run
    named = [str(run.result["variant"])] if run.result.get("variant") else []
    return run._replace(result=run.result | {"variant": " ".join(named + differing)})


def _deciding(run: Run) -> list[str]:
    """The last word typed for each setting that its config_hash is of; of a run from Python the hash itself."""
    if not run.overrides:
        return [f"config_hash={run.result['config_hash']}"]
    words = {word.partition("=")[0]: word for word in typed_words(run.overrides)}
    return [word for key, word in words.items() if key.partition(".")[0] in DECIDING]


def _group(run: Run) -> tuple[str, str]:
    return algo_of(run.result), task_of(run.result)


def typed_alike(runs: Sequence[Run]) -> list[str]:
    """Lines that name the algorithms whose runs differ in config_hash, or in what their data hold, and in no word."""
    lines = []
    for key, why in (
        ("data_checksum", "their data sets do not hold the same"),
        ("config_hash", "their config_hash differs, as it does between versions"),
    ):
        found: dict[tuple[str, str], set[str]] = {}
        for run in runs:
            found.setdefault(_group(run), set()).update(filter(None, [run.result.get(key)]))
        algos = dict.fromkeys(algo for (algo, _), values in found.items() if len(values) > 1)
        lines += [f"{', '.join(algos)}: runs typed alike are taken together, though {why}"] if algos else []
    return lines


def _runs(path: Path) -> list[Run]:
    if path.suffix == ".jsonl":
        return _rows(path)
    if path.is_dir() and not any(path.iterdir()):
        raise ValueError(f"{path}: an empty folder, no run to report")
    found = _leaves(path)
    runs = [run for leaf in found for run in (_sweep(leaf) if _is_sweep(leaf) else _evaluated(leaf))]
    if not runs and _is_sweep(path):
        raise ValueError(f"{path}: no cell of this sweep has a result yet")
    if not runs and (waiting := [leaf for leaf in found if (leaf / "config.yaml").exists()]):
        raise ValueError(f"{waiting[0]}: no evaluation yet, no result.json to report")
    return runs or [read_run(path)]


def _leaves(path: Path) -> list[Path]:
    """The single runs and the sweeps in a folder: of seeds trained together each one's, of a folder of runs all."""
    if _is_sweep(path):
        return [path]
    pattern = "seed_*" if (path / "config.yaml").exists() else "*"
    names = ("config.yaml", "result.json", "cells.json")
    inside = {file.parent for name in names for file in path.glob(f"{pattern}/{name}")}
    return [leaf for folder in sorted(inside) for leaf in _leaves(folder)] or [path]


def _is_sweep(path: Path) -> bool:
    return (path / "cells.json").is_file()


def _evaluated(path: Path) -> list[Run]:
    return [read_run(path)] if (path / "result.json").exists() else []


def unfinished(paths: Sequence[Path]) -> list[str]:
    """A line for each run without an evaluation in the folders among `paths`, and for each cell that failed in a sweep.

    The other cells without a result are counted.
    """
    found = []
    for path in dict.fromkeys(leaf for given in paths for leaf in _leaves(Path(given))):
        if not _is_sweep(path):
            waits = (path / "config.yaml").exists() and not (path / "result.json").exists()
            found += [f"{path}: no evaluation yet"] * waits
            continue
        missing = [cell for cell in _cells(path) if not (path / cell["name"] / "result.json").exists()]
        failed = [cell for cell in missing if cell.get("state") == "failed"]
        found += [f"{cell['name']} failed: {cell.get('error') or 'no reason was told'}" for cell in failed]
        if rest := len(missing) - len(failed):
            found.append(f"{path}: {rest} cell{'s have' if rest > 1 else ' has'} no result yet")
    return found


def _cells(path: Path) -> list[dict[str, Any]]:
    file = path / "cells.json"
    try:
        return [{**c, "name": str(c["name"]), "task": c["task"], "variant": c["variant"] or None} for c in _json(file)]
    except (TypeError, KeyError):
        raise ValueError(f"{file}: damaged, wanted a list of cells") from None


def _sweep(path: Path) -> list[Run]:
    """The cells of a sweep that have a result, with the names of their tasks."""
    runs = []
    for cell in _cells(path):
        if (path / cell["name"] / "result.json").exists():
            facts = {key: cell[key] for key in ("task", "variant")}
            runs += [run._replace(result=run.result | facts) for run in _runs(path / cell["name"])]
    return runs


def _rows(path: Path) -> list[Run]:
    """Result rows as `ctrlrl sweep rows=...` appends them; `evaluations` is their curve."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    runs = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            missing = [key for key in ("algo", "env", "seed") if key not in row]
            curve = np.array(row.get("evaluations") or np.empty((0, 3)), dtype=np.float64).reshape(-1, 3)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: line {number} is no result row ({str(error).splitlines()[0]})") from None
        if missing:
            raise ValueError(f"{path}: line {number} is no result row, {', '.join(missing)} missing")
        steps, none = curve[:, 0], np.full(len(curve), np.nan)
        clock = row.get("clock", "env_steps")
        columns: dict[str, Any] = {name: np.zeros(len(curve)) for name in FIRST_COLUMNS}
        columns |= {clock: steps, "wall_seconds": none, "eval/return_mean": curve[:, 1], SCORE: curve[:, 2]}
        if clock == "steps" and len(steps):  # offline ones first: the last evaluation is the end of both
            columns["env_steps"] = (steps - (steps[-1] - (row.get("env_steps") or 0))).clip(0)
        typed = str(row.get("command", "")).removeprefix("ctrlrl train ")
        runs.append(with_best(Run(path / str(row.get("cell", number)), row, columns, "", typed)))
    if not runs:
        raise ValueError(f"{path}: no result row in it")
    return runs


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: damaged, not JSON ({str(error).splitlines()[0]})") from None

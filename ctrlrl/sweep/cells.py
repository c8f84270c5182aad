"""What `ctrlrl sweep` was asked for, as cells: one algorithm, one task, one seed, one setting of each other axis."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from itertools import chain, product
from pathlib import Path
from typing import NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from ctrlrl.registry import unknown
from ctrlrl.settings import preset_groups
from ctrlrl.sweep.plan import Plan

# One core a cell: two cells side by side then train twice as much. What is typed or planned comes after and wins.
QUIET = ("threads=1", "env.threads=1", "log.progress=false", "run.report=false")
NOT_SETTINGS = ("threads", "env.threads", "log.", "checkpoint.", "run.")  # keys that leave a cell's numbers as they are
DATA = ("data.path", "data.id")  # either one typed takes the place of the plan's tasks
SOURCES = ("env", "env.id", "data", *DATA)  # keys that say which task it is


class Cell(NamedTuple):
    """One training run of a sweep."""

    name: str  # its folder in the sweep's
    algo: str
    task: str
    seed: str
    variant: str  # its settings on further axes, e.g. "alpha=40"; "" without
    words: tuple[str, ...]  # for `ctrlrl train`, with {data_dir} where the folder of data sets stands

    def arguments(self, data_dir: str) -> list[str]:
        """The words with the folder of data sets put in."""
        return [word.replace("{data_dir}", data_dir) for word in self.words]

    def settings(self) -> dict[str, str]:
        """What decides the cell's numbers: key -> value."""
        pairs = dict(word.partition("=")[::2] for word in self.words)
        return {key_of(k): v for k, v in pairs.items() if not key_of(k).startswith(NOT_SETTINGS)}


def key_of(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def merged(*groups: Iterable[str]) -> tuple[str, ...]:
    """One word a key: later groups win."""
    found: dict[str, str] = {}
    for word in chain(*groups):
        found.pop(key_of(word), None)
        found[key_of(word)] = word
    return tuple(found.values())


def choices(word: str) -> list[str]:
    """ "seed=0,1" -> ["seed=0", "seed=1"], in Hydra's syntax for sweeps: lists, range(...), choice(...)."""
    if "=" not in word:
        raise ValueError(f"expected key=value, got {word!r}")
    try:
        override = OverridesParser.create().parse_override(word)
        if not override.is_sweep_override():
            return [word]
        if override.is_discrete_sweep():
            found = [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        else:
            raise ValueError("a sweep needs a list of values, not an interval")
    except (HydraException, ValueError) as error:
        raise ValueError(f"{word}: {str(error).splitlines()[0]}") from None
    if not found:
        raise ValueError(f"{word}: no value to take")
    return found


def cells_of(plan: Plan, words: Sequence[str], patterns: str = "*") -> list[Cell]:
    """All cells of a plan and what was typed, seed by seed, so that a sweep cut short has whole tables.

    patterns: `task=`, names of the plan's tasks or patterns of them, separated by commas.
    """
    axes = {key_of(word): choices(word) for word in (*plan.axes, *words)}
    tasks = _tasks(plan, axes, patterns)
    order = sorted(axes, key=lambda key: key != "seed")
    cells = []
    for chosen in product(*(axes[key] for key in order)):
        for task, own in tasks.items():
            cells.append(_cell(plan, task, own, chosen, [key for key in order if len(axes[key]) > 1]))
    names: dict[str, Cell] = {}
    for cell in cells:
        if names.setdefault(cell.name, cell) is not cell:
            raise ValueError(f"two cells would be called {cell.name}: give their data sets or values different names")
    return cells


def _tasks(plan: Plan, axes: dict[str, list[str]], patterns: str) -> dict[str, tuple[str, ...]]:
    """The plan's tasks that are wanted; the one task "" where the typed words say which it is."""
    if not plan.tasks or any(key in axes for key in DATA):
        if patterns != "*":
            raise ValueError("task=... chooses among the tasks of a sweep file; there are none here")
        return {"": ()}
    for key in SOURCES:
        if key in axes:
            raise ValueError(
                f"{key} is set by the tasks of sweep={plan.name}; choose with task=..., or add data.path=..."
            )
    wanted: dict[str, tuple[str, ...]] = {}
    for pattern in patterns.split(","):
        found = {task: own for task, own in plan.tasks.items() if fnmatchcase(task, pattern)}
        if not found:
            raise ValueError(unknown("task", pattern, plan.tasks))
        wanted |= found
    return wanted


def _cell(plan: Plan, task: str, own: tuple[str, ...], chosen: Sequence[str], axes: Sequence[str]) -> Cell:
    value = {key_of(word): word.partition("=")[2] for word in merged(plan.words, chosen)}
    value = preset_groups(value.get("experiment", "auto")) | value
    algo, seed = value.get("algo", "ppo"), value.get("seed", "0")
    task = task or _task_name(value)
    ruled = [rule.words for rule in plan.rules if rule.fits(algo, task)]
    variant = " ".join(f"{k.rpartition('.')[2]}={value[k]}" for k in axes if k not in ("algo", "seed", *SOURCES))
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(part for part in (algo, task, variant, f"s{seed}") if part))
    return Cell(name, algo, task, seed, variant, merged(QUIET, plan.words, own, *ruled, chosen))


def _task_name(value: dict[str, str]) -> str:
    if "data.path" in value:
        return Path(value["data.path"]).stem
    env = value.get("env", "pendulum")
    return value.get("data.id") or (value.get("env.id", env) if env == "gym" else env)

"""The files under configs/sweep: the tasks of a benchmark, and what each algorithm changes on each of them."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import yaml

from ctrlrl.registry import unknown
from ctrlrl.settings import CONFIG_DIR

KEYS = ("note", "words", "axes", "tasks", "rules")


class Rule(NamedTuple):
    """Words for the cells whose algorithm and task match; later rules win."""

    algo: str  # patterns as of file names, separated by commas
    task: str
    words: tuple[str, ...]

    def fits(self, algo: str, task: str) -> bool:
        both = ((algo, self.algo), (task, self.task))
        return all(any(fnmatchcase(name, p) for p in patterns.split(",")) for name, patterns in both)


class Plan(NamedTuple):
    """A sweep file in memory."""

    name: str  # "" where none was named
    note: str = ""  # what a reader of the results has to know
    words: tuple[str, ...] = ()  # for every cell
    axes: tuple[str, ...] = ()  # taken where nothing is typed for their keys: "seed=0,1,2"
    tasks: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    rules: tuple[Rule, ...] = ()


def plans() -> list[str]:
    """Names that `sweep=` takes."""
    return sorted(path.stem for path in (CONFIG_DIR / "sweep").glob("*.yaml"))


def read_plan(name: str) -> Plan:
    """The packed sweep of this name, or a file of one's own whose name ends in .yaml; ValueError says what is wrong."""
    own = name.endswith(".yaml")
    if not own and name not in plans():
        raise ValueError(unknown("sweep", name, plans()))
    path = Path(name) if own else CONFIG_DIR / "sweep" / f"{name}.yaml"
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"sweep={name}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable as YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: wanted the keys {', '.join(KEYS)}, got {type(found).__name__}")
    for key in found:
        if key not in KEYS:
            raise ValueError(f"{path}: {unknown('key', str(key), KEYS)}")
    tasks = found.get("tasks") or {}
    if not isinstance(tasks, dict):
        raise ValueError(f"{path}: tasks must be a table of name: [words], got {type(tasks).__name__}")
    return Plan(
        path.stem,
        " ".join(str(found.get("note") or "").split()),
        _words(path, "words", found.get("words")),
        _words(path, "axes", found.get("axes")),
        {str(task): _words(path, f"tasks.{task}", words) for task, words in tasks.items()},
        tuple(_rule(path, number, rule) for number, rule in enumerate(found.get("rules") or [])),
    )


def _rule(path: Path, number: int, rule: Any) -> Rule:
    where = f"rules[{number}]"
    if not isinstance(rule, dict) or not set(rule) <= {"algo", "task", "words"}:
        raise ValueError(f"{path}: {where} wants algo, task and words, got {rule!r}")
    return Rule(str(rule.get("algo", "*")), str(rule.get("task", "*")), _words(path, where, rule.get("words")))


def _words(path: Path, where: str, words: Any) -> tuple[str, ...]:
    if words is None:
        return ()
    if not isinstance(words, list) or not all(isinstance(word, str) and "=" in word for word in words):
        raise ValueError(f"{path}: {where} must be a list of key=value words, got {words!r}")
    return tuple(words)

"""The import rules of the house: a file may import only from the floors below it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "ctrlrl"
GROUND = {"types", "config", "registry", "functional"}
MAY_IMPORT = {  # folder or file -> what it may import from ctrlrl besides its own folder
    "functional": set(),
    "types": set(),
    "config": set(),
    "registry": set(),
    "disk": set(),
    "quiet": set(),
    "nn": set(),
    "policies": {"functional", "nn", "types"},
    "core": {"functional", "types"},
    "envs": {"types"},
    "data": {"types", "functional", "quiet"},
    "algos": {"functional", "nn", "policies", "core", "types"},
    "llm": {"functional", "core", "types"},
    "train": {"functional", "core", "data", "disk", "types"},
    "report": {"disk", "functional", "types"},
    "settings": {"config", "registry"},
    "sources": {"config", "core", "data", "registry", "types"},
    "seeds": {"core", "data", "nn"},
    "provenance": {"config", "data"},
    "texts": {"config", "core", "data", "llm", "registry", "shares", "train"},
    "tasks": {"config", "envs", "registry", "types"},
    "judging": {"config", "core", "envs", "functional", "nn", "policies", "tasks", "texts", "train", "types"},
    "loops": {"config", "core", "data", "registry", "seeds", "shares", "sources", "tasks", "texts", "train", "types"},
    "build": GROUND
    | {"nn", "policies", "core", "envs", "data", "algos", "llm", "train", "report"}
    | {"sources", "provenance", "seeds", "shares", "tasks", "judging", "loops"},
    "runs": GROUND
    | {"core", "disk", "train", "report", "build", "tasks", "texts", "judging", "loops", "settings", "provenance"},
    "composing": {"algos", "settings", "config", "core", "disk", "judging", "report", "runs", "tasks", "train"},
    "shares": {"config", "core"},
    "deployed": {"core", "envs", "functional", "policies"},
    "deploy": {"core", "envs", "policies", "deployed", "build", "tasks", "judging", "loops", "provenance", "runs"}
    | {"disk", "quiet", "texts"},
    "sweep": {"disk", "settings", "registry", "report", "train"},
    "bench": GROUND
    | {"core", "envs", "train", "build", "tasks", "judging", "loops", "settings", "provenance", "runs", "api"}
    | {"deploy", "deployed", "disk"},
    "face": GROUND
    | {"algos", "core", "envs", "llm", "train", "build", "tasks", "texts", "judging", "loops", "provenance", "deploy"},
    "api": {"runs", "build", "tasks", "judging", "loops", "registry", "train", "face"},
    "collect": GROUND
    | {"core", "data", "envs", "policies", "train", "build", "tasks", "judging", "loops", "provenance", "runs", "api"},
    "datasets": {"collect", "disk", "settings", "data", "registry", "report", "sources"},
    "cli": {
        "build",
        "tasks",
        "judging",
        "loops",
        "settings",
        "composing",
        "config",
        "registry",
        "runs",
        "bench",
        "report",
        "deploy",
        "sweep",
        "datasets",
    },
    "registration": {"envs", "build", "tasks", "judging", "loops", "config", "registry"},
    "__init__": {"api", "registration"},
}
FILES = sorted(ROOT.rglob("*.py"))


def place(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0]


def is_package(module: str) -> bool:
    return (ROOT.parent / Path(*module.split("."))).is_dir()


def imports(path: Path) -> set[str]:
    """Dotted names below ctrlrl that a file imports; `from package import module` counts as the module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ctrlrl":
            assert node.level == 0
            found |= {(f"{node.module}.{a.name}" if is_package(node.module) else node.module)[7:] for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("ctrlrl.") for a in node.names if a.name.split(".")[0] == "ctrlrl"}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downwards(path):
    here = place(path)
    allowed = MAY_IMPORT[here] | {here}
    for name in imports(path):
        assert name.split(".")[0] in allowed, f"{path.relative_to(ROOT)} imports ctrlrl.{name}"
        assert (ROOT / Path(*name.split("."))).with_suffix(".py").is_file(), (
            f"{path}: {name} is no module; name the file"
        )


def test_files_of_one_folder_import_each_other_without_a_circle():
    edges = {
        str(p.relative_to(ROOT).with_suffix("")).replace("/", "."): {
            n for n in imports(p) if n.split(".")[0] == place(p)
        }
        for p in FILES
    }

    def reaches(start: str, goal: str, seen: set[str]) -> bool:
        return any(n == goal or (n not in seen and reaches(n, goal, seen | {n})) for n in edges.get(start, ()))

    for name in edges:
        assert not reaches(name, name, {name}), f"import circle through {name}"


def test_algorithms_do_not_import_each_other():
    for path in (ROOT / "algos").glob("*.py"):
        assert not [n for n in imports(path) if n.startswith("algos")]


def test_no_file_is_called_utils():
    assert not [p for p in FILES if "util" in p.stem]

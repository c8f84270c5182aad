"""What the wheel must hold: every package, the type marker, and the presets."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_of_the_tree_is_in_the_wheel():
    found = {".".join(p.parent.relative_to(ROOT).parts) for p in ROOT.glob("ctrlrl/**/__init__.py")}
    assert {*found, "ctrlrl.configs", "ctrlrl.assets"} == set(PROJECT["tool"]["setuptools"]["packages"])


def test_the_presets_and_the_type_marker_are_in_the_wheel():
    data, folders = PROJECT["tool"]["setuptools"]["package-data"], PROJECT["tool"]["setuptools"]["package-dir"]
    configs = ROOT / folders["ctrlrl.configs"]
    packed = {p for pattern in data["ctrlrl.configs"] for p in configs.glob(pattern)}
    assert packed == {p for p in configs.rglob("*") if p.is_file()}
    assert (ROOT / "ctrlrl" / data["ctrlrl"][0]).exists()
    assert configs / "train.yaml" in packed


def test_every_file_of_the_assets_is_in_the_wheel_and_they_stay_small():
    data, folders = PROJECT["tool"]["setuptools"]["package-data"], PROJECT["tool"]["setuptools"]["package-dir"]
    assets = ROOT / folders["ctrlrl.assets"]
    packed = {p for pattern in data["ctrlrl.assets"] for p in assets.glob(pattern)}
    assert packed == {p for p in assets.rglob("*") if p.is_file()}
    assert assets / "PROVENANCE.md" in packed
    assert sum(p.stat().st_size for p in packed) < 10 * 2**20


def test_the_pinned_versions_lie_inside_the_allowed_ranges():
    from packaging.requirements import Requirement

    project = PROJECT["project"]
    ranges = [Requirement(r) for r in project["dependencies"]]
    ranges += [Requirement(r) for extra in project["optional-dependencies"].values() for r in extra]
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, pinned = line.partition("==")
            found = [r for r in ranges if r.name == name]
            assert found, f"{name} is pinned but not required"
            assert all(r.specifier.contains(pinned) for r in found), line

"""What a user gives as a data set, and the settings that transform it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from os import PathLike
from typing import Any

from ctrlrl import build
from ctrlrl.config import DataConfig

READING = ("name", "path", "id", "group", "holdout")  # which episodes to read: of the command line
DATA = tuple(f.name for f in fields(DataConfig) if f.name not in READING)


def data_settings(settings: Mapping[str, Any]) -> tuple[DataConfig, dict[str, Any]]:
    """How a data set is transformed, among keyword arguments, and the others."""
    others = {k: v for k, v in settings.items() if k not in DATA}
    return DataConfig(**{k: v for k, v in settings.items() if k in DATA}), others


def data_facts(cfg: DataConfig) -> dict[str, Any]:
    """What a model's file says of them."""
    return {k: v for k, v in asdict(cfg).items() if k in DATA}


def known_data(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The same read from a file, which may be older."""
    return {k: v for k, v in facts.get("data", {}).items() if k in DATA}


def changed_data(cfg: DataConfig) -> str:
    """Those that are not the default, as they are typed."""
    return ", ".join(f"{k}={v}" for k, v in data_facts(cfg).items() if v != getattr(DataConfig, k))


def refuse_without_data(cfg: DataConfig, where: str) -> None:
    """ValueError for settings that transform a data set where there is none: rewards would come as they are."""
    if cfg != DataConfig():
        raise ValueError(
            f"{where}: {changed_data(cfg)} transforms a data set, and there is none. Give dataset=FILE or call "
            "set_dataset."
        )


def episodes_of(dataset: Any, where: str) -> build.Episodes:
    """A path's episodes, or those given."""
    episodes = build.load_data(dataset) if isinstance(dataset, (str, PathLike)) else dataset
    if not isinstance(episodes, build.Episodes):
        mend = ". Arrays go into a file: np.savez(path, **columns), docs/data.md" if isinstance(dataset, dict) else ""
        raise TypeError(f"{where}: dataset must be a path or Episodes, got {type(dataset).__name__}{mend}")
    return episodes

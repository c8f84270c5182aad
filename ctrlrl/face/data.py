"""What a user gives as a data set, and the settings of how it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from os import PathLike
from typing import Any

from ctrlrl import build
from ctrlrl.config import DataConfig

DATA = tuple(f.name for f in fields(DataConfig) if f.name not in ("name", "path", "id"))


def data_settings(settings: Mapping[str, Any]) -> tuple[DataConfig, dict[str, Any]]:
    """The data set's settings among keyword arguments, and the others."""
    others = {k: v for k, v in settings.items() if k not in DATA}
    return DataConfig(**{k: v for k, v in settings.items() if k in DATA}), others


def data_facts(cfg: DataConfig) -> dict[str, Any]:
    """The same settings, for a model's file."""
    return {k: v for k, v in asdict(cfg).items() if k in DATA}


def episodes_of(dataset: Any, where: str) -> build.Episodes:
    """A path's episodes, or those given."""
    episodes = build.load_data(dataset) if isinstance(dataset, (str, PathLike)) else dataset
    if not isinstance(episodes, build.Episodes):
        raise TypeError(f"{where}: dataset must be a path or Episodes, got {type(dataset).__name__}")
    return episodes

"""Numbers as users have them, NumPy's and whole floats too, as those that a config and a model's file hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_type_hints

import numpy as np


def item(value: Any) -> Any:
    """A NumPy number as Python's; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def whole(where: str, name: str, value: Any) -> Any:
    """An int, of a whole float too; None as it is; TypeError for any other."""
    value = item(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if value is not None and not isinstance(value, int):
        raise TypeError(f"{where}: {name} must be a whole number, got {value!r:.40}")
    return value


def count(where: str, name: str, value: Any) -> int:
    """An int, of a whole float too; TypeError for any other and for None."""
    if value is None:
        raise TypeError(f"{where}: {name} must be a whole number, got None")
    return int(whole(where, name, value))


def of_fields(kind: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Settings of the dataclass `kind`, where it counts as ints."""
    types = get_type_hints(kind)
    return {
        name: whole(where, name, value) if types.get(name) in (int, int | None) else item(value)
        for name, value in values.items()
    }

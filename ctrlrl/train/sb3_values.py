"""Spaces and schedules of Stable-Baselines3's zips, made from their pickles read as data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gymnasium import spaces

from ctrlrl.train.pickle_data import MAX_AXES, Made, array_of, dtype_of, mapping

COMMON = "stable_baselines3.common"
MOST = 10**7  # inputs of a network: a file may name a number that no memory holds
EACH = 10**3  # of them, what a space counts for by itself: a file may name one space any number of times


class _Room:
    """What is left of MOST for a space and all those inside it."""

    def __init__(self) -> None:
        self.left = MOST

    def take(self, n: Any, where: str) -> int:
        if not 0 <= int(n) <= self.left:
            raise ValueError(f"{where} has more than {MOST:,} options")
        self.left -= int(n)
        return int(n)


def space_of(value: Any, where: str) -> spaces.Space[Any]:
    """A pickled Gymnasium space; ValueError or TypeError for anything else."""
    return _space_of(value, where, _Room())


def _space_of(value: Any, where: str, room: _Room) -> spaces.Space[Any]:
    room.take(EACH, where)
    if not isinstance(value, Made) or not value.kind.startswith("gymnasium.spaces."):
        raise ValueError(f"{where} is not a space of Gymnasium")
    kind, get = value.kind.rpartition(".")[2], value.attribute
    if kind == "Box":
        low, high, dtype = array_of(get("low")), array_of(get("high")), dtype_of(get("dtype"))
        room.take(low.size, where)
        return spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(room.take(array_of(get("n")), where), start=int(array_of(get("start"))))
    if kind == "MultiDiscrete":
        start, dtype = array_of(get("start")), dtype_of(get("dtype"))
        nvec = array_of(get("nvec"))
        room.take(nvec.sum(dtype=np.float64), where)  # integers could overflow
        return spaces.MultiDiscrete(nvec, dtype=dtype.type, start=start)
    if kind == "MultiBinary":
        shape = get("_shape")
        if len(shape) > MAX_AXES or not all(type(n) is int and 0 < n <= MOST for n in shape):
            raise ValueError(f"{where} has options of no shape")
        room.take(math.prod(shape), where)
        return spaces.MultiBinary(shape[0] if isinstance(get("n"), int) else shape)
    if kind == "Dict":
        found = {str(key): v for key, v in mapping(get("spaces")).items()}
        inner = {key: _space_of(v, f"{where}[{key[:40]!r}]", room) for key, v in found.items()}
        return spaces.Dict(inner, sort_keys=False)  # the order of the keys is the order of the features
    raise ValueError(f"{where}: {kind} is not supported")


def channels_last(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """SB3 stores images as [C, H, W] whatever the environment gives; ctrlrl's [H, W, C] takes both."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: channels_last(inner) for key, inner in space.spaces.items()}, sort_keys=False)
    if not (isinstance(space, spaces.Box) and len(space.shape) == 3 and space.dtype == np.uint8):
        return space
    if space.shape[0] != min(space.shape) or space.shape[-1] == min(space.shape):
        return space
    return spaces.Box(np.moveaxis(space.low, 0, -1), np.moveaxis(space.high, 0, -1), dtype=np.uint8)


def schedule_of(value: Any) -> tuple[float, str] | None:
    """(value, "constant"), (start, "linear") for one that falls to 0 over the run; None for what cannot be read."""
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value), "constant"
    if not isinstance(value, Made):
        return None
    kind, get = value.kind.removeprefix(f"{COMMON}.utils."), value.attribute
    if kind == "FloatSchedule":
        return schedule_of(get("value_schedule"))
    if kind == "ConstantSchedule":
        return schedule_of(get("val"))
    if kind == "LinearSchedule" and get("end") == 0 and get("end_fraction") == 1:
        return float(get("start")), "linear"
    return None

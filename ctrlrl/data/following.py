"""Stored next observations beside the rows that follow: where they differ an episode ends, or rows are in no order."""

from __future__ import annotations

import math

import numpy as np

from ctrlrl.data import columns as cols
from ctrlrl.data.columns import Columns, DataError
from ctrlrl.data.episodes import Array

_AT_ONCE = 2**21  # numbers, of images too
_BREAK = 1e-6  # Euclidean distance above which a stored next observation is not the following row


def next_observations(columns: Columns, obs: Array) -> Array:
    """[N, O] the file's `next_observations`, of the shape of `observations`."""
    found = cols.observations(columns, "next_observations")
    cols.same_length(columns, observations=obs, next_observations=found)
    if found.shape != obs.shape:
        raise DataError(f"{columns.path}: 'next_observations' {found.shape} must be like 'observations' {obs.shape}")
    return found


def breaks(obs: Array, following: Array) -> Array:
    """[N] bool: rows whose stored next observation is not the following row; the last one always."""
    broken = np.ones(len(obs), bool)
    at_once = max(1, _AT_ONCE // math.prod(obs.shape[1:]))
    for start in range(0, len(obs) - 1, at_once):
        rows = slice(start, min(start + at_once, len(obs) - 1))
        row, stored = obs[rows.start + 1 : rows.stop + 1], following[rows]
        with np.errstate(invalid="ignore"):
            step = row.astype(np.float64) - stored
        step[(row == stored) | ((row != row) & (stored != stored))] = 0.0  # infinities, and NaN, that are the same
        broken[rows] = ~(np.sqrt(np.square(step).reshape(len(step), -1).sum(1)) <= _BREAK)
    return broken


def agrees(columns: Columns, obs: Array, following: Array, ends: Array, mend: str) -> None:
    """DataError where, inside an episode, a stored next observation is not the following row. ends: [E], exclusive."""
    broken = breaks(obs, following)
    broken[ends - 1] = False
    if broken.any():
        row = int(broken.argmax())
        if not np.isfinite(following[row]).all():
            raise DataError(
                f"{columns.path}: 'next_observations' of row {row} hold nan or inf, the following row does not: write "
                "what was seen, or drop the episode"
            )
        raise DataError(
            f"{columns.path}: 'next_observations' of row {row} is not the following row although no episode ends "
            f"there: {mend}"
        )

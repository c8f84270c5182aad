"""Small files in the exact layouts that the loaders read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

Columns = dict[str, Any]


def steps(n: int, *, obs_dim: int = 3, action_dim: int = 2, seed: int = 0) -> Columns:
    """n rows of D4RL's columns, no flag set."""
    rng = np.random.default_rng(seed)
    return {
        "observations": rng.standard_normal((n, obs_dim)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (n, action_dim)).astype(np.float32),
        "rewards": rng.standard_normal(n).astype(np.float32),
        "terminals": np.zeros(n, bool),
        "timeouts": np.zeros(n, bool),
    }


def flagged(n: int, terminals: tuple[int, ...] = (), timeouts: tuple[int, ...] = (), **kwargs: Any) -> Columns:
    columns = steps(n, **kwargs)
    columns["terminals"][list(terminals)] = True
    columns["timeouts"][list(timeouts)] = True
    return columns


def rollouts(lengths: tuple[int, ...] = (4, 3, 5), terminals: tuple[int, ...] = (6,), **kwargs: Any) -> Columns:
    """Episodes of these lengths with the observation after each."""
    n, ends = sum(lengths), np.cumsum(lengths)
    columns = flagged(n, terminals, tuple(e - 1 for e in ends if e - 1 not in terminals), **kwargs)
    final = np.random.default_rng(9).standard_normal((len(ends), columns["observations"].shape[1]))
    return columns | {
        "episode_ends": ends.astype(np.int64),
        "final_observations": final.astype(np.float32),
        "episode_policy": np.array([f"policy {e}" for e in range(len(ends))]),
        "episode_seed": np.arange(len(ends)),
        "env_id": np.array("Hopper-v4"),
    }


def trajectories(lengths: tuple[int, ...] = (4, 4), **kwargs: Any) -> Columns:
    """OGBench's raw layout: one state more than there are steps, flagged by `terminals`."""
    n = sum(lengths) + len(lengths)
    columns = steps(n, **kwargs)
    terminals = np.zeros(n, bool)
    terminals[np.cumsum([t + 1 for t in lengths]) - 1] = True
    return {"observations": columns["observations"], "actions": columns["actions"], "terminals": terminals}


def write_npz(path: Path, columns: Columns) -> Path:
    np.savez_compressed(path, **columns)
    return path


def write_hdf5(path: Path, columns: Columns) -> Path:
    with h5py.File(path, "w") as file:
        for name, array in columns.items():
            array = np.asarray(array)
            words = array.astype(object) if array.dtype.kind == "U" else array
            file.create_dataset(name, data=words, compression="gzip" if array.ndim else None)
    return path


WRITERS = {"hdf5": write_hdf5, "npz": write_npz}

"""The episodes of a Minari set as it stores them, through h5py alone or through minari, and their trees as flat arrays.

Observations that are a Dict of observation, achieved_goal and desired_goal (mazes, kitchen, Fetch): learning sees
`observation` alone, as D4RL's sets do, and the goals are kept beside it. AntMaze gets the two coordinates of
achieved_goal in front where `observation` leaves them out. PointMaze's `observation` holds the coordinates; Kitchen's
lacks the goal that D4RL appends. Every other Dict or Tuple is flattened part after part, as its space lists them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ctrlrl.data import columns as cols
from ctrlrl.data.columns import DataError
from ctrlrl.data.episodes import Array

Tree = Any  # an array, or a dict of trees
Space = dict[str, Any]  # as minari writes one to JSON; {} where it is not told
GOAL_KEYS = {"observation", "achieved_goal", "desired_goal"}
PER_STEP = ("actions", "rewards", "terminations", "truncations")


@dataclass(frozen=True)
class Record:
    """One episode as stored."""

    observations: Tree
    actions: Tree
    rewards: Array
    terminations: Array
    truncations: Array
    infos: Tree


def from_hdf5(folder: Path, n: int | None) -> Iterator[Record]:
    """n: number of episodes that the metadata promise."""
    path = folder / "main_data.hdf5"
    if not path.is_file():
        raise DataError(f"{path} is missing: fetch the set again")
    with cols.hdf5(path) as file:
        held = len(file)
        if n is not None and held != n:
            raise DataError(f"{path} holds {held} episodes and metadata.json promises {n}: fetch the set again")
        for number in range(held):
            where = f"{path}: episode_{number}"
            if f"episode_{number}" not in file:
                raise DataError(f"{where} is missing: fetch the set again")
            with cols.named(where):
                parts = _tree(where, path, file[f"episode_{number}"].id)
                missing = [k for k in ("observations", *PER_STEP) if k not in parts]
                if missing:
                    raise DataError(f"{where}: no {missing[0]!r} among {cols.listed(tuple(parts))}")
            yield Record(**{k: parts[k] for k in ("observations", *PER_STEP)}, infos=parts.get("infos", {}))


def _tree(where: str, path: Path, item: Any) -> Tree:
    """An h5py.h5g.GroupID or h5py.h5d.DatasetID; what holds no numbers is left out."""
    from h5py import h5d, h5o

    if isinstance(item, h5d.DatasetID):
        return cols.read_hdf5(where, path, item)
    found = {}
    for name in item:
        with contextlib.suppress(cols.NotNumbersError):
            found[name.decode()] = _tree(f"{where}/{name.decode()}", path, h5o.open(item, name))
    return found


def from_package(folder: Path) -> Iterator[Record]:
    """Through minari: Arrow and Parquet sets, and images it stored as JPEG."""
    try:
        import minari
    except ModuleNotFoundError:
        raise DataError(f"{folder} needs the minari package: pip install 'ctrlrl[data]'") from None
    with cols.named(f"{folder}"):
        episodes = iter(minari.MinariDataset(str(folder)).iterate_episodes())
    while True:
        with cols.named(f"{folder}"):
            e = next(episodes, None)
        if e is None:
            return
        yield Record(
            *(_plain(t) for t in (e.observations, e.actions, e.rewards, e.terminations, e.truncations, e.infos))
        )


def _plain(tree: Tree) -> Tree:
    """Tuples as minari's HDF5 files hold them, and floats as float32."""
    if tree is None:
        return {}
    if isinstance(tree, tuple):
        return {f"_index_{i}": _plain(part) for i, part in enumerate(tree)}
    if isinstance(tree, dict):
        return {name: _plain(part) for name, part in tree.items()}
    array = np.asarray(tree)
    return cols.single(array) if array.dtype.kind == "f" else array


def observe(tree: Tree, space: Space, env_id: str | None, where: str) -> tuple[Array, dict[str, Array]]:
    """[T+1, O] what learning sees, and [T+1, G] the goals beside it."""
    if not (isinstance(tree, dict) and set(tree) >= GOAL_KEYS):
        return numbers(tree, space, f"{where}: 'observations'", obs=True), {}
    inner = space.get("subspaces", {})
    parts = {k: numbers(tree[k], inner.get(k, {}), f"{where}: {k!r}", obs=True) for k in GOAL_KEYS}
    seen, place = parts["observation"], parts["achieved_goal"]
    if (env_id or "").startswith("AntMaze") and not np.array_equal(seen[:, : place.shape[1]], place):
        seen = np.concatenate((place, seen), axis=1)
    return seen, {k: parts[k] for k in ("achieved_goal", "desired_goal")}


def has_goals(space: Space) -> bool:
    return space.get("type") == "Dict" and set(space["subspaces"]) >= GOAL_KEYS


def numbers(tree: Tree, space: Space, where: str, *, obs: bool = False) -> Array:
    """A tree as one array: parts side by side, discrete observations one-hot, a Box of integers as floats."""
    if isinstance(tree, dict):
        if not obs or not tree:
            raise DataError(f"{where} is a Dict or Tuple of {len(tree)} parts, which no learner here takes")
        inner = space.get("subspaces", {})
        if isinstance(inner, list):
            inner = {f"_index_{i}": part for i, part in enumerate(inner)}
        order = [k for k in inner if k in tree] + sorted(k for k in tree if k not in inner)
        flat = [numbers(tree[k], inner.get(k, {}), f"{where}/{k}", obs=True) for k in order]
        return np.concatenate([cols.single(part.reshape(len(part), -1)) for part in flat], axis=1)
    if tree.ndim == 0:
        raise DataError(f"{where} is a single number: give every step one")
    kind = space.get("type")
    if kind == "Discrete" and obs:
        index = tree.reshape(-1).astype(np.int64) - space.get("start", 0)
        if ((index < 0) | (index >= space["n"])).any():
            raise DataError(f"{where} leaves its space of {space['n']} values")
        return np.eye(space["n"], dtype=np.float32)[index]
    if kind in ("Box", "MultiBinary") and not (obs and tree.ndim > 2 and tree.dtype == np.uint8):
        tree = cols.single(tree.reshape(len(tree), math.prod(tree.shape[1:])))
    return cols.as_obs(tree, where) if obs else cols.as_action(tree, where)


def has_jpegs(space: Space, stored_so: bool) -> bool:
    """Whether minari keeps images of this space as JPEG: those of 32 x 32 and more, where the set does not say no."""
    if space.get("type") in ("Dict", "Tuple"):
        inner = space["subspaces"]
        return any(has_jpegs(s, stored_so) for s in (inner.values() if isinstance(inner, dict) else inner))
    shape = space.get("shape") or ()
    return stored_so and space.get("dtype") == "uint8" and len(shape) in (2, 3) and min(shape[:2]) >= 32


def infos_of(tree: Tree, t: int, prefix: str = "infos") -> dict[str, Array]:
    """Columns of t rows, what each step returned; of t + 1, the first came with the reset and belongs to no step."""
    if isinstance(tree, dict):
        return {k: v for name, part in tree.items() for k, v in infos_of(part, t, f"{prefix}/{name}").items()}
    if tree.ndim == 0 or tree.dtype.kind not in "fbiu" or len(tree) not in (t, t + 1):
        return {}
    return {prefix: tree[len(tree) - t :]}

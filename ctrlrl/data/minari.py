"""Minari folders: T + 1 observations an episode, so no row is lost. HDF5 through h5py alone, the rest through minari.

A dataset folder holds data/metadata.json and data/main_data.hdf5, one group an episode: `observations` (T+1),
`actions`, `rewards`, `terminations`, `truncations` (T), and perhaps `infos`. See minari_trees.py for Dicts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ctrlrl.data import columns as cols
from ctrlrl.data import minari_trees as trees
from ctrlrl.data.columns import DataError
from ctrlrl.data.download import not_here, room, unknown_id
from ctrlrl.data.episodes import Array, Episodes, Facts
from ctrlrl.quiet import quiet

_ID = re.compile(r"(?:[-\w]+/)*[-\w]+-v\d+")


def folder_of(path: Path) -> Path | None:
    """The `data` folder of a Minari set: the path itself, or in it, or in the only set of a folder of sets."""
    for folder in (path, path / "data"):
        if (folder / "metadata.json").is_file():
            return folder
    found = sorted(d.parent for d in path.glob("*/data/metadata.json"))
    if len(found) > 1:
        names = ", ".join(d.parent.name for d in found[:5])
        raise DataError(f"{path} holds {len(found)} Minari sets ({names}): point data.path at one of them")
    return found[0] if found else None


def read(folder: Path, *, package: bool = False) -> Episodes:
    """Episodes of a Minari set. folder: its `data` folder. package: read through minari even where h5py would do."""
    with cols.named(f"{folder / 'metadata.json'}"):
        about = json.loads((folder / "metadata.json").read_text())
        space, action_space = (json.loads(about.get(f"{k}_space") or "{}") for k in ("observation", "action"))
        env_id = json.loads(about["env_spec"])["id"] if about.get("env_spec") else None
        jpegs = trees.has_jpegs(space, bool(about.get("jpeg_encoding", True)))
        package = package or jpegs or about.get("data_format", "hdf5") != "hdf5"
        goals = trees.has_goals(space)

    rows: list[dict[str, Array]] = []  # one an episode
    records = trees.from_package(folder) if package else trees.from_hdf5(folder, about.get("total_episodes"))
    for number, record in enumerate(records):
        where = f"{folder}: episode_{number}"
        with cols.named(where):
            rows.append(_columns(record, space, action_space, env_id, where))
    n = sum(len(r["rewards"]) for r in rows)
    if n < 2:
        raise DataError(f"{folder} holds {n} step{'s' * (n != 1)}: a data set needs at least two")

    joined = {key: _join([r[key] for r in rows], folder, key) for key in _REQUIRED}
    extras = {
        key: np.concatenate([r[key] for r in rows])
        for key in sorted(set.intersection(*map(set, rows)) - set(_REQUIRED))
        if len({(r[key].shape[1:], r[key].dtype) for r in rows}) == 1
    }
    notices = ["of a Dict of goals 'observation' alone is learned from; the goals are in extras"] if goals else []
    if action_space.get("start"):
        notices.append(f"discrete actions count from {action_space['start']}, as stored")
    low, high = _bounds(action_space)
    return Episodes(
        joined["observations"], joined["actions"], joined["rewards"], joined["terminations"],
        ends=np.cumsum([len(r["rewards"]) for r in rows], dtype=np.int64), final_obs=joined["final_observations"],
        has_final=np.ones(len(rows), bool), usable=np.ones(n, bool), extras=extras, episode_extras={},
        facts=replace(_facts(folder, about, env_id, notices), action_low=low, action_high=high),
    )  # fmt: skip


_REQUIRED = ("observations", "final_observations", "actions", "rewards", "terminations")


def _columns(
    record: trees.Record, space: trees.Space, action_space: trees.Space, env_id: str | None, where: str
) -> dict[str, Array]:
    """The columns of one episode, each of T rows but the one final observation."""
    t = np.size(record.rewards)
    seen, goals = trees.observe(record.observations, space, env_id, where)
    if len(seen) != t + 1:
        raise DataError(f"{where}: {len(seen)} observations for {t} rewards: there must be one more, the final one")
    action = trees.numbers(record.actions, action_space, f"{where}: 'actions'")
    for name, array in (
        ("actions", action),
        ("terminations", record.terminations),
        ("truncations", record.truncations),
    ):
        if np.shape(array)[:1] != (t,) or t == 0:
            raise DataError(f"{where}: {name!r} has shape {np.shape(array)} for {t} rewards: give every step one row")
    return {
        "observations": seen[:-1],
        "final_observations": seen[-1:],
        "actions": action,
        "rewards": cols.single(record.rewards.reshape(t)),
        "terminations": cols.as_flags(record.terminations.reshape(t), f"{where}: 'terminations'"),
        "timeouts": cols.as_flags(record.truncations.reshape(t), f"{where}: 'truncations'"),
        **{name: goal[:-1] for name, goal in goals.items()},
        **trees.infos_of(record.infos, t),
    }


def _bounds(action_space: trees.Space) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Lowest and highest action of a finite Box; () of other spaces."""
    with contextlib.suppress(KeyError, TypeError, ValueError):
        low, high = (np.asarray(action_space[end], dtype=np.float64).reshape(-1) for end in ("low", "high"))
        if np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all():
            return tuple(low.tolist()), tuple(high.tolist())
    return (), ()


def _join(parts: list[Array], folder: Path, name: str) -> Array:
    kinds = sorted({(p.shape[1:], str(p.dtype)) for p in parts})
    if len(kinds) > 1:
        raise DataError(f"{folder}: {name!r} change from episode to episode, {kinds[0]} and {kinds[1]}")
    return np.concatenate(parts)


def _facts(folder: Path, about: dict[str, Any], env_id: str | None, notices: list[str]) -> Facts:
    with cols.named(f"{folder / 'metadata.json'}"):
        versions = {"minari": str(about["minari_version"])} if "minari_version" in about else {}
        for requirement in about.get("requirements") or ():
            name, exactly, version = str(requirement).partition("==")  # a range says nothing of what it was made with
            if exactly:
                versions[name.strip()] = version.strip()
        low, high = (about.get(f"ref_{end}_score") for end in ("min", "max"))
        low, high = (None if score is None else float(score) for score in (low, high))
    data_id = about.get("dataset_id")
    return Facts("minari", str(folder), env_id, data_id, versions, low, high, _checksum(folder), tuple(notices))


def _checksum(folder: Path) -> str:
    """Of the HDF5 file; of the checksums of all files where the data lie in many."""
    if (folder / "main_data.hdf5").is_file():
        return cols.sha256(folder / "main_data.hdf5")
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return hashlib.sha256("".join(map(cols.sha256, files)).encode()).hexdigest()


# folders -------------------------------------------------------------------------------------------------------------


def known_ids() -> list[str]:
    """The sets that stand in for D4RL's, and MuJoCo's own; others exist on the server."""
    found = [f"D4RL/{hand}/{kind}-v2" for hand in ("door", "hammer", "pen", "relocate") for kind in _HANDS]
    found += [f"D4RL/kitchen/{kind}-v2" for kind in ("complete", "partial", "mixed")]
    found += [f"D4RL/pointmaze/{size}{dense}-v2" for size in _MAZES for dense in ("", "-dense")]
    found += [f"D4RL/antmaze/{kind}-v1" for kind in _ANTMAZES]
    found += ["D4RL/minigrid/fourrooms-v0", "D4RL/minigrid/fourrooms-random-v0"]
    return found + [f"mujoco/{robot}/{level}-v0" for robot in _ROBOTS for level in ("simple", "medium", "expert")]


_HANDS = ("human", "cloned", "expert")
_MAZES = ("open", "umaze", "medium", "large")
_ANTMAZES = ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
_ROBOTS = ("halfcheetah", "hopper", "walker2d", "ant", "humanoid", "swimmer", "reacher", "pusher", "humanoidstandup",
           "invertedpendulum", "inverteddoublependulum")  # fmt: skip


def find(data_id: str) -> Path:
    """The folder of an id below $MINARI_DATASETS_PATH or ~/.minari/datasets, fetched where it is missing.

    The list of ids is the server's, so an id that is not known here is asked for before it is refused.
    """
    if not _ID.fullmatch(data_id):
        raise ValueError(unknown_id(data_id, known_ids()))
    root = Path(os.environ.get("MINARI_DATASETS_PATH") or "~/.minari/datasets").expanduser()
    target = root / data_id
    if (target / "data" / "metadata.json").is_file():
        return target
    try:
        _fetch(data_id, root, target)
    except Exception as error:  # the package's own, its server's and its network library's
        refused = not_here(f"data.id={data_id}", f"the folder {data_id}", root, error)
        raise (
            refused if data_id in known_ids() else ValueError(f"{refused} {unknown_id(data_id, known_ids())}")
        ) from None
    return target


def _fetch(data_id: str, root: Path, target: Path) -> None:
    """Into a folder of its own, read once, and only then moved to where it belongs."""
    try:
        import minari
    except ModuleNotFoundError:
        raise ValueError("fetching it needs the minari package: pip install 'ctrlrl[data]'") from None
    with room(root), tempfile.TemporaryDirectory(dir=root, prefix=".download-") as temporary:
        with _root_is(temporary), quiet("huggingface_hub"), contextlib.redirect_stdout(sys.stderr):
            minari.load_dataset(data_id, download=True)
        read(Path(temporary) / data_id / "data")
        target.parent.mkdir(parents=True, exist_ok=True)
        (Path(temporary) / data_id).replace(target)
        for about in Path(temporary).rglob("namespace_metadata.json"):
            kept = root / about.relative_to(temporary)
            if kept.parent.is_dir() and not kept.exists():
                about.replace(kept)


@contextlib.contextmanager
def _root_is(folder: str) -> Iterator[None]:
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before

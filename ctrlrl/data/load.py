"""The one way in: any data set this library reads, recognised by what it holds, as `Episodes`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ctrlrl.data import columns as cols
from ctrlrl.data import d4rl, minari, npz, ogbench
from ctrlrl.data.columns import DataError
from ctrlrl.data.d4rl_files import id_of
from ctrlrl.data.download import unknown_id
from ctrlrl.data.episodes import Episodes
from ctrlrl.data.scores import SCORES

SOURCES: dict[str, Callable[[str], Path]] = {"d4rl": d4rl.find, "minari": minari.find, "ogbench": ogbench.find}
_KNOWN = {*d4rl.FILES, *SCORES, *ogbench.FILES, *ogbench.SINGLE_TASKS}  # Minari's, which have a "/", are open
_LAYOUTS = "D4RL (observations, actions, rewards, terminals), OGBench, roll-outs and Minari are known"


def load(path: Path, *, data_id: str | None = None) -> Episodes:
    """Episodes of a D4RL HDF5 or NPZ file, an OGBench NPZ, roll-outs, demonstrations, or a Minari folder.

    data_id: the id in its collection, where the file's name does not tell it: the reference scores and time limit of a
             D4RL file; the task of an OGBench one (`...-singletask-task2-v0`), whose rewards it adds.
    Raises ValueError, one or two lines that name the file, the column and the mend.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    folder = minari.folder_of(path) if path.is_dir() else None
    if path.is_dir() and folder is None:
        raise DataError(f"{path} is a folder without a Minari set (data/metadata.json); give the path of a file")
    if path.name == "main_data.hdf5" and (path.parent / "metadata.json").is_file():
        folder = path.parent
    episodes = minari.read(folder) if folder is not None else _file(path, data_id)
    if not episodes.usable.any():
        raise DataError(
            f"{path}: none of its {episodes.n_rows} rows can be learned from: each is a time-out or the last one"
        )
    return episodes


def find(source: str, data_id: str) -> Path:
    """Where the set of an id lies: in the collection's local folder, or there after fetching it whole.

    source: "d4rl", "minari" or "ogbench", each with the folder and the variables its own package uses.
    Raises ValueError for an unknown id, with near ones, and where the set is neither here nor to be had, with the
    folder to put it in.
    """
    if source not in SOURCES:
        raise ValueError(f"data={source} has no ids; known: {', '.join(SOURCES)}, or data=file with data.path")
    return SOURCES[source](data_id)


def _file(path: Path, data_id: str | None) -> Episodes:
    with cols.opened(path) as columns:
        names = columns.names
        missing = [key for key in ("observations", "actions", "terminals") if key not in names]
        if missing:
            raise DataError(f"{path}: no {missing[0]!r} among its columns ({cols.listed(names)}).\n{_LAYOUTS}.")
        if data_id is not None and "/" not in data_id and data_id not in _KNOWN:
            raise DataError(unknown_id(data_id, _KNOWN))
        d4rls_without_rewards = "rewards" not in names and (data_id or id_of(path.name)) in d4rl.FILES
        if ogbench.recognized(names) and not d4rls_without_rewards:
            return ogbench.read(columns, data_id)
        if "episode_ends" in names or ("next_observations" in names and "timeouts" not in names):
            return npz.read(columns, data_id)
        return d4rl.read(columns, data_id)

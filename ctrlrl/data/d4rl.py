"""D4RL files: one row a step, episodes one after another, and no last observation of an episode.

Which rows learning sees is what `d4rl.qlearning_dataset` emits, row for row: the last raw row never, a time-out never
(its next observation is the next episode's), a terminal always, and the next observation is row i + 1 even where the
file stores another. Source: arXiv:2004.07219 and the code of D4RL.

Where an episode ends is decided here:
- gym-mujoco, Adroit, Kitchen and the rest: at `terminals` or a time-out.
- AntMaze and Maze2D, known by their id or by an `infos/goal` column: at a time-out alone. AntMaze flags every row on
  the goal as terminal and the ant walks on; Maze2D's time-outs are the moments its controller was given another goal.
- the last row of the file ends an episode whatever it says.
A file without `timeouts` is cut by the task's time limit, with D4RL's own counter: after a terminal it starts at one
instead of zero, so the episode that follows is cut one row early. Parity needs the same rows, so that is kept.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctrlrl.data import columns as cols
from ctrlrl.data.columns import Columns, DataError
from ctrlrl.data.d4rl_files import ADDRESS, FILES, id_of, time_limit
from ctrlrl.data.download import download, unknown_id
from ctrlrl.data.episodes import Array, Episodes, Facts
from ctrlrl.data.following import breaks
from ctrlrl.data.scores import LOCOMOTION, reference

REQUIRED = ("observations", "actions", "rewards", "terminals")
_MANY = 0.05  # of the rows
_GYM_NAMES = {"halfcheetah": "HalfCheetah", "hopper": "Hopper", "walker2d": "Walker2d", "ant": "Ant"}


@dataclass(frozen=True)
class Cut:
    """How a row of steps falls into episodes."""

    usable: Array  # [N] bool
    ends: Array  # [E] int64


def read(columns: Columns, data_id: str | None = None) -> Episodes:
    """Episodes of an HDF5 or NPZ file with D4RL's columns.

    data_id: D4RL's id; without one the file's name may tell it. It gives the reference scores, and the time limit of a
             file without `timeouts`.
    """
    obs, action = cols.observations(columns), cols.actions(columns)
    reward, terminated = cols.scalars(columns, "rewards"), cols.flags(columns, "terminals")
    stored = {"timeouts": cols.flags(columns, "timeouts")} if "timeouts" in columns.names else {}
    n = cols.same_length(columns, observations=obs, actions=action, rewards=reward, terminals=terminated, **stored)

    data_id = data_id or named_id(columns)
    env_id = columns.text("env_id")
    maze = (data_id or "").startswith(("antmaze", "maze2d", "bullet-maze2d")) or "infos/goal" in columns.names
    final = stored["timeouts"] if stored else count_time_outs(terminated, _limit(columns.path, data_id, env_id))
    cut = split(terminated, final, past_terminals=maze)

    notices = _notices(data_id, bool(stored))
    if "next_observations" in columns.names:
        notices.append(_left_in_the_file(columns, obs, cut, data_id))
    ends = len(cut.ends)
    return Episodes(
        obs, action, reward, terminated, cut.ends,
        final_obs=np.zeros((ends, *obs.shape[1:]), obs.dtype), has_final=np.zeros(ends, bool), usable=cut.usable,
        extras=stored | cols.further(columns, n, {*REQUIRED, "timeouts", "next_observations"}),
        episode_extras={}, facts=facts(columns, "d4rl", data_id=data_id, env_id=env_id, notices=notices),
    )  # fmt: skip


def split(terminated: Array, final: Array, *, past_terminals: bool) -> Cut:
    """The rows `qlearning_dataset` emits, and the episodes they come from.

    terminated, final: [N] bool; final marks a time-out.
    past_terminals:    an episode goes on after a terminal row.
    """
    usable = ~final
    usable[-1] = False
    border = final.copy() if past_terminals else final | terminated
    border[-1] = True
    return Cut(usable, np.flatnonzero(border) + 1)


def count_time_outs(terminated: Array, limit: int) -> Array:
    """[N] bool: the rows that D4RL takes for time-outs where the file names none. limit: steps of an episode."""
    final = np.zeros(len(terminated), bool)
    step = 0
    for row, over in enumerate(terminated.tolist()):
        if step == limit - 1:
            final[row], step = True, 0
        else:
            step = 1 if over else step + 1
    return final


def named_id(columns: Columns) -> str | None:
    """D4RL's id where the file is called by it, unless the file says that it is of another simulator."""
    found, env_id = id_of(columns.path.name), columns.text("env_id")
    return found if found is not None and env_id in (None, _gym_id(found)) else None


def _gym_id(data_id: str | None) -> str | None:
    task = (data_id or "").split("-")[0]
    return f"{_GYM_NAMES[task]}-v2" if task in LOCOMOTION else None


def facts(
    columns: Columns,
    kind: str,
    *,
    data_id: str | None,
    env_id: str | None,
    notices: list[str],
    versions: dict[str, str] | None = None,
) -> Facts:
    """What the file, its id and its simulator tell. env_id: "A ~ B" was made in A, another simulator of B's task.

    Where A is B with other dynamics, "B with gravity_scale=2", its returns are another robot's and have no score.
    """
    if env_id is None and (env_id := _gym_id(data_id)) is not None:
        versions = {"mujoco": "1.50"}
    origin, _, same_task = (env_id or "").partition(" ~ ")
    if same_task:
        env_id, notices = same_task, [*notices, f"made in {origin}, which plays the task of {same_task}"]
    changed = bool(same_task) and origin.startswith(f"{env_id} with ")
    low, high = (None if changed else reference(data_id) or reference(env_id)) or (None, None)
    return Facts(
        kind, str(columns.path), env_id, data_id, versions or {}, low, high, cols.sha256(columns.path), tuple(notices),
        origin=origin if same_task else None,
    )  # fmt: skip


def _limit(path: Path, data_id: str | None, env_id: str | None) -> int:
    """Steps of an episode in a file that flags no time-outs."""
    known = [time_limit(name) for name in (data_id, env_id) if name is not None]
    if env_id is not None:
        known.append(_registered_limit(env_id))
    limit = next((steps for steps in known if steps), None)
    if limit is None:
        raise DataError(
            f"{path}: no 'timeouts' column, and the time limit of its task is unknown: set data.id to its D4RL id, or "
            "store 'timeouts' (all False where only terminals end an episode)"
        )
    return limit


def _registered_limit(env_id: str) -> int | None:
    import gymnasium

    try:
        return gymnasium.spec(env_id).max_episode_steps
    except gymnasium.error.Error:
        return None


def _notices(data_id: str | None, has_time_outs: bool) -> list[str]:
    found = []
    if not has_time_outs:
        found.append("no 'timeouts': episodes cut at the task's time limit, counted as D4RL counts")
    if data_id and data_id.startswith("antmaze") and data_id.endswith("-v0"):
        found.append("AntMaze v0 has wrong time-outs: some transitions cross episodes; v2 corrects them")
    return found


def _left_in_the_file(columns: Columns, obs: Array, cut: Cut, data_id: str | None) -> str:
    """What to know of `next_observations`; DataError where they tell that rows are in no order, but for D4RL's own."""
    notice = "'next_observations' is left in the file: as in D4RL's loader, row i + 1 follows row i"
    following = cols.observations(columns, "next_observations")
    if following.shape != obs.shape:
        return notice
    inside = cut.usable.copy()
    inside[cut.ends - 1] = False
    other = int((breaks(obs, following) & inside).sum())
    if other > _MANY * inside.sum() and data_id not in FILES:
        raise DataError(
            f"{columns.path}: in {other:,} of {int(inside.sum()):,} rows inside episodes 'next_observations' is not "
            "the following row, so the rows are in no order: leave 'timeouts' out, and they are read as transitions"
        )
    return f"{notice}; in {other:,} rows it is another" if other else notice


def find(data_id: str) -> Path:
    """The file of an id in $D4RL_DATASET_DIR or ~/.d4rl/datasets, fetched where it is not there yet."""
    if data_id not in FILES:
        raise ValueError(unknown_id(data_id, FILES))
    folder = Path(os.environ.get("D4RL_DATASET_DIR") or "~/.d4rl/datasets").expanduser()
    name = FILES[data_id].rpartition("/")[2]
    for known in (name, f"{data_id}.hdf5", f"{data_id}.npz"):
        if (folder / known).is_file():
            return folder / known
    return download(f"{ADDRESS}/{FILES[data_id]}", folder / name, _is_d4rl, key=f"data.id={data_id}")


def _is_d4rl(path: Path) -> None:
    with cols.opened(path) as columns:
        missing = [key for key in REQUIRED if key not in columns.names]
        if missing:
            raise DataError(f"{path}: no {missing[0]!r} among its columns ({cols.listed(columns.names)})")

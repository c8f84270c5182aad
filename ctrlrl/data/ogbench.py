"""OGBench files: T + 1 states a trajectory, the last with a dummy action; rewards only where a single task is named.

The regular view of `ogbench.load_dataset`, row for row: rows whose stored `terminals` is 0; an episode ends where the
trajectory does. Such a file has no rewards. A `...-singletask[-taskK]-v0` id adds that task's: -1 a step, or minus the
number of unsolved sub-goals, judged on the state that a row starts from. `terminated` (their masks = 0) then marks the
rows where the task is solved, which end no episode: the collector knew no task and went on.
A file with `rewards` and `masks` columns of its own, of the same T + 1 rows, is read the same way. So are the two views
that the package makes of such a file, saved: the compact one, whose last states are those with `valids` 0, and the
regular one, T rows a trajectory with `next_observations`, `terminals` at the last of them.
Source: arXiv:2410.20092 and the code of ogbench 1.2.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ctrlrl.data import columns as cols
from ctrlrl.data.columns import Columns, DataError
from ctrlrl.data.d4rl import facts, named_id
from ctrlrl.data.download import not_here, room, unknown_id
from ctrlrl.data.episodes import Array, Episodes
from ctrlrl.data.following import agrees, next_observations

_TAKEN = {"observations", "actions", "terminals", "rewards", "masks", "env_id", "valids", "next_observations"}
_NEAR = 0.04  # m, of a cube, drawer or window to its target
_OBJECTS, _CUBE = 14, 7  # qpos: where objects begin, and numbers a cube
_BALL = 15


def _ids() -> tuple[str, ...]:
    sizes = ("medium", "large", "giant", "teleport")
    runs = [
        f"{robot}-{size}-{how}"
        for robot in ("pointmaze", "antmaze")
        for size in sizes
        for how in ("navigate", "stitch")
    ]
    runs += [f"antmaze-{size}-explore" for size in ("medium", "large", "teleport")]
    runs += [f"humanoidmaze-{size}-{how}" for size in sizes[:3] for how in ("navigate", "stitch")]
    runs += [f"antsoccer-{field}-{how}" for field in ("arena", "medium") for how in ("navigate", "stitch")]
    boards = [f"cube-{n}" for n in ("single", "double", "triple", "quadruple")] + ["scene"]
    boards += [f"puzzle-{size}" for size in ("3x3", "4x4", "4x5", "4x6")]
    runs += [f"{board}-{how}" for board in boards for how in ("play", "noisy")]
    runs += [f"visual-{run}" for run in runs if not run.startswith(("pointmaze", "antsoccer"))]
    return (*(f"{run}-v0" for run in runs), *(f"powderworld-{level}-play-v0" for level in ("easy", "medium", "hard")))


FILES = _ids()
SINGLE_TASKS = tuple(
    name.removesuffix("-v0") + f"-singletask{task}-v0"
    for name in FILES
    if not name.startswith("powderworld")
    for task in ("", *(f"-task{k}" for k in range(1, 6)))
)


class Goal(NamedTuple):
    """What a single task asks for; None where the simulator has no such thing. Lengths in m."""

    xy: Array | None = None  # [2] of the robot or the ball
    tolerance: float = 0.5
    cubes: Array | None = None  # [C, 3]
    buttons: Array | None = None  # [K]
    drawer: float | None = None
    window: float | None = None


def recognized(names: tuple[str, ...]) -> bool:
    """OGBench's columns: `terminals` where trajectories end, so no rewards, or rewards with masks."""
    held = set(names)
    other = held & {"episode_ends", "timeouts"}
    return "terminals" in held and not other and ("rewards" not in held or "masks" in held)


def read(columns: Columns, data_id: str | None = None) -> Episodes:
    """Episodes of a file. data_id: OGBench's id; a single-task one adds rewards and needs the ogbench package.

    A file with rewards of its own may have D4RL's id, for its reference scores.
    """
    stem, own = columns.path.stem.removesuffix("-val"), {*FILES, *SINGLE_TASKS}
    data_id = data_id or (stem if stem in own else named_id(columns))
    if data_id is not None and data_id not in own and "rewards" not in columns.names:
        raise ValueError(unknown_id(data_id, own))
    obs, action = cols.observations(columns), cols.actions(columns)
    last = ~cols.flags(columns, "valids") if "valids" in columns.names else cols.flags(columns, "terminals")
    given = {name: cols.scalars(columns, name) for name in ("rewards", "masks") if name in columns.names}
    n = cols.same_length(columns, observations=obs, actions=action, terminals=last, **given)
    if not last[-1]:
        raise DataError(
            f"{columns.path}: the last row has terminals = 0, but the last state of a trajectory has 1: cut off? "
            "(Without 'rewards' a file is read as OGBench's.)"
        )
    if "next_observations" in columns.names:
        keep, ends, final_obs = _steps(columns, obs, last)
    else:
        keep, ends, final_obs = _states(columns, obs, last)

    extras = {name: column[keep] for name, column in cols.further(columns, n, _TAKEN).items()}
    reward, terminated, notices = _task(columns, data_id, keep, extras)
    if columns.path.stem.endswith("-val"):
        notices.append("the validation part of its set")
    known = facts(
        columns, "ogbench", data_id=data_id, notices=notices,
        env_id=columns.text("env_id") or (f"ogbench:{environment(data_id)}" if data_id in own else None),
    )  # fmt: skip
    rewarded = "rewards" in columns.names or "singletask" in (data_id or "")
    return Episodes(
        obs[keep], action[keep], reward, terminated, ends,
        final_obs=final_obs, has_final=np.ones(len(ends), bool), usable=np.ones(len(reward), bool),
        extras=extras, episode_extras={},
        facts=replace(known, has_rewards=rewarded),
    )  # fmt: skip


def _states(columns: Columns, obs: Array, last: Array) -> tuple[Array, Array, Array]:
    """T + 1 rows a trajectory: [N] bool rows that are steps, [E] ends among them, [E, O] last observations."""
    bounds = np.flatnonzero(last)
    lengths = np.diff(bounds, prepend=-1) - 1
    if not lengths.any():
        raise DataError(f"{columns.path}: every row is the last state of a trajectory; none is a step")
    walked = lengths > 0
    return ~last, np.cumsum(lengths[walked]).astype(np.int64), obs[bounds[walked]]


def _steps(columns: Columns, obs: Array, last: Array) -> tuple[Array, Array, Array]:
    """T rows a trajectory, the regular view: the same, and no row is lost."""
    following, bounds = next_observations(columns, obs), np.flatnonzero(last)
    agrees(
        columns, obs, following, bounds + 1, "give rows in order; in no order, leave 'masks' out: terminals = 1 - masks"
    )
    return np.ones(len(obs), bool), bounds + 1, following[bounds]


def _task(
    columns: Columns, data_id: str | None, keep: Array, extras: dict[str, Array]
) -> tuple[Array, Array, list[str]]:
    """[N] rewards, [N] where no bootstrap follows, and notices."""
    if data_id is not None and "singletask" in data_id:
        needed = ["qpos"] * ("puzzle" not in data_id) + ["button_states"] * ("puzzle" in data_id or "scene" in data_id)
        missing = [key for key in needed if key not in extras]
        if missing:
            raise DataError(f"{columns.path}: no {missing[0]!r}, which the rewards of data.id={data_id} are made from")
        goal = goal_of(data_id)
        with cols.named(f"{columns.path}: the rewards of data.id={data_id}"):
            reward, terminated = task_reward(solved(data_id, extras, goal))
        return reward, terminated, []
    if "rewards" in columns.names:
        return cols.scalars(columns, "rewards")[keep], ~cols.flags(columns, "masks")[keep], []
    none = np.zeros(int(keep.sum()), np.float32)
    named = f"{data_id.removesuffix('-v0')}-singletask-v0" if data_id else "an id like ...-singletask-v0"
    return none, none != 0, [f"the file has no rewards: all are 0; data.id={named} gives its task's"]


def environment(data_id: str) -> str:
    """The name of the environment: the id without the word for how the data was collected."""
    words = data_id.split("-")
    at = words.index("singletask") if "singletask" in words else len(words) - 1
    return "-".join(words[: at - 1] + words[at:])


# rewards of a single task --------------------------------------------------------------------------------------------


def task_reward(met: Array) -> tuple[Array, Array]:
    """met [N, k] bool, of each sub-goal -> [N] float32 number solved minus k, and [N] bool where all are."""
    return (met.sum(axis=1) - met.shape[1]).astype(np.float32), np.asarray(met.all(axis=1))


def solved(data_id: str, state: dict[str, Array], goal: Goal) -> Array:
    """[N, k] bool: which sub-goals hold in each state: `qpos` [N, D] and, with buttons, `button_states` [N, K]."""
    if "maze" in data_id:
        return _within(state["qpos"][:, :2], goal.xy, goal.tolerance)
    if "soccer" in data_id:
        return _within(state["qpos"][:, _BALL : _BALL + 2], goal.xy, goal.tolerance)
    found = []
    n_cubes = 0 if goal.cubes is None else len(goal.cubes)
    if goal.cubes is not None:
        at = [_OBJECTS + i * _CUBE for i in range(n_cubes)]
        places = np.stack([state["qpos"][:, i : i + 3] for i in at], axis=1)
        found.append(np.linalg.norm(goal.cubes - places, axis=-1) <= _NEAR)
    if goal.buttons is not None:
        found.append(state["button_states"] == goal.buttons)
    if goal.drawer is not None and goal.window is not None:
        slides = _OBJECTS + n_cubes * _CUBE + (0 if goal.buttons is None else len(goal.buttons))
        found.append(np.abs(state["qpos"][:, slides : slides + 2] - (goal.drawer, goal.window)) <= _NEAR)
    return np.concatenate(found, axis=1)


def _within(places: Array, goal: Array | None, tolerance: float) -> Array:
    return (np.linalg.norm(places - goal, axis=-1) <= tolerance)[:, None]


def goal_of(data_id: str) -> Goal:
    """What the task of a single-task id asks for, from the environment of the ogbench package (seconds for an arm)."""
    package = _package(f"data.id={data_id}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the precision of its action space
        env = package.make_env_and_datasets(data_id.removeprefix("visual-"), env_only=True)
        env.reset()
    goal = goal_in(env.unwrapped, data_id)
    env.close()
    return goal


def goal_in(sim: Any, data_id: str) -> Goal:
    """sim: the unwrapped environment, after a reset."""
    if "maze" in data_id or "soccer" in data_id:
        return Goal(xy=np.array(sim.cur_goal_xy), tolerance=float(sim._goal_tol))
    cubes = None if "puzzle" in data_id else sim._data.mocap_pos.copy()
    buttons = None if "cube" in data_id else sim._target_button_states.copy()
    if "scene" not in data_id:
        return Goal(cubes=cubes, buttons=buttons)
    return Goal(None, 0.0, cubes, buttons, float(sim._target_drawer_pos), float(sim._target_window_pos))


def _package(where: str) -> Any:
    try:
        import ogbench
    except ModuleNotFoundError:
        raise ValueError(
            f"{where} needs the ogbench package: pip install 'ctrlrl[ogbench]', with Python 3.11 or 3.12"
        ) from None
    return ogbench


# files ---------------------------------------------------------------------------------------------------------------


def find(data_id: str) -> Path:
    """The training file of an id in ~/.ogbench/data, fetched with its validation part where it is not there yet."""
    if data_id not in FILES and data_id not in SINGLE_TASKS:
        raise ValueError(unknown_id(data_id, (*FILES, *SINGLE_TASKS)))
    name = data_id.partition("-singletask")[0].removesuffix("-v0") + "-v0"
    folder = Path("~/.ogbench/data").expanduser()
    target = folder / f"{name}.npz"
    if target.is_file():
        return target
    key = f"data.id={data_id}"
    try:
        package = _package("fetching it")
        with room(folder), tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as temporary:
            with contextlib.redirect_stdout(sys.stderr):
                package.download_datasets([name], temporary)
            parts = [Path(temporary) / f"{name}{part}.npz" for part in ("-val", "")]
            for part in parts:
                with cols.opened(part) as columns:
                    read(columns)
            for part in parts:
                os.replace(part, folder / part.name)
    except (OSError, ValueError, HTTPException) as error:
        raise not_here(key, target.name, folder, error) from None
    return target

"""Roll-outs, demonstrations and transitions: files that say where episodes end, or which observation follows each row.

Roll-outs: D4RL's columns with `episode_ends` [E] (exclusive), and `final_observations` [E, O] (with
`has_final_observation` [E] where some are missing) or `next_observations` [N, O]. Every row is used, a time-out too. A
file with neither (demonstrations) loses the last row of each episode that no terminal ends.
Transitions: D4RL's columns with `next_observations` and without `timeouts`, in any order. An episode ends where the
stored next observation is not the following row, and at terminals; where that is nearly everywhere, `Facts.in_order`
is false, and what is learned from whole episodes is refused.

Optional in both: `env_id`, one string; `versions`, strings like "mujoco==4.0.0"; `episode_*` and `init_*` [E, ...]; any
other column of N rows. NPZ and HDF5 alike.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ctrlrl.data import columns as cols
from ctrlrl.data.columns import Columns, DataError
from ctrlrl.data.d4rl import REQUIRED, facts, named_id
from ctrlrl.data.episodes import Array, Episodes
from ctrlrl.data.following import agrees, breaks, next_observations

_TAKEN = {
    *REQUIRED,
    "timeouts",
    "next_observations",
    "final_observations",
    "has_final_observation",
    "env_id",
    "versions",
}


def read(columns: Columns, data_id: str | None = None) -> Episodes:
    data_id = data_id or named_id(columns)
    obs, action = cols.observations(columns), cols.actions(columns)
    reward, terminated = cols.scalars(columns, "rewards"), cols.flags(columns, "terminals")
    stored = {"timeouts": cols.flags(columns, "timeouts")} if "timeouts" in columns.names else {}
    given = {"observations": obs, "actions": action, "rewards": reward, "terminals": terminated, **stored}
    n = cols.same_length(columns, **given)
    following = next_observations(columns, obs) if "next_observations" in columns.names else None

    in_order = True
    if "episode_ends" in columns.names:
        ends = _ends(columns, n)
        if following is not None:
            agrees(columns, obs, following, ends, "correct 'episode_ends', or leave it out")
    else:
        assert following is not None
        # past the goal, whose rows are terminal
        walks_on = (data_id or "").startswith("antmaze") or "infos/goal" in columns.names
        broken = breaks(obs, following)
        ends = np.flatnonzero(broken | (terminated & (not walks_on))) + 1
        going_on = ~terminated[:-1]
        in_order = 2 * int(broken[:-1][going_on].sum()) <= int(going_on.sum())
    final_obs, has_final = _final(columns, obs, following, ends)

    usable = np.ones(n, bool)
    last = ends - 1
    usable[last] = has_final | terminated[last]
    episode_extras = _per_episode(columns, len(ends)) if "episode_ends" in columns.names else {}
    kind = "adroit" if {"init_qpos", "init_qvel"} <= set(columns.names) else "rollouts"
    return Episodes(
        obs, action, reward, terminated, ends, final_obs, has_final, usable,
        extras=stored | cols.further(columns, n, _TAKEN), episode_extras=episode_extras,
        facts=replace(facts(
            columns, kind, data_id=data_id, env_id=columns.text("env_id"), versions=_versions(columns),
            notices=_notices(columns, ends, usable, in_order=in_order),
        ), in_order=in_order),
    )  # fmt: skip


def _ends(columns: Columns, n: int) -> Array:
    ends = columns.read("episode_ends")
    whole = ends.dtype.kind in "iu" and ends.ndim == 1 and len(ends) > 0
    if not whole or ends[0] < 1 or int(ends[-1]) != n or (np.diff(ends.astype(np.int64)) < 1).any():
        raise DataError(f"{columns.path}: 'episode_ends' must rise from at least 1 to the number of rows, {n}")
    return ends.astype(np.int64)


def _final(columns: Columns, obs: Array, following: Array | None, ends: Array) -> tuple[Array, Array]:
    """[E, O] last observation of each episode, and [E] whether it is known."""
    known = np.ones(len(ends), bool)
    if following is not None:
        return following[ends - 1], known
    if "final_observations" not in columns.names:
        return np.zeros((len(ends), *obs.shape[1:]), obs.dtype), ~known
    final = cols.observations(columns, "final_observations")
    if final.shape != (len(ends), *obs.shape[1:]):
        wanted = (len(ends), *obs.shape[1:])
        raise DataError(f"{columns.path}: 'final_observations' must be {wanted}, one row an episode, got {final.shape}")
    if "has_final_observation" in columns.names:
        known = cols.flags(columns, "has_final_observation")
        if len(known) != len(ends):
            raise DataError(f"{columns.path}: 'has_final_observation' has {len(known)} rows for {len(ends)} episodes")
    return final, known


def _per_episode(columns: Columns, n: int) -> dict[str, Array]:
    found = {}
    for key in sorted(columns.names):
        if key.startswith(("episode_", "init_")) and key != "episode_ends":
            array = columns.read(key)
            if array.ndim == 0 or len(array) != n:
                raise DataError(f"{columns.path}: {key!r} has shape {array.shape}: give each of {n} episodes one row")
            found[key] = array
    return found


def _versions(columns: Columns) -> dict[str, str]:
    if "versions" not in columns.names:
        return {}
    pairs = [str(text).partition("==") for text in np.atleast_1d(columns.read("versions"))]
    return {name: version for name, _, version in pairs}


def _notices(columns: Columns, ends: Array, usable: Array, *, in_order: bool) -> list[str]:
    found = []
    if not in_order:
        found.append("its rows are in no order ('next_observations' are not the following rows): each stands alone")
    elif "episode_ends" not in columns.names:
        found.append(f"{len(ends)} episodes, told by where 'next_observations' is not the following row")
    lost = int((~usable).sum())
    if lost:
        found.append(f"{lost} rows are not learned from: the observation after them is not in the file")
    return found

"""A data set as a new file or folder in any layout; what a layout cannot hold comes back, a line for each thing.

Writers take a path where nothing is; a caller that must not leave half a file gives a temporary one and renames it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ctrlrl.data.episodes import Array, Episodes
from ctrlrl.data.scores import reference
from ctrlrl.data.write_states import new_hdf5, save_npz, time_outs, write_minari, write_ogbench

_GOALS = "infos/goal"  # the column by which D4RL files tell that their episodes go on after a terminal row


class Layout(NamedTuple):
    write: Callable[[Episodes, Path, str], list[str]]
    endings: tuple[str, ...]  # of file names; () = a folder


def layout_of(out: Path, asked: str | None) -> str:
    """The layout of a new file, as asked or by its ending; ValueError where the two do not go together."""
    name = asked or _BY_ENDING.get(out.suffix, "")
    if name not in LAYOUTS:
        known = f"format must be {', '.join(LAYOUTS)}"
        raise ValueError(f"{known}, got {asked!r}" if asked else f"out={out}: its ending tells no format; {known}")
    endings = LAYOUTS[name].endings
    if endings and out.suffix not in endings:
        raise ValueError(f"out={out}: format={name} needs a name that ends in {' or '.join(endings)}")
    if not endings and _BY_ENDING.get(out.suffix, name) != name:
        raise ValueError(f"out={out}: format={name} is a folder; leave {out.suffix} away")
    return name


def write(episodes: Episodes, path: Path, layout: str, *, name: str) -> list[str]:
    """name: what the file or folder will be called, which becomes the id of a Minari set."""
    facts, lost = episodes.facts, []
    if not facts.has_rewards and layout != "ogbench":
        lost.append("that it has no rewards: zeros stand in their place, and methods that need rewards take them")
    if not facts.in_order and layout in ("ogbench", "minari"):
        lost.append("that its rows are in no order: they come back as episodes of one step")
    if layout != "minari":  # which alone has places for them
        unit = episodes.unit_actions()
        if unit is not episodes.action:
            box = f"{min(facts.action_low):g} ... {max(facts.action_high):g}"
            lost.append(f"the actions' box, {box}: they are scaled from it to [-1, 1]")
            episodes = replace(episodes, action=unit, facts=replace(facts, action_low=(), action_high=()))
        if facts.ref_min is not None and reference(facts.env_id) != (facts.ref_min, facts.ref_max):
            lost.append("the returns that score 0 and 100")
    return LAYOUTS[layout].write(episodes, path, name) + lost


def _rollouts(episodes: Episodes, path: Path, name: str) -> list[str]:
    if not episodes.facts.in_order:
        save_npz(path, _transitions(episodes) | _versions(episodes))
        return []
    arrays = _columns(episodes) | _versions(episodes) | {"episode_ends": episodes.ends}
    if episodes.has_final.any():
        arrays["final_observations"] = episodes.final_obs
    if episodes.has_final.any() and not episodes.has_final.all():
        arrays["has_final_observation"] = episodes.has_final
    save_npz(path, arrays | episodes.episode_extras)
    last, usable = episodes.ends - 1, np.ones(episodes.n_rows, dtype=bool)
    usable[last] = episodes.has_final | episodes.terminated[last]
    n_changed = int((usable != episodes.usable).sum())
    return [f"which rows learning leaves out: {n_changed:,} differ"] if n_changed else []


def _d4rl(episodes: Episodes, path: Path, name: str) -> list[str]:
    lost = ["the simulator's version"] if episodes.facts.versions else []
    if not episodes.facts.in_order:
        _save(path, _transitions(episodes))
        return [*lost, "that its rows are in no order, for D4RL's own loader, which takes row i + 1 for row i's next"]
    arrays = _columns(episodes)
    arrays["timeouts"] = unusable = time_outs(episodes).copy()
    last = episodes.ends[:-1] - 1  # the file's last row ends an episode whatever it says
    unusable[last] |= ~episodes.terminated[last]
    if episodes.has_final.all():
        arrays["next_observations"] = episodes.next_obs()
    _save(path, arrays)
    n_unusable = int((unusable[:-1] & episodes.usable[:-1]).sum() + episodes.usable[-1])
    if n_unusable:
        lost.append(
            f"{n_unusable:,} rows for learning: its loader leaves out the last of each time-out and of the file"
        )
    inside = episodes.terminated.copy()
    inside[episodes.ends - 1] = False
    joined = int((episodes.terminated[last] & ~unusable[last]).sum())
    if inside.any() and _GOALS not in arrays:
        lost.append(f"that episodes go on after a terminal: its loader ends one at each of {inside.sum():,} rows")
    if joined and _GOALS in arrays:
        lost.append(f"the ends of {joined:,} episodes at a terminal: beside {_GOALS} its loader ends them at time-outs")
    if episodes.episode_extras:
        lost.append(f"columns with a value an episode: {', '.join(episodes.episode_extras)}")
    return lost


def _save(path: Path, arrays: Mapping[str, Array]) -> None:
    if path.suffix == ".npz":
        save_npz(path, arrays)
        return
    with new_hdf5(path) as file:
        for key, array in arrays.items():
            file.create_dataset(key, data=str(array) if array.dtype.kind == "U" else array)


def _transitions(episodes: Episodes) -> dict[str, Array]:
    """Of rows in no order: each with what followed it, and no word of episodes."""
    columns = _columns(episodes) | {"next_observations": episodes.next_obs()}
    del columns["timeouts"]
    return columns


def _versions(episodes: Episodes) -> dict[str, Array]:
    found = [f"{package}=={version}" for package, version in episodes.facts.versions.items()]
    return {"versions": np.array(found)} if found else {}


def _columns(episodes: Episodes) -> dict[str, Array]:
    """What both flat layouts call the same."""
    own = {
        "observations": episodes.obs,
        "actions": episodes.action,
        "rewards": episodes.reward,
        "terminals": episodes.terminated,
        "timeouts": time_outs(episodes),
    }
    simulator = episodes.facts.simulator
    named: Mapping[str, Array] = {} if simulator is None else {"env_id": np.array(simulator)}
    return {**episodes.extras, **own, **named}


LAYOUTS = {
    "rollouts": Layout(_rollouts, (".npz",)),
    "d4rl": Layout(_d4rl, (".hdf5", ".h5", ".npz")),
    "ogbench": Layout(write_ogbench, (".npz",)),
    "minari": Layout(write_minari, ()),
}
_BY_ENDING = {".npz": "rollouts", ".hdf5": "d4rl", ".h5": "d4rl", "": "minari"}

"""The layouts that store T + 1 observations an episode of T steps: OGBench's files and Minari's folders."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ctrlrl.data.episodes import Array, Episodes

_MINARI_FORMAT = "0.5.3"  # the version whose layout is written
_INFOS = "infos/"


def time_outs(episodes: Episodes) -> Array:
    """[N] bool: as the file said, else the last rows of the episodes that no terminal ends."""
    if "timeouts" in episodes.extras:
        return episodes.extras["timeouts"]
    last, found = episodes.ends - 1, np.zeros(episodes.n_rows, dtype=bool)
    found[last] = ~episodes.terminated[last]
    return found


def with_final_obs(episodes: Episodes) -> tuple[Episodes, list[str]]:
    """The same with a last observation in every episode, and what that costs, a line each.

    Where it is not known, a terminal row keeps its own observation in its place, which no method reads, and the last
    row of any other episode gives its observation and is no step any more.
    """
    last, missing = episodes.ends - 1, ~episodes.has_final
    if not missing.any():
        return episodes, []
    cut = missing & ~episodes.terminated[last]
    again = missing & ~cut
    keep = np.ones(episodes.n_rows, dtype=bool)
    keep[last[cut]] = False
    final_obs = episodes.final_obs.copy()
    final_obs[missing] = episodes.obs[last[missing]]
    lengths = episodes.lengths() - cut
    there = lengths > 0
    if not there.any():
        raise ValueError(f"{episodes.facts.path}: no episode has two observations, so there is no step to write")
    rows = {name: getattr(episodes, name)[keep] for name in ("obs", "action", "reward", "terminated", "usable")}
    lost = []
    if cut.any():
        lost.append(f"the last step of {cut.sum():,} episodes: the observation after it is not known")
    if again.any():
        lost.append(f"that the observation after {again.sum():,} terminal rows is not known: their own stands there")
    return replace(
        episodes,
        **rows,
        ends=np.cumsum(lengths[there]).astype(np.int64),
        final_obs=final_obs[there],
        has_final=np.ones(int(there.sum()), dtype=bool),
        extras={name: column[keep] for name, column in episodes.extras.items()},
        episode_extras={name: column[there] for name, column in episodes.episode_extras.items()},
    ), lost


# OGBench -------------------------------------------------------------------------------------------------------------


def write_ogbench(episodes: Episodes, path: Path, name: str) -> list[str]:
    """An NPZ whose `terminals` mark last states, each with a dummy action; `rewards` and `masks` stand beside them."""
    episodes, lost = with_final_obs(episodes)
    n, e = episodes.n_rows, episodes.n_episodes
    state = np.arange(n) + np.repeat(np.arange(e), episodes.lengths())  # where a row comes to lie
    dummy = episodes.ends + np.arange(e)

    def spread(rows: Array, last: Array) -> Array:
        out = np.empty((n + e, *rows.shape[1:]), rows.dtype)
        out[state], out[dummy] = rows, last
        return out

    ends = episodes.ends - 1
    arrays = {
        "observations": spread(episodes.obs, episodes.final_obs),
        "actions": spread(episodes.action, np.zeros_like(episodes.action[ends])),
        "terminals": spread(np.zeros(n, dtype=bool), np.ones(e, dtype=bool)),
    }
    if episodes.facts.has_rewards:
        arrays["rewards"] = spread(episodes.reward, np.zeros(e, dtype=np.float32))
        arrays["masks"] = spread(~episodes.terminated, np.ones(e, dtype=bool))
        lost.append("rewards and masks for ogbench's own loader, which reads neither; ctrlrl's does")
    extras = {k: v for k, v in episodes.extras.items() if k != "timeouts"}
    arrays |= {k: spread(v, v[ends]) for k, v in extras.items()}
    if episodes.facts.simulator is not None:
        arrays["env_id"] = np.array(episodes.facts.simulator)
    save_npz(path, arrays)
    if episodes.facts.versions:
        lost.append("the simulator's version")
    if episodes.episode_extras:
        lost.append(f"columns with a value an episode: {', '.join(episodes.episode_extras)}")
    return lost


# Minari --------------------------------------------------------------------------------------------------------------


def write_minari(episodes: Episodes, path: Path, name: str) -> list[str]:
    """A folder with data/metadata.json and data/main_data.hdf5, a group an episode; its id is the folder's name."""
    episodes, lost = with_final_obs(episodes)
    facts, cut, last = episodes.facts, time_outs(episodes).copy(), episodes.ends - 1
    cut[last] |= ~episodes.terminated[last]  # a set may have lost the rows that said so
    folder = path / "data"
    folder.mkdir(parents=True)
    infos = {k.removeprefix(_INFOS): v for k, v in episodes.extras.items() if k != "timeouts"}
    seeds = episodes.episode_extras.get("episode_seed")
    with new_hdf5(folder / "main_data.hdf5", track_order=True) as file:
        for number, (begin, end) in enumerate(zip(episodes.starts(), episodes.ends, strict=True)):
            rows = slice(int(begin), int(end))
            group = file.create_group(f"episode_{number}")
            group.attrs["id"], group.attrs["total_steps"] = number, int(end - begin)
            if seeds is not None:
                group.attrs["seed"] = int(seeds[number])
            group["observations"] = np.concatenate((episodes.obs[rows], episodes.final_obs[number, None]))
            group["actions"], group["rewards"] = episodes.action[rows], episodes.reward[rows]
            group["terminations"], group["truncations"] = episodes.terminated[rows], cut[rows]
            for key, column in infos.items():
                group[_INFOS + key] = column[rows]
    size = (folder / "main_data.hdf5").stat().st_size / 1e6
    spec = None if facts.env_id is None else _env_spec(facts.env_id)
    about: dict[str, Any] = {
        "total_episodes": episodes.n_episodes,
        "total_steps": episodes.n_rows,
        "data_format": "hdf5",
        "jpeg_encoding": False,
        "observation_space": _space(episodes.obs, None),
        "action_space": _space(episodes.action, _box(episodes)),
        "dataset_id": name if re.search(r"-v\d+$", name) else f"{name}-v0",
        "minari_version": _MINARI_FORMAT,
        "dataset_size": round(size, 1),
        "requirements": [f"{package}=={version}" for package, version in facts.versions.items() if package != "minari"],
    }
    more = {"env_spec": spec, "ref_min_score": facts.ref_min, "ref_max_score": facts.ref_max}
    about |= {k: v for k, v in more.items() if v is not None}
    (folder / "metadata.json").write_text(json.dumps(about))
    if facts.env_id is not None and spec is None:
        lost.append(f"the environment's id, {facts.env_id}, which Gymnasium does not take")
    if facts.origin is not None:
        lost.append(f"that it was made in {facts.origin}")
    renamed = [k for k in episodes.extras if k != "timeouts" and not k.startswith(_INFOS)]
    if renamed:
        lost.append(f"that {', '.join(renamed)} are no infos: they come back as {_INFOS}...")
    kept = [k for k in episodes.episode_extras if k != "episode_seed"]
    if kept:
        lost.append(f"columns with a value an episode: {', '.join(kept)}")
    return lost


def _env_spec(env_id: str) -> str | None:
    """Gymnasium's registration as JSON; of an unknown id the id alone."""
    from gymnasium import error, registry
    from gymnasium.envs.registration import EnvSpec

    try:
        return (registry.get(env_id) or EnvSpec(env_id)).to_json()
    except (error.Error, TypeError):  # not of Gymnasium's form, or made by a function, which JSON cannot hold
        return None


def _box(episodes: Episodes) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The bounds that are known of the actions, which are ±1 where these are; a stray action does not change them."""
    facts, action = episodes.facts, episodes.action
    if facts.action_low:
        return facts.action_low, facts.action_high
    return ((-1.0,), (1.0,)) if (action >= -1.0).all() and (action <= 1.0).all() else None


def _space(values: Array, bounds: tuple[tuple[float, ...], tuple[float, ...]] | None) -> str:
    """A Gymnasium space as Minari serialises it. bounds: of a Box; None where there are none."""
    if values.dtype == np.int64:
        return json.dumps({"type": "Discrete", "dtype": "int64", "start": 0, "n": int(values.max()) + 1})
    shape = values.shape[1:]
    low, high = (np.full(shape, end) for end in ((0, 255) if values.dtype == np.uint8 else (-np.inf, np.inf)))
    if bounds is not None:
        low, high = (np.broadcast_to(end, shape) for end in bounds)
    box = {"type": "Box", "dtype": str(values.dtype), "shape": list(shape)}
    return json.dumps(box | {"low": low.tolist(), "high": high.tolist()})


# files ---------------------------------------------------------------------------------------------------------------


def save_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    with open(path, "xb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


@contextmanager
def new_hdf5(path: Path, **options: Any) -> Iterator[Any]:
    """An open new h5py.File."""
    try:
        import h5py
    except ImportError:
        raise ValueError(f"{path.name}: writing HDF5 needs h5py: pip install 'ctrlrl[data]'") from None
    with h5py.File(path, "x", **options) as file:
        yield file

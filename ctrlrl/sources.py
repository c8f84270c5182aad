"""From `data=...` to the data set that an offline learner samples."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from ctrlrl.config import DataConfig, EnvConfig, TrainConfig
from ctrlrl.core.learner import Learner
from ctrlrl.data.card import FEW_REWARDS
from ctrlrl.data.check import other_versions
from ctrlrl.data.dataset import Dataset, return_range
from ctrlrl.data.episodes import Episodes, Facts
from ctrlrl.data.load import find, load
from ctrlrl.data.scores import reference
from ctrlrl.data.split import mixed_rewards, of_groups
from ctrlrl.data.windows import Windows
from ctrlrl.registry import GYMNASIUM_IDS, ROBOTS
from ctrlrl.types import EnvSpec

_PACKED = Path(__file__).parent / "assets"  # in an installed wheel
ASSETS = _PACKED if _PACKED.is_dir() else Path(__file__).parent.parent / "assets"


def read_data(cfg: DataConfig) -> Episodes:
    """The data set that a configuration names; ValueError in one line where there is none."""
    if cfg.name == "none":
        raise ValueError(
            "data=none: this algorithm learns from a data set; give data=file data.path=FILE, or data=d4rl data.id=ID"
        )
    if cfg.name == "file":
        found = load_data(str(cfg.path), data_id=cfg.id, clip=cfg.clip_actions)
    else:
        found = _within_box(load(find(cfg.name, str(cfg.id)), data_id=cfg.id), cfg.clip_actions)
    if cfg.group is not None:
        found = of_groups(found, cfg.group)
    for line in (mixed_rewards(found), learned_rewards(found, cfg)):
        found = found if line is None else _noticed(found, line)
    return found


def reward_scale(cfg: DataConfig, episodes: Episodes) -> float:
    """What rewards are multiplied by before `reward_shift` is added."""
    return cfg.reward_scale * (1000.0 / return_range(episodes) if cfg.return_range else 1.0)


def learned_rewards(episodes: Episodes, cfg: DataConfig) -> str | None:
    """A line where few different rewards are transformed: -1 and 0 are another task than 0 and 1."""
    if not episodes.facts.has_rewards or not cfg.changes_rewards:
        return None
    found = np.unique(episodes.reward)
    if len(found) > FEW_REWARDS:
        return None
    learned = found * np.float32(reward_scale(cfg, episodes)) + np.float32(cfg.reward_shift)
    return f"rewards {_listed(found)} are learned as {_listed(learned)}"


def _listed(values: np.ndarray) -> str:
    return ", ".join(f"{v:g}" for v in values.tolist())


def load_data(path: str | os.PathLike[str], *, data_id: str | None = None, clip: float | None = None) -> Episodes:
    """The data set in a file or folder; a bare name that is no file here may be one that comes with ctrlrl.

    clip: where its actions are going to be clipped.
    """
    found = Path(path)
    packed = ASSETS / found.name
    source = packed if not found.exists() and found.parent == Path() and packed.exists() else found
    return _within_box(load(source, data_id=data_id), clip)


def _noticed(episodes: Episodes, line: str) -> Episodes:
    return replace(episodes, facts=replace(episodes.facts, notices=(*episodes.facts.notices, line)))


def _within_box(episodes: Episodes, clip: float | None) -> Episodes:
    """With a notice where actions without known bounds leave [-1, 1]."""
    facts, largest = episodes.facts, 0.0
    if episodes.action.dtype.kind == "f" and not facts.action_low:
        largest = float(np.abs(episodes.action).max(where=np.isfinite(episodes.action), initial=0.0))
    if largest <= 1.0 + 1e-6:
        return episodes
    cut = "data.clip_actions=1 cuts them" if clip is None else f"they are clipped to +-{clip:g}"
    return _noticed(episodes, f"actions reach {largest:.3g}, and [-1, 1] is what an environment takes; {cut}")


CACHE = ".ctrlrl"  # a folder beside a data set


def cache_folder(facts: Facts) -> Path | None:
    """Where what is computed of a data set once may lie: beside it, but not among the library's own files."""
    folder = Path(facts.path).absolute().parent
    return folder / CACHE if folder.is_dir() and folder != ASSETS.absolute() else None


def dataset(cfg: TrainConfig, episodes: Episodes, learner: type[Learner], device: torch.device) -> Dataset | Windows:
    """The transformed transitions on the device, or windows of them where the algorithm's config has a `window`."""
    if not (episodes.facts.has_rewards or getattr(learner, "clones", False)):
        raise ValueError(
            f"{episodes.facts.path}: the file has no rewards, and algo={cfg.algo.name} learns from them. An OGBench "
            "file gets those of a task by data.id=...-singletask-v0; algo=bc needs none."
        )
    data = cfg.data
    if data.best_fraction < 1.0 and not episodes.facts.has_rewards:
        raise ValueError(
            f"{episodes.facts.path}: the file has no rewards, so data.best_fraction finds no best episodes"
        )
    rows = Dataset.of_episodes(
        episodes,
        needs=learner.needs,
        device=device,
        reward_scale=reward_scale(data, episodes),
        reward_shift=data.reward_shift,
        clip_actions=data.clip_actions,
        gamma=getattr(cfg.algo, "gamma", 1.0),
        best_fraction=data.best_fraction,
        n_steps=getattr(cfg.algo, "n_steps", 1),
    )
    window = getattr(cfg.algo, "window", None)
    return rows if window is None else Windows(rows, window, getattr(cfg.algo, "goals", None))


def same_task(episodes: Episodes, spec: EnvSpec, env: str) -> None:
    """ValueError where the data set's shapes are not the environment's."""
    facts, found = episodes.facts, _sizes(episodes)
    if found == (spec.obs_dim, spec.action_dim):
        return
    hint = "Name the environment that the data set is of, or another data set."
    if "desired_goal" in episodes.extras:
        hint = (
            "Of its Dict `observation` alone is learned from: take env=none, or register an environment that gives "
            "`observation` alone."
        )
    elif facts.env_id:
        hint = f"The data set says {facts.env_id}: use {_as_words(facts.env_id)}."
    raise ValueError(
        f"{facts.path}: observations and actions have {found[0]} and {found[1]} numbers, those of {env} "
        f"{spec.obs_dim} and {spec.action_dim}. {hint}"
    )


def spec_of(episodes: Episodes, device: torch.device) -> EnvSpec:
    """Of the task that a data set tells of, for learning without its environment."""
    obs_dim, action_dim = _sizes(episodes)
    return EnvSpec(obs_dim, action_dim, 0, 1, n_envs=1, episode_length=0, device=device)


def _sizes(episodes: Episodes) -> tuple[int, int]:
    for name, column in (("observations are images", episodes.obs), ("actions are discrete", episodes.action)):
        if column.ndim != 2:
            raise ValueError(f"{episodes.facts.path}: its {name}; offline algorithms take vectors of numbers")
    return episodes.obs.shape[1], episodes.action.shape[1]


def same_robot(facts: Facts, env: EnvConfig) -> None:
    """ValueError where data of one robot meet another: some have as many numbers as each other."""
    robots = {re.sub(r"-v\d+$", "", name) for name in ROBOTS.values()}
    here, there = (re.sub(r"-v\d+$", "", name or "") for name in (GYMNASIUM_IDS.get(env.name, env.id), facts.env_id))
    if here != there and {here, there} <= robots:
        raise ValueError(
            f"{facts.path}: the data set is of {facts.env_id}, the policy would be for {here}: "
            f"use {_as_words(facts.env_id or '')}."
        )


def same_box(facts: Facts, space: Callable[[], spaces.Space[Any]], env: str) -> None:
    """ValueError where a file and the environment tell other bounds of an action: half of one is not half of the other.

    Bounds of [-1, 1] in a file are ctrlrl's own units, which every environment takes.
    """
    low, high = np.array(facts.action_low), np.array(facts.action_high)
    if len(low) == 0 or ((low == -1.0) & (high == 1.0)).all():
        return
    box = space()
    if isinstance(box, spaces.Box) and not (np.allclose(box.low.ravel(), low) and np.allclose(box.high.ravel(), high)):
        raise ValueError(
            f"{facts.path}: its actions lie in {_box(low, high)}, those of {env} in {_box(box.low, box.high)}. "
            "Name the environment that it is of; if both mean the same, `ctrlrl data convert` writes them in [-1, 1]."
        )


def _box(low: np.ndarray, high: np.ndarray) -> str:
    return f"[{low.min():g}, {high.max():g}]"


def score_range(cfg: TrainConfig, facts: Facts) -> tuple[float, float] | None:
    """The returns that score 0 and 100: the data set's own, or D4RL's of the task; None where there are none."""
    if facts.ref_min is not None and facts.ref_max is not None:
        return facts.ref_min, facts.ref_max
    return reference(facts.data_id or cfg.data.id) or reference(cfg.env.id or cfg.env.name)


def notices(facts: Facts, env: EnvConfig) -> list[str]:
    """What a run says of its data set: the loader's decisions, other versions, rules other than the evaluation's."""
    env_id = env.id or GYMNASIUM_IDS.get(env.name)
    told = [*facts.notices, *(f"the data set was {line}; scores differ a little" for line in other_versions(facts))]
    if facts.env_id is not None and env_id is not None and facts.env_id != env_id:
        told.append(f"the data set is of {facts.env_id}, evaluated on {env_id}; name both beside a score")
    return told


def _as_words(env_id: str) -> str:
    named = [name for name, gym_id in ROBOTS.items() if gym_id == env_id]
    return f"env={named[0]}" if named else f"env=gym env.id={env_id}"

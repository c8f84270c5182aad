"""Which episodes the clock ended: the time limit of a task, and the episodes that the end of collecting cut."""

from __future__ import annotations

import re

import numpy as np

from ctrlrl.data.d4rl_files import time_limit as known_limit
from ctrlrl.data.episodes import Array, Episodes, Facts

_ENDLESS = ("halfcheetah", "swimmer", "reacher", "pusher", "humanoidstandup", "pendulum")  # of Gymnasium and D4RL


def time_limit(episodes: Episodes) -> tuple[int | None, bool]:
    """Steps after which the clock ends an episode, and whether the task's own definition says so.

    Without one it is the longest episode's length, where no other length is as frequent; else None.
    """
    import gymnasium

    facts = episodes.facts
    values, counts = np.unique(episodes.lengths(), return_counts=True)
    for name in (facts.data_id, facts.env_id):
        spec = gymnasium.registry.get(name or "")
        limit = (spec and spec.max_episode_steps) or known_limit(name or "")
        if limit and values[-1] <= limit:
            return limit, True
    common = counts[-1] >= 2 and counts[-1] == counts.max()
    return (int(values[-1]) if common else None), False


def never_terminates(facts: Facts) -> bool:
    """Whether the clock alone ends an episode of the task."""
    return any(re.split(r"[-_]", name.lower())[0] in _ENDLESS for name in (facts.data_id, facts.env_id) if name)


def complete(episodes: Episodes) -> Array:
    """[E] bool: the episode was not cut by the end of collecting. As the file says (`episode_complete`), else guessed:
    the last episode is cut if it neither terminates nor reaches the time limit."""
    if "episode_complete" in episodes.episode_extras:
        return episodes.episode_extras["episode_complete"].astype(bool)
    whole = np.ones(episodes.n_episodes, dtype=bool)
    limit, _ = time_limit(episodes)
    whole[-1] = limit is None or episodes.lengths()[-1] >= limit or bool(episodes.terminated[-1])
    return whole

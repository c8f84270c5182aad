"""Which episodes the clock ended: the time limit of a task, and the episodes that the end of collecting cut."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from ctrlrl.data import ogbench
from ctrlrl.data.d4rl_files import time_limit as known_limit
from ctrlrl.data.episodes import Array, Episodes, Facts
from ctrlrl.data.scores import LOCOMOTION, task_of

_ENDLESS = ("halfcheetah", "swimmer", "reacher", "pusher", "humanoidstandup", "pendulum")  # of Gymnasium and D4RL


def time_limit(episodes: Episodes) -> tuple[int | None, bool]:
    """Steps after which the clock ends an episode, and whether the task's own definition says so.

    Without one it is the longest episode's length, where no other length is as frequent; else None.
    """
    values, counts = np.unique(episodes.lengths(), return_counts=True)
    for limit in _known(episodes.facts):
        if values[-1] <= limit:
            return limit, True
    common = counts[-1] >= 2 and counts[-1] == counts.max()
    return (int(values[-1]) if common else None), False


def _known(facts: Facts) -> Iterator[int]:
    """Limits of the tasks that the file names. OGBench's names begin like D4RL's; its collectors chose their own."""
    import gymnasium

    if facts.data_id in ogbench.FILES or facts.data_id in ogbench.SINGLE_TASKS:
        return
    for name in (facts.data_id, facts.env_id):
        spec = gymnasium.registry.get(name or "")
        limit = (spec and spec.max_episode_steps) or known_limit(name or "")
        if limit:
            yield limit


def overrun(episodes: Episodes) -> tuple[Array, int]:
    """Numbers of the episodes that are longer than a robot's clock lets them be, and its limit; () and 0 of others.

    Of mazes, hands and kitchens the recorded pieces are of other lengths than the task's own.
    """
    facts = episodes.facts
    robots = any(name and task_of(name).split("-")[0] in LOCOMOTION for name in (facts.data_id, facts.env_id))
    limit = next(_known(facts), 0) if robots else 0
    return np.flatnonzero((episodes.lengths() > limit) & (limit > 0)), limit


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

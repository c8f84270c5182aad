"""Demonstrations: as many whole episodes as asked for, of a success each where that is wanted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ctrlrl.data.episodes import Episodes, join

PATIENCE = 10  # times the episodes asked for that may be tried


def demonstrations(
    roll: Callable[[int], Episodes], *, episodes: int, n_envs: int, seed: int, successful: bool = False
) -> Episodes:
    """`episodes` whole ones: the first of every lane, and of the next seeds until there are as many.

    roll: a seed of `n_envs` lanes, which take it and those that follow, to roll-outs of at least one time limit.
    successful: leave out what the environment does not call a success.
    """
    kept: list[Episodes] = []
    found = tried = 0
    while found < episodes:
        if tried >= PATIENCE * max(episodes, n_envs):
            raise RuntimeError(
                f"{found} of {tried} episodes were a success, wanted {episodes}: ask for fewer, lower noise, or "
                "successful=false"
            )
        rolled = roll(seed + tried)
        extras = rolled.episode_extras
        good = (extras["episode_in_lane"] == 0) & extras["episode_complete"]
        if successful:
            if "episode_success" not in extras:
                raise ValueError("successful=true: this environment does not tell whether an episode was a success")
            good &= extras["episode_success"] == 1.0
        kept.append(rolled.only(np.flatnonzero(good)[: episodes - found]))
        found, tried = found + kept[-1].n_episodes, tried + n_envs
    return join(kept)

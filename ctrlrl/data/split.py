"""Episodes of a data set apart from others: those of one group, and those that are held out from learning."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np

from ctrlrl.data.episodes import Array, Episodes

GROUP = "episode_group"  # the column that says which episodes belong together
_ALIKE = 10.0  # times by which the returns of one group may exceed those of another


def of_groups(episodes: Episodes, patterns: str) -> Episodes:
    """The episodes whose group fits one of the patterns, as of file names, separated by commas."""
    names = _groups(episodes)
    if names is None:
        raise ValueError(f"{episodes.facts.path}: data.group={patterns}, but the file has no {GROUP!r}; leave it out")
    fits = [any(fnmatchcase(name, p) for p in patterns.split(",")) for name in names]
    if not any(fits):
        raise ValueError(
            f"{episodes.facts.path}: no group fits data.group={patterns}; there are {', '.join(sorted(set(names)))}"
        )
    return episodes.only(np.flatnonzero(fits))


def mixed_rewards(episodes: Episodes) -> str | None:
    """A line where rewards of groups differ in scale: what learns from rewards or returns must not mix them."""
    names = _groups(episodes)
    if names is None or len(set(names)) < 2:
        return None
    returns, groups = np.abs(episodes.returns()), np.array(names)
    middle = {name: float(np.median(returns[groups == name])) for name in sorted(set(names))}
    low, high = min(middle, key=middle.__getitem__), max(middle, key=middle.__getitem__)
    if middle[high] <= _ALIKE * middle[low]:
        return None
    return (
        f"rewards of its {len(middle)} groups differ in scale: the median size of a return is {middle[low]:.5g} in "
        f"{low} and {middle[high]:.5g} in {high}. Cloning reads none; for what does, data.group=NAME takes one group"
    )


def held_out(episodes: Episodes, share: float) -> tuple[Episodes, Episodes]:
    """(to learn from, held out): a share of the episodes, at least one, drawn by their number alone.

    Runs of all algorithms and seeds hold out the same episodes.
    """
    n = episodes.n_episodes
    count = max(1, round(share * n))
    if count >= n:
        raise ValueError(f"{episodes.facts.path}: data.holdout={share:g} leaves none of its {n} episodes to learn from")
    drawn = np.random.default_rng(0).permutation(n)
    line = f"{count} of {n} episodes are held out from learning (data.holdout={share:g})"
    learned = episodes.only(np.sort(drawn[count:]))
    facts = replace(episodes.facts, notices=(*episodes.facts.notices, line))
    return replace(learned, facts=facts), episodes.only(np.sort(drawn[:count]))


def _groups(episodes: Episodes) -> list[str] | None:
    column: Array | None = episodes.episode_extras.get(GROUP)
    return None if column is None else [str(name) for name in column]

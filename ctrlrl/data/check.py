"""What is wrong with a data set: every defect by name, with row and episode numbers and the mend."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import metadata
from typing import NamedTuple

import numpy as np

from ctrlrl.data.episodes import Array, Episodes, Facts
from ctrlrl.data.hashes import duplicates, row_hashes
from ctrlrl.data.limits import complete, never_terminates, overrun, time_limit

_SHOWN = 5  # row or episode numbers in a line
_ROUNDING = 1e-6  # by which a float32 action may leave the box


class Finding(NamedTuple):
    name: str
    text: str  # what it is and where
    mend: str
    defect: bool = True  # False: a fact to know of, which may be as it should


Findings = Iterator[Finding]


def check(episodes: Episodes, stored_next: Array | None = None) -> list[Finding]:
    """Defects first, then facts. Where the arrays do not fit together, nothing else is looked at.

    stored_next: [N, O] `next_observations` of a file whose loader leaves them there.
    """
    broken = list(_form(episodes, stored_next))
    if broken:
        return broken
    found = [finding for look in LOOKS for finding in look(episodes)]
    if stored_next is not None:
        found += _stored(episodes, stored_next.reshape(episodes.n_rows, -1))
    return sorted(found, key=lambda finding: not finding.defect)


def _form(episodes: Episodes, stored_next: Array | None) -> Findings:
    n, ends = episodes.n_rows, episodes.ends
    rows = {"observations": episodes.obs, "actions": episodes.action, "terminals": episodes.terminated,
            "usable": episodes.usable, **episodes.extras}  # fmt: skip
    if stored_next is not None:
        rows["next_observations"] = stored_next
        if stored_next.shape[1:] != episodes.obs.shape[1:]:
            text = f"next_observations are {stored_next.shape[1:]} a row, observations {episodes.obs.shape[1:]}"
            yield Finding("mismatched_widths", text, "store both in the same form, or leave next_observations out")
    per_episode = {"final_observations": episodes.final_obs, "has_final": episodes.has_final}
    mend = "cut all arrays to the rows they share, after finding out which of them lost some"
    for wanted, arrays, what in ((n, rows, "rewards"), (len(ends), per_episode | episodes.episode_extras, "episodes")):
        wrong = [f"{name} {len(array):,}" for name, array in arrays.items() if len(array) != wanted]
        if wrong:
            yield Finding("mismatched_lengths", f"{', '.join(wrong)} against {wanted:,} {what}", mend)
    if n == 0 or len(ends) == 0:
        yield Finding("empty", f"{n:,} rows in {len(ends):,} episodes", "collect or download it again")
        return
    steps = np.diff(np.concatenate(([0], ends)))
    if (steps == 0).any():
        text = f"{_listed('episode', np.flatnonzero(steps == 0))}: no rows"
        yield Finding("zero_length_episodes", text, "remove their entries from episode_ends and the per-episode arrays")
    if (steps < 0).any() or ends[-1] != n:
        text = f"the ends of episodes must ascend to {n:,}, the last is {ends[-1]:,}"
        yield Finding("mismatched_lengths", text, "take the ends from terminals | timeouts")


def _not_finite(episodes: Episodes) -> Findings:
    final = np.where(episodes.has_final[:, None], episodes.final_obs.reshape(episodes.n_episodes, -1), 0.0)
    columns = {"observations": episodes.obs, "actions": episodes.action, "rewards": episodes.reward}
    for name, array in {**columns, "final_observations": final}.items():
        if array.dtype.kind != "f":
            continue
        bad = ~np.isfinite(array.reshape(len(array), -1))
        rows = np.flatnonzero(bad.any(1))
        if len(rows):
            which = f", column {', '.join(map(str, np.flatnonzero(bad.any(0))[:_SHOWN]))}" if array.ndim > 1 else ""
            kind = "episode" if name == "final_observations" else "row"
            text = f"{name} hold nan or inf at {_listed(kind, rows)}{which}"
            yield Finding(
                "not_finite", text, "drop the episodes they belong to; a simulator that broke down makes them"
            )


def _actions(episodes: Episodes) -> Findings:
    action = episodes.action.reshape(episodes.n_rows, -1)
    discrete = action.dtype.kind in "iu"
    low, high = (np.array(end) for end in (episodes.facts.action_low or (-1.0,), episodes.facts.action_high or (1.0,)))
    outside = action < 0 if discrete else (action < low - _ROUNDING) | (action > high + _ROUNDING)
    rows = np.flatnonzero(outside.any(1))
    if len(rows):
        box = "0 ... n-1" if discrete else f"[{low.min():g}, {high.max():g}]"
        text = f"{_listed('row', rows)} of {episodes.n_rows:,}: actions reach {action.min():g} ... {action.max():g}"
        mend = f"clip them to {box}, as the environment did, or scale them if they are in the environment's own units"
        yield Finding("action_outside_box", text, mend)


def _terminal_at_limit(episodes: Episodes) -> Findings:
    limit, certain = time_limit(episodes)
    at_limit = episodes.lengths() == limit
    last = episodes.ends - 1
    ended = episodes.terminated[last]
    wrong = at_limit & ended
    often = wrong.sum() > 0.5 * at_limit.sum() and (certain or wrong.sum() >= 2)
    if not (often or never_terminates(episodes.facts)):
        wrong[:] = False
    flagged = episodes.extras["timeouts"][last] if "timeouts" in episodes.extras else np.zeros_like(ended)
    if (ended & flagged).any() and not (flagged & ~ended).any():
        wrong |= ended & flagged
    numbers = np.flatnonzero(wrong)
    if len(numbers):
        steps = sorted(set(episodes.lengths()[numbers].tolist()))
        after = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
        text = (
            f"{_listed('episode', numbers)}: a terminal after {after} steps, where the clock ended the episode and not "
            "the task; learning would not bootstrap there"
        )
        yield Finding("timeout_as_terminal", text, "set terminals to 0 and timeouts to 1 at these last rows")


def _terminal_of_an_endless_task(episodes: Episodes) -> Findings:
    limit, _ = time_limit(episodes)
    at_end = np.zeros(episodes.n_rows, bool)
    at_end[episodes.ends[episodes.lengths() == limit] - 1] = True  # the clock's, told above
    rows = np.flatnonzero(episodes.terminated & ~at_end)
    if never_terminates(episodes.facts) and len(rows):
        task = episodes.facts.env_id or episodes.facts.data_id
        text = f"{_listed('row', rows)}: terminal, but {task} never ends by itself; learning would not bootstrap there"
        mend = "set terminals to 0 at these rows, and timeouts to 1 where a reset follows"
        yield Finding("wrong_terminal", text, mend)


def _overrun(episodes: Episodes) -> Findings:
    longer, limit = overrun(episodes)
    if len(longer):
        text = f"{_listed('episode', longer)}: longer than the {limit} steps after which the clock resets the task"
        mend = "set timeouts where it did: learning would take the next episode's first observation for what followed"
        yield Finding("missing_timeouts", text, mend)


def _never_terminal(episodes: Episodes) -> Findings:
    """Not of OGBench's, whose `terminals` never mean that a task ended."""
    without = episodes.facts.format == "ogbench" or never_terminates(episodes.facts)
    if episodes.terminated.any() or episodes.n_episodes < 2 or without:
        return
    limit, certain = time_limit(episodes)
    limit = limit or int(episodes.lengths().max())
    early = np.flatnonzero((episodes.lengths() < limit) & complete(episodes))
    if len(early) > 0.1 * episodes.n_episodes and _jumps(episodes, early):
        text = (
            f"no row is terminal, yet {len(early):,} of {episodes.n_episodes:,} episodes end before "
            f"{'the time limit of' if certain else 'the longest one, after'} {limit} steps: {_listed('episode', early)}"
        )
        mend = "set terminals where the task itself ended the episode; leave it if they were cut by hand or by a goal"
        yield Finding("never_terminal", text, mend, defect=certain)


def _jumps(episodes: Episodes, which: Array) -> bool:
    """Whether these episodes are followed by a reset: in Maze2D an episode ends where the goal moves, and goes on."""
    obs = episodes.obs.reshape(episodes.n_rows, -1)
    steps = np.linalg.norm(np.diff(obs, axis=0), axis=1)
    borders = episodes.ends[which[which < episodes.n_episodes - 1]] - 1
    inside = np.delete(steps, episodes.ends[:-1] - 1)
    return len(borders) > 0 and len(inside) > 0 and bool(np.median(steps[borders]) > 3.0 * np.median(inside))


def _terminal_inside(episodes: Episodes) -> Findings:
    inside = episodes.terminated.copy()
    inside[episodes.ends - 1] = False
    rows = np.flatnonzero(inside)
    if len(rows) and not _marks_a_goal(episodes):
        text = f"{_listed('row', rows)}: terminal, but its episode goes on"
        yield Finding("terminal_inside_episode", text, "end the episode there, or set terminals to 0 at these rows")


def _marks_a_goal(episodes: Episodes) -> bool:
    """Terminal where and only where the reward is the highest of two or more: goal data, whose episodes go on."""
    best = episodes.reward == episodes.reward.max()
    return bool(np.array_equal(best, episodes.terminated)) and not best.all()


def _crossing(episodes: Episodes) -> Findings:
    last = episodes.ends - 1
    crosses = episodes.usable[last] & ~episodes.terminated[last] & ~episodes.has_final
    rows = last[crosses]
    if len(rows):
        text = f"{_listed('row', rows)}: learning would take the next episode's first observation for what followed"
        mend = "leave the last row of each timed-out episode out, or give final_observations"
        yield Finding("next_observation_across_episodes", text, mend)


def _final(episodes: Episodes) -> Findings:
    first = _first_of_the_next(episodes)
    given = episodes.final_obs[:-1].reshape(first.shape)
    yield from _after_reset("final_observations", (given == first).all(1) & episodes.has_final[:-1])


def _stored(episodes: Episodes, stored: Array) -> Findings:
    first, borders = _first_of_the_next(episodes), episodes.ends[:-1] - 1
    yield from _after_reset("next_observations", (stored[borders] == first).all(1))
    following = episodes.obs[1:].reshape(episodes.n_rows - 1, -1)
    far = np.flatnonzero(~np.isclose(stored[:-1], following, rtol=1e-4, atol=1e-4, equal_nan=True).all(1))
    rows = far[~np.isin(far, borders)]
    if len(rows):
        text = f"{_listed('row', rows)}: next_observations is not the row that follows, though no episode ends there"
        yield Finding("unmarked_border", text, "set terminals or timeouts at these rows: an episode ends there")


def _first_of_the_next(episodes: Episodes) -> Array:
    """[E - 1, O]: what an episode's last observation is when it was saved after the reset."""
    first = episodes.obs[episodes.starts()[1:]]
    return first.reshape(len(first), math.prod(first.shape[1:]))


def _after_reset(name: str, wrong: Array) -> Findings:
    episodes = np.flatnonzero(wrong)
    if len(episodes):
        text = f"{name} of {_listed('episode', episodes)}: the first observation of the next episode"
        mend = "store the observation before the reset, or leave the last row of each timed-out episode out"
        yield Finding("next_observation_across_episodes", text, mend)


def _constant(episodes: Episodes) -> Findings:
    for name, array in (("observations", episodes.obs), ("actions", episodes.action), ("rewards", episodes.reward)):
        if array.ndim > 2 or episodes.n_rows < 2:
            continue
        flat = array.reshape(episodes.n_rows, -1)
        columns = np.flatnonzero(flat.min(0) == flat.max(0))
        if len(columns):
            which = f", {_listed('column', columns)}" if array.ndim > 1 else ""
            text = f"{name}{which}: one value in all rows ({flat[0, columns[0]]:g})"
            mend = "nothing to learn from; harmless, but standardisation divides by its spread of 0"
            yield Finding("constant_column", text, mend, defect=False)


def _duplicated(episodes: Episodes) -> Findings:
    rows = duplicates(row_hashes(episodes.obs, episodes.action, episodes.reward))
    if len(rows):
        whole = np.bincount(np.searchsorted(episodes.ends, rows, side="right"), minlength=episodes.n_episodes)
        whole = np.flatnonzero(whole == episodes.lengths())
        which = f", all rows of {_listed('episode', whole)}" if len(whole) else ""
        text = f"{_listed('row', rows)} of {episodes.n_rows:,} repeat an earlier row{which}"
        mend = "drop them: they weigh twice, and a split into train and test sets would share them"
        # few actions and a start without noise make the same rows again honestly
        yield Finding("duplicated_rows", text, mend, defect=episodes.action.dtype.kind == "f")


def _other_simulator(episodes: Episodes) -> Findings:
    for text in other_versions(episodes.facts):
        mend = "fine for learning; replayed actions drift apart, and evaluated returns differ a little"
        yield Finding("other_simulator", text, mend, defect=False)


def other_versions(facts: Facts) -> Iterator[str]:
    """A line for each simulator package whose installed version is not the one that the data were made with."""
    for package in ("mujoco", "gymnasium"):
        made_with = facts.versions.get(package)
        with suppress(metadata.PackageNotFoundError):
            here = metadata.version(package)
            if made_with is not None and made_with != here:
                yield f"made with {package} {made_with}, here is {here}"


def _listed(kind: str, numbers: Array) -> str:
    """ "row 7", "rows 3, 9", "312 rows (3, 9, 20, 21, 30, ...)"."""
    shown = ", ".join(str(i) for i in numbers[:_SHOWN])
    if len(numbers) > _SHOWN:
        return f"{len(numbers):,} {kind}s ({shown}, ...)"
    return f"{kind}{'s' if len(numbers) > 1 else ''} {shown}"


LOOKS: tuple[Callable[[Episodes], Findings], ...] = (
    _not_finite,
    _actions,
    _terminal_at_limit,
    _terminal_of_an_endless_task,
    _overrun,
    _never_terminal,
    _terminal_inside,
    _crossing,
    _final,
    _duplicated,
    _constant,
    _other_simulator,
)

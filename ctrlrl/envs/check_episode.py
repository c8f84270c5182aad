"""Checks of `check_env` on how episodes end and begin: flags, final observations, fresh starts, the clock."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ctrlrl.envs.check_report import PASSED, Outcome, failed, noted, skipped
from ctrlrl.envs.check_walk import Subject, Walk, at, differs, first_true, row_of
from ctrlrl.envs.tensor_env import LOST

_ENDED = (
    "final_obs is the last observation of the old episode, obs the first of the new one; if the environment resets one "
    "step later (NEXT_STEP), give extras['mask']"
)
_NEEDS_STAGGER = "needs make(n_envs=..., seed=..., stagger=...)"


def _no_end(walk: Walk) -> Outcome:
    return skipped(f"no episode ended within {len(walk.obs)} steps")


def flags(subject: Subject) -> Outcome:
    walk = subject.walk
    found = first_true(walk.terminated & walk.truncated)
    if found:
        mend = "a task that ended is terminated: truncated = timed_out & ~terminated"
        return failed("terminated and truncated are both True", at(*found), mend)
    return PASSED if walk.done.any() else _no_end(walk)


def mask(subject: Subject) -> Outcome:
    """A masked step is the one after an end; it has no flags and no reward."""
    walk = subject.walk
    if not walk.masked:
        return skipped("resets in the step that ends an episode: no mask")
    if not walk.mask[0].all():
        return failed("the first step is masked", at(*_found(~walk.mask)), "a reset() leaves nothing to mask")
    wanted = ~walk.done[:-1]
    found = first_true(walk.mask[1:] != wanted)
    if found:
        step, lane = found
        what = "is masked, but no episode ended before it" if wanted[step - 1, lane] else "is not masked"
        mend = "extras['mask'] is False in the one step that follows an episode's end, and nowhere else"
        return failed(f"the step {what}", at(step + 1, lane), mend)
    paid = walk.reward.flatten(2).ne(0).any(2) if walk.reward.ndim > 2 else walk.reward != 0
    found = first_true(~walk.mask & (walk.done | paid))
    if found:
        return failed("a masked step has a flag or a reward", at(*found), "it is only a reset: zero and False")
    return PASSED if walk.done.any() else _no_end(walk)


def _found(where: Tensor) -> tuple[int, int]:
    found = first_true(where)
    assert found is not None
    return found


def final_obs(subject: Subject) -> Outcome:
    """Equal to obs except where an episode ended; there the old episode's last observation, not a stale or new one."""
    walk = subject.walk
    off = differs(walk.obs, walk.final_obs)
    found = first_true(off if walk.masked else off & ~walk.done)
    if found:
        return failed(
            "final_obs is not obs, and no episode ended", at(*found), "it differs where an episode ended only"
        )
    if not walk.done.any():
        return _no_end(walk)
    moved = differs(walk.final_obs, walk.before)
    usual = walk.mask & ~walk.done
    stale = walk.done & ~moved
    if moved[usual].any() and moved[usual].float().mean() > 0.9 and bool(stale[walk.done].all()):
        what = "final_obs is the observation before the last action"
        if _says_lost(subject):
            return noted(f"{what}, as its notices say", at(*_found(stale)))
        return failed(what, at(*_found(stale)), "observe after the physics step, before the reset")
    if walk.masked:
        return PASSED
    for name in ("terminated", "truncated"):
        ends = getattr(walk, name)
        same = ends & ~off
        if same.any() and moved[usual].any() and (subject.all_starts_differ or torch.equal(same, ends)):
            return failed(f"final_obs equals obs where the episode was {name}", at(*_found(same)), _ENDED)
    return _not_a_start(subject)


def _says_lost(subject: Subject) -> bool:
    return any(LOST in line for line in getattr(subject.env, "notices", ()))


def _not_a_start(subject: Subject) -> Outcome:
    """final_obs must not be the observation of some reset: far from the one before, further than any step goes."""
    walk = subject.walk
    t, lane = walk.done.nonzero().unbind(1)
    before, final = walk.before[t, lane].float(), walk.final_obs[t, lane].float()
    reach = torch.zeros(subject.spec.obs_dim)
    for was, obs, done in zip(walk.before, walk.final_obs, walk.done | ~walk.mask, strict=True):
        reach = torch.maximum(reach, (obs.float() - was.float()).abs().masked_fill(done.unsqueeze(1), 0.0).amax(0))
    low, high = _box(subject.starts[:, : subject.spec.obs_dim])
    like_start = _inside(final, low, high).all(1) & ~_inside(before, low, high).all(1)
    wrong = ((final - before).abs() > 1.5 * reach).any(1) & like_start
    if int(wrong.sum()) > 2 and 2 * int(wrong.sum()) > len(wrong):
        row = int(wrong.nonzero()[0])
        return failed("final_obs looks like the first of an episode", at(int(t[row]) + 1, int(lane[row])), _ENDED)
    return PASSED


def final_obs_true(subject: Subject) -> Outcome:
    """Where a lane is truncated, its twin with another start clock goes on: its observation is the truth."""
    if subject.clocked is None:
        return skipped(_NEEDS_STAGGER)
    _, even, spread = subject.clocked
    n_compared = 0
    for lane, ended in enumerate(spread.done.T):
        t = int(ended.int().argmax())
        if not spread.truncated[t, lane] or even.done[:t, lane].any() or even.terminated[t, lane]:
            continue
        if differs(even.before[: t + 1, lane], spread.before[: t + 1, lane], 1).any():
            return skipped("stagger changes more than the start clocks, so there is nothing to compare with")
        n_compared += 1
        if bool((even.final_obs[t, lane] != spread.final_obs[t, lane]).any()):
            what = "final_obs is not where the same lane goes without the time limit"
            if _says_lost(subject):
                return noted(f"{what}, as its notices say", at(t + 1, lane))
            return failed(what, at(t + 1, lane), _ENDED)
    return PASSED if n_compared else skipped("no time limit was seen in a lane whose twin lived on")


def fresh_start(subject: Subject) -> Outcome:
    """What follows an auto-reset lies where reset() and a first step lie: nothing of the old episode is left.

    Half of the resets mark out a box, the other half say how often a true one falls outside of it.
    """
    walk, n_obs = subject.walk, subject.spec.obs_dim
    t, lane = walk.begins[:-1].nonzero()[: subject.n_start_rows].unbind(1)
    if not len(t):
        return _no_end(walk)
    fresh = row_of(walk.obs[t, lane], walk.final_obs[t + 1, lane], walk.reward[t + 1, lane])
    marks, held_out = subject.starts.chunk(2)
    low, high = _box(marks)
    rate = (int((~_inside(held_out, low, high)).any(1).sum()) + 1) / (len(held_out) + 2)
    wrong = ~_inside(fresh, low, high)
    n, k = len(fresh), int(wrong.any(1).sum())
    if k <= n * rate + 4 * math.sqrt(n * rate * (1 - rate)) + 1:
        return PASSED
    row = int(wrong.any(1).nonzero()[0])
    entry, step = int(wrong[row].nonzero()[0]), int(t[row]) + 1
    names = [f"obs[{i}]" for i in range(n_obs)] + [f"obs[{i}] one step later" for i in range(n_obs)]
    name = [*names, *["the first reward"] * (fresh.shape[1] - 2 * n_obs)][entry]
    what = f"{k} of {n} new episodes do not begin like a reset: {name} is {fresh[row, entry]:.4g}, "
    what += f"resets give {marks[:, entry].min():.4g} ... {marks[:, entry].max():.4g}"
    mend = "restart everything that lives in an episode: state, clock, previous values, filters"
    return failed(what, at(step + (entry >= n_obs), int(lane[row])), mend)


def _box(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Where rows [N, K] lie, with half of their width to spare on both sides."""
    low, high = rows.amin(0), rows.amax(0)
    room = 0.5 * (high - low) + 1e-5 * torch.maximum(low.abs(), high.abs()) + 1e-6
    return low - room, high + room


def _inside(rows: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return (rows >= low) & (rows <= high)


def episodes_differ(subject: Subject) -> Outcome:
    walk = subject.walk
    lane, t = walk.begins.T.nonzero().unbind(1)  # one lane's beginnings after another's
    if not len(lane):
        return _no_end(walk)
    if not subject.varied:
        return skipped("no randomness was seen: every reset begins alike")
    begun = walk.obs[t, lane]
    mend = "if that is not meant, do not seed the generator anew at every episode"
    if not differs(begun, walk.first[lane], 1).any():
        return noted("every episode of a lane begins like its first", f"lane {int(lane[0])}", mend)
    again = lane[1:] == lane[:-1]  # compared across the lanes where none began twice
    pairs = again if again.any() else ~again
    if pairs.any() and not (pairs & differs(begun[1:], begun[:-1], 1)).any():
        return noted("every episode after a lane's first begins alike", f"lane {int(lane[0])}", mend)
    return PASSED


def _lengths(walk: Walk) -> tuple[Tensor, Tensor]:
    """[T, B]: steps of the episode under way, 0 in a masked step, and the number of episodes before it."""
    clock = torch.zeros(walk.done.shape[1], dtype=torch.int64)
    episode = torch.zeros_like(clock)
    clocks, episodes = [], []
    for done, counts in zip(walk.done, walk.mask, strict=True):
        clock = clock + counts
        clocks.append(clock)
        episodes.append(episode)
        episode = episode + done
        clock = clock.masked_fill(done, 0)
    return torch.stack(clocks), torch.stack(episodes)


def time_limit(subject: Subject) -> Outcome:
    """Truncated after exactly episode_length steps, and only then."""
    limit = subject.spec.episode_length
    if not limit:
        return skipped("spec.episode_length is 0: no time limit")
    seen = [_limit_of(subject.walk, limit, first_counts=False)]
    if subject.clocked is not None:
        seen.append(_limit_of(subject.clocked.even, subject.clocked.limit, first_counts=True))
    return min(seen, key=lambda outcome: ("failed", "passed", "skipped").index(outcome.status))


def _limit_of(walk: Walk, limit: int, *, first_counts: bool) -> Outcome:
    """first_counts: the start clocks are known to be 0; else a first episode may be shorter."""
    length, episode = _lengths(walk)
    truncated = walk.truncated & ~walk.terminated
    found = first_true(length > limit)
    if found:
        mend = "truncate it at spec.episode_length, or set that to 0 if there is no limit"
        return failed(f"an episode goes on after its limit of {limit} steps", at(*found), mend)
    exact = (episode > 0) | first_counts
    found = first_true(truncated & (length < limit) & exact)
    if found:
        n = int(length[found[0] - 1, found[1]])
        mend = "restart the clock at every episode's end; spec.episode_length = 0 where the limit is not fixed"
        return failed(f"truncated after {n} of {limit} steps", at(*found), mend)
    at_limit = (length == limit) & exact
    if (truncated & at_limit).any():
        return PASSED
    n_ended = int((walk.terminated & at_limit).sum())
    if n_ended > 1 and n_ended == int(at_limit.sum()):
        mend = "the clock's end is truncated, so that values bootstrap; a task of fixed length has episode_length 0"
        return failed(f"the time limit of {limit} steps is reported as terminated", at(*_found(at_limit)), mend)
    if n_ended:
        return skipped(f"too few episodes ({n_ended}) terminated in the step of the limit to blame the clock")
    return skipped(f"no lane lived for {limit} steps from a known start within {len(walk.obs)} steps")


def stagger(subject: Subject) -> Outcome:
    """With stagger the first time limits of the lanes do not fall into one step."""
    if subject.clocked is None:
        return skipped(_NEEDS_STAGGER)
    limit, _, spread = subject.clocked
    if not limit:
        return skipped("spec.episode_length is 0: no time limit")
    ended, first = spread.done.any(0), spread.done.int().argmax(0)
    times = first[ended & spread.truncated.gather(0, first.unsqueeze(0)).squeeze(0)]
    if len(times) < 3:
        return skipped(f"fewer than 3 lanes lived to their first time limit within {len(spread.obs)} steps")
    if len(times.unique()) > 1:
        return PASSED
    mend = "start lane i's clock at a random or evenly spread step in [0, episode_length)"
    return failed("all lanes reach their first time limit in one step", f"step {int(times[0]) + 1}", mend)

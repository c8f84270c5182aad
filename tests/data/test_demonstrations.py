"""Whole episodes: as many as asked for, the first of every lane, no two of one start."""

from __future__ import annotations

import numpy as np
import pytest
from test_collect import FACTS, Ledger, half

from ctrlrl.data.check import check
from ctrlrl.data.collect import collect
from ctrlrl.data.demonstrations import demonstrations
from ctrlrl.data.episodes import Episodes, join

LANES, LIMIT = 3, 4  # lane i of the ledger has episodes of i + 2 steps


def made(episodes: int, *, fails: tuple[int, ...] = (), **options: bool) -> tuple[Episodes, list[int]]:
    """With the seeds that were rolled out; those of `fails` have no success."""
    seeds = []

    def roll(seed: int) -> Episodes:
        seeds.append(seed)
        found = collect(half, Ledger(LANES), FACTS, steps=LANES * LIMIT, seed=seed)
        if options:
            found.episode_extras["episode_success"] = np.full(found.n_episodes, float(seed not in fails))
        return found

    return demonstrations(roll, episodes=episodes, n_envs=LANES, seed=5, **options), seeds


@pytest.mark.parametrize("episodes", [1, 3, 4, 7])
def test_there_are_as_many_whole_episodes_as_asked_for_each_the_first_of_its_lane(episodes):
    found, seeds = made(episodes)
    assert found.n_episodes == episodes
    assert seeds == [5 + LANES * i for i in range(-(-episodes // LANES))]
    assert found.lengths().tolist() == [2 + i % LANES for i in range(episodes)]
    assert found.episode_extras["episode_in_lane"].tolist() == [0] * episodes
    assert found.episode_extras["episode_seed"].tolist() == [seeds[i // LANES] for i in range(episodes)]
    last = found.ends - 1
    np.testing.assert_array_equal(found.next_obs()[last, 2], found.lengths())  # true last observations
    assert not [f for f in check(found) if f.defect and f.name != "duplicated_rows"]  # the ledger repeats itself


def test_a_failure_is_left_out_and_made_up_for():
    found, seeds = made(4, successful=True, fails=(5,))
    assert seeds == [5, 8, 11]
    assert found.n_episodes == 4
    assert found.episode_extras["episode_success"].all()
    assert set(found.episode_extras["episode_seed"].tolist()) == {8, 11}


def test_who_never_succeeds_is_told_so():
    with pytest.raises(RuntimeError, match="0 of 30 episodes were a success, wanted 2"):
        made(2, successful=True, fails=tuple(range(100)))


def test_successes_need_an_environment_that_tells_them():
    def roll(seed: int) -> Episodes:
        return collect(half, Ledger(LANES), FACTS, steps=LANES * LIMIT, seed=seed)

    with pytest.raises(ValueError, match="does not tell"):
        demonstrations(roll, episodes=2, n_envs=LANES, seed=5, successful=True)


def test_episodes_that_are_taken_apart_and_joined_are_the_same():
    whole = collect(half, Ledger(4), FACTS, steps=50, seed=0)
    numbers = np.arange(whole.n_episodes)
    again = join([whole.only(numbers[:3]), whole.only(numbers[3:])])
    for name in ("obs", "action", "reward", "terminated", "ends", "final_obs", "has_final", "usable"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
    for mine, theirs in ((again.extras, whole.extras), (again.episode_extras, whole.episode_extras)):
        assert mine.keys() == theirs.keys()
        for name in mine:
            np.testing.assert_array_equal(mine[name], theirs[name])


def test_chosen_episodes_keep_their_rows_in_the_order_asked_for():
    whole = collect(half, Ledger(3), FACTS, steps=30, seed=0)
    few = whole.only(np.array([4, 1]))
    starts = whole.starts()
    rows = np.concatenate([np.arange(starts[e], whole.ends[e]) for e in (4, 1)])
    np.testing.assert_array_equal(few.obs, whole.obs[rows])
    assert few.lengths().tolist() == whole.lengths()[[4, 1]].tolist()
    np.testing.assert_array_equal(few.final_obs, whole.final_obs[[4, 1]])

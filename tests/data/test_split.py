"""Groups and held-out episodes: whole episodes go one way or the other, the same ones in every run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from episodes_made import LENGTHS, made

from ctrlrl.data.split import held_out, mixed_rewards, of_groups

GROUPS = np.array(["main", "other/a", "other/b", "main", "other/a", "main"])


def grouped(scale: float = 1.0):
    """Rewards of group main are `scale` times those of the others, which are all 1."""
    e = made(episode_extras={"episode_group": GROUPS})
    return replace(e, reward=np.where(np.repeat(GROUPS == "main", e.lengths()), scale, 1.0).astype(np.float32))


def first_numbers(e) -> set[float]:
    return set(e.obs[:, 0].tolist())


@pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.34, 2), (0.5, 3), (0.8, 5)])
def test_every_row_is_learned_from_or_held_out_in_whole_episodes(share, count):
    e = made()
    learned, apart = held_out(e, share)
    assert (learned.n_episodes, apart.n_episodes) == (len(LENGTHS) - count, count)
    assert first_numbers(learned) | first_numbers(apart) == first_numbers(e)
    assert not first_numbers(learned) & first_numbers(apart)
    assert sorted([*learned.lengths(), *apart.lengths()]) == sorted(LENGTHS)
    again = held_out(e, share)[1]
    np.testing.assert_array_equal(again.obs, apart.obs)
    assert f"{count} of 6 episodes are held out" in learned.facts.notices[-1]


def test_one_episode_at_least_is_left_to_learn_from():
    with pytest.raises(ValueError, match=r"data.holdout=0.95 leaves none of its 6 episodes"):
        held_out(made(), 0.95)


@pytest.mark.parametrize(
    ("patterns", "taken"), [("main", [0, 3, 5]), ("other/*", [1, 2, 4]), ("other/b,main", [0, 2, 3, 5])]
)
def test_a_group_is_the_episodes_whose_name_fits(patterns, taken):
    e = grouped()
    found = of_groups(e, patterns)
    assert found.lengths().tolist() == [LENGTHS[i] for i in taken]
    np.testing.assert_array_equal(found.final_obs, e.final_obs[taken])


def test_a_group_that_is_not_there_is_told_with_those_that_are():
    with pytest.raises(ValueError, match=r"no group fits data.group=mane; there are main, other/a, other/b"):
        of_groups(grouped(), "mane")
    with pytest.raises(ValueError, match="has no 'episode_group'"):
        of_groups(made(), "main")


def test_rewards_of_another_scale_are_told_and_alike_ones_are_not():
    assert mixed_rewards(made()) is None
    assert mixed_rewards(grouped(2.0)) is None
    line = mixed_rewards(grouped(-500.0))
    assert line is not None
    assert "differ in scale" in line
    assert "4000 in main" in line
    assert mixed_rewards(of_groups(grouped(-500.0), "main")) is None


def test_of_a_cut_episode_the_next_row_is_the_last_observation():
    e = made(extras={"timeouts": np.zeros(sum(LENGTHS), dtype=bool)})
    few = e.first_steps(6)
    assert few.lengths().tolist() == [min(n, 6) for n in LENGTHS]
    starts = e.starts()
    for i, n in enumerate(LENGTHS):
        expected = e.obs[starts[i] + 6] if n > 6 else e.final_obs[i]
        np.testing.assert_array_equal(few.final_obs[i], expected)
        np.testing.assert_array_equal(few.obs[few.starts()[i]], e.obs[starts[i]])
        assert few.extras["timeouts"][few.ends[i] - 1] == (n > 6)
    assert few.has_final.all()
    np.testing.assert_array_equal(few.next_obs()[few.ends - 1], few.final_obs)
    assert not e.extras["timeouts"].any()  # the given one is as it was

"""Every defect is found by its name in a data set broken in just that way, and nothing else; a clean set is clean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
from episodes_made import LENGTHS, made

from ctrlrl.data.check import check
from ctrlrl.data.episodes import Episodes, Facts
from ctrlrl.data.hashes import duplicates, row_hashes

CHEETAH = Facts(format="rollouts", path="made.npz", env_id="HalfCheetah-v4")
HOPPER = Facts(format="rollouts", path="made.npz", env_id="Hopper-v4")  # 1000 steps


def changed(episodes: Episodes, name: str, where: Any, value: Any) -> Episodes:
    array = getattr(episodes, name).copy()
    array[where] = value
    return replace(episodes, **{name: array})


def names(episodes: Episodes, stored_next: Any = None) -> list[str]:
    return [f.name for f in check(episodes, stored_next)]


def terminal_at_last_rows(episodes: Episodes, value: bool = True) -> Episodes:
    return changed(episodes, "terminated", episodes.ends - 1, value)


def saved_after_the_reset(episodes: Episodes) -> Episodes:
    return changed(episodes, "final_obs", slice(0, -1), episodes.obs[episodes.starts()[1:]])


def without_final_obs(episodes: Episodes, usable: bool) -> Episodes:
    found = replace(episodes, has_final=np.zeros(episodes.n_episodes, dtype=bool))
    return changed(found, "usable", found.ends[~found.terminated[found.ends - 1]] - 1, usable)


def repeated_rows(episodes: Episodes, to: slice, source: slice) -> Episodes:
    for name in ("obs", "action", "reward"):
        episodes = changed(episodes, name, to, getattr(episodes, name)[source])
    return episodes


def repeated_episode(episodes: Episodes) -> Episodes:
    """Episode 2 is episode 0 again."""
    return repeated_rows(changed(episodes, "final_obs", 2, episodes.final_obs[0]), slice(16, 26), slice(0, 10))


def test_a_clean_set_has_no_finding():
    assert check(made()) == []
    assert check(made(), made().next_obs()) == []
    assert check(made(facts=HOPPER, lengths=(1000, 40, 1000), limit=1000)) == []
    assert check(without_final_obs(made(), usable=False)) == []
    stitch = Facts(format="ogbench", path="made.npz", data_id="antmaze-medium-stitch-v0")
    assert check(made((20, 20, 20, 15, 20), limit=1, facts=stitch)) == []


def timed_out_and_terminal() -> Episodes:
    """Time-outs of different lengths, as in AntMaze, each with both flags."""
    e = made((9, 6, 10, 3, 7, 8), limit=9)
    time_outs = np.zeros(e.n_rows, dtype=bool)
    time_outs[e.ends - 1] = ~e.terminated[e.ends - 1]
    return replace(terminal_at_last_rows(e), extras={"timeouts": time_outs})


BREAKS: dict[str, tuple[str, Callable[[], Episodes], str]] = {
    "nan observation": ("not_finite", lambda: changed(made(), "obs", (12, 1), np.nan), "row 12, column 1"),
    "nan action": ("not_finite", lambda: changed(made(), "action", (3, 0), np.nan), "actions hold"),
    "infinite reward": ("not_finite", lambda: changed(made(), "reward", [4, 9], np.inf), "rows 4, 9"),
    "nan final observation": ("not_finite", lambda: changed(made(), "final_obs", (1, 0), np.nan), "episode 1"),
    "action too large": ("action_outside_box", lambda: changed(made(), "action", (20, 1), -1.5), "row 20"),
    "negative choice": (
        "action_outside_box",
        lambda: changed(made(action=np.arange(sum(LENGTHS)) % 5), "action", 7, -1),
        "row 7",
    ),
    "terminals at a known limit": (
        "timeout_as_terminal",
        lambda: terminal_at_last_rows(made((1000, 1000, 60), limit=1000, facts=HOPPER)),
        "episodes 0, 1: a terminal after 1000 steps",
    ),
    "one episode, terminal at a known limit": (
        "timeout_as_terminal",
        lambda: terminal_at_last_rows(made((1000,), limit=1000, facts=HOPPER)),
        "episode 0",
    ),
    "every episode terminal after the same steps": (
        "timeout_as_terminal",
        lambda: terminal_at_last_rows(made((10, 10, 10))),
        "episodes 0, 1, 2: a terminal after 10 steps",
    ),
    "few time-outs flagged as terminals, of a task that never terminates": (
        "timeout_as_terminal",
        lambda: changed(made((1000, 1000, 1000, 1000), limit=1000, facts=CHEETAH), "terminated", 999, True),
        "episode 0: a terminal after 1000 steps",
    ),
    "terminals within a task that never terminates": (
        "wrong_terminal",
        lambda: changed(made((300, 1000, 60), limit=1, facts=CHEETAH), "terminated", [299, 1359], True),
        "rows 299, 1359: terminal, but HalfCheetah-v4 never ends by itself",
    ),
    "no time-outs at all": (
        "missing_timeouts",
        lambda: made((1000, 3000), limit=1, facts=CHEETAH),
        "episode 1: longer than the 1000 steps",
    ),
    "time-outs flagged as terminals too": (
        "timeout_as_terminal",
        timed_out_and_terminal,
        "episodes 0, 2",
    ),
    "no terminals before a known limit": (
        "never_terminal",
        lambda: terminal_at_last_rows(made((500, 30, 1000, 20), facts=HOPPER), value=False),
        "2 of 4 episodes end before the time limit of 1000",
    ),
    "terminal in the middle": (
        "terminal_inside_episode",
        lambda: changed(made(), "terminated", [2, 20], True),
        "rows 2, 20",
    ),
    "usable rows without a next observation": (
        "next_observation_across_episodes",
        lambda: without_final_obs(made(), usable=True),
        "rows 9, 25, 38",
    ),
    "last observation saved after the reset": (
        "next_observation_across_episodes",
        lambda: saved_after_the_reset(made()),
        "final_observations of episodes 0, 1, 2, 3, 4",
    ),
    "row twice": ("duplicated_rows", lambda: repeated_rows(made(), slice(30, 31), slice(5, 6)), "row 30"),
    "episode twice": ("duplicated_rows", lambda: repeated_episode(made()), "all rows of episode 2"),
    "shorter actions": ("mismatched_lengths", lambda: replace(made(), action=made().action[:-2]), "actions 45"),
    "shorter final observations": (
        "mismatched_lengths",
        lambda: replace(made(), final_obs=made().final_obs[:-1]),
        "final_observations 5 against 6 episodes",
    ),
    "ends before the last row": (
        "mismatched_lengths",
        lambda: changed(made(), "ends", -1, sum(LENGTHS) - 1),
        "the last is 46",
    ),
    "episode without rows": ("zero_length_episodes", lambda: changed(made(), "ends", 1, 10), "episode 1: no rows"),
}


@pytest.mark.parametrize("case", BREAKS, ids=str)
def test_a_defect_is_named_with_its_rows_and_nothing_else_is(case):
    name, broken, said = BREAKS[case]
    found = check(broken())
    assert [f.name for f in found] == [name]
    assert found[0].defect
    assert said in found[0].text
    assert found[0].mend


def test_no_rows_at_all_are_named():
    e = made()
    rows = {
        k: getattr(e, k)[:0]
        for k in ("obs", "action", "reward", "terminated", "ends", "final_obs", "has_final", "usable")
    }
    assert names(replace(e, **rows)) == ["empty"]


@pytest.mark.parametrize("given", ["usable", "final_obs"])
def test_the_last_observation_of_one_episode_saved_after_the_reset_is_enough(given):
    e = made()
    broken = (
        changed(e, "final_obs", 2, e.obs[e.ends[2]])
        if given == "final_obs"
        else changed(without_final_obs(e, usable=False), "usable", 25, True)
    )
    assert names(broken) == ["next_observation_across_episodes"]


def test_stored_next_observations_that_are_the_following_row_cross_episodes():
    e = made()
    following = np.concatenate((e.obs[1:], e.obs[-1:]))
    (found,) = check(e, following)
    assert found.name == "next_observation_across_episodes"
    assert "next_observations of episodes 0, 1, 2, 3, 4" in found.text


def test_stored_next_observations_tell_a_border_that_no_flag_marks():
    e = made()
    joined = replace(
        e,
        ends=np.delete(e.ends, 1),
        final_obs=np.delete(e.final_obs, 1, 0),
        has_final=np.delete(e.has_final, 1),
        terminated=np.where(np.arange(e.n_rows) == 15, False, e.terminated),
    )
    assert check(joined) == []  # nothing else can tell
    (found,) = check(joined, e.next_obs())
    assert (found.name, "row 15" in found.text) == ("unmarked_border", True)


def test_stored_next_observations_of_another_length_are_named_first():
    assert names(made(), made().obs[:-1]) == ["mismatched_lengths"]


def test_stored_next_observations_of_another_width_are_named_first():
    assert names(made(), made().obs[:, :-1]) == ["mismatched_widths"]


def test_a_constant_column_is_a_fact_and_no_defect():
    e = changed(changed(made(), "obs", (slice(None), 2), 0.5), "final_obs", (slice(None), 2), 0.5)
    (found,) = check(e)
    assert (found.name, found.defect) == ("constant_column", False)
    assert "observations, column 2" in found.text
    assert names(replace(made(), reward=np.zeros(47, np.float32))) == ["constant_column"]


def test_without_a_known_time_limit_missing_terminals_are_a_fact_and_no_defect():
    (found,) = check(terminal_at_last_rows(made(), value=False))
    assert (found.name, found.defect) == ("never_terminal", False)


def test_a_task_that_ends_just_as_the_clock_does_is_no_defect():
    """Gymnasium sets both flags then; the other time-outs are not terminal."""
    e = made()
    time_outs = np.zeros(e.n_rows, dtype=bool)
    time_outs[e.ends[[0, 1, 2, 4]] - 1] = True  # episode 1 terminated in that step
    assert check(replace(e, extras={"timeouts": time_outs})) == []


def test_an_episode_that_goes_on_where_its_goal_moved_needs_no_terminal():
    """Maze2D: time-outs of all lengths and no terminals, but the walk does not jump."""
    n, ends = 60, np.array([13, 30, 60])
    walk = np.cumsum(0.1 * np.random.default_rng(0).normal(size=(n + 1, 3)), 0).astype(np.float32)
    facts = Facts(format="d4rl", path="x", data_id="maze2d-umaze-v1")
    e = made((13, 17, 30), limit=0, facts=facts, obs=walk[:-1], ends=ends, final_obs=np.zeros((3, 3), np.float32))
    e = without_final_obs(replace(e, terminated=np.zeros(n, dtype=bool)), usable=False)
    assert check(e) == []


def test_goal_rows_are_terminal_wherever_the_reward_is_highest_and_no_defect():
    """AntMaze and OGBench: the episode goes on after the goal was reached."""
    reward = np.zeros(47, dtype=np.float32)
    reward[[4, 5, 6, 30]] = 1.0
    goal = made(reward=reward, terminated=reward == 1.0)
    assert "terminal_inside_episode" not in names(goal)
    assert "terminal_inside_episode" in names(changed(goal, "terminated", 20, True))


def test_actions_are_held_against_the_box_that_the_file_tells():
    wide = Facts("minari", "made", action_low=(-2.0, -2.0), action_high=(2.0, 2.0))
    assert "action_outside_box" not in names(changed(made(facts=wide), "action", (20, 1), -1.5))
    narrow = replace(wide, action_low=(-0.4, -0.4), action_high=(0.4, 0.4))
    assert "action_outside_box" in names(made(facts=narrow))


def test_equal_rows_of_few_discrete_actions_are_a_fact_and_no_defect():
    e = made(action=np.arange(47) % 2)
    (found,) = check(repeated_rows(e, slice(30, 31), slice(5, 6)))
    assert (found.name, found.defect) == ("duplicated_rows", False)


def test_two_longest_episodes_that_end_by_themselves_are_no_time_limit():
    assert check(made((5, 5, 5, 9, 9), limit=99)) == []


def test_the_end_of_collecting_is_no_missing_terminal():
    """64 lanes of a task that never ends early, cut in the middle of an episode."""
    lengths = (1000, 100) * 4
    complete = {"episode_complete": np.array([True, False] * 4)}
    e = terminal_at_last_rows(made(lengths, facts=HOPPER, episode_extras=complete), value=False)
    assert check(e) == []
    assert names(replace(e, episode_extras={})) == ["never_terminal"]


def test_another_version_of_the_simulator_is_a_fact_and_no_defect():
    here = replace(HOPPER, versions={"mujoco": version("mujoco"), "torch": "0.1"})
    assert check(made(facts=here)) == []
    (found,) = check(made(facts=replace(HOPPER, versions={"mujoco": "1.50"})))
    assert (found.name, found.defect) == ("other_simulator", False)
    assert f"made with mujoco 1.50, here is {version('mujoco')}" in found.text


def test_defects_come_before_facts():
    e = changed(made(), "action", (20, 1), -1.5)
    e = changed(changed(e, "obs", (slice(None), 2), 0.5), "final_obs", (slice(None), 2), 0.5)
    assert names(e) == ["action_outside_box", "constant_column"]


def test_many_rows_are_counted_and_the_first_shown():
    (found,) = check(changed(made(), "action", (slice(0, 40), 0), 2.0))
    assert "40 rows (0, 1, 2, 3, 4, ...) of 47" in found.text


@pytest.mark.parametrize("n_columns", [1, 3, 8])
def test_hashes_are_equal_where_and_only_where_rows_are(n_columns):
    rows = np.random.default_rng(0).integers(0, 3, (500, n_columns)).astype(np.float32)
    equal = (rows[:, None] == rows[None]).all(2)
    hashes = row_hashes(rows, rows[:, 0])
    assert ((hashes[:, None] == hashes[None]) == equal).all()
    assert duplicates(hashes).tolist() == [i for i in range(500) if equal[i, :i].any()]


def test_rows_that_differ_in_signs_alone_are_different():
    signs = np.array(np.meshgrid(*[[-1.0, 1.0]] * 8)).reshape(8, -1).T.astype(np.float32)
    assert len(np.unique(row_hashes(signs))) == 256


def test_pictures_are_hashed_whole():
    images = np.zeros((70_000, 2, 2, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(70_000) % 256
    images[:, 1, 1, 2] = np.arange(70_000) // 256 % 256
    assert len(np.unique(row_hashes(images))) == 65_536

"""Roll-outs, demonstrations and bags of transitions: which observation follows which row, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loader_files import WRITERS, flagged, rollouts, steps, write_npz

from ctrlrl.data.check import check
from ctrlrl.data.dataset import Dataset, return_range
from ctrlrl.data.load import load


def cs285(lengths=(4, 3)):
    """Whole episodes with every next observation, cut by the clock, the source's own flag kept aside."""
    columns = rollouts(lengths, terminals=())
    final = columns.pop("final_observations")
    following = np.roll(columns["observations"], -1, axis=0)
    following[np.cumsum(lengths) - 1] = final
    return columns | {"next_observations": following, "source_terminal": columns["timeouts"]}, final


@pytest.mark.parametrize("kind", WRITERS)
def test_every_row_of_roll_outs_is_used_and_followed_by_what_was_seen(tmp_path, kind):
    columns = rollouts((4, 3, 5), terminals=(6,))
    e = load(WRITERS[kind](tmp_path / f"set.{kind}", columns))
    assert e.facts.format == "rollouts"
    assert e.usable.all()
    assert e.has_final.all()
    expected = np.roll(columns["observations"], -1, axis=0)
    expected[[3, 6, 11]] = columns["final_observations"]
    np.testing.assert_array_equal(e.next_obs(), expected)
    assert e.ends.tolist() == [4, 7, 12]
    assert np.flatnonzero(e.terminated).tolist() == [6]
    assert e.facts.env_id == "Hopper-v4"
    assert (e.facts.ref_min, e.facts.ref_max) == (-20.272305, 3234.3)


def test_what_is_known_of_each_episode_and_each_row_is_kept(tmp_path):
    versions = np.array(["mujoco==4.0.0", "gymnasium==1.4.0"])
    e = load(write_npz(tmp_path / "set.npz", rollouts() | {"versions": versions, "infos/x": np.ones((12, 2))}))
    assert e.episode_extras["episode_policy"].tolist() == ["policy 0", "policy 1", "policy 2"]
    assert e.episode_extras["episode_seed"].tolist() == [0, 1, 2]
    assert set(e.extras) == {"timeouts", "infos/x"}
    assert e.facts.versions == {"mujoco": "4.0.0", "gymnasium": "1.4.0"}


def test_next_observations_stand_for_final_ones(tmp_path):
    columns, final = cs285()
    e = load(write_npz(tmp_path / "set.npz", columns))
    assert e.usable.all()
    assert not e.terminated.any()
    np.testing.assert_array_equal(e.final_obs, final)
    np.testing.assert_array_equal(e.next_obs(), columns["next_observations"])
    np.testing.assert_array_equal(e.extras["source_terminal"], columns["source_terminal"])


def test_next_observations_that_contradict_the_episodes_are_refused(tmp_path):
    columns, _ = cs285()
    columns["next_observations"][1] += 1
    with pytest.raises(ValueError, match="'next_observations' of row 1 is not the following row"):
        load(write_npz(tmp_path / "set.npz", columns))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_stored_next_observation_that_is_not_finite_is_not_taken_for_the_following_row(tmp_path, value):
    raw = flagged(10)
    saved = {k: raw[k][:8] for k in ("observations", "actions", "rewards", "terminals")}
    saved["next_observations"] = raw["observations"][1:9].copy()
    saved["next_observations"][4, 1] = value
    e = load(write_npz(tmp_path / "set.npz", saved))
    assert e.ends.tolist() == [5, 8]
    assert "not_finite" in [finding.name for finding in check(e)]
    with pytest.raises(ValueError, match="'next_observations' of row 4 hold nan or inf, the following row does not"):
        load(write_npz(tmp_path / "ends.npz", saved | {"episode_ends": np.array([8])}))
    saved["observations"] = saved["observations"].copy()
    saved["observations"][5, 1] = value  # a simulator that broke down, told as it was
    assert load(write_npz(tmp_path / "both.npz", saved)).n_episodes == 1


def test_demonstrations_lose_the_rows_whose_next_observation_nobody_stored(tmp_path):
    columns = rollouts((4, 3, 5), terminals=(6,))
    del columns["final_observations"]
    columns |= {"init_qpos": np.zeros((3, 30)), "init_qvel": np.zeros((3, 30)), "init_door_body_pos": np.ones((3, 3))}
    columns["env_id"] = np.array("door-v0 (mj_envs) ~ AdroitHandDoor-v1")
    e = load(write_npz(tmp_path / "set.npz", columns))
    assert e.facts.format == "adroit"
    assert e.facts.env_id == "AdroitHandDoor-v1"
    assert e.facts.ref_max == 2880.5693087298737
    assert not e.has_final.any()
    assert np.flatnonzero(~e.usable).tolist() == [3, 11]  # row 6 is terminal: nothing is asked of what follows
    assert set(e.episode_extras) >= {"init_qpos", "init_qvel", "init_door_body_pos"}
    assert any("2 rows are not learned from" in notice for notice in e.facts.notices)


def test_an_episode_without_its_final_observation_loses_its_last_row_alone(tmp_path):
    columns = rollouts((4, 3, 5), terminals=()) | {"has_final_observation": np.array([True, False, True])}
    e = load(write_npz(tmp_path / "set.npz", columns))
    assert e.has_final.tolist() == [True, False, True]
    assert np.flatnonzero(~e.usable).tolist() == [6]


def test_shuffled_transitions_keep_each_its_own_next_observation(tmp_path):
    columns, _ = cs285((9, 8))
    order = np.random.default_rng(1).permutation(17)
    bag = {k: columns[k][order] for k in ("observations", "actions", "rewards", "terminals", "next_observations")}
    e = load(write_npz(tmp_path / "set.npz", bag))
    assert e.usable.all()
    np.testing.assert_array_equal(e.next_obs(), bag["next_observations"])
    assert any("in no order" in notice for notice in e.facts.notices)
    data = Dataset.of_episodes(e)
    assert (data.size, data.ends) == (17, None)


@pytest.mark.parametrize(
    "asked", [{"needs": ["next_action"]}, {"needs": ["return_to_go"]}, {"best_fraction": 0.5}, {"n_steps": 3}]
)
def test_what_is_about_episodes_is_refused_where_rows_are_in_no_order(tmp_path, asked):
    columns, _ = cs285((9, 8))
    order = np.random.default_rng(1).permutation(17)
    bag = {k: columns[k][order] for k in ("observations", "actions", "rewards", "terminals", "next_observations")}
    e = load(write_npz(tmp_path / "set.npz", bag))
    with pytest.raises(ValueError, match=r"set.npz: its rows are in no order, and .* is about episodes"):
        Dataset.of_episodes(e, **asked)
    with pytest.raises(ValueError, match=r"data\.return_range is about episodes"):
        return_range(e)


def test_saved_qlearning_data_is_cut_where_time_outs_were_dropped_and_at_terminals(tmp_path):
    raw = flagged(10, terminals=(2,), timeouts=(6,))
    kept = np.array([0, 1, 2, 3, 4, 5, 7, 8])
    saved = {k: raw[k][kept] for k in ("observations", "actions", "rewards", "terminals")}
    saved["next_observations"] = raw["observations"][kept + 1]
    e = load(write_npz(tmp_path / "set.npz", saved))
    assert e.ends.tolist() == [3, 6, 8]
    assert e.usable.all()
    walked_on = load(tmp_path / "set.npz", data_id="antmaze-umaze-v2")
    assert walked_on.ends.tolist() == [6, 8]


@given(st.data())
def test_no_row_that_bootstraps_is_followed_by_another_episode(tmp_path_factory, data):
    lengths = tuple(data.draw(st.lists(st.integers(1, 6), min_size=2, max_size=6)))
    n = sum(lengths)
    columns = rollouts(lengths, terminals=tuple(data.draw(st.sets(st.integers(0, n - 1)))))
    known = np.array(data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths))))
    form = data.draw(st.sampled_from(["final", "some final", "none"]))
    if form == "some final":
        columns["has_final_observation"] = known
    elif form == "none":
        del columns["final_observations"]
    path = write_npz(tmp_path_factory.mktemp("any") / "set.npz", columns)
    told = {"final": True, "some final": known.any(), "none": False}[form]
    if not (told or n > len(lengths) or columns["terminals"].any()):
        with pytest.raises(ValueError, match=r"none of its .* rows can be learned from"):
            load(path)
        return
    e = load(path)
    last = e.ends - 1
    bootstraps = e.usable & ~e.terminated
    assert e.has_final[bootstraps[last]].all()
    assert e.lengths().tolist() == list(lengths)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"episode_ends": np.array([4, 7, 11])}, "'episode_ends' must rise .* 12"),
        ({"episode_ends": np.array([7, 4, 12])}, "'episode_ends' must rise"),
        ({"episode_ends": np.array([0, 4, 12])}, "'episode_ends' must rise"),
        ({"episode_ends": np.array([4.0, 7.0, 12.0])}, "'episode_ends' must rise"),
        ({"episode_ends": np.array([], int)}, "'episode_ends' must rise"),
        ({"episode_ends": np.array(12)}, "'episode_ends' must rise"),
        ({"final_observations": np.ones((2, 3))}, r"'final_observations' must be \(3, 3\)"),
        ({"final_observations": np.ones((3, 4))}, r"'final_observations' must be \(3, 3\)"),
        ({"has_final_observation": np.array([True])}, "'has_final_observation' has 1 rows for 3 episodes"),
        ({"episode_seed": np.arange(2)}, "'episode_seed' has shape"),
        ({"env_id": np.array(["a", "b"])}, "'env_id' must be one string"),
        ({"next_observations": np.ones((12, 4))}, "'next_observations' .* must be like"),
        ({"next_observations": np.ones((11, 3))}, "'next_observations' has 11 rows, 'observations' has 12"),
    ],
)
def test_columns_that_do_not_fit_together_are_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        load(write_npz(tmp_path / "set.npz", rollouts() | change))
    assert str(tmp_path / "set.npz") in str(caught.value)


def test_a_file_whose_rows_all_end_unseen_is_refused(tmp_path):
    columns = steps(3) | {"episode_ends": np.array([1, 2, 3])}
    with pytest.raises(ValueError, match="none of its 3 rows can be learned from"):
        load(write_npz(tmp_path / "set.npz", columns))

"""D4RL files: the rows of qlearning_dataset, where episodes end, and how a file is found or fetched."""

from __future__ import annotations

import io
import urllib.request

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loader_files import WRITERS, flagged, steps, write_hdf5, write_npz

from ctrlrl.data import d4rl, d4rl_files
from ctrlrl.data.load import find, load
from ctrlrl.data.scores import SCORES


def emitted(terminals, timeouts, horizon):
    """The loop of the specification, written out: rows that `qlearning_dataset` emits."""
    rows, t = [], 0
    for i in range(len(terminals) - 1):
        final = timeouts[i] if timeouts is not None else t == horizon - 1
        if final:
            t = 0
            continue
        if terminals[i]:
            t = 0
        rows.append(i)
        t += 1
    return rows


def test_the_toy_file_of_the_specification_gives_its_four_rows(tmp_path):
    columns = flagged(6, terminals=(2,), timeouts=(4,))
    e = load(write_hdf5(tmp_path / "toy.hdf5", columns))
    assert np.flatnonzero(e.usable).tolist() == [0, 1, 2, 3]
    assert e.terminated[e.usable].tolist() == [False, False, True, False]
    np.testing.assert_array_equal(e.next_obs()[e.usable], columns["observations"][[1, 2, 3, 4]])
    assert e.ends.tolist() == [3, 5, 6]
    assert not e.has_final.any()


flags = st.lists(st.booleans(), min_size=2, max_size=40)


@given(st.integers(2, 40).flatmap(lambda n: st.tuples(*(st.lists(st.booleans(), min_size=n, max_size=n),) * 2)))
def test_usable_rows_are_those_of_qlearning_dataset(both):
    terminals, timeouts = (np.array(f) for f in both)
    cut = d4rl.split(terminals, timeouts, past_terminals=False)
    assert np.flatnonzero(cut.usable).tolist() == emitted(terminals, timeouts, None)


@given(flags, st.integers(1, 8))
def test_without_time_outs_rows_are_counted_as_qlearning_dataset_counts_them(terminals, horizon):
    terminals = np.array(terminals)
    cut = d4rl.split(terminals, d4rl.count_time_outs(terminals, horizon), past_terminals=False)
    assert np.flatnonzero(cut.usable).tolist() == emitted(terminals, None, horizon)


def test_after_a_terminal_the_counted_episode_is_cut_one_row_early():
    terminals = np.array([False, True, False, False, False, False])
    assert np.flatnonzero(d4rl.count_time_outs(terminals, 4)).tolist() == [4]  # rows 2, 3, 4: three steps, not four


@given(
    st.integers(2, 40).flatmap(lambda n: st.tuples(*(st.lists(st.booleans(), min_size=n, max_size=n),) * 2)),
    st.booleans(),
    st.one_of(st.none(), st.integers(1, 8)),
)
def test_no_row_that_bootstraps_crosses_the_end_of_an_episode(both, past_terminals, horizon):
    terminals, timeouts = (np.array(f) for f in both)
    final = timeouts if horizon is None else d4rl.count_time_outs(terminals, horizon)
    cut = d4rl.split(terminals, final, past_terminals=past_terminals)
    bootstraps = cut.usable & ~terminals
    assert not bootstraps[cut.ends - 1].any()
    assert cut.ends[-1] == len(terminals)
    assert (np.diff(cut.ends, prepend=0) > 0).all()


@pytest.mark.parametrize("kind", WRITERS)
def test_columns_are_squeezed_flattened_and_read_as_float32(tmp_path, kind):
    columns = flagged(8, terminals=(3,), timeouts=(7,))
    stored = {k: v.astype(np.float64) for k, v in columns.items() if v.dtype != bool}
    stored |= {"rewards": stored["rewards"][:, None], "terminals": columns["terminals"][:, None].astype(np.uint8)}
    stored |= {
        "timeouts": columns["timeouts"],
        "infos/qpos": np.ones((8, 5)),
        "metadata/policy/weight": np.ones((8, 2)),
    }
    e = load(WRITERS[kind](tmp_path / f"set.{kind}", stored))
    for array, key in (
        (e.obs, "observations"),
        (e.action, "actions"),
        (e.reward, "rewards"),
        (e.terminated, "terminals"),
    ):
        np.testing.assert_array_equal(array, columns[key])
        assert array.dtype == (bool if key == "terminals" else np.float32)
    assert set(e.extras) == {"timeouts", "infos/qpos"}
    assert e.extras["infos/qpos"].dtype == np.float32
    assert e.facts.format == "d4rl"
    np.testing.assert_allclose(e.returns(), [columns["rewards"][:4].sum(), columns["rewards"][4:].sum()], rtol=1e-6)


def test_stored_next_observations_are_left_unread_and_it_is_said(tmp_path):
    columns = flagged(50, timeouts=(2, 49))
    following = np.roll(columns["observations"], -1, axis=0)
    following[[2, 49]] += 100
    e = load(write_hdf5(tmp_path / "set.hdf5", columns | {"next_observations": following}))
    assert "next_observations" not in e.extras
    assert [n for n in e.facts.notices if "next_observations" in n] == [
        "'next_observations' is left in the file: as in D4RL's loader, row i + 1 follows row i"
    ]
    following[7] += 100
    e = load(write_hdf5(tmp_path / "set.hdf5", columns | {"next_observations": following}))
    np.testing.assert_array_equal(e.next_obs()[7], columns["observations"][8])
    assert any("in 1 rows it is another" in notice for notice in e.facts.notices)


def test_rows_of_two_environments_by_turns_are_refused_but_in_a_file_of_d4rls(tmp_path):
    columns = flagged(40, timeouts=(38, 39))
    interleaved = columns | {"next_observations": np.roll(columns["observations"], -2, axis=0)}
    with pytest.raises(ValueError, match=r"in 38 of 38 rows inside.*in no order: leave 'timeouts' out"):
        load(write_hdf5(tmp_path / "set.hdf5", interleaved))
    assert load(tmp_path / "set.hdf5", data_id="hopper-medium-v2").n_rows == 40
    without = {name: column for name, column in interleaved.items() if name != "timeouts"}
    e = load(write_hdf5(tmp_path / "bag.hdf5", without))
    np.testing.assert_array_equal(e.next_obs(), interleaved["next_observations"])


@pytest.mark.parametrize(("env_id", "data_id"), [(None, True), ("Hopper-v2", True), ("Hopper-v5", False)])
def test_a_file_called_as_d4rls_is_d4rls_unless_it_says_another_simulator(tmp_path, env_id, data_id):
    columns = flagged(6, timeouts=(2, 5)) | ({} if env_id is None else {"env_id": np.array(env_id)})
    e = load(write_hdf5(tmp_path / "hopper-medium-v2.hdf5", columns))
    assert (e.facts.data_id == "hopper-medium-v2") == data_id
    assert e.facts.env_id == (env_id or "Hopper-v2")


@pytest.mark.parametrize("how", ["name", "column", "id"])
def test_an_antmaze_episode_goes_on_past_the_goal(tmp_path, how):
    columns = flagged(10, terminals=(2, 3, 4, 8), timeouts=(5,))
    name = "Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed.hdf5" if how == "name" else "set.hdf5"
    path = write_hdf5(tmp_path / name, columns | ({"infos/goal": np.zeros((10, 2))} if how == "column" else {}))
    e = load(path, data_id="antmaze-umaze-v2" if how == "id" else None)
    assert e.ends.tolist() == [6, 10]
    assert np.flatnonzero(~e.usable).tolist() == [5, 9]
    assert np.flatnonzero(e.terminated).tolist() == [2, 3, 4, 8]
    assert e.facts.data_id == (None if how == "column" else "antmaze-umaze-v2")


def test_antmaze_v0_is_loaded_with_a_warning_of_its_time_outs(tmp_path):
    e = load(write_hdf5(tmp_path / "set.hdf5", flagged(6, timeouts=(2,))), data_id="antmaze-large-play-v0")
    assert any("wrong time-outs" in notice for notice in e.facts.notices)


def test_a_file_without_time_outs_is_cut_at_the_limit_of_its_task(tmp_path):
    columns = steps(600)
    del columns["timeouts"]
    e = load(write_hdf5(tmp_path / "kitchen_microwave_kettle_light_slider-v0.hdf5", columns))
    assert (e.facts.data_id, e.ends.tolist()) == ("kitchen-partial-v0", [280, 560, 600])
    assert np.flatnonzero(~e.usable).tolist() == [279, 559, 599]
    by_env = load(write_npz(tmp_path / "set.npz", columns | {"env_id": np.array("Reacher-v5")}))
    assert by_env.ends.tolist() == list(range(50, 601, 50))


def test_without_time_outs_and_a_known_task_the_mend_is_named(tmp_path):
    columns = steps(20)
    del columns["timeouts"]
    with pytest.raises(ValueError, match=r"set\.hdf5: no 'timeouts' column.*data\.id"):
        load(write_hdf5(tmp_path / "set.hdf5", columns))


def test_the_file_name_tells_the_task_its_simulator_and_its_scores(tmp_path):
    e = load(write_hdf5(tmp_path / "hopper_medium_replay-v2.hdf5", flagged(6, timeouts=(2,))))
    assert (e.facts.data_id, e.facts.env_id, e.facts.versions) == (
        "hopper-medium-replay-v2",
        "Hopper-v2",
        {"mujoco": "1.50"},
    )
    assert (e.facts.ref_min, e.facts.ref_max) == (-20.272305, 3234.3)
    assert len(e.facts.checksum) == 64


@pytest.mark.parametrize(
    ("actions", "expected"),
    [
        (np.arange(6, dtype=np.int32), np.arange(6)),
        (np.arange(6, dtype=np.uint8)[:, None], np.arange(6)),
        (np.linspace(0, 1, 6), np.linspace(0, 1, 6, dtype=np.float32)[:, None]),
    ],
)
def test_whole_numbers_are_discrete_actions_and_floats_are_not(tmp_path, actions, expected):
    e = load(write_npz(tmp_path / "set.npz", flagged(6, timeouts=(2,)) | {"actions": actions}))
    np.testing.assert_array_equal(e.action, expected)
    assert e.action.dtype == expected.dtype


def test_images_stay_bytes(tmp_path):
    images = np.arange(6 * 4 * 4 * 3, dtype=np.uint8).reshape(6, 4, 4, 3)
    e = load(write_hdf5(tmp_path / "set.hdf5", flagged(6, timeouts=(2,)) | {"observations": images}))
    assert (e.obs.dtype, e.final_obs.shape) == (np.uint8, (2, 4, 4, 3))


# ids and files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data_id", "file"),
    [
        ("hopper-medium-v2", "gym_mujoco_v2/hopper_medium-v2.hdf5"),
        ("walker2d-medium-replay-v0", "gym_mujoco/walker_mixed.hdf5"),
        ("halfcheetah-medium-replay-v0", "gym_mujoco/halfcheetah_mixed.hdf5"),
        ("ant-full-replay-v1", "gym_mujoco_v1/ant_full_replay-v1.hdf5"),
        (
            "antmaze-large-play-v0",
            "ant_maze_new/Ant_maze_hardest-maze_noisy_multistart_True_multigoal_False_sparse.hdf5",
        ),
        ("antmaze-umaze-v1", "ant_maze_v1/Ant_maze_umaze_noisy_multistart_False_multigoal_False_sparse.hdf5"),
        (
            "antmaze-medium-diverse-v2",
            "ant_maze_v2/Ant_maze_big-maze_noisy_multistart_True_multigoal_True_sparse_fixed.hdf5",
        ),
        ("pen-cloned-v0", "hand_dapg/pen-demos-v0-bc-combined.hdf5"),
        ("door-human-v1", "hand_dapg_v1/door-human-v1.hdf5"),
        ("kitchen-complete-v0", "kitchen/mini_kitchen_microwave_kettle_light_slider-v0.hdf5"),
        ("maze2d-umaze-v1", "maze2d/maze2d-umaze-sparse-v1.hdf5"),
        ("maze2d-open-dense-v0", "maze2d/maze2d-open-dense.hdf5"),
        ("bullet-walker2d-medium-expert-v0", "bullet/bullet-walker2d_medium_expert.hdf5"),
        ("bullet-maze2d-large-v0", "bullet/bullet-maze2d-large-sparse.hdf5"),
        ("flow-merge-controller-v0", "flow/flow-merge-v0-idm.hdf5"),
    ],
)
def test_each_id_has_d4rls_own_file(data_id, file):
    assert d4rl_files.FILES[data_id] == file
    assert d4rl_files.id_of(file.rpartition("/")[2]) == data_id


def test_ids_with_scores_and_ids_with_files_are_the_same_and_no_two_share_a_file():
    assert set(d4rl_files.FILES) == set(SCORES)
    names = [path.rpartition("/")[2] for path in d4rl_files.FILES.values()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("hopper-medium-v2", 1000), ("antmaze-umaze-diverse-v2", 700), ("antmaze-large-play-v0", 1000),
        ("pen-human-v1", 100), ("door-expert-v0", 200), ("kitchen-mixed-v0", 280), ("maze2d-umaze-v1", 300),
        ("maze2d-umaze-v0", 150), ("maze2d-medium-dense-v0", 250), ("maze2d-large-dense-v1", 800),
        ("maze2d-open-v0", 150), ("bullet-maze2d-medium-v0", 600), ("bullet-ant-random-v0", 1000),
        ("carla-lane-v0", 250), ("carla-town-v0", 1000), ("flow-ring-random-v0", 500), ("minigrid-fourrooms-v0", 50),
        ("Walker2d-v4", 1000), ("AdroitHandPen-v1", 100), ("Nothing-v0", None), ("hopperlike-v0", None),
    ],
)  # fmt: skip
def test_time_limits_are_those_d4rl_registers(name, limit):
    assert d4rl_files.time_limit(name) == limit


def test_every_id_has_a_time_limit():
    assert all(d4rl_files.time_limit(data_id) for data_id in SCORES)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("D4RL_DATASET_DIR", str(folder))
    return folder


@pytest.mark.parametrize("name", ["hopper_medium-v2.hdf5", "hopper-medium-v2.hdf5", "hopper-medium-v2.npz"])
def test_a_file_in_the_local_folder_is_taken_by_any_of_its_names(cache, name):
    cache.mkdir()
    (cache / name).write_bytes(b"there")
    assert find("d4rl", "hopper-medium-v2") == cache / name


def test_the_folder_is_d4rls_own_where_no_variable_names_another(tmp_path, monkeypatch):
    monkeypatch.delenv("D4RL_DATASET_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".d4rl" / "datasets"
    folder.mkdir(parents=True)
    (folder / "hopper_medium-v2.hdf5").touch()
    assert find("d4rl", "hopper-medium-v2") == folder / "hopper_medium-v2.hdf5"


def test_an_unknown_id_is_refused_with_near_ones(cache):
    with pytest.raises(ValueError, match=r"data\.id=hoper-medium-v2 is unknown; did you mean hopper-medium-v2"):
        find("d4rl", "hoper-medium-v2")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder in the place of the server."""
    monkeypatch.setattr(d4rl, "ADDRESS", (tmp_path / "server").as_uri())
    folder = tmp_path / "server" / "gym_mujoco_v2"
    folder.mkdir(parents=True)
    return folder


def test_a_file_that_is_not_there_is_fetched_whole(cache, server):
    source = write_hdf5(server / "hopper_medium-v2.hdf5", flagged(6, timeouts=(2,)))
    path = find("d4rl", "hopper-medium-v2")
    assert path == cache / "hopper_medium-v2.hdf5"
    assert path.read_bytes() == source.read_bytes()
    assert [p.name for p in cache.iterdir()] == [path.name]
    assert load(path).facts.data_id == "hopper-medium-v2"


def left_behind(cache):
    return [p.name for p in cache.iterdir()] if cache.exists() else []


def test_without_a_network_the_file_and_its_folder_are_named(cache, server):
    with pytest.raises(
        ValueError, match=r"data\.id=hopper-medium-v2: hopper_medium-v2\.hdf5 is not in .*cache"
    ) as caught:
        find("d4rl", "hopper-medium-v2")
    assert len(str(caught.value).splitlines()) <= 2
    assert left_behind(cache) == []


@pytest.mark.parametrize("content", [b"<html>moved</html>", b"\x89HDF\r\n\x1a\n", b""])
def test_what_is_fetched_and_is_no_data_set_is_not_kept(cache, server, content):
    (server / "hopper_medium-v2.hdf5").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be fetched"):
        find("d4rl", "hopper-medium-v2")
    assert left_behind(cache) == []


def test_an_interrupted_transfer_leaves_nothing(cache, server, tmp_path, monkeypatch):
    whole = write_hdf5(tmp_path / "whole.hdf5", flagged(6, timeouts=(2,))).read_bytes()

    class Answer(io.BytesIO):
        headers = {"Content-Length": str(len(whole))}  # noqa: RUF012

    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **kwargs: Answer(whole[:-100]))
    with pytest.raises(ValueError, match=f"{len(whole) - 100} of {len(whole)} bytes"):
        find("d4rl", "hopper-medium-v2")
    assert left_behind(cache) == []

"""One way in: what each file is taken for, and what is said of a broken, hostile or unsuitable one."""

from __future__ import annotations

import io
import pickle
import zipfile

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loader_files import WRITERS, flagged, rollouts, steps, trajectories, write_hdf5, write_npz

from ctrlrl.data import columns as cols
from ctrlrl.data.load import find, load


def refused(path, match, **kwargs):
    """The file is refused in one or two lines that name it."""
    with pytest.raises(ValueError, match=match) as caught:
        load(path, **kwargs)
    assert len(str(caught.value).splitlines()) <= 2
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    ("columns", "format_"),
    [(flagged(8, timeouts=(3,)), "d4rl"), (rollouts(), "rollouts"), (trajectories(), "ogbench")],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_file_is_known_by_its_columns_whatever_it_is_called(tmp_path, kind, columns, format_):
    e = load(WRITERS[kind](tmp_path / "data.bin", columns) if kind == "hdf5" else renamed(tmp_path, columns))
    assert e.facts.format == format_
    assert e.facts.path == str(tmp_path / "data.bin")


def test_a_d4rl_file_without_rewards_is_not_taken_for_another_layout(tmp_path):
    columns = trajectories()
    with pytest.raises(ValueError, match="no 'rewards' among its columns"):
        load(write_hdf5(tmp_path / "hopper_medium-v2.hdf5", columns))
    with pytest.raises(ValueError, match="no 'rewards' among its columns"):
        load(write_npz(tmp_path / "set.npz", columns), data_id="hopper-medium-v2")


def test_ogbenchs_layout_is_known_by_its_masks_whatever_d4rl_id_it_bears(tmp_path):
    columns = trajectories()
    n = len(columns["observations"])
    columns |= {"rewards": np.arange(n, dtype=np.float32), "masks": np.ones(n, np.float32)}
    for e in (
        load(write_npz(tmp_path / "hopper-medium-v2.npz", columns)),
        load(write_npz(tmp_path / "set.npz", columns), data_id="hopper-medium-v2"),
    ):
        assert (e.facts.format, e.facts.data_id, e.facts.ref_max) == ("ogbench", "hopper-medium-v2", 3234.3)
        assert e.facts.env_id == "Hopper-v2"
        assert (e.n_rows, e.terminated.sum()) == (n - 2, 0)


def test_saved_transitions_of_a_maze_go_on_past_the_goal(tmp_path):
    columns = flagged(8, terminals=(2, 3))
    del columns["timeouts"]
    columns["next_observations"] = np.concatenate((columns["observations"][1:], columns["observations"][:1]))
    assert load(write_npz(tmp_path / "set.npz", columns)).n_episodes == 3
    assert load(write_npz(tmp_path / "antmaze-umaze-v2.npz", columns)).n_episodes == 1
    assert load(write_npz(tmp_path / "goals.npz", columns | {"infos/goal": np.zeros((8, 2))})).n_episodes == 1


def renamed(folder, columns):
    return write_npz(folder / "data.npz", columns).rename(folder / "data.bin")


def test_the_checksum_is_of_the_files_bytes(tmp_path):
    import hashlib

    path = write_npz(tmp_path / "set.npz", rollouts())
    assert load(path).facts.checksum == hashlib.sha256(path.read_bytes()).hexdigest()


def test_sources_without_ids_are_refused():
    with pytest.raises(ValueError, match=r"data=file has no ids; known: d4rl, minari, ogbench"):
        find("file", "hopper-medium-v2")


# what is not a data set ----------------------------------------------------------------------------------------------


def test_an_unknown_id_of_a_file_is_told_with_near_ones(tmp_path):
    path = write_npz(tmp_path / "a.npz", flagged(8, timeouts=(3,)))
    assert load(path, data_id="hopper-medium-v2").facts.data_id == "hopper-medium-v2"
    assert load(path, data_id="D4RL/door/human-v2").facts.data_id == "D4RL/door/human-v2"
    with pytest.raises(ValueError, match=r"hoper-medium-v2 is unknown; did you mean hopper-medium-v2"):
        load(path, data_id="hoper-medium-v2")


def test_a_missing_path_is_named(tmp_path):
    refused(tmp_path / "nowhere.hdf5", r"nowhere.hdf5: no such file")


def test_a_folder_without_a_set_is_refused(tmp_path):
    refused(tmp_path, "folder without a Minari set")


@pytest.mark.parametrize("content", [b"", b"PK", b"hello", pickle.dumps({"observations": [1.0]}), b"\x93NUMPY"])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    refused(path, "neither HDF5 nor NPZ")


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was opened",))


@pytest.mark.parametrize("key", ["observations", "episode_ends"])
def test_pickled_columns_are_never_opened(tmp_path, key):
    objects = np.empty(12, object)
    objects[:] = [Trap()] * 12
    refused(write_npz(tmp_path / "set.npz", rollouts() | {key: objects}), f"{key!r} holds pickled objects")


def test_a_further_column_of_objects_is_passed_over_unopened(tmp_path):
    objects = np.empty(12, object)
    objects[:] = [Trap()] * 12
    assert "notes" not in load(write_npz(tmp_path / "set.npz", rollouts() | {"notes": objects})).extras


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.99])
def test_a_truncated_file_is_refused(tmp_path, kind, share):
    path = WRITERS[kind](tmp_path / f"set.{kind}", flagged(4000, timeouts=(99,)))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path, "cannot be read, truncated or damaged")


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_damaged_npz_is_refused_or_unchanged(tmp_path_factory, place, change):
    path = write_npz(tmp_path_factory.mktemp("any") / "set.npz", rollouts())
    content = bytearray(path.read_bytes())
    whole = load(path)
    content[place % len(content)] ^= change
    path.write_bytes(content)
    try:
        e = load(path)
    except ValueError as error:
        said = str(error)
    else:
        said = str(path)
        np.testing.assert_array_equal(e.obs, whole.obs)
        np.testing.assert_array_equal(e.reward, whole.reward)
    assert str(path) in said


def claim(shape):
    """An array file that claims a shape and holds next to nothing."""
    head = io.BytesIO()
    np.lib.format.write_array_header_2_0(head, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return head.getvalue() + b"\0" * 64


@pytest.mark.parametrize("shape", [(10**13, 3), (2**62, 4), (-5, 3), (10**6, 10**6)])
def test_an_npz_that_claims_more_than_it_holds_is_refused(tmp_path, shape):
    path = write_npz(tmp_path / "set.npz", rollouts())
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in parts.items():
            new.writestr(name, claim(shape) if name == "observations.npy" else content)
    refused(path, "'observations' cannot be read")


def test_an_hdf5_file_that_claims_more_than_it_holds_is_refused(tmp_path):
    path = write_hdf5(tmp_path / "set.hdf5", {k: v for k, v in flagged(6).items() if k != "observations"})
    with h5py.File(path, "a") as file:
        file.create_dataset("observations", shape=(10**10, 17), dtype="f4", chunks=(1024, 17))
    refused(path, r"'observations' claims 680 GB in a file of \d+ bytes")


def test_an_hdf5_column_that_lies_in_another_file_is_refused(tmp_path):
    (tmp_path / "other").write_bytes(bytes(72))
    path = write_hdf5(tmp_path / "set.hdf5", {k: v for k, v in flagged(6).items() if k != "observations"})
    with h5py.File(path, "a") as file:
        file.create_dataset("observations", shape=(6, 3), dtype="f4", external=[(str(tmp_path / "other"), 0, 72)])
    refused(path, "'observations' points at another file")
    with h5py.File(path, "a") as file:
        del file["observations"]
        file["observations"] = h5py.ExternalLink(str(tmp_path / "elsewhere.hdf5"), "/secret")
    refused(path, "no 'observations' among its columns")


def test_h5py_is_asked_for_by_its_extra(tmp_path, monkeypatch):
    path = write_hdf5(tmp_path / "set.hdf5", flagged(6, timeouts=(2,)))
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    refused(path, r"pip install 'ctrlrl\[data\]'")


# what is no good data set --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("key", ["observations", "actions", "rewards", "terminals"])
def test_a_missing_column_is_named_beside_those_there_are(tmp_path, kind, key):
    columns = flagged(8, timeouts=(3,))
    del columns[key]
    others = {"actions", "observations"} - {key}
    match = f"no '{key}' among its columns .*{next(iter(others))}"
    if key == "rewards":
        columns["next_observations"] = columns["observations"]  # else it is an OGBench file
    refused(WRITERS[kind](tmp_path / f"set.{kind}", columns), match)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    ("key", "column", "match"),
    [
        ("actions", np.ones((7, 2)), "'actions' has 7 rows, 'observations' has 8"),
        ("rewards", np.ones(9), "'rewards' has 9 rows, 'observations' has 8"),
        ("terminals", np.zeros(7, bool), "'terminals' has 7 rows"),
        ("timeouts", np.zeros(1, bool), "'timeouts' has 1 rows"),
        ("rewards", np.ones((8, 2)), r"'rewards' must be \[N\] numbers"),
        ("terminals", np.ones((8, 3)), r"'terminals' must be \[N\] numbers"),
        ("terminals", np.full(8, np.nan), "'terminals' holds NaN"),
        ("observations", np.ones((8, 3, 2)), r"'observations' must be \[N, O\] numbers"),
        ("observations", np.ones((8, 0)), r"'observations' must be \[N, O\] numbers"),
        ("actions", np.ones((8, 2), int), "'actions' must be .* discrete choice"),
        ("actions", np.ones((8, 2, 2)), "'actions' must be"),
        ("actions", np.array(1.0), "'actions' must be"),
    ],
)
def test_a_column_of_the_wrong_shape_or_kind_is_named(tmp_path, kind, key, column, match):
    refused(WRITERS[kind](tmp_path / f"set.{kind}", flagged(8, timeouts=(3,)) | {key: column}), match)


@pytest.mark.parametrize("array", [np.array(["a"] * 8), np.ones(8, complex)], ids=["text", "complex"])
def test_a_column_that_holds_no_numbers_is_named(tmp_path, array):
    refused(write_npz(tmp_path / "set.npz", flagged(8, timeouts=(3,)) | {"rewards": array}), "'rewards'")


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(("n", "said"), [(0, "0 rows"), (1, "1 row:")])
def test_an_empty_or_one_row_file_is_refused(tmp_path, kind, n, said):
    refused(WRITERS[kind](tmp_path / f"set.{kind}", steps(n)), f"holds {said}.*at least two")


def test_a_file_of_time_outs_alone_is_refused(tmp_path):
    refused(
        write_npz(tmp_path / "set.npz", flagged(4, timeouts=(0, 1, 2, 3))), "none of its 4 rows can be learned from"
    )


def test_numbers_too_large_for_float32_become_infinite_for_check_to_find(tmp_path):
    columns = {k: v.astype(np.float64) if k == "rewards" else v for k, v in flagged(8, timeouts=(3,)).items()}
    columns["rewards"][2] = 1e300
    for kind, write in WRITERS.items():
        assert np.isinf(load(write(tmp_path / f"set.{kind}", columns)).reward[2])


def test_floats_leave_an_hdf5_file_as_float32(tmp_path):
    path = write_hdf5(tmp_path / "set.hdf5", {"observations": np.ones((6, 3))})  # float64 in the file
    with cols.opened(path) as columns:
        assert columns.fetch("observations").dtype == np.float32

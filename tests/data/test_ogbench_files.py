"""OGBench files beside the package's own reader and relabelling."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from loader_files import steps, trajectories, write_npz

from ctrlrl.data import ogbench as ours
from ctrlrl.data.load import find, load


@pytest.fixture
def ogbench():
    return pytest.importorskip("ogbench", reason="a dependency of it has no wheel for Python 3.13")


@pytest.mark.parametrize("lengths", [(4, 4), (1, 7, 3), (30,)])
def test_the_regular_view_is_the_packages_own(ogbench, tmp_path, lengths):
    columns = trajectories(lengths)
    n = len(columns["terminals"])
    columns |= {"qpos": np.arange(n * 5, dtype=np.float32).reshape(n, 5), "button_states": np.arange(n)[:, None] % 2}
    path = write_npz(tmp_path / "set.npz", columns)
    e, theirs = load(path), ogbench.load_dataset(str(path), add_info=True)
    np.testing.assert_array_equal(e.obs, theirs["observations"])
    np.testing.assert_array_equal(e.action, theirs["actions"])
    np.testing.assert_array_equal(e.next_obs(), theirs["next_observations"])
    np.testing.assert_array_equal(e.extras["qpos"], theirs["qpos"])
    np.testing.assert_array_equal(e.extras["button_states"], theirs["button_states"])
    assert (e.ends - 1).tolist() == np.flatnonzero(theirs["terminals"]).tolist()
    assert e.lengths().tolist() == list(lengths)
    assert e.usable.all()
    assert e.has_final.all()
    assert not e.terminated.any()


def test_the_toy_file_of_the_specification_has_eight_rows_that_end_at_three_and_seven(tmp_path):
    e = load(write_npz(tmp_path / "set.npz", trajectories((4, 4))))
    assert (e.n_rows, (e.ends - 1).tolist()) == (8, [3, 7])


def test_a_file_without_rewards_says_so(tmp_path):
    e = load(write_npz(tmp_path / "antmaze-large-navigate-v0.npz", trajectories()))
    assert not e.reward.any()
    assert e.facts.data_id == "antmaze-large-navigate-v0"
    assert e.facts.env_id == "ogbench:antmaze-large-v0"
    assert any("data.id=antmaze-large-navigate-singletask-v0" in notice for notice in e.facts.notices)


def test_rewards_and_masks_of_the_file_are_kept_and_masks_end_no_episode(tmp_path):
    columns = trajectories((4, 4)) | {"rewards": -np.arange(10.0), "masks": np.arange(10) % 3 > 0}
    e = load(write_npz(tmp_path / "set.npz", columns))
    assert e.reward.tolist() == [0, -1, -2, -3, -5, -6, -7, -8]
    assert np.flatnonzero(e.terminated).tolist() == [0, 3, 5]  # raw rows 0, 3, 6
    assert e.ends.tolist() == [4, 8]


@pytest.mark.parametrize("short", ["rewards", "masks"])
def test_rewards_and_masks_of_another_length_are_named(tmp_path, short):
    columns = trajectories((4, 4)) | {"rewards": np.zeros(10), "masks": np.ones(10)}
    columns[short] = columns[short][:8]
    with pytest.raises(ValueError, match=f"'{short}' has 8 rows, 'observations' has 10"):
        load(write_npz(tmp_path / "set.npz", columns))


@pytest.mark.parametrize("compact", [False, True])
def test_the_packages_own_views_are_read_as_the_file_that_they_are_of(ogbench, tmp_path, compact):
    columns = trajectories((5, 3))
    file = write_npz(tmp_path / "set.npz", columns)
    view = ogbench.load_dataset(str(file), compact_dataset=compact)
    saved = write_npz(tmp_path / "view.npz", view)
    rewarded = {"rewards": -np.ones(len(view["actions"])), "masks": np.arange(len(view["actions"])) % 4 != 2}
    for e in (load(saved), load(write_npz(tmp_path / "rewarded.npz", view | rewarded))):
        np.testing.assert_array_equal(e.obs, load(file).obs)
        np.testing.assert_array_equal(e.next_obs(), load(file).next_obs())
        assert e.ends.tolist() == [5, 8]
    over = np.flatnonzero(rewarded["masks"][view["valids"] == 1 if compact else slice(None)] == 0)
    assert np.flatnonzero(e.terminated).tolist() == over.tolist()  # by the masks: the goal ends no episode
    assert len(over) == 2


def test_a_bag_of_transitions_with_masks_is_refused_with_the_way_out(ogbench, tmp_path):
    view = ogbench.load_dataset(str(write_npz(tmp_path / "set.npz", trajectories((5, 3)))))
    view |= {"next_observations": view["next_observations"][::-1], "rewards": np.ones(8), "masks": np.ones(8)}
    with pytest.raises(ValueError, match=r"row 0 is not the following row.*leave 'masks' out"):
        load(write_npz(tmp_path / "bag.npz", view))


def test_images_stay_bytes_and_the_validation_part_is_called_so(tmp_path):
    columns = trajectories() | {"observations": np.full((10, 8, 8, 3), 7, np.uint8)}
    e = load(write_npz(tmp_path / "visual-cube-single-play-v0-val.npz", columns))
    assert (e.obs.dtype, e.facts.data_id) == (np.uint8, "visual-cube-single-play-v0")
    assert any("validation" in notice for notice in e.facts.notices)


@pytest.mark.parametrize(
    ("terminals", "match"), [([0, 0, 1, 0, 0], "the last row has terminals = 0"), ([1, 1, 1, 1, 1], "none is a step")]
)
def test_a_file_that_is_cut_off_or_holds_no_step_is_refused(tmp_path, terminals, match):
    columns = {k: steps(5)[k] for k in ("observations", "actions")} | {"terminals": np.array(terminals)}
    with pytest.raises(ValueError, match=match):
        load(write_npz(tmp_path / "set.npz", columns))


# rewards of a single task --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("met", "reward", "over"),
    [([1, 1, 0], -1, False), ([1, 1, 1], 0, True), ([0, 0, 0], -3, False), ([1], 0, True), ([0], -1, False)],
)
def test_a_step_costs_one_for_each_unsolved_part(met, reward, over):
    got, ends = ours.task_reward(np.array([met], bool))
    assert (got.tolist(), ends.tolist()) == ([reward], [over])


def test_parts_are_judged_where_the_simulator_keeps_them():
    goal = ours.Goal(None, 0.5, np.array([[1.0, 2, 3]]), np.array([1, 0]), -0.1, 0.2)
    solved = np.zeros((1, 25))
    solved[0, 14:17], solved[0, 23], solved[0, 24] = (1, 2, 3.03), -0.1, 0.17  # 7 numbers of the cube, 2 of buttons
    state = {"qpos": solved, "button_states": np.array([[1, 0]])}
    assert ours.solved("scene-play-singletask-v0", state, goal).all()
    for place in (14, 23, 24):
        moved = {**state, "qpos": solved + 0.1 * (np.arange(25) == place)}
        assert ours.solved("scene-play-singletask-v0", moved, goal).sum() == 4
    ball = np.zeros((2, 20))
    ball[:, 15:17] = [[1.0, 1.4], [1.0, 1.6]]
    goal = ours.Goal(xy=np.array([1.0, 1.0]), tolerance=0.5)
    assert ours.solved("antsoccer-arena-navigate-singletask-v0", {"qpos": ball}, goal).tolist() == [[True], [False]]
    assert ours.solved("antmaze-large-navigate-singletask-v0", {"qpos": ball[:, 15:]}, goal)[0, 0]


@pytest.mark.parametrize(
    "data_id",
    [
        "pointmaze-medium-navigate-singletask-v0",
        "antmaze-medium-navigate-singletask-task3-v0",
        "antsoccer-arena-navigate-singletask-v0",
        "scene-play-singletask-v0",
        pytest.param("cube-double-play-singletask-task2-v0", marks=pytest.mark.slow),
        pytest.param("puzzle-3x3-play-singletask-task4-v0", marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:.*precision lowered")  # of its own action spaces
def test_rewards_and_masks_are_those_the_package_gives(ogbench, tmp_path, monkeypatch, data_id):
    env = ogbench.make_env_and_datasets(data_id, env_only=True)
    env.reset()
    goal = ours.goal_in(env.unwrapped, data_id)
    if goal.xy is None:  # an arm takes seconds to make
        monkeypatch.setattr(ours, "goal_of", lambda _: goal)
    path = write_npz(tmp_path / "set.npz", near(goal, np.random.default_rng(0)))
    e, theirs = load(path, data_id=data_id), ogbench.load_dataset(str(path), add_info=True)
    ogbench.relabel_utils.relabel_dataset(ours.environment(data_id), env, theirs)
    np.testing.assert_array_equal(e.reward, theirs["rewards"])
    np.testing.assert_array_equal(e.terminated, theirs["masks"] == 0)
    assert 0 < e.terminated.sum() < e.n_rows
    assert (e.ends - 1).tolist() == np.flatnonzero(theirs["terminals"]).tolist()
    assert e.facts.env_id == f"ogbench:{env.spec.id}"
    env.close()


def near(goal, rng):
    """States about the goal, so that every part is solved in some of them."""
    raw = trajectories((60, 40))
    n = len(raw["terminals"])
    qpos = rng.uniform(-0.05, 0.05, (n, 60))
    if goal.xy is not None:
        qpos *= 20
        qpos[:, :2] += goal.xy
        qpos[:, 15:17] += goal.xy
    for i, cube in enumerate(() if goal.cubes is None else goal.cubes):
        qpos[:, 14 + 7 * i : 17 + 7 * i] = cube + rng.uniform(-0.03, 0.03, (n, 3))
    if goal.drawer is not None:
        at = 14 + 7 * len(goal.cubes) + len(goal.buttons)
        qpos[:, at : at + 2] += (goal.drawer, goal.window)
    raw["qpos"] = qpos.astype(np.float32)
    if goal.buttons is not None:
        raw["button_states"] = np.where(rng.random((n, len(goal.buttons))) < 0.9, goal.buttons, 1 - goal.buttons)
    return raw


def test_a_task_without_the_states_it_is_judged_on_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"no 'qpos', which the rewards of data\.id=antmaze-large-navigate-singletask-v0"
    ):
        load(write_npz(tmp_path / "set.npz", trajectories()), data_id="antmaze-large-navigate-singletask-v0")


def test_the_package_is_asked_for_by_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ogbench", None)
    path = write_npz(tmp_path / "set.npz", trajectories() | {"qpos": np.zeros((10, 20))})
    with pytest.raises(ValueError, match=r"pip install 'ctrlrl\[ogbench\]'"):
        load(path, data_id="antmaze-large-navigate-singletask-v0")


# ids and files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data_id", "name"),
    [
        ("antmaze-large-navigate-v0", "antmaze-large-v0"),
        ("cube-double-play-singletask-v0", "cube-double-singletask-v0"),
        ("cube-double-play-singletask-task2-v0", "cube-double-singletask-task2-v0"),
        ("scene-noisy-v0", "scene-v0"),
        ("powderworld-easy-play-v0", "powderworld-easy-v0"),
    ],
)
def test_the_environment_of_an_id_is_named_as_the_package_names_it(data_id, name):
    assert ours.environment(data_id) == name


def test_every_id_has_an_environment_that_the_package_registers(ogbench):
    from gymnasium.envs.registration import registry

    missing = {ours.environment(data_id) for data_id in (*ours.FILES, *ours.SINGLE_TASKS)} - set(registry)
    assert missing == set()


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".ogbench" / "data"


@pytest.mark.parametrize("data_id", ["antmaze-large-navigate-v0", "antmaze-large-navigate-singletask-task3-v0"])
def test_a_task_lies_in_the_file_of_its_set(home, data_id):
    home.mkdir(parents=True)
    for part in ("", "-val"):
        write_npz(home / f"antmaze-large-navigate-v0{part}.npz", trajectories())
    assert find("ogbench", data_id) == home / "antmaze-large-navigate-v0.npz"


def test_an_unknown_id_is_refused_with_near_ones(home):
    with pytest.raises(
        ValueError, match=r"antmaze-large-navigat-v0 is unknown; did you mean antmaze-large-navigate-v0"
    ):
        find("ogbench", "antmaze-large-navigat-v0")


def fake_server(ogbench, monkeypatch, parts, write=write_npz):
    def download(names, folder):
        for part in parts:
            write(Path(folder) / f"{names[0]}{part}.npz", trajectories())

    monkeypatch.setattr(ogbench, "download_datasets", download)


def test_a_set_that_is_not_there_is_fetched_with_its_validation_part(ogbench, home, monkeypatch):
    fake_server(ogbench, monkeypatch, ("", "-val"))
    path = find("ogbench", "cube-single-play-singletask-v0")
    assert path == home / "cube-single-play-v0.npz"
    assert sorted(p.name for p in home.iterdir()) == ["cube-single-play-v0-val.npz", "cube-single-play-v0.npz"]
    assert load(path).n_rows == 8


@pytest.mark.parametrize("broken", ["one part missing", "not a data set", "no network"])
def test_what_cannot_be_fetched_whole_leaves_nothing_and_is_named(ogbench, home, monkeypatch, broken):
    if broken == "one part missing":
        fake_server(ogbench, monkeypatch, ("",))
    elif broken == "not a data set":
        fake_server(ogbench, monkeypatch, ("", "-val"), lambda path, _: path.write_bytes(b"<html>"))
    else:
        monkeypatch.setattr("ogbench.utils.DATASET_URL", (home.parent / "nowhere").as_uri())
    with pytest.raises(ValueError, match=r"data\.id=cube-single-play-v0: cube-single-play-v0\.npz is not in") as caught:
        find("ogbench", "cube-single-play-v0")
    assert str(home) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2
    assert list(home.parent.parent.iterdir()) == []

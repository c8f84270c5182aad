"""Minari sets written by minari itself, read through h5py alone and through minari: the same rows."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from pathlib import Path

import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from minari.data_collector import EpisodeBuffer

from ctrlrl.data import minari as ours
from ctrlrl.data import minari_trees as trees
from ctrlrl.data.load import find, load

BOX = spaces.Box(-5, 5, (3,), np.float64)
HAND = spaces.Box(-1, 1, (2,), np.float32)


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    return tmp_path / "sets"


def sampled(space, n):
    """n samples, stacked as a buffer holds them."""
    if isinstance(space, spaces.Dict):
        return {k: sampled(s, n) for k, s in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(sampled(s, n) for s in space.spaces)
    return np.array([space.sample() for _ in range(n)])


def written(
    data_id="door/human-v2", obs_space=BOX, action_space=HAND, lengths=(4, 3), ends="terminations", infos=None, **kwargs
):
    """A set written by minari, and its episodes as given."""
    buffers = []
    for number, t in enumerate(lengths):
        obs_space.seed(number)
        action_space.seed(number)
        flags = {k: [k == ends and i == t - 1 for i in range(t)] for k in ("terminations", "truncations")}
        rewards = list(np.random.default_rng(number).standard_normal(t))
        buffers.append(
            EpisodeBuffer(
                id=number, seed=number, observations=sampled(obs_space, t + 1), actions=sampled(action_space, t),
                rewards=rewards, **flags, infos=None if infos is None else infos(t),
            )
        )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # minari misses authors and links
        minari.create_dataset_from_buffers(
            data_id, buffers, observation_space=obs_space, action_space=action_space, data_format="hdf5", **kwargs
        )
    return Path(minari.storage.get_dataset_path(data_id)), buffers


def edit(folder, **changes):
    path = folder / "data" / "metadata.json"
    about = json.loads(path.read_text())
    about.update(changes)
    path.write_text(json.dumps(about))


def same(a, b):
    for name in ("obs", "action", "reward", "terminated", "ends", "final_obs", "has_final", "usable"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
        assert getattr(a, name).dtype == getattr(b, name).dtype, name
    assert set(a.extras) == set(b.extras)
    for name in a.extras:
        np.testing.assert_array_equal(a.extras[name], b.extras[name], err_msg=name)
        assert a.extras[name].dtype == b.extras[name].dtype, name
    assert a.facts == b.facts


GOALS = spaces.Dict(
    observation=spaces.Box(-1, 1, (5,), np.float64),
    achieved_goal=spaces.Box(-1, 1, (2,), np.float64),
    desired_goal=spaces.Box(-1, 1, (2,), np.float64),
)
KITCHEN = spaces.Dict(
    observation=spaces.Box(-1, 1, (5,), np.float64),
    achieved_goal=spaces.Dict(kettle=spaces.Box(-1, 1, (7,)), burner=spaces.Box(-1, 1, (2,))),
    desired_goal=spaces.Dict(kettle=spaces.Box(-1, 1, (7,)), burner=spaces.Box(-1, 1, (2,))),
)


@pytest.mark.parametrize(
    ("obs_space", "action_space"),
    [
        (BOX, HAND),
        (BOX, spaces.Discrete(3)),
        (spaces.Discrete(5, start=2), spaces.Discrete(3)),
        (spaces.Box(-1, 1, (2, 2)), HAND),
        (spaces.MultiBinary(4), HAND),
        (spaces.Box(0, 255, (8, 8, 3), np.uint8), HAND),
        (spaces.Dict(b=BOX, a=spaces.Discrete(3)), HAND),
        (spaces.Tuple((BOX, spaces.Box(-1, 1, (2,)))), HAND),
        (GOALS, HAND),
        (KITCHEN, HAND),
    ],
    ids=lambda s: type(s).__name__,
)
def test_h5py_alone_and_the_package_give_the_same_episodes(obs_space, action_space):
    def infos(t):
        return {"success": np.arange(t + 1) > t - 1, "deep": {"qpos": np.random.default_rng(t).random((t + 1, 3))}}

    folder, _ = written(obs_space=obs_space, action_space=action_space, infos=infos)
    same(load(folder), ours.read(folder / "data", package=True))


def test_each_row_is_followed_by_what_was_seen_and_none_is_lost():
    folder, buffers = written(lengths=(4, 3, 6))
    e = load(folder)
    assert e.facts.format == "minari"
    assert (e.n_rows, e.ends.tolist()) == (13, [4, 7, 13])
    assert e.usable.all()
    assert e.has_final.all()
    np.testing.assert_array_equal(e.obs, np.concatenate([b.observations[:-1] for b in buffers]).astype(np.float32))
    np.testing.assert_array_equal(
        e.next_obs(), np.concatenate([b.observations[1:] for b in buffers]).astype(np.float32)
    )
    np.testing.assert_array_equal(e.action, np.concatenate([b.actions for b in buffers]))
    np.testing.assert_allclose(e.returns(), [sum(b.rewards) for b in buffers], rtol=1e-6)
    assert np.flatnonzero(e.terminated).tolist() == [3, 6, 12]


def test_a_truncation_is_no_terminal():
    folder, _ = written(ends="truncations")
    e = load(folder)
    assert not e.terminated.any()
    assert np.flatnonzero(e.extras["timeouts"]).tolist() == [3, 6]


def test_the_set_tells_its_environment_versions_and_scores():
    spec = EnvSpec("AdroitHandDoor-v1", entry_point="gymnasium.envs.classic_control:PendulumEnv")
    folder, _ = written(requirements=["mujoco==3.2.3", "gymnasium-robotics>=1.3"])
    edit(folder, env_spec=spec.to_json(), ref_min_score=-45.8, ref_max_score=2940.6)
    e = load(folder)
    assert e.facts.env_id == "AdroitHandDoor-v1"
    assert e.facts.data_id == "door/human-v2"
    assert e.facts.versions["mujoco"] == "3.2.3"
    assert "gymnasium-robotics" not in e.facts.versions  # a range is not what it was made with
    assert e.facts.versions["minari"] == minari.__version__
    assert (e.facts.ref_min, e.facts.ref_max) == (-45.8, 2940.6)
    assert len(e.facts.checksum) == 64


@pytest.mark.parametrize("place", ["", "data", "data/main_data.hdf5", ".."])
def test_a_set_is_found_from_its_folder_and_those_around_it(place):
    folder, _ = written()
    assert load(folder / place).n_rows == 7


def test_among_several_sets_one_must_be_named():
    folder, _ = written()
    written("door/cloned-v2")
    with pytest.raises(ValueError, match=r"holds 2 Minari sets \(cloned-v2, human-v2\)"):
        load(folder.parent)


def test_an_info_is_that_of_the_rows_own_step():
    folder, _ = written(lengths=(3,), infos=lambda t: {"x": np.arange(t + 1) * 10, "odd": np.arange(2)})
    e = load(folder)
    assert e.extras["infos/x"].tolist() == [10, 20, 30]  # 0 came with the reset
    assert "infos/odd" not in e.extras
    written("door/short-v2", lengths=(3,), infos=lambda t: {"x": np.arange(t) * 10})
    assert load(folder.parent / "short-v2").extras["infos/x"].tolist() == [0, 10, 20]


def test_of_a_dict_of_goals_the_observation_alone_is_learned_from():
    folder, buffers = written(obs_space=GOALS)
    e = load(folder)
    seen = np.concatenate([b.observations["observation"][:-1] for b in buffers]).astype(np.float32)
    goal = np.concatenate([b.observations["desired_goal"][:-1] for b in buffers]).astype(np.float32)
    np.testing.assert_array_equal(e.obs, seen)
    np.testing.assert_array_equal(e.extras["desired_goal"], goal)
    assert any("'observation' alone" in notice for notice in e.facts.notices)


@pytest.mark.parametrize("held", [False, True])
def test_antmaze_gets_its_coordinates_in_front_where_they_are_missing(held):
    rng = np.random.default_rng(0)
    tree = {
        k: rng.random((4, d), np.float32) for k, d in (("observation", 5), ("achieved_goal", 2), ("desired_goal", 2))
    }
    if held:
        tree["observation"][:, :2] = tree["achieved_goal"]
    seen, _ = trees.observe(tree, {}, "AntMaze_UMaze-v5", "here")
    expected = [tree["observation"]] if held else [tree["achieved_goal"], tree["observation"]]
    np.testing.assert_array_equal(seen, np.concatenate(expected, axis=1))
    other, _ = trees.observe(tree, {}, "PointMaze_UMaze-v3", "here")
    np.testing.assert_array_equal(other, tree["observation"])


def test_discrete_observations_become_one_hot_and_discrete_actions_stay_numbers():
    folder, buffers = written(obs_space=spaces.Discrete(5, start=2), action_space=spaces.Discrete(3, start=1))
    e = load(folder)
    np.testing.assert_array_equal(e.obs.argmax(1) + 2, np.concatenate([b.observations[:-1] for b in buffers]))
    assert (e.obs.sum(1) == 1).all()
    np.testing.assert_array_equal(e.action, np.concatenate([b.actions for b in buffers]))
    assert e.action.dtype == np.int64
    assert any("count from 1" in notice for notice in e.facts.notices)


def test_images_kept_as_jpeg_are_read_through_the_package():
    folder, _ = written(obs_space=spaces.Box(0, 255, (40, 40, 3), np.uint8))
    e = load(folder)
    assert (e.obs.shape, e.obs.dtype) == ((7, 40, 40, 3), np.uint8)


# broken sets ---------------------------------------------------------------------------------------------------------


def damage(folder, how):
    path = folder / "data" / "main_data.hdf5"
    if how == "no file":
        path.unlink()
        return
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:3000])
        return
    with h5py.File(path, "a") as file:
        episode = file["episode_1"]
        if how == "episode missing":
            del file["episode_1"]
        elif how == "episode renamed":
            file.move("episode_1", "episode_7")
        elif how == "no rewards":
            del episode["rewards"]
        else:
            name, array = {
                "no final observation": ("observations", np.ones((3, 3))),
                "short actions": ("actions", np.ones((2, 2))),
                "other size": ("observations", np.ones((4, 5))),
                "single number": ("actions", np.float32(1.0)),
                "no steps": ("rewards", np.ones(0)),
                "nan flag": ("terminations", np.array([0.0, np.nan, 1.0])),
            }[how]
            del episode[name]
            episode[name] = array


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ("no file", "main_data.hdf5 is missing"),
        ("truncated", "cannot be read, truncated or damaged"),
        ("episode missing", "holds 1 episodes and metadata.json promises 2"),
        ("episode renamed", "episode_1 is missing"),
        ("no rewards", "episode_1: no 'rewards' among"),
        ("no final observation", "episode_1: 3 observations for 3 rewards"),
        ("short actions", r"episode_1: 'actions' has shape \(2, 2\) for 3 rewards"),
        ("other size", "'observations' change from episode to episode"),
        ("single number", "'actions' is a single number"),
        ("no steps", "episode_1: 4 observations for 0 rewards"),
        ("nan flag", "episode_1: 'terminations' holds NaN: write 0 or 1"),
    ],
)
def test_a_damaged_set_is_refused_by_file_and_episode(how, match):
    folder, _ = written()
    damage(folder, how)
    with pytest.raises(ValueError, match=match) as caught:
        load(folder)
    assert str(folder) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"observation_space": "{"}', '{"env_spec": "{}"}'])
def test_damaged_metadata_are_refused(text):
    folder, _ = written()
    (folder / "data" / "metadata.json").write_text(text)
    with pytest.raises(ValueError, match=r"metadata\.json cannot be read"):
        load(folder)


def test_one_step_is_no_data_set():
    folder, _ = written(lengths=(1,))
    with pytest.raises(ValueError, match="holds 1 step: a data set needs at least two"):
        load(folder)


@pytest.mark.parametrize("space", [spaces.Dict(a=HAND, b=HAND), spaces.MultiDiscrete([3, 3])])
def test_actions_that_no_learner_takes_are_refused(space):
    folder, _ = written(action_space=space)
    with pytest.raises(ValueError, match="'actions'"):
        load(folder)


# ids and folders -----------------------------------------------------------------------------------------------------


def test_a_set_in_the_local_folder_is_found(root):
    folder, _ = written("D4RL/door/human-v2")
    assert find("minari", "D4RL/door/human-v2") == folder == root / "D4RL" / "door" / "human-v2"


def test_the_folder_is_minaris_own_where_no_variable_names_another(tmp_path, monkeypatch):
    folder, _ = written()
    monkeypatch.delenv("MINARI_DATASETS_PATH")
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(folder, tmp_path / ".minari" / "datasets" / "door" / "human-v2")
    assert find("minari", "door/human-v2") == tmp_path / ".minari" / "datasets" / "door" / "human-v2"


@pytest.mark.parametrize("data_id", ["D4RL/door/human", "../../etc-v0", "/etc-v0", "door human-v2", ""])
def test_what_is_no_id_is_refused_with_near_ones(data_id):
    with pytest.raises(ValueError, match=r"is unknown; did you mean \w+/"):
        find("minari", data_id)


def test_a_set_that_is_not_there_is_fetched_whole(root, tmp_path, monkeypatch):
    source, _ = written("D4RL/door/human-v2")
    source = source.rename(tmp_path / "served")
    shutil.rmtree(root)

    def fetch(data_id, download):
        target = Path(minari.storage.get_dataset_path(data_id))
        assert download
        assert root in target.parents
        assert target != root / data_id
        shutil.copytree(source, target)
        (target.parent / "namespace_metadata.json").write_text("{}")

    monkeypatch.setattr(minari, "load_dataset", fetch)
    folder = find("minari", "D4RL/door/human-v2")
    assert folder == root / "D4RL" / "door" / "human-v2"
    assert load(folder).n_rows == 7
    assert sorted(p.name for p in folder.parent.iterdir()) == ["human-v2", "namespace_metadata.json"]
    assert [p.name for p in root.iterdir()] == ["D4RL"]


@pytest.mark.parametrize("broken", ["no network", "half a set"])
def test_what_cannot_be_fetched_whole_leaves_nothing_and_is_named(root, monkeypatch, broken):
    def fetch(data_id, download):
        if broken == "no network":
            raise ConnectionError("Name or service not known")
        folder = Path(minari.storage.get_dataset_path(data_id)) / "data"
        folder.mkdir(parents=True)
        (folder / "metadata.json").write_text("{}")

    monkeypatch.setattr(minari, "load_dataset", fetch)
    with pytest.raises(
        ValueError, match=r"data\.id=D4RL/door/human-v2: the folder D4RL/door/human-v2 is not in .*sets"
    ) as caught:
        find("minari", "D4RL/door/human-v2")
    assert len(str(caught.value).splitlines()) <= 2
    assert not root.exists()


def test_an_id_the_server_does_not_have_is_answered_with_near_ones(monkeypatch):
    def fetch(data_id, download):
        raise ValueError("Couldn't find any version")

    monkeypatch.setattr(minari, "load_dataset", fetch)
    with pytest.raises(ValueError, match=r"Couldn't find any version.*\n.*did you mean D4RL/door/human-v2"):
        find("minari", "D4RL/door/humans-v2")


def test_the_package_is_asked_for_by_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ValueError, match=r"pip install 'ctrlrl\[data\]'"):
        find("minari", "D4RL/door/human-v2")


def test_the_bounds_of_a_finite_action_box_are_kept():
    box = spaces.Box(np.array([-0.4, 0.0], np.float32), np.array([0.4, 2.0], np.float32))
    folder, _ = written(action_space=box)
    facts = load(folder).facts
    assert facts.action_low == pytest.approx((-0.4, 0.0))
    assert facts.action_high == pytest.approx((0.4, 2.0))
    open_box = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    assert load(written(data_id="open/box-v0", action_space=open_box)[0]).facts.action_low == ()

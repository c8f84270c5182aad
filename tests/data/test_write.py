"""Writers: what a layout holds comes back equal, what it cannot hold is named, and other libraries read the files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import h5py
import minari
import numpy as np
import pytest
from episodes_made import made

from ctrlrl.data.check import check
from ctrlrl.data.episodes import Episodes, Facts
from ctrlrl.data.load import load
from ctrlrl.data.write import LAYOUTS, layout_of, write
from ctrlrl.data.write_states import time_outs, with_final_obs

ENDINGS = {"rollouts": ".npz", "d4rl": ".hdf5", "ogbench": ".npz", "minari": ""}
VERSIONS = {"gymnasium": "1.4.0", "mujoco": "4.0.0"}
FACTS = Facts(format="rollouts", path="made.npz", env_id="Hopper-v4", versions=VERSIONS)
ROWS = ("obs", "action", "reward", "terminated")


def written(episodes: Episodes, folder: Path, layout: str, ending: str | None = None) -> tuple[Path, list[str]]:
    path = folder / f"{layout}{ENDINGS[layout] if ending is None else ending}"
    return path, write(episodes, path, layout, name=path.name)


def same(
    found: Episodes, wanted: Episodes, names: Sequence[str] = (*ROWS, "ends", "final_obs", "has_final", "usable")
) -> None:
    for name in names:
        a, b = getattr(found, name), getattr(wanted, name)
        np.testing.assert_array_equal(a, b, err_msg=name)
        assert a.dtype == b.dtype, name


def without_final_obs(episodes: Episodes) -> Episodes:
    """As D4RL's loader gives it: time-outs and the last row are not for learning."""
    usable = np.ones(episodes.n_rows, dtype=bool)
    usable[episodes.ends - 1] = episodes.terminated[episodes.ends - 1]
    return replace(
        episodes,
        usable=usable,
        has_final=np.zeros(episodes.n_episodes, dtype=bool),
        final_obs=np.zeros_like(episodes.final_obs),
    )


# round trips ---------------------------------------------------------------------------------------------------------


def test_roll_outs_hold_everything(tmp_path):
    per_episode = {"episode_policy": np.array(["a", "b", "a", "a", "b", "a"]), "episode_seed": np.arange(6)}
    e = made(facts=FACTS, extras={"infos/qpos": np.random.rand(47, 2).astype(np.float32)}, episode_extras=per_episode)
    path, lost = written(e, tmp_path, "rollouts")
    assert lost == []
    found = load(path)
    same(found, e)
    np.testing.assert_array_equal(found.extras["infos/qpos"], e.extras["infos/qpos"])
    for name, column in per_episode.items():
        np.testing.assert_array_equal(found.episode_extras[name], column)
    assert (found.facts.env_id, found.facts.versions, found.facts.format) == ("Hopper-v4", VERSIONS, "rollouts")


def test_d4rl_marks_the_end_of_an_episode_that_the_files_own_time_outs_miss(tmp_path):
    e = made(facts=FACTS, extras={"timeouts": np.zeros(47, dtype=bool)})
    path, lost = written(e, tmp_path, "d4rl")
    found = load(path)
    assert found.ends.tolist() == e.ends.tolist()
    left_out = np.flatnonzero(~found.usable)
    assert set(e.ends[~e.terminated[e.ends - 1]] - 1) <= set(left_out)
    assert any(line.startswith(f"{len(left_out)} rows for learning") for line in lost)


@pytest.mark.parametrize("layout", ["rollouts", "ogbench", "minari"])
@pytest.mark.parametrize("kind", ["continuous", "discrete", "goal"])
def test_layouts_with_last_observations_give_every_row_back(tmp_path, layout, kind):
    e = made(facts=FACTS)
    if kind == "discrete":
        e = replace(e, action=np.arange(47) % 4)
    if kind == "goal":  # terminal rows inside episodes
        reward = (np.arange(47) % 5 == 0).astype(np.float32)
        e = replace(e, reward=reward, terminated=reward == 1.0)
    found = load(written(e, tmp_path, layout)[0])
    same(found, e)
    assert found.facts.env_id == "Hopper-v4"
    assert found.facts.format == layout


def test_a_set_without_rewards_stays_one_in_ogbenchs_layout(tmp_path):
    facts = Facts(format="ogbench", path="made.npz", has_rewards=False)
    e = made(reward=np.zeros(47, np.float32), terminated=np.zeros(47, bool), facts=facts)
    path, lost = written(e, tmp_path, "ogbench")
    with np.load(path) as file:
        assert set(file.files) == {"observations", "actions", "terminals"}
    assert lost == []
    same(load(path), e)
    assert not load(path).facts.has_rewards
    for layout in ("rollouts", "d4rl", "minari"):
        _, lost = written(e, tmp_path, layout)
        assert any("it has no rewards" in line for line in lost), layout


def test_rewards_that_are_all_zero_are_rewards(tmp_path):
    e = made(reward=np.zeros(47, np.float32), terminated=np.zeros(47, bool))
    for layout in ENDINGS:
        (tmp_path / layout).mkdir()
        assert load(written(e, tmp_path / layout, layout)[0]).facts.has_rewards, layout


@pytest.mark.parametrize("layout", list(ENDINGS))
def test_rows_in_no_order_stay_so_or_it_is_told(tmp_path, layout):
    kept = np.random.default_rng(0).permutation(47)
    e = replace(
        made((1,) * 47, limit=2).only(kept), facts=replace(FACTS, in_order=False), terminated=np.arange(47) % 9 == 0
    )
    path, lost = written(e, tmp_path, layout)
    found = load(path)
    same(found, e, ROWS)
    np.testing.assert_array_equal(found.next_obs(), e.next_obs())
    told = any("no order" in line for line in lost)
    assert (found.facts.in_order, told) == {
        "rollouts": (False, False), "d4rl": (False, True), "ogbench": (True, True), "minari": (True, True)
    }[layout]  # fmt: skip


def test_time_outs_whose_rows_a_layout_loses_are_still_truncations(tmp_path):
    e = load(written(made((10, 6, 10, 3, 10), facts=FACTS), tmp_path, "d4rl")[0])
    path, _ = written(e, tmp_path, "minari")
    with h5py.File(path / "data" / "main_data.hdf5") as file:
        over = [(bool(g["terminations"][-1]), bool(g["truncations"][-1])) for g in file.values()]
    assert over == [(False, True), (True, False), (False, True), (True, False), (False, True)]


def test_the_simulator_that_made_a_set_is_kept_and_its_returns_have_no_score(tmp_path):
    e = made(facts=replace(FACTS, env_id="Hopper-v4", origin="Hopper-v4 with gravity_scale=2"))
    for layout in ENDINGS:
        (tmp_path / layout).mkdir()
        path, lost = written(e, tmp_path / layout, layout)
        facts = load(path).facts
        assert facts.env_id == "Hopper-v4"
        if layout == "minari":
            assert any("made in Hopper-v4 with gravity_scale=2" in line for line in lost)
        else:
            assert (facts.origin, facts.ref_min) == (e.facts.origin, None)
            assert any("made in Hopper-v4 with gravity_scale=2" in line for line in facts.notices)


def test_minari_holds_versions_and_reference_scores(tmp_path):
    path, _ = written(made(facts=replace(FACTS, ref_min=-20.0, ref_max=3000.0)), tmp_path, "minari")
    facts = load(path).facts
    assert VERSIONS.items() <= facts.versions.items()
    assert (facts.ref_min, facts.ref_max, facts.data_id) == (-20.0, 3000.0, "minari-v0")


@pytest.mark.parametrize("ending", [".hdf5", ".h5", ".npz"])
def test_d4rl_holds_all_rows_and_its_loader_leaves_out_time_outs_and_the_last_row(tmp_path, ending):
    e = made((10, 6, 10, 3, 10, 8, 10), facts=FACTS, extras={"infos/qpos": np.random.rand(57, 2).astype(np.float32)})
    path, lost = written(e, tmp_path, "d4rl", ending)
    found = load(path)
    same(found, e, (*ROWS, "ends"))
    np.testing.assert_array_equal(found.extras["infos/qpos"], e.extras["infos/qpos"])
    assert np.flatnonzero(~found.usable).tolist() == [9, 25, 38, 56]
    assert any("4 rows for learning" in line for line in lost)
    assert found.facts.env_id == "Hopper-v4"


def test_what_d4rl_gave_comes_back_from_d4rl_and_from_roll_outs(tmp_path):
    e = without_final_obs(made((10, 6, 10, 3, 10), facts=FACTS))
    for layout in ("d4rl", "rollouts"):
        path, lost = written(e, tmp_path, layout)
        same(load(path), e, (*ROWS, "ends", "has_final", "usable"))
        assert not any("learning" in line for line in lost)


@pytest.mark.parametrize("second", list(ENDINGS))
@pytest.mark.parametrize("first", list(ENDINGS))
def test_every_pair_of_layouts_keeps_the_rows_that_both_can_hold(tmp_path, first, second):
    e = made((10, 6, 10, 3, 10), facts=FACTS)
    once = load(written(e, tmp_path, first)[0])
    (tmp_path / "again").mkdir()
    path, lost = written(once, tmp_path / "again", second)
    twice = load(path)
    if once.has_final.all():
        same(twice, once, (*ROWS, "ends"))
    else:  # from D4RL into a layout of T + 1 states: the last steps of time-outs have no observation after them
        kept, told = with_final_obs(once)
        same(twice, kept if second in ("ogbench", "minari") else once, (*ROWS, "ends"))
        assert second not in ("ogbench", "minari") or set(told) <= set(lost)
    assert [f.name for f in check(twice) if f.defect] == []


def test_pictures_and_one_number_observations_come_back(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (47, 8, 8, 3), dtype=np.uint8)
    e = made(obs=images, final_obs=images[:6])
    for layout in ("rollouts", "ogbench", "minari"):
        same(load(written(e, tmp_path, layout)[0]), e)


# what is lost is said ------------------------------------------------------------------------------------------------


def test_an_unknown_last_observation_costs_the_last_step_of_a_time_out_and_no_terminal():
    e = without_final_obs(made((10, 6, 10, 3, 10)))
    kept, lost = with_final_obs(e)
    assert kept.lengths().tolist() == [9, 6, 9, 3, 9]
    assert kept.has_final.all()
    np.testing.assert_array_equal(kept.terminated.sum(), 2)
    np.testing.assert_array_equal(kept.final_obs[0], e.obs[9])  # the row that is no step any more
    np.testing.assert_array_equal(kept.final_obs[1], e.obs[15])
    np.testing.assert_array_equal(kept.next_obs()[8], e.obs[9])
    assert "the last step of 3 episodes" in lost[0]
    assert "2 terminal rows" in lost[1]


def test_an_episode_of_one_step_without_its_last_observation_goes_whole():
    e = without_final_obs(made((1, 5, 1, 7), limit=1))
    kept, _ = with_final_obs(replace(e, episode_extras={"episode_seed": np.arange(4)}))
    assert kept.lengths().tolist() == [4, 6]
    assert kept.episode_extras["episode_seed"].tolist() == [1, 3]
    with pytest.raises(ValueError, match="no episode has two observations"):
        with_final_obs(without_final_obs(made((1, 1), limit=1)))


LOSSES = {
    "d4rl": ["the simulator's version", "episode_policy", "4 rows for learning"],
    "ogbench": ["the simulator's version", "episode_policy", "rewards and masks for ogbench's own loader"],
    "minari": ["episode_policy", "source_terminal are no infos"],
    "rollouts": [],
}


@pytest.mark.parametrize("layout", list(LOSSES))
def test_what_a_layout_cannot_hold_has_a_line(tmp_path, layout):
    e = made(
        facts=FACTS,
        extras={"source_terminal": np.zeros(47, bool)},
        episode_extras={"episode_policy": np.array(["a"] * 6), "episode_seed": np.arange(6)},
    )
    _, lost = written(e, tmp_path, layout)
    assert len(lost) == len(LOSSES[layout]), lost
    for said in LOSSES[layout]:
        assert any(said in line for line in lost), said


BOX = replace(FACTS, action_low=(-0.4,) * 2, action_high=(0.4,) * 2, ref_min=1.0, ref_max=2.0)


@pytest.mark.parametrize("layout", list(LOSSES))
def test_actions_in_a_box_of_their_own_teach_the_same_after_a_conversion(tmp_path, layout):
    e = made(facts=BOX)
    e.action[:] *= 0.4
    e.action[30] = 0.41  # a stray one
    path, lost = written(e, tmp_path, layout)
    np.testing.assert_allclose(load(path).unit_actions()[:20], e.unit_actions()[:20], atol=1e-6)
    told = [line for line in lost if "scaled from it to [-1, 1]" in line or "score 0 and 100" in line]
    assert len(told) == (0 if layout == "minari" else 2)


def test_d4rl_says_where_its_loader_would_cut_episodes_that_go_on(tmp_path):
    inside = made().terminated
    inside[[2, 3]] = True
    _, lost = written(made(terminated=inside), tmp_path, "d4rl")
    assert any("ends one at each of 2 rows" in line for line in lost)
    goals = {"infos/goal": np.zeros((47, 2), np.float32)}
    (tmp_path / "maze").mkdir()
    path, lost = written(made(terminated=inside, extras=goals), tmp_path / "maze", "d4rl")
    assert not any("ends one" in line for line in lost)
    assert any("the ends of 2 episodes at a terminal: beside infos/goal" in line for line in lost)
    assert load(path).n_episodes < made().n_episodes  # at time-outs alone


def test_an_id_that_gymnasium_does_not_know_is_kept_and_one_it_cannot_take_is_told(tmp_path):
    path, lost = written(made(facts=replace(FACTS, env_id="NoSuchRobot-v3")), tmp_path, "minari")
    assert load(path).facts.env_id == "NoSuchRobot-v3"
    assert lost == []
    (tmp_path / "b").mkdir()
    path, lost = written(made(facts=replace(FACTS, env_id="no such robot!")), tmp_path / "b", "minari")
    assert load(path).facts.env_id is None
    assert any("no such robot!" in line for line in lost)


def test_time_outs_are_the_files_own_where_it_has_them():
    flags = np.zeros(47, dtype=bool)
    flags[9] = True
    assert time_outs(made(extras={"timeouts": flags})).tolist() == flags.tolist()
    assert np.flatnonzero(time_outs(made())).tolist() == [9, 25, 38]


# other libraries -----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _minari_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))


def test_minari_reads_the_folder_by_its_id(tmp_path):
    e = made(
        facts=FACTS, extras={"infos/qpos": np.random.rand(47, 2)}, episode_extras={"episode_seed": 7 + np.arange(6)}
    )
    write(e, tmp_path / "hopper-mine-v0", "minari", name="hopper-mine-v0")
    dataset = minari.load_dataset("hopper-mine-v0")
    assert (dataset.total_episodes, dataset.total_steps, dataset.id) == (6, 47, "hopper-mine-v0")
    assert dataset.env_spec.id == "Hopper-v4"
    assert dataset.observation_space.shape == (3,)
    assert dataset.action_space.shape == (2,)
    for i, (episode, begin, end) in enumerate(zip(dataset.iterate_episodes(), e.starts(), e.ends, strict=True)):
        wanted = np.concatenate((e.obs[begin:end], e.final_obs[i : i + 1]))
        np.testing.assert_array_equal(episode.observations, wanted)
        np.testing.assert_array_equal(episode.actions, e.action[begin:end])
        np.testing.assert_array_equal(episode.rewards, e.reward[begin:end])
        np.testing.assert_array_equal(episode.terminations, e.terminated[begin:end])
        np.testing.assert_array_equal(episode.truncations, time_outs(e)[begin:end])
        assert all(dataset.action_space.contains(a) for a in episode.actions)
        assert all(dataset.observation_space.contains(o) for o in episode.observations)
    assert [m["seed"] for m in dataset.storage.get_episode_metadata(range(6))] == [7, 8, 9, 10, 11, 12]


def test_minari_reads_discrete_actions_and_pictures(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (47, 40, 40, 3), dtype=np.uint8)
    e = made(action=np.arange(47) % 4, obs=images, final_obs=images[:6])
    write(e, tmp_path / "pictures-v0", "minari", name="pictures-v0")
    dataset = minari.load_dataset("pictures-v0")
    assert dataset.action_space.n == 4
    first = next(dataset.iterate_episodes())
    np.testing.assert_array_equal(first.observations[:-1], images[:10])
    np.testing.assert_array_equal(first.actions, e.action[:10])


def test_a_d4rl_file_holds_the_keys_and_types_that_its_readers_ask_for(tmp_path):
    e = made(facts=FACTS)
    path, _ = written(e, tmp_path, "d4rl")
    with h5py.File(path) as file:
        kinds = {k: (v.shape, v.dtype.kind) for k, v in file.items() if v.shape}
        np.testing.assert_array_equal(file["next_observations"][:], e.next_obs())
        np.testing.assert_array_equal(file["timeouts"][:], time_outs(e))
    assert kinds == {
        "observations": ((47, 3), "f"),
        "actions": ((47, 2), "f"),
        "rewards": ((47,), "f"),
        "terminals": ((47,), "b"),
        "timeouts": ((47,), "b"),
        "next_observations": ((47, 3), "f"),
    }


def test_an_ogbench_file_has_a_dummy_action_at_each_last_state(tmp_path):
    """Two trajectories of four steps: ten rows, last states at 4 and 9; the regular view ends at rows 3 and 7."""
    e = made((4, 4), limit=4)
    path, _ = written(e, tmp_path, "ogbench")
    with np.load(path) as file:
        raw = {k: file[k] for k in file.files}
    assert np.flatnonzero(raw["terminals"]).tolist() == [4, 9]
    assert raw["observations"].shape == (10, 3)
    assert not raw["actions"][[4, 9]].any()
    keep = ~raw["terminals"]
    np.testing.assert_array_equal(raw["observations"][keep], e.obs)
    np.testing.assert_array_equal(raw["observations"][np.flatnonzero(keep) + 1], e.next_obs())
    assert np.flatnonzero(np.append(raw["terminals"][1:], True)[keep]).tolist() == [3, 7]


def test_ogbenchs_own_loader_finds_the_same_transitions(tmp_path):
    ogbench = pytest.importorskip("ogbench", reason="a dependency of it has no wheel for Python 3.13")
    e = made()
    path, _ = written(e, tmp_path, "ogbench")
    found = ogbench.load_dataset(str(path))
    np.testing.assert_array_equal(found["observations"], e.obs)
    np.testing.assert_array_equal(found["actions"], e.action)
    np.testing.assert_array_equal(found["next_observations"], e.next_obs())
    assert (np.flatnonzero(found["terminals"]) + 1).tolist() == e.ends.tolist()
    compact = ogbench.load_dataset(str(path), compact_dataset=True)
    assert compact["valids"].sum() == e.n_rows


# names ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("out", "asked", "layout"),
    [
        ("a.npz", None, "rollouts"),
        ("a.hdf5", None, "d4rl"),
        ("a.h5", None, "d4rl"),
        ("mine-v0", None, "minari"),
        ("a.npz", "ogbench", "ogbench"),
        ("a.npz", "d4rl", "d4rl"),
        ("v0.5", "minari", "minari"),
    ],
)
def test_the_ending_tells_the_layout(out, asked, layout):
    assert layout_of(Path(out), asked) == layout


@pytest.mark.parametrize(
    ("out", "asked", "said"),
    [
        ("a.csv", None, "its ending tells no format"),
        ("a.npz", "hdf", "format must be rollouts, d4rl, ogbench, minari, got 'hdf'"),
        ("a.hdf5", "rollouts", "ends in .npz"),
        ("a", "d4rl", "ends in .hdf5 or .h5 or .npz"),
        ("a.hdf5", "minari", "is a folder; leave .hdf5 away"),
    ],
)
def test_an_ending_that_does_not_fit_is_refused(out, asked, said):
    with pytest.raises(ValueError, match=said):
        layout_of(Path(out), asked)


def test_a_minari_set_without_a_version_in_its_name_gets_one(tmp_path):
    write(made(), tmp_path / "mine", "minari", name="mine")
    assert json.loads((tmp_path / "mine/data/metadata.json").read_text())["dataset_id"] == "mine-v0"


def test_every_layout_is_tested_here():
    assert set(ENDINGS) == set(LAYOUTS)

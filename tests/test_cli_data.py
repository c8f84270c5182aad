"""`ctrlrl data`: cards, checks, conversions and collecting in this process; exit codes, and no half-written file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pytest

from ctrlrl import datasets
from ctrlrl.cli import main
from ctrlrl.data.load import load

RANDOM = "env=pointmass policy=random steps=600 n_envs=3 progress=false".split()


class Said(NamedTuple):
    code: int
    out: str
    err: str


Call = Callable[..., Said]


@pytest.fixture
def data(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """Call `ctrlrl data` in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CTRLRL_TRACEBACK", raising=False)
    for name in ("D4RL_DATASET_DIR", "MINARI_DATASETS_PATH", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))

    def call(*words: str) -> Said:
        with pytest.raises(SystemExit) as info:
            main(["data", *words])
        out, err = capsys.readouterr()
        return Said(info.value.code if isinstance(info.value.code, int) else 0, out, err)

    return call


def fine(said: Said) -> str:
    assert said.code == 0, said
    return said.out


def refused(said: Said, *words: str, code: int = 2) -> None:
    assert said.code == code, said
    assert 1 <= len(said.err.strip().splitlines()) <= 2, said.err
    assert "Traceback" not in said.err
    for word in words:
        assert word in said.err, said.err


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


# collect -------------------------------------------------------------------------------------------------------------


def test_collect_writes_a_clean_set_that_says_how_it_was_made(data, tmp_path):
    out = fine(data("collect", *RANDOM, "noise=0.0,0.1,0.3", "seed=7", "out=mine.npz"))
    assert "mine.npz" in out
    assert "600 rows" in out
    e = load(tmp_path / "mine.npz")
    assert (e.n_rows, e.facts.env_id, e.facts.format) == (600, "pointmass", "rollouts")
    assert {"torch", "ctrlrl", "numpy"} <= set(e.facts.versions)
    assert set(e.episode_extras["episode_policy"]) == {"random"}
    assert set(e.episode_extras["episode_seed"]) == {7}
    assert sorted(set(e.episode_extras["episode_noise_std"])) == [np.float32(v) for v in (0.0, 0.1, 0.3)]
    assert "no defects" in fine(data("check", "mine.npz"))
    text = fine(data("info", "mine.npz"))
    for said in ("600", "pointmass", "random", "0.1", "return", "checksum"):
        assert said in text
    assert files(tmp_path) == ["mine.npz"]


def test_the_same_words_give_the_same_bytes_and_another_seed_does_not(data, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        fine(data("collect", *RANDOM, f"seed={seed}", f"out={name}.npz"))
    a, b, c = (load(tmp_path / f"{name}.npz") for name in "abc")
    np.testing.assert_array_equal(a.obs, b.obs)
    assert not np.array_equal(a.obs, c.obs)


def test_by_default_lanes_hold_whole_episodes(data, tmp_path):
    fine(
        data(
            "collect", "env=pendulum", "policy=random", "steps=8_000", "noise=[0.0,0.1]", "progress=false", "out=a.npz"
        )
    )
    e = load(tmp_path / "a.npz")  # 200 steps an episode: 4 lanes of 2000
    assert e.lengths().tolist() == [200] * 40
    assert [(e.episode_extras["episode_noise_std"] == v).sum() for v in (0.0, np.float32(0.1))] == [20, 20]
    assert e.facts.env_id == "Pendulum-v1"


def test_collect_takes_a_run_folder_a_model_a_weight_file_and_any_gymnasium_id(data, tmp_path, monkeypatch):
    from ctrlrl import PPO

    tiny = "algo=ppo env=pointmass experiment=none n_envs=4 total_steps=256 algo.n_steps=32 algo.n_minibatches=2 "
    tiny += "algo.n_epochs=1 algo.hidden=[8] eval.episodes=1 log.progress=false run.report=false device=cpu run.dir=run"
    with pytest.raises(SystemExit):
        main(["train", *tiny.split()])
    fine(data("collect", "run=run", "steps=300", "n_envs=2", "noise=-1,0", "progress=false", "out=run.npz"))
    e = load(tmp_path / "run.npz")
    refused(
        data("collect", "run=run", "env=pendulum", "steps=30", "out=x.npz"),
        "run=run was trained with obs_dim",
        "pendulum",
    )
    assert set(e.episode_extras["episode_policy"]) == {"run"}
    assert set(e.episode_extras["episode_noise_std"]) == {-1.0, 0.0}
    assert e.facts.env_id == "pointmass"

    PPO("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [8]}).save("model")
    fine(data("collect", "policy=model.zip", "env=Pendulum-v1", "steps=300", "n_envs=1", "progress=false", "out=m.npz"))
    assert load(tmp_path / "m.npz").episode_extras["episode_policy"].tolist() == ["model", "model"]
    refused(data("collect", "policy=model.zip", "env=pointmass", "steps=30", "out=x.npz"), "model.zip", "obs_dim 3")

    rng = np.random.default_rng(0)
    weights = {"W0": rng.normal(size=(8, 3)), "b0": np.zeros(8), "W_out": rng.normal(size=(1, 8)), "b_out": np.zeros(1)}
    np.savez("weights.npz", n_hidden=1, activation="tanh", squash=True, **weights)
    fine(data("collect", "policy=weights.npz", "env=pendulum", "steps=300", "n_envs=1", "progress=false", "out=w.npz"))
    e = load(tmp_path / "w.npz")
    hidden = np.tanh(e.obs @ weights["W0"].T.astype(np.float32))
    np.testing.assert_allclose(e.action, np.tanh(hidden @ weights["W_out"].T), atol=1e-5)
    refused(
        data("collect", "policy=weights.npz", "env=hopper", "steps=30", "out=x.npz"), "weights.npz", "hopper has 11"
    )
    refused(
        data("collect", "policy=weights.npz", "env=pendulum", "noise=-1", "steps=30", "out=x.npz"), "noise=-1", "determ"
    )
    assert not (tmp_path / "x.npz").exists()


@pytest.mark.parametrize("layout", ["d4rl", "ogbench", "minari"])
def test_collect_writes_any_layout(data, tmp_path, layout):
    out = {"d4rl": "a.hdf5", "ogbench": "a.npz", "minari": "a-v0"}[layout]
    fine(data("collect", *RANDOM, f"out={out}", f"format={layout}"))
    assert load(tmp_path / out).facts.format == layout
    assert "no defects" in fine(data("check", out))


# info ----------------------------------------------------------------------------------------------------------------


def test_a_file_that_does_not_tell_its_task_is_told_it_by_data_id(data, tmp_path):
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "mine.hdf5", "w") as file:
        file["observations"], file["actions"] = rng.random((6, 11)), rng.random((6, 3))
        file["rewards"], file["terminals"] = rng.random(6), np.zeros(6, bool)
    refused(data("info", "mine.hdf5"), "set data.id")
    assert "hopper-medium-v2" in fine(data("info", "mine.hdf5", "data.id=hopper-medium-v2"))
    assert "6 rows, 1 episodes" in fine(data("check", "mine.hdf5", "data.id=hopper-medium-v2"))
    fine(data("convert", "mine.hdf5", "data.id=hopper-medium-v2", "out=mine.npz"))
    refused(data("check", "mine.hdf5", "data.id=hoper-medium-v2"), "hopper-medium-v2")


@pytest.mark.filterwarnings("error")
def test_numbers_that_are_none_are_told_and_are_null_in_json(data, tmp_path):
    fine(data("collect", *RANDOM, "out=a.npz"))
    columns = dict(np.load(tmp_path / "a.npz"))
    columns["actions"][2, 0], columns["rewards"][1] = np.nan, np.inf
    np.savez(tmp_path / "a.npz", **columns)
    text = fine(data("info", "a.npz", "out=card.json"))
    assert "nan or inf in actions, rewards: `ctrlrl data check` names the rows" in text
    assert "clip_actions" not in text
    assert json.loads((tmp_path / "card.json").read_text(), parse_constant=pytest.fail)["rewards"]["max"] is None


def test_info_gives_quality_against_references(data, tmp_path):
    fine(data("collect", *RANDOM, "out=a.npz"))
    fine(data("collect", *RANDOM, "seed=1", "out=b.npz"))
    assert "TQ" not in fine(data("info", "a.npz"))
    text = fine(data("info", "a.npz", "reference=b.npz", "ref_min=-100", "ref_max=0", "out=cards/card.json"))
    assert "TQ" in text
    assert "SACo" in text
    assert "cards/card.json" in text
    card = json.loads((tmp_path / "cards/card.json").read_text())
    e = load(tmp_path / "a.npz")
    assert card["normalized_score"] == pytest.approx(e.returns().mean() + 100)
    assert card["saco_reference"] == "b.npz"
    assert 0.5 < card["saco"] < 2.0
    same = fine(data("info", "a.npz", "reference=a.npz"))
    assert "1.000 (different state-action pairs" in same


def test_info_draws_a_picture(data, tmp_path):
    fine(data("collect", *RANDOM, "out=a.npz"))
    fine(data("info", "a.npz", "out=card.png"))
    assert (tmp_path / "card.png").read_bytes().startswith(b"\x89PNG")


# check ---------------------------------------------------------------------------------------------------------------


def test_check_ends_with_1_where_there_is_a_defect_and_names_row_and_mend(data, tmp_path):
    fine(data("collect", *RANDOM, "out=a.npz"))
    with np.load("a.npz") as file:
        arrays = {k: file[k] for k in file.files}
    arrays["actions"][17, 0] = 3.0
    arrays["rewards"][5] = np.nan
    np.savez("a.npz", **arrays)
    said = data("check", "a.npz")
    assert said.code == 1
    assert said.err == ""
    assert "2 defects" in said.out
    assert "action_outside_box: row 17 of 600" in said.out
    assert "not_finite: rewards hold nan or inf at row 5" in said.out
    assert "clip them" in said.out


def test_check_reads_the_next_observations_that_d4rls_loader_leaves_in_the_file(data, tmp_path):
    fine(data("collect", *RANDOM, "out=a.hdf5"))
    assert "no defects" in fine(data("check", "a.hdf5"))
    with h5py.File("a.hdf5", "a") as file:
        obs = file["observations"][:]
        file["next_observations"][:] = np.concatenate((obs[1:], obs[-1:]))
    said = data("check", "a.hdf5")
    assert said.code == 1
    assert "next_observation_across_episodes: next_observations of" in said.out


def test_the_set_that_comes_with_the_library_needs_no_path(data):
    assert "113: 82 terminated" in fine(data("info", "hopper-medium.npz"))


def test_a_data_set_is_found_by_its_id_where_its_own_library_keeps_it(data, tmp_path):
    fine(data("collect", *RANDOM, "out=home/hopper_medium-v2.hdf5"))
    text = fine(data("info", "hopper-medium-v2"))
    assert "hopper_medium-v2.hdf5" in text
    assert "100 of 3234.3" in text  # the reference returns of the id
    fine(data("collect", *RANDOM, "out=home/me/points-v0"))
    assert "no defects" in fine(data("check", "me/points-v0"))


# convert -------------------------------------------------------------------------------------------------------------


def test_convert_goes_through_all_layouts_and_says_what_they_lose(data, tmp_path):
    fine(data("collect", *RANDOM, "out=a.npz"))
    said = fine(data("convert", "a.npz", "out=b-v0"))
    assert "not held by the minari layout: columns with a value an episode" in said
    fine(data("convert", "b-v0", "out=c.npz", "format=ogbench"))
    fine(data("convert", "c.npz", "out=d.npz"))
    a, d = load(tmp_path / "a.npz"), load(tmp_path / "d.npz")
    for name in ("obs", "action", "reward", "terminated", "ends", "final_obs"):
        np.testing.assert_array_equal(getattr(a, name), getattr(d, name))
    assert "rows for learning" in fine(data("convert", "a.npz", "out=e.hdf5"))
    assert files(tmp_path) == [
        "a.npz",
        "b-v0/data/main_data.hdf5",
        "b-v0/data/metadata.json",
        "c.npz",
        "d.npz",
        "e.hdf5",
    ]


def test_what_is_there_stays_unless_overwrite_is_said(data, tmp_path):
    fine(data("collect", *RANDOM, "out=a.npz"))
    for out in ("b.npz", "b-v0"):
        fine(data("convert", "a.npz", f"out={out}"))
        before = {f: (tmp_path / f).stat().st_mtime_ns for f in files(tmp_path)}
        refused(data("convert", "a.npz", f"out={out}"), f"out={out} exists", "overwrite=true")
        refused(data("collect", *RANDOM, f"out={out}"), f"out={out} exists", "overwrite=true")
        assert {f: (tmp_path / f).stat().st_mtime_ns for f in files(tmp_path)} == before
        fine(data("collect", *RANDOM, "seed=5", f"out={out}", "overwrite=true"))
        assert not np.array_equal(load(tmp_path / out).obs, load(tmp_path / "a.npz").obs)
    fine(data("convert", "a.npz", "out=a.npz", "overwrite=true"))
    assert [f for f in files(tmp_path) if "tmp" in f or "old" in f] == []


def test_a_folder_that_is_no_data_set_is_never_overwritten(data, tmp_path):
    fine(data("collect", *RANDOM, "out=a.npz"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    refused(data("convert", "a.npz", "out=mine", "overwrite=true"), "out=mine is a folder", "not overwritten")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years"
    fine(data("convert", "a.npz", "out=set-v0"))
    (tmp_path / "set-v0" / ".ctrlrl").mkdir()  # what learning from it leaves beside it
    fine(data("convert", "a.npz", "out=set-v0", "overwrite=true"))


# nothing half-written ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["b.npz", "b.hdf5", "b-v0"])
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, OSError(28, "No space left on device")], ids=["ctrl-c", "full disk"]
)
def test_a_write_that_ends_early_leaves_nothing_and_what_was_there(data, tmp_path, monkeypatch, out, error):
    fine(data("collect", *RANDOM, "out=a.npz"))
    fine(data("convert", "a.npz", f"out={out}"))
    before = {f: (tmp_path / f).read_bytes() for f in files(tmp_path)}
    inner = os.fsync

    def fsync(fd: int) -> None:
        monkeypatch.setattr(os, "fsync", inner)
        raise error

    monkeypatch.setattr(os, "fsync", fsync)
    said = data("convert", "a.npz", f"out={out}", "overwrite=true")
    assert said.code == (130 if error is KeyboardInterrupt else 1)
    assert {f: (tmp_path / f).read_bytes() for f in files(tmp_path)} == before
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "home") == sorted({"a.npz", out})


def test_ctrl_c_between_the_two_renames_of_a_folder_puts_the_old_one_back(data, tmp_path, monkeypatch):
    fine(data("collect", *RANDOM, "out=a-v0"))
    before = {f: (tmp_path / f).read_bytes() for f in files(tmp_path)}
    inner, count = os.replace, [0]

    def replace(source: str, target: str) -> None:
        count[0] += 1
        if count[0] == 2:
            raise KeyboardInterrupt
        inner(source, target)

    monkeypatch.setattr(os, "replace", replace)
    assert data("collect", *RANDOM, "seed=1", "out=a-v0", "overwrite=true").code == 130
    assert count[0] == 3
    assert {f: (tmp_path / f).read_bytes() for f in files(tmp_path)} == before


def test_ctrl_c_while_collecting_leaves_nothing(data, tmp_path, monkeypatch):
    def interrupted(options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(datasets, "collect_data", interrupted)
    said = data("collect", *RANDOM, "out=a.npz")
    assert said.code == 130
    assert "interrupted" in said.err
    assert files(tmp_path) == []


def test_what_a_kill_left_is_swept_away_by_the_next_write(data, tmp_path):
    (tmp_path / ".tmp.a.npz").write_bytes(b"half")
    fine(data("collect", *RANDOM, "out=a.npz"))
    assert files(tmp_path) == ["a.npz"]


# help and mistakes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["--help"]], ids=["bare", "help"])
def test_help_lists_the_four(data, words):
    text = fine(data(*words))
    for action in ("info", "check", "convert", "collect"):
        assert f"ctrlrl data {action}" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("inof a.npz", ["'inof'", "info"]),
        ("info", ["one data set", "got 0"]),
        ("info a.npz b.npz", ["got 2"]),
        ("info nothere.npz", ["nothere.npz", "no such file"]),
        ("info hopper-medum-v2", ["hopper-medum-v2", "hopper-medium-v2"]),
        ("info nothere", ["no file or folder nothere", "did you mean"]),
        ("check plain.txt", ["plain.txt"]),
        ("info plain.txt out=card.pdf", ["card.pdf", ".json", ".png"]),
        ("info plain.txt refmin=3", ["refmin", "ref_min"]),
        ("check plain.txt out=x", ["out"]),
        ("convert plain.txt", ["out=FILE"]),
        ("convert plain.txt out=x.csv", ["x.csv", "rollouts, d4rl, ogbench, minari"]),
        ("convert plain.txt out=x.npz format=rlds", ["rlds", "rollouts, d4rl, ogbench, minari"]),
        ("collect out=x.npz", ["run=FOLDER", "policy="]),
        ("collect run=a policy=random out=x.npz", ["run=FOLDER"]),
        ("collect policy=random out=x.npz", ["policy=random needs an environment"]),
        ("collect policy=random env=pendulum", ["out=FILE"]),
        ("collect policy=random env=pendlum out=x.npz", ["pendlum"]),
        (
            "collect env.threads=1 policy=random env=pendulum out=x.npz",
            ["unknown key env.threads; did you mean threads?"],
        ),
        ("collect out.x=1 policy=random env=pendulum", ["unknown key out.x; out is one value"]),
        ("collect policy=gone.npz env=pendulum out=x.npz", ["gone.npz", "no such file"]),
        ("collect policy=plain.txt env=pendulum out=x.npz", ["plain.txt"]),
        ("collect run=nowhere out=x.npz", ["nowhere"]),
        ("collect policy=random env=pendulum steps=0 out=x.npz", ["steps"]),
        ("collect policy=random env=pendulum steps=1 out=x.npz", ["steps=1", "two rows"]),
        ("collect policy=random env=pendulum noise=much out=x.npz", ["noise=much"]),
        ("collect policy=random env=pendulum noise=-0.2 out=x.npz", ["noise", "-0.2"]),
        ("collect policy=random env=pendulum n_envs=0 out=x.npz", ["n_envs"]),
        ("collect policy=random env=pendulum seed=-1 out=x.npz", ["seed"]),
        ("collect policy=random env=pendulum out=x.csv", ["x.csv"]),
        ("collect policy=random env=pendulum step=5 out=x.npz", ["step", "steps"]),
    ],
)
def test_a_mistake_is_told_in_one_line_and_nothing_is_written(data, tmp_path, words, said):
    (tmp_path / "plain.txt").write_text("hello")
    refused(data(*words.split()), *said)
    assert files(tmp_path) == ["plain.txt"]

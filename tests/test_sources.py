"""From `data=...` to a data set: bare names, shapes that do not fit, and what is kept beside a file."""

import shutil

import pytest
import torch

from ctrlrl.algos.prdc import PRDCConfig
from ctrlrl.build import loop_over, make_learner
from ctrlrl.config import DataConfig, EnvConfig, TrainConfig
from ctrlrl.data.episodes import Facts
from ctrlrl.sources import ASSETS, cache_folder, load_data, notices, read_data, same_task
from ctrlrl.types import EnvSpec

HOPPER = EnvSpec(11, 3, 0, 1, 1, 1000, torch.device("cpu"))


def test_a_bare_name_is_a_file_here_or_else_one_that_comes_with_the_library(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_data("hopper-medium.npz").facts.path == str(ASSETS / "hopper-medium.npz")
    shutil.copy(ASSETS / "hopper-medium.npz", tmp_path)
    assert load_data("hopper-medium.npz").facts.path == "hopper-medium.npz"
    with pytest.raises(ValueError, match="elsewhere"):
        load_data("elsewhere/hopper-medium.npz")


def test_no_data_is_told_with_the_mend():
    with pytest.raises(ValueError, match=r"data=file data\.path=FILE"):
        read_data(DataConfig())


def test_another_task_is_told_with_the_right_one():
    episodes = load_data("hopper-medium.npz")
    same_task(episodes, HOPPER, "env=hopper-v4")
    with pytest.raises(ValueError, match=r"11 and 3 numbers, those of env=halfcheetah 17 and 6.*use env=hopper-v4"):
        same_task(episodes, HOPPER._replace(obs_dim=17, action_dim=6), "env=halfcheetah")


def test_caches_lie_beside_a_users_data_and_never_among_the_librarys_files(tmp_path):
    file = tmp_path / "x.npz"
    assert cache_folder(Facts("rollouts", str(file))) == tmp_path / ".ctrlrl"
    assert cache_folder(Facts("rollouts", str(ASSETS / "hopper-medium.npz"))) is None
    assert cache_folder(Facts("rollouts", "no/such/folder/x.npz")) is None


def test_a_run_says_what_its_scores_cannot_be_compared_with():
    facts = Facts("d4rl", "x", env_id="Hopper-v2", versions={"mujoco": "1.50"}, notices=("no rewards",))
    first, version, rules = notices(facts, EnvConfig(name="hopper-v4"))
    assert first == "no rewards"
    assert "mujoco 1.50" in version
    assert "Hopper-v2" in rules
    assert "Hopper-v4" in rules
    assert notices(Facts("rollouts", "x", env_id="Hopper-v4"), EnvConfig(name="hopper-v4")) == []


def test_a_second_run_reads_the_neighbour_table_of_the_first(tmp_path, monkeypatch):
    shutil.copy(ASSETS / "hopper-medium.npz", tmp_path / "d.npz")
    episodes = load_data(tmp_path / "d.npz")

    def match() -> torch.Tensor:
        learner = make_learner(PRDCConfig(hidden=[8], list_length=2), HOPPER)
        cfg = TrainConfig(algo=learner.cfg, data=DataConfig(best_fraction=0.02))
        loop = loop_over(cfg, episodes, learner)
        batch = loop.source.take(torch.arange(0, 200, 7))
        return learner.neighbor(batch.extras["index"], batch.action).row

    first = match()
    assert [f.suffix for f in (tmp_path / ".ctrlrl").iterdir()] == [".npz"]
    monkeypatch.setattr("ctrlrl.algos.prdc.near_lists", None)
    assert torch.equal(match(), first)

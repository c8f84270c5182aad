"""From `data=...` to a data set: bare names, shapes that do not fit, and what is kept beside a file."""

import shutil
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from ctrlrl import BC
from ctrlrl.algos.bc import BCConfig
from ctrlrl.algos.prdc import PRDCConfig
from ctrlrl.config import DataConfig, EnvConfig, TrainConfig
from ctrlrl.data.episodes import Facts
from ctrlrl.loops import loop_over, make_learner, offline_loop
from ctrlrl.sources import (
    ASSETS,
    cache_folder,
    learned_rewards,
    load_data,
    notices,
    read_data,
    same_box,
    same_robot,
    same_task,
    score_range,
)
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
    goals = replace(episodes, extras={**episodes.extras, "desired_goal": episodes.obs[:, :2]})
    with pytest.raises(
        ValueError, match=r"11 and 3 numbers, those of env=gym 15 and 3\. Of its Dict `observation` alone"
    ):
        same_task(goals, HOPPER._replace(obs_dim=15), "env=gym")


def test_other_bounds_of_an_action_are_another_action():
    facts = Facts("minari", "made.npz", action_low=(-10.0,), action_high=(10.0,))
    unit, wide = (spaces.Box(-high, high, (1,)) for high in (1.0, 10.0))
    same_box(facts, lambda: wide, "env=x")
    same_box(replace(facts, action_low=(-1.0,), action_high=(1.0,)), lambda: wide, "env=x")
    same_box(replace(facts, action_low=(), action_high=()), lambda: wide, "env=x")
    with pytest.raises(ValueError, match=r"made\.npz: its actions lie in \[-10, 10\], those of env=x in \[-1, 1\]"):
        same_box(facts, lambda: unit, "env=x")


@pytest.mark.parametrize("by_name", [True, False])
def test_a_pendulum_of_other_torques_is_refused(by_name):
    episodes = load_data("hopper-medium.npz").first_steps(3)
    episodes = replace(
        episodes, obs=episodes.obs[:, :3], action=episodes.action[:, :1], final_obs=episodes.final_obs[:, :3]
    )
    torque = replace(episodes.facts, env_id=None, action_low=(-2.0,), action_high=(2.0,))
    fits, wide = (replace(episodes, facts=replace(torque, action_low=(-x,), action_high=(x,))) for x in (2.0, 5.0))
    env = "Pendulum-v1" if by_name else gymnasium.make("Pendulum-v1")
    BC("MlpPolicy", env, fits, hidden=[4])
    with pytest.raises(ValueError, match=r"in \[-5, 5\], those of .* in \[-2, 2\]"):
        BC("MlpPolicy", env, wide, hidden=[4])
    cfg = TrainConfig(algo=BCConfig(hidden=[4]), env=EnvConfig(name="pendulum"))
    offline_loop(cfg, fits, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"those of env=pendulum in \[-2, 2\]"):
        offline_loop(cfg, wide, torch.device("cpu"))


def test_images_and_discrete_actions_are_named():
    episodes = load_data("hopper-medium.npz")
    with pytest.raises(ValueError, match="its actions are discrete"):
        same_task(replace(episodes, action=np.zeros(episodes.n_rows, np.int64)), HOPPER, "env=hopper-v4")
    with pytest.raises(ValueError, match="its observations are images"):
        same_task(replace(episodes, obs=np.zeros((episodes.n_rows, 2, 2, 3), np.uint8)), HOPPER, "env=hopper-v4")
    cfg = TrainConfig(algo=PRDCConfig(), env=EnvConfig(name="cartpole"))
    with pytest.raises(
        ValueError, match=r"algo=prdc is for continuous actions, those of this environment are discrete"
    ):
        offline_loop(cfg, episodes, torch.device("cpu"))


def test_few_rewards_that_are_transformed_are_told_as_they_are_learned():
    episodes = load_data("hopper-medium.npz")
    sparse = replace(episodes, reward=(np.arange(episodes.n_rows) % 7 == 0).astype(np.float32))
    assert learned_rewards(sparse, DataConfig()) is None
    told = learned_rewards(sparse, DataConfig(reward_scale=10.0, reward_shift=-5.0))
    assert told == "rewards 0, 1 are learned as -5, 5"
    assert learned_rewards(episodes, DataConfig(reward_scale=10.0)) is None
    bare = replace(sparse, facts=replace(sparse.facts, has_rewards=False))
    assert learned_rewards(bare, DataConfig(reward_shift=-1.0)) is None


def test_a_file_without_rewards_teaches_cloning_alone():
    episodes = load_data("hopper-medium.npz")
    episodes = replace(episodes, facts=replace(episodes.facts, has_rewards=False))
    small = {"hidden": [8], "batch_size": 8}
    learner = make_learner(BCConfig(**small), HOPPER)
    assert loop_over(TrainConfig(algo=learner.cfg), episodes, learner)
    learner = make_learner(PRDCConfig(**small), HOPPER)
    with pytest.raises(ValueError, match="the file has no rewards, and algo=prdc learns from them"):
        loop_over(TrainConfig(algo=learner.cfg), episodes, learner)


def test_scores_are_between_the_data_sets_own_references_or_those_of_its_task():
    cfg = TrainConfig(env=EnvConfig(name="hopper-v4"))
    assert score_range(cfg, Facts("minari", "x", ref_min=1.0, ref_max=3.0)) == (1.0, 3.0)
    assert score_range(cfg, Facts("rollouts", "x")) == pytest.approx((-20.272305, 3234.3))
    assert score_range(TrainConfig(env=EnvConfig(name="pendulum")), Facts("rollouts", "x")) is None


def test_a_robot_with_as_many_numbers_is_refused_too():
    facts = Facts("d4rl", "w.hdf5", env_id="Walker2d-v2")
    same_robot(facts, EnvConfig(name="walker2d-v4"))
    same_robot(facts, EnvConfig(name="gym", id="Own-v0"))
    same_robot(replace(facts, env_id="Own-v0"), EnvConfig(name="halfcheetah"))
    with pytest.raises(ValueError, match=r"w\.hdf5: the data set is of Walker2d-v2.*HalfCheetah"):
        same_robot(facts, EnvConfig(name="halfcheetah-v4"))


def test_actions_beyond_the_box_are_told(monkeypatch):
    episodes = load_data("hopper-medium.npz")
    assert episodes.facts.notices == ()
    wide = replace(episodes, action=1.5 * episodes.action)
    known = replace(wide, facts=replace(episodes.facts, action_low=(-2.0,) * 3, action_high=(2.0,) * 3))
    for found, told in ((wide, ["1.5"]), (known, [])):
        monkeypatch.setattr("ctrlrl.sources.load", lambda path, data_id=None, found=found: found)
        assert [line[14:17] for line in load_data("x.npz").facts.notices] == told


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

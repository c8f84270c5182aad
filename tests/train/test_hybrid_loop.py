"""The online loop of learners that keep real and simulated rows apart."""

from typing import Any

import pytest
import torch
from test_online_loop import CountSim, data, episodes

from ctrlrl.build import build
from ctrlrl.envs.sim import BatchedSim
from ctrlrl.loops import make_learner, online_loop
from ctrlrl.registry import ALGORITHMS, lookup
from ctrlrl.settings import train_config, typed


def test_batches_of_a_hybrid_learner_are_half_data_and_half_simulator_kept_apart():
    env = BatchedSim(CountSim(), 3, seed=0, stagger=False)
    kind = lookup(ALGORITHMS, "h2o", "algorithm")
    learner: Any = make_learner(kind.config(batch_size=6, discriminator_batch_size=4, hidden=[8]), env.spec)
    real = data()
    real.reward = (2.0, -1.0)
    run = online_loop(learner, env, env_steps=60, seed=0, staggered=False, data=real, skilled=True)
    with pytest.raises(ValueError, match="the replay buffer is empty"):
        run.source.sample(learner.rows)
    run.iterate()
    batch: Any = run.source.sample(run.batch_size)
    assert run.batch_size == 10
    assert (len(batch.real.reward), len(batch.sim.reward)) == (5, 5)
    assert (batch.real.reward == -7.0).all()
    torch.testing.assert_close(batch.sim.reward, 2.0 * batch.sim.action[:, 0] - 1.0)


def test_a_hybrid_learner_without_real_data_or_with_another_robots_is_refused(tmp_path, monkeypatch):
    words = ["algo=h2o", "env=pendulum", "total_steps=60", "threads=1", "experiment=none"]
    with pytest.raises(ValueError, match="learns from a data set; give data=file"):
        build(typed(train_config(words)), tmp_path)
    monkeypatch.setattr("ctrlrl.sources.load", lambda path, data_id=None: episodes())
    words += ["data=file", "data.path=x"]
    with pytest.raises(ValueError, match="observations and actions have 3 and 1 numbers, those of env=hopper 11 and 3"):
        build(typed(train_config([*words, "env=hopper"])), tmp_path)
    with pytest.raises(ValueError, match="discrete"):
        build(typed(train_config([*words, "env=cartpole"])), tmp_path)
    with pytest.raises(ValueError, match="seeds=2"):
        build(typed(train_config([*words, "seeds=2"])), tmp_path)
    env = BatchedSim(CountSim(), 2, seed=0)
    learner: Any = make_learner(lookup(ALGORITHMS, "h2o", "algorithm").config(), env.spec)
    with pytest.raises(ValueError, match="real data"):
        online_loop(learner, env, env_steps=9, seed=0, staggered=False)

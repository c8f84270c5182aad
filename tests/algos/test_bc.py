"""Behaviour cloning: the mean over batch and action dimensions, memorising, and the best tenth of the episodes."""

import numpy as np
import pytest
import torch
from by_hand import made, rows, weights, write_actions

from ctrlrl.algos.bc import BCConfig
from ctrlrl.data.dataset import Dataset
from ctrlrl.data.episodes import Episodes, Facts
from ctrlrl.settings import train_config, typed


def test_the_loss_is_the_mean_over_rows_and_dimensions():
    learner = made("bc", 2, 2)
    write_actions(learner.nets.policy.net, [[0.6, 0.0], [0.0, 0.0]])
    loss = learner.update(rows([0, 1], [[0.5, 0.0], [0.3, 0.0]], n_obs=2))["loss/policy"]
    assert loss.item() == pytest.approx((0.1**2 + 0.3**2) / 4.0, abs=1e-7)


def test_ten_rows_are_memorised():
    learner = made("bc", 4, 2, hidden=[64, 64], learning_rate=3e-3)
    random = torch.Generator().manual_seed(1)
    obs, action = torch.randn(10, 4, generator=random), 1.8 * torch.rand(10, 2, generator=random) - 0.9
    batch = rows([0] * 10, action, n_obs=4)._replace(obs=obs)
    for step in range(1500):
        learner.opt["policy"].learning_rate.fill_(3e-3 * (1.0 - step / 1500))
        loss = learner.update(batch)["loss/policy"]
    assert loss < 1e-6


def test_only_the_actions_are_learned_from():
    ends = []
    for reward, terminated in ((0.0, [False, False]), (7.0, [True, False])):
        learner = made("bc", 2, hidden=[8])
        learner.update(rows([0, 1], [0.5, -0.5], n_obs=2, reward=reward, terminated=terminated))
        ends.append(weights(learner, "policy"))
    assert torch.equal(*ends)


def test_observations_are_standardised_by_the_data_that_is_cloned():
    learner = made("bc", 2, hidden=[8])
    learner.cfg.normalize_obs = True
    batch = rows([0, 1, 1], [0.1, 0.2, 0.3], n_obs=2)
    learner.prefit(batch)
    scaled = learner.nets.normalizer(batch.obs)
    expected = (batch.obs - batch.obs.mean(0)) / (batch.obs.std(0, correction=0) + 1e-3)
    torch.testing.assert_close(scaled, expected, rtol=0, atol=1e-6)


def test_the_best_tenth_of_twenty_episodes_is_the_two_with_the_highest_returns():
    reward = np.zeros((20, 3), dtype=np.float32)
    reward[:, 1] = np.arange(20)
    reward[7, 2], reward[12, 0] = 50.0, 40.0  # a late reward counts like an early one: no discount
    episodes = Episodes(
        obs=np.arange(60, dtype=np.float32)[:, None],
        action=np.zeros((60, 1), dtype=np.float32),
        reward=reward.reshape(-1),
        terminated=np.zeros(60, dtype=bool),
        ends=np.arange(3, 61, 3),
        final_obs=np.zeros((20, 1), dtype=np.float32),
        has_final=np.ones(20, dtype=bool),
        usable=np.ones(60, dtype=bool),
        extras={},
        episode_extras={},
        facts=Facts("rollouts", "made by a test"),
    )
    cfg = typed(train_config(["experiment=bc/best_10_percent", "data=file", "data.path=x", "env=hopper-v4"]))
    assert cfg.algo == BCConfig()
    data = Dataset.of_episodes(episodes, best_fraction=cfg.data.best_fraction)
    assert data.all().obs[:, 0].tolist() == [21.0, 22.0, 23.0, 36.0, 37.0, 38.0]


def test_settings_out_of_range_are_refused_by_name():
    for bad in ({"learning_rate": 0.0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=f"BCConfig.{next(iter(bad))}"):
            BCConfig(**bad)

"""SAC's update against the self-checks of its definition, by hand on linear networks."""

import math

import pytest
import torch
from by_hand import made, rows

from ctrlrl.algos.sac import SACConfig, initial_temperature
from ctrlrl.functional.distributions import tanh_gaussian_sample
from ctrlrl.functional.regression import td_target


def batch(n: int = 64, **more):
    torch.manual_seed(7)
    obs, after = torch.randint(3, (2, n))
    action = 2.0 * torch.rand(n, 2) - 1.0
    terminated = torch.rand(n) < 0.3
    return rows(obs, action, n_obs=3, reward=torch.randn(n), next_obs=after, terminated=terminated, **more)


def test_without_entropy_and_noise_the_target_is_that_of_a_noiseless_td3():
    learner = made("sac", 3, 2, ent_coef=0.0)
    with torch.no_grad():
        learner.nets.policy.net[-1].weight[2:] = 0.0
        learner.nets.policy.net[-1].bias[2:] = -50.0  # clipped to log std -20
    data = batch()
    mean, _ = learner.nets.policy(data.next_obs)
    following = learner.nets.target(data.next_obs, mean.tanh()).amin(0)
    expected = td_target(data.reward, data.terminated, following, gamma=0.99)
    torch.testing.assert_close(learner.target(data, torch.randn(64, 2), torch.tensor(0.0)), expected, atol=1e-5, rtol=0)


def test_the_target_is_worth_the_entropy_of_the_next_action_except_where_terminated():
    learner = made("sac", 3, 2)
    data = batch()
    noise = torch.randn(64, 2)
    found = [learner.target(data, noise, torch.tensor(temperature)) for temperature in (0.0, 0.7)]
    _, log_prob = tanh_gaussian_sample(*learner.nets.policy(data.next_obs), noise)
    alive = (~data.terminated).float()
    torch.testing.assert_close(found[1] - found[0], -0.99 * 0.7 * alive * log_prob.detach(), atol=1e-5, rtol=0)


def test_rows_that_span_several_steps_discount_by_their_own_column():
    learner = made("sac", 3, 2)
    data = batch()
    discount = torch.where(torch.arange(64) % 2 == 0, 0.99**3, 0.99)
    noise, temperature = torch.randn(64, 2), torch.tensor(0.1)
    found = [
        learner.target(data._replace(extras=extras), noise, temperature) - data.reward
        for extras in ({}, {"discount": discount})
    ]
    torch.testing.assert_close(found[1][::2], found[0][::2] * 0.99**2)
    assert torch.equal(found[1][1::2], found[0][1::2])


def test_one_update_is_the_textbooks_with_plain_adam():
    """Critics and policy with the old temperature, the policy with the new critics; targets at the end."""
    learner, twin = made("sac", 3, 2, learning_rate=1e-2), made("sac", 3, 2, learning_rate=1e-2)
    data = batch()
    torch.manual_seed(3)
    metrics = learner.update(data)

    nets, log_alpha = twin.nets, torch.zeros((), requires_grad=True)
    policy, critic = (
        torch.optim.Adam(net.parameters(), lr=1e-2) for net in (nets.policy, nets.critic.requires_grad_(True))
    )
    alpha_step = torch.optim.Adam([log_alpha], lr=1e-2)
    torch.manual_seed(3)
    mean, log_std = nets.policy(data.obs)
    action, log_prob = tanh_gaussian_sample(mean, log_std, torch.randn_like(mean))
    (-log_alpha * (log_prob - 2.0).detach()).mean().backward()
    alpha_step.step()
    target = twin.target(data, torch.randn_like(mean), torch.tensor(1.0))
    loss = 0.5 * (nets.critic(data.obs, data.action) - target).square().mean(1).sum()
    torch.testing.assert_close(metrics["loss/critic"], loss.detach())
    loss.backward()
    critic.step()
    policy.zero_grad()
    (1.0 * log_prob - nets.critic(data.obs, action).amin(0)).mean().backward()
    policy.step()
    with torch.no_grad():
        for old, new in zip(nets.target.parameters(), nets.critic.parameters(), strict=True):
            old.lerp_(new, 0.005)
    for (name, ours), theirs in zip(learner.nets.named_parameters(), nets.parameters(), strict=True):
        if name != "log_temperature.value":
            torch.testing.assert_close(ours, theirs, msg=name)
    torch.testing.assert_close(learner.nets.log_temperature.value, log_alpha)


def test_at_the_target_entropy_the_temperature_rests_and_a_fixed_one_never_moves():
    learner = made("sac", 3, 2, ent_coef=0.2)
    learner.update(batch())
    assert "log_temperature" not in learner.opt
    assert learner.nets.log_temperature.value.exp().item() == pytest.approx(0.2)
    assert made("sac", 3, 2).target_entropy == -2.0
    assert made("sac", 3, 2, target_entropy=-0.5).target_entropy == -0.5


def test_targets_move_every_interval():
    learner = made("sac", 3, 2, target_update_interval=3)
    moved = []
    for _ in range(6):
        before = learner.targets["critic"].flat.clone()
        learner.update(batch())
        moved.append(not torch.equal(before, learner.targets["critic"].flat))
    assert moved == [True, False, False, True, False, False]


def test_the_defaults_are_stable_baselines3s():
    cfg = SACConfig()
    assert (cfg.learning_rate, cfg.batch_size, cfg.tau, cfg.gamma, cfg.ent_coef) == (3e-4, 256, 0.005, 0.99, "auto")
    assert (cfg.buffer_size, cfg.learning_starts, cfg.train_freq, cfg.utd, cfg.n_steps) == (10**6, 100, 1, 1.0, 1)
    assert (cfg.hidden, cfg.n_critics, cfg.target_update_interval, cfg.action_noise) == ([256, 256], 2, 1, 0.0)


@pytest.mark.parametrize(
    ("given", "found"),
    [("auto", (1.0, True)), ("auto_0.1", (0.1, True)), (0.0, (0.0, False)), ("0.3", (0.3, False)), (2, (2.0, False))],
)
def test_the_words_of_ent_coef(given, found):
    assert initial_temperature(given, "here") == found


@pytest.mark.parametrize("given", ["auto_0", "automatic", -1.0, "auto_-2", math.nan, math.inf])
def test_other_words_are_refused(given):
    with pytest.raises(ValueError, match=r"SACConfig\.ent_coef must be auto"):
        SACConfig(ent_coef=given)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"n_critics": 0}, "n_critics must be at least 1"),
        ({"target_entropy": "half"}, "target_entropy must be auto or a finite number"),
        ({"learning_rate": -1e-3}, "learning_rate"),
        ({"tau": 1.5}, "tau"),
    ],
)
def test_settings_out_of_range_are_named(settings, told):
    with pytest.raises(ValueError, match=told):
        SACConfig(**settings)

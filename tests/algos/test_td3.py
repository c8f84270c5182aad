"""TD3's update against the self-checks of its definition, by hand on linear networks."""

import pytest
import torch
from by_hand import made, rows

from ctrlrl.algos.td3 import TD3Config


def batch(n: int = 64, **more):
    torch.manual_seed(7)
    obs, after = torch.randint(3, (2, n))
    action = 2.0 * torch.rand(n, 2) - 1.0
    terminated = torch.rand(n) < 0.3
    return rows(obs, action, n_obs=3, reward=torch.randn(n), next_obs=after, terminated=terminated, **more)


def test_the_target_takes_the_smaller_critic_at_a_clipped_noisy_action():
    learner = made("td3", 3, 2, target_policy_noise=10.0, target_noise_clip=0.3)
    data = batch()
    torch.manual_seed(1)
    found = learner.target(data)
    torch.manual_seed(1)
    noise = (10.0 * torch.randn(64, 2)).clamp(-0.3, 0.3)
    assert (noise.abs() == 0.3).float().mean() > 0.9, "the clip must matter"
    action = (learner.nets.target_policy(data.next_obs) + noise).clamp(-1.0, 1.0)
    smaller = torch.minimum(*learner.nets.target_critic(data.next_obs, action))
    expected = data.reward + 0.99 * torch.where(data.terminated, 0.0, smaller)
    torch.testing.assert_close(found, expected.detach())


def test_policy_and_targets_move_with_every_second_critic_update_alone():
    learner = made("td3", 3, 2)
    for count in range(1, 5):
        before = {k: v.clone() for k, v in learner.model_state().items()}
        learner.update(batch())
        moved = {k for k, v in learner.model_state().items() if not torch.equal(v, before[k])}
        assert any(k.startswith("critic") for k in moved)
        for part in ("policy", "target_policy", "target_critic"):
            assert any(k.startswith(part) for k in moved) == (count % 2 == 0), (count, part)


def test_one_pair_of_updates_is_the_textbooks_with_plain_adam():
    learner, twin = made("td3", 3, 2), made("td3", 3, 2)
    data = batch()
    torch.manual_seed(3)
    learner.update(data)
    learner.update(data)

    nets = twin.nets
    critic, policy = (torch.optim.Adam(net.parameters(), lr=1e-3) for net in (nets.critic, nets.policy))
    torch.manual_seed(3)
    for _ in range(2):
        target = twin.target(data)
        critic.zero_grad()
        (nets.critic(data.obs, data.action) - target).square().mean(1).sum().backward()
        critic.step()
    policy.zero_grad()
    (-nets.critic(data.obs, nets.policy(data.obs))[0].mean()).backward()
    policy.step()
    with torch.no_grad():
        for name in ("policy", "critic"):
            followers = getattr(nets, f"target_{name}").parameters()
            for old, new in zip(followers, getattr(nets, name).parameters(), strict=True):
                old.lerp_(new, 0.005)
    for (name, ours), theirs in zip(learner.nets.named_parameters(), nets.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_the_defaults_are_stable_baselines3s():
    cfg = TD3Config()
    assert (cfg.learning_rate, cfg.policy_delay, cfg.target_policy_noise, cfg.target_noise_clip) == (1e-3, 2, 0.2, 0.5)
    assert (cfg.batch_size, cfg.tau, cfg.gamma, cfg.buffer_size, cfg.learning_starts) == (256, 0.005, 0.99, 10**6, 100)
    assert (cfg.hidden, cfg.train_freq, cfg.utd) == ([400, 300], 1, 1.0)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"policy_delay": 0}, "policy_delay must be at least 1"),
        ({"target_policy_noise": -0.1}, "target_policy_noise"),
        ({"action_noise": -1.0}, "action_noise"),
    ],
)
def test_settings_out_of_range_are_named(settings, told):
    with pytest.raises(ValueError, match=told):
        TD3Config(**settings)

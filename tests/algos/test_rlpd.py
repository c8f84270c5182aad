"""RLPD's update against the self-checks of its definition, by hand on linear networks."""

from itertools import combinations

import pytest
import torch
from by_hand import made, rows
from torch import nn

from ctrlrl.algos.rlpd import RLPDConfig
from ctrlrl.functional.distributions import tanh_gaussian_sample
from ctrlrl.functional.regression import td_target


def batch(n: int = 64, **more):
    torch.manual_seed(7)
    obs, after = torch.randint(3, (2, n))
    action = 2.0 * torch.rand(n, 2) - 1.0
    terminated = torch.rand(n) < 0.3
    return rows(obs, action, n_obs=3, reward=torch.randn(n), next_obs=after, terminated=terminated, **more)


def test_the_target_entropy_is_minus_half_the_actions_size():
    assert made("rlpd", 3, 6).target_entropy == -3.0


@pytest.mark.parametrize("n_min", [1, 2, 10])
def test_the_target_is_the_least_of_a_random_subset(n_min):
    """With as many as there are, of all; else never less than that, and of other critics at every draw."""
    learner, data = made("rlpd", 3, 2, n_min=n_min, backup_entropy=False), batch()
    drawn = []
    for seed in range(6):
        torch.manual_seed(seed)
        found = learner.target(data, torch.tensor(1.0))
        torch.manual_seed(seed)
        mean, log_std = learner.nets.policy(data.next_obs)
        action, _ = tanh_gaussian_sample(mean, log_std, torch.randn_like(mean))
        q = learner.nets.target(data.next_obs, action).detach()
        targets = td_target(data.reward, data.terminated, q, gamma=0.99)
        if n_min == 10:
            torch.testing.assert_close(found, targets.amin(0))
        subsets = [s for s in combinations(range(10), n_min) if targets[list(s)].amin(0).allclose(found)]
        assert len(subsets) == 1
        drawn.append(subsets[0])
    assert len(set(drawn)) > 3 or n_min == 10


def test_twenty_critic_updates_come_with_one_of_policy_and_temperature():
    learner = made("rlpd", 3, 2)
    moves = {"critic": 0, "policy": 0, "log_temperature": 0, "target": 0}
    for _ in range(20):
        before = {k: v.clone() for k, v in learner.model_state().items()}
        learner.update(batch())
        moved = {k.split(".")[0] for k, v in learner.model_state().items() if not torch.equal(v, before[k])}
        for name in moved:
            moves[name] += 1
    assert moves == {"critic": 20, "policy": 1, "log_temperature": 1, "target": 20}


def test_the_policy_climbs_the_mean_of_all_critics_and_the_loss_averages_them():
    learner, twin = made("rlpd", 3, 2, policy_delay=1, n_min=10), made("rlpd", 3, 2, policy_delay=1, n_min=10)
    data = batch()
    torch.manual_seed(3)
    learner.update(data)

    nets = twin.nets
    critic, policy, alpha = (
        torch.optim.Adam(net.parameters(), lr=3e-4) for net in (nets.critic, nets.policy, nets.log_temperature)
    )
    torch.manual_seed(3)
    target = twin.target(data, torch.tensor(1.0))
    (nets.critic(data.obs, data.action) - target).square().mean().backward()
    critic.step()
    mean, log_std = nets.policy(data.obs)
    action, log_prob = tanh_gaussian_sample(mean, log_std, torch.randn_like(mean))
    policy.zero_grad()
    (log_prob - nets.critic(data.obs, action).mean(0)).mean().backward()
    policy.step()
    (nets.log_temperature().exp() * (-log_prob.mean().detach() + 1.0)).backward()
    alpha.step()
    for name in ("critic", "policy", "log_temperature"):
        ours, theirs = (getattr(n, name).parameters() for n in (learner.nets, nets))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, msg=name, atol=1e-6, rtol=1e-5)


def test_the_layer_norm_stands_before_every_activation_of_the_critics_alone():
    nets = made("rlpd", 3, 2, hidden=[8, 8]).nets
    kinds = [type(layer).__name__ for layer in nets.critic.net]
    assert kinds == ["StackedLinear", "StackedLayerNorm", "ReLU"] * 2 + ["StackedFloat32Linear"]
    assert not any(isinstance(layer, nn.LayerNorm) for layer in nets.policy.modules())


def test_every_member_of_an_ensemble_stands_alone():
    """The n-th value depends on the n-th member's weights and no other's, and asking for some gives the same values."""
    critic = made("rlpd", 3, 2, hidden=[8, 8]).nets.critic
    obs, action = torch.randn(5, 3), torch.rand(5, 2)
    values = critic(obs, action)
    assert values.shape == (10, 5)
    members = torch.tensor([7, 2])
    torch.testing.assert_close(critic.of(members, obs, action), values[members])
    (grad,) = torch.autograd.grad(values[4].sum(), [critic.net[0].weight])
    assert [bool(g.any()) for g in grad] == [i == 4 for i in range(10)]


def test_the_defaults_are_the_authors_on_locomotion():
    cfg = RLPDConfig()
    assert (cfg.learning_rate, cfg.gamma, cfg.tau, cfg.batch_size, cfg.offline_share) == (3e-4, 0.99, 0.005, 256, 0.5)
    assert (cfg.n_critics, cfg.n_min, cfg.utd, cfg.policy_delay, cfg.learning_starts) == (10, 2, 20.0, 20, 5000)
    assert (cfg.hidden, cfg.layer_norm, cfg.backup_entropy) == ([256, 256], True, True)


@pytest.mark.parametrize("n_min", [0, 11])
def test_a_subset_larger_than_the_ensemble_is_refused(n_min):
    with pytest.raises(ValueError, match=r"RLPDConfig\.n_min must lie in 1 \.\.\. n_critics=10"):
        RLPDConfig(n_min=n_min)

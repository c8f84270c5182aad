"""TD3+BC against sums by hand: its target, its policy loss, and which step moves what."""

import pytest
import torch
from by_hand import freeze, made, moved, noise_rows, rows, weights, write, write_actions

from ctrlrl.algos.td3bc import TD3BCConfig

NETS = ("policy", "critic", "target_policy", "target_critic")


def test_the_policy_loss_of_the_specification():
    learner = made("td3bc", 2)
    freeze(learner, "critic")
    write(learner.nets.critic.heads[0], [2.0, -4.0])
    write(learner.nets.critic.heads[1], [-50.0, 70.0])  # Q_1 alone is climbed, not the minimum
    write_actions(learner.nets.policy.net, [0.6, 0.5])
    metrics = learner.step(rows([0, 1], [0.5, 0.2], n_obs=2), 1)
    assert metrics["loss/cloning"].item() == pytest.approx(0.05, abs=1e-6)
    assert metrics["loss/policy"].item() == pytest.approx(0.88333, abs=1e-5)


def test_cloning_is_a_mean_over_action_dimensions():
    learner = made("td3bc", 1, 2, alpha=0.0)
    write_actions(learner.nets.policy.net, [[0.1, -0.3]])
    metrics = learner.step(rows([0], [[0.0, 0.0]], n_obs=1), 1)
    assert metrics["loss/policy"].item() == pytest.approx(0.05, abs=1e-6)


def test_the_critics_regress_to_the_smaller_target_critic_and_stop_at_terminations_alone():
    learner = made("td3bc", 3, gamma=0.5, target_noise=0.0)
    nets = learner.nets
    for head in nets.critic.heads:
        write(head, [0.0, 0.0, 0.0])
    write_actions(nets.target_policy.net, [0.0, 0.5, -0.5])
    write(nets.target_critic.heads[0], [0.0, 4.0, 9.0], slope=2.0)
    write(nets.target_critic.heads[1], [0.0, 9.0, 4.0], slope=2.0)
    batch = rows([0, 0, 0], [0.1, 0.2, 0.3], n_obs=3, reward=1.0, next_obs=[1, 2, 1], terminated=[False, False, True])
    # next values min(4, 9) + 2 * 0.5 = 5 and min(9, 4) - 2 * 0.5 = 3; the third row ended
    expected = 2.0 * ((1.0 + 2.5) ** 2 + (1.0 + 1.5) ** 2 + 1.0) / 3.0  # both critics, mean over rows
    assert learner.step(batch, 0)["loss/critic"].item() == pytest.approx(expected, rel=1e-6)


def test_the_target_action_carries_clipped_noise():
    learner = made("td3bc", 1, gamma=1.0, target_noise=0.3, target_noise_clip=0.2)
    nets = learner.nets
    for k in range(2):
        write(nets.critic.heads[k], [0.0])
        write(nets.target_critic.heads[k], [0.0], slope=1.0)  # the value is the action
    write_actions(nets.target_policy.net, [0.9])
    torch.manual_seed(5)
    noise = torch.randn(50, 1)
    torch.manual_seed(5)
    loss = learner.step(rows([0] * 50, torch.zeros(50, 1), n_obs=1), 0)["loss/critic"]
    action = (0.9 + (0.3 * noise).clamp(-0.2, 0.2)).clamp(-1.0, 1.0)
    torch.testing.assert_close(loss, 2.0 * action.square().mean(), rtol=1e-5, atol=0)


def test_without_the_value_the_policy_clones():
    batch = noise_rows(32, 3, 2)
    cloning, learner = made("bc", 3, 2, hidden=[8]), made("td3bc", 3, 2, hidden=[8], alpha=0.0)
    cloning.nets.policy.load_state_dict(learner.nets.policy.state_dict())
    for _ in range(3):
        cloning.step(batch, 0)
        learner.step(batch, 1)
    torch.testing.assert_close(weights(learner, "policy"), weights(cloning, "policy"), rtol=0, atol=1e-7)


@pytest.mark.parametrize("factor", [1e-3, 1000.0])
def test_the_policy_gradient_does_not_depend_on_the_unit_of_rewards(factor):
    found = []
    for scale in (1.0, factor):
        learner = made("td3bc", 3, 2)
        freeze(learner, "critic")
        with torch.no_grad():
            for p in learner.nets.critic.parameters():
                p.mul_(scale)
        learner.step(noise_rows(32, 3, 2), 1)
        found.append(learner.opt["policy"].flat.grad)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-7)


def test_policy_and_targets_move_on_every_second_update_and_targets_behind_their_networks():
    learner = made("td3bc", 3, 2, hidden=[8], tau=0.1)
    before = {name: weights(learner, name) for name in NETS}
    learner.update(noise_rows(16, 3, 2))
    assert moved(before, learner) == {"critic"}
    learner.update(noise_rows(16, 3, 2, seed=1))
    assert moved(before, learner) == set(NETS)
    for name in ("policy", "critic"):
        expected = 0.1 * weights(learner, name) + 0.9 * before[name]  # both targets began as copies
        torch.testing.assert_close(weights(learner, f"target_{name}"), expected, rtol=0, atol=1e-7)


def test_a_delay_of_three_moves_the_policy_on_the_third_and_sixth_update():
    learner, when = made("td3bc", 3, 2, policy_delay=3), []
    for update in range(1, 7):
        before = {"policy": weights(learner, "policy")}
        learner.update(noise_rows(16, 3, 2))
        if moved(before, learner):
            when.append(update)
    assert when == [3, 6]


def test_neither_loss_reaches_the_other_network():
    batch = noise_rows(16, 3, 2)

    def after(phase: int, shift: float) -> tuple[torch.Tensor, torch.Tensor]:
        learner = made("td3bc", 3, 2, hidden=[8], target_noise=0.0)
        with torch.no_grad():
            for p in learner.nets.policy.parameters():
                p.add_(shift)
        learner.step(batch, phase)
        return weights(learner, "critic"), weights(learner, "policy")

    critic, policy = after(0, 0.0)
    assert torch.equal(critic, after(1, 0.0)[0]), "the policy's step left the critic alone"
    assert torch.equal(critic, after(0, 0.5)[0]), "the critic's step does not see the policy, only its target"
    assert torch.equal(policy, weights(made("td3bc", 3, 2, hidden=[8]), "policy")), "nor does it move it"


@pytest.mark.parametrize(
    "bad", [{"gamma": 1.1}, {"tau": -0.1}, {"learning_rate": 0.0}, {"alpha": -1.0}, {"target_noise_clip": -1.0}]
)
def test_settings_out_of_range_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=f"TD3BCConfig.{next(iter(bad))}"):
        TD3BCConfig(**bad)

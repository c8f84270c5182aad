"""ReBRAC against sums by hand: two penalties summed over dimensions, the first update, targets, and its networks."""

import math
from typing import Any

import pytest
import torch
from by_hand import freeze, made, moved, noise_rows, rows, weights, write, write_actions
from omegaconf import OmegaConf
from torch import nn

from ctrlrl.algos.rebrac import ReBRACConfig
from ctrlrl.settings import CONFIG_DIR, train_config, typed

PRESETS = CONFIG_DIR / "experiment" / "rebrac"
NETS = ("policy", "critic", "target_policy", "target_critic")

COEFFICIENTS = """
halfcheetah random 0.001 0.1 medium 0.001 0.01 medium_replay 0.01 0.001 medium_expert 0.01 0.1 expert 0.01 0.01
    full_replay 0.001 0.1
hopper random 0.001 0.01 medium 0.01 0.01 medium_replay 0.05 0.5 medium_expert 0.1 0.01 expert 0.1 0.1
    full_replay 0.01 0.01
walker2d random 0.01 0.0 medium 0.05 0.1 medium_replay 0.05 0.01 medium_expert 0.01 0.01 expert 0.01 0.5
    full_replay 0.01 0.01
antmaze umaze 0.003 0.002 umaze_diverse 0.003 0.001 medium_play 0.001 0.0005 medium_diverse 0.001 0.0
    large_play 0.002 0.001 large_diverse 0.002 0.002
pen human 0.1 0.5 cloned 0.05 0.5 expert 0.01 0.01
door human 0.1 0.1 cloned 0.01 0.1 expert 0.05 0.01
hammer human 0.01 0.5 cloned 0.1 0.5 expert 0.01 0.01
relocate human 0.1 0.01 cloned 0.1 0.01 expert 0.05 0.01
"""


def test_the_target_of_the_specification_and_no_penalty_where_the_task_ended():
    learner = made("rebrac", 1, 2, gamma=0.99, critic_bc_coef=0.5, target_noise=0.0)
    nets = learner.nets
    for online, target, value in zip(nets.critic.heads, nets.target_critic.heads, (1.0, 8.0), strict=True):
        write(online, [0.0])
        write(target, [value])
    write_actions(nets.target_policy.net, [[0.3, -0.2]])
    batch = rows([0, 0], [[0.5, 0.5]] * 2, n_obs=1, terminated=[False, True], next_action=[[0.2, 0.0], [0.2, 0.0]])
    metrics = learner.step(batch, 1)
    assert metrics["value/penalty"].item() == pytest.approx(0.05, rel=1e-5)  # 0.1^2 + 0.2^2: a sum
    assert metrics["loss/critic"].item() == pytest.approx(2.0 * 0.96525**2 / 2.0, rel=1e-5)


def test_the_policy_loss_takes_the_smaller_critic_and_sums_over_dimensions():
    learner = made("rebrac", 2, 2, actor_bc_coef=0.5)
    freeze(learner, "critic")
    write(learner.nets.critic.heads[0], [2.0, 7.0])
    write(learner.nets.critic.heads[1], [3.0, -4.0])
    write_actions(learner.nets.policy.net, [[0.1, 0.3], [0.0, 0.0]])
    batch = rows([0, 1], [[0.0, 0.0], [0.0, 0.0]], n_obs=2, next_action=[[0.0, 0.0]] * 2)
    metrics = learner.step(batch, 0)
    assert metrics["loss/cloning"].item() == pytest.approx(0.05, rel=1e-5)  # (0.01 + 0.09) / 2
    assert metrics["loss/policy"].item() == pytest.approx(0.5 * 0.05 + 1.0 / 3.0, rel=1e-5)  # min Q = 2, -4


def test_without_coefficients_it_is_td3_with_a_scaled_value():
    batch, gamma = noise_rows(64, 3, 2), 0.9
    smoothing = {"target_noise": 0.6, "target_noise_clip": 0.3}
    learner = made("rebrac", 3, 2, hidden=[16], actor_bc_coef=0.0, critic_bc_coef=0.0, gamma=gamma, **smoothing)
    nets = learner.nets
    torch.manual_seed(5)
    noise = (0.6 * torch.randn(64, 2)).clamp(-0.3, 0.3)
    with torch.no_grad():
        action = (nets.target_policy(batch.next_obs) + noise).clamp(-1.0, 1.0)
        next_q = torch.minimum(*nets.target_critic(batch.next_obs, action))
        target = batch.reward + gamma * torch.where(batch.terminated, 0.0, next_q)
        expected = sum((q - target).square().mean() for q in nets.critic(batch.obs, batch.action))
    torch.manual_seed(5)
    metrics = learner.step(batch, 0)
    torch.testing.assert_close(metrics["loss/critic"], expected, rtol=1e-5, atol=0)
    # the policy's loss saw the critics after their step and the policy before its own
    before = made("rebrac", 3, 2, hidden=[16]).nets.policy
    with torch.no_grad():
        q = torch.minimum(*nets.critic(batch.obs, before(batch.obs)))
    torch.testing.assert_close(metrics["loss/policy"], -q.mean() / q.abs().mean(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("factor", [1e-2, 1000.0])
def test_the_policy_gradient_does_not_depend_on_the_unit_of_rewards(factor):
    found = []
    for scale in (1.0, factor):
        learner = made("rebrac", 3, 2, actor_bc_coef=0.3)
        freeze(learner, "critic")
        with torch.no_grad():
            for p in learner.nets.critic.parameters():
                p.mul_(scale)
        learner.step(noise_rows(32, 3, 2), 0)
        found.append(learner.opt["policy"].flat.grad)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-7)


def test_the_policys_target_follows_the_policy_before_its_step_and_the_critics_the_critic_after_it():
    learner = made("rebrac", 3, 2, hidden=[8], tau=0.25)
    with torch.no_grad():
        for p in learner.nets.target_policy.parameters():
            p.add_(1.0)
    old = {name: weights(learner, name) for name in NETS}
    learner.step(noise_rows(16, 3, 2), 0)
    assert moved(old, learner) == set(NETS)
    expected = {
        "target_policy": 0.25 * old["policy"] + 0.75 * old["target_policy"],
        "target_critic": 0.25 * weights(learner, "critic") + 0.75 * old["target_critic"],
    }
    for name, value in expected.items():
        torch.testing.assert_close(weights(learner, name), value, rtol=0, atol=1e-7)


def test_the_first_update_moves_everything_and_the_second_the_critics_alone():
    learner = made("rebrac", 3, 2, hidden=[8])
    for phase in (0, 1, 0, 1):
        before = {name: weights(learner, name) for name in NETS}
        learner.update(noise_rows(16, 3, 2, seed=phase))
        found = moved(before, learner)
        assert found >= {"policy", "critic", "target_critic"} if phase == 0 else found == {"critic"}


def test_neither_loss_reaches_the_other_network():
    batch = noise_rows(16, 3, 2)

    def critic_after(phase: int, shift: float) -> torch.Tensor:
        learner = made("rebrac", 3, 2, hidden=[8], target_noise=0.0)
        with torch.no_grad():
            for p in learner.nets.policy.parameters():
                p.add_(shift)
        learner.step(batch, phase)
        return weights(learner, "critic")

    assert torch.equal(critic_after(0, 0.0), critic_after(1, 0.0)), "the policy's step left the critic alone"
    assert torch.equal(critic_after(0, 0.0), critic_after(0, 0.5)), (
        "the critic does not see the policy, only its target"
    )


def test_the_first_actions_are_near_zero():
    policy = made("rebrac", 17, 6, hidden=[256, 256, 256]).nets.policy
    with torch.no_grad():
        assert policy(3.0 * torch.randn(1000, 17)).abs().max() < 0.05


def test_layers_start_as_in_the_authors_code():
    learner = made("rebrac", 17, 6, hidden=[256, 256, 256])
    for net, n_in, bound in ((learner.nets.policy.net, 17, 1e-3), (learner.nets.critic.heads[1], 23, 3e-3)):
        *hidden, last = (layer for layer in net if isinstance(layer, nn.Linear))
        assert len(hidden) == 3
        for layer, size in zip(hidden, (n_in, 256, 256), strict=True):
            assert (layer.bias == 0.1).all()
            limit = 1.0 / math.sqrt(size)
            assert 0.98 * limit < layer.weight.abs().max() <= limit
            assert layer.weight.std().item() == pytest.approx(limit / math.sqrt(3.0), rel=0.05)
        assert 0.9 * bound < last.weight.abs().max() <= bound
        assert 0.0 < last.bias.abs().max() <= bound


def test_critics_normalise_after_the_relu_and_the_policy_not_at_all():
    learner = made("rebrac", 3, 2, hidden=[8, 8])
    kinds = [[type(layer).__name__ for layer in net] for net in (learner.nets.critic.heads[0], learner.nets.policy.net)]
    assert kinds == [["Linear", "ReLU", "LayerNorm"] * 2 + ["Float32Linear"], ["Linear", "ReLU"] * 2 + ["Linear"]]
    assert {layer.eps for layer in learner.nets.critic.modules() if isinstance(layer, nn.LayerNorm)} == {1e-6}


def test_policy_and_critic_may_have_their_own_learning_rates():
    rates = {name: opt.learning_rate.item() for name, opt in made("rebrac", 3, critic_learning_rate=5e-5).opt.items()}
    assert rates == pytest.approx({"policy": 1e-3, "critic": 5e-5})
    assert made("rebrac", 3, learning_rate=3e-4).opt["critic"].learning_rate.item() == pytest.approx(3e-4)


def test_the_presets_hold_the_authors_coefficients():
    task, words, names = "", COEFFICIENTS.split(), {"maze2d"}
    while words:
        if not words[1][0].isdigit():
            task, *words = words
        data, actor, critic, *words = words
        preset: Any = OmegaConf.to_container(OmegaConf.load(PRESETS / f"{task}_{data}.yaml"))
        algo = {"actor_bc_coef": float(actor), "critic_bc_coef": float(critic)}
        if task not in ("halfcheetah", "hopper", "walker2d"):
            algo |= {"learning_rate": 3e-4, "batch_size": 256}
        if task == "antmaze":
            algo |= {"critic_learning_rate": 5e-5, "gamma": 0.999}
        assert preset["algo"] == algo, (task, data)
        assert preset.get("data") == ({"reward_scale": 100.0} if task == "antmaze" else None)
        names.add(f"{task}_{data}")
        if data == "medium":
            for env in (task, f"{task}-v4"):
                names.add(env)
                cfg = typed(train_config(["algo=rebrac", f"env={env}", "data=file", "data.path=x"]))
                assert cfg.algo == ReBRACConfig(**algo), env
                assert cfg.env.name == env
    assert names == {path.stem for path in PRESETS.glob("*.yaml")}


@pytest.mark.parametrize(
    "bad", [{"actor_bc_coef": -1.0}, {"critic_learning_rate": 0.0}, {"gamma": 1.1}, {"target_noise": -0.1}]
)
def test_settings_out_of_range_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=f"ReBRACConfig.{next(iter(bad))}"):
        ReBRACConfig(**bad)

"""IQL against sums by hand: the order V, policy, Q, which value each of them sees, and CORL's joint form."""

import math

import pytest
import torch
from by_hand import freeze, made, moved, noise_rows, rows, weights, write, write_actions
from torch import Tensor

from ctrlrl.algos.iql import IQLConfig, IQLLearner
from ctrlrl.data.dataset import Dataset
from ctrlrl.settings import train_config, typed
from ctrlrl.train.off_policy import OfflineLoop
from ctrlrl.types import Transition

JOINT = pytest.mark.parametrize("joint", [False, True])


def tabular(joint: bool = False, **settings: object) -> tuple[IQLLearner, Transition]:
    """Two states; target critics (1, 5) and (2, 3), so q = (1, 3); V = (0, 2); online critics 0; V's step is large."""
    learner = made("iql", 2, gamma=0.5, joint=joint, **settings)
    learner.opt["value"].learning_rate.fill_(0.25)
    for head, table in zip(learner.nets.target.heads, ([1.0, 5.0], [2.0, 3.0]), strict=True):
        write(head, table)
    for head in learner.nets.critic.heads:
        write(head, [0.0, 0.0])
    write(learner.nets.value.net, [0.0, 2.0])
    batch = rows([0, 1, 1], [0.1, 0.2, 0.3], n_obs=2, reward=1.0, next_obs=[1, 0, 0], terminated=[False, False, True])
    return learner, batch


def values(learner: IQLLearner, obs: Tensor) -> Tensor:
    with torch.no_grad():
        return learner.nets.value(obs)


@JOINT
def test_the_value_regresses_to_an_expectile_of_the_smaller_target_critic(joint):
    learner, batch = tabular(joint, expectile=0.7)
    loss = learner.step(batch, 0)["loss/value"]
    assert loss.item() == pytest.approx(0.7, rel=1e-6)  # errors 1, 1, 1
    write(learner.nets.value.net, [0.0, 5.0])
    loss = learner.step(batch, 0)["loss/value"]
    assert loss.item() == pytest.approx((0.7 * 1.0 + 2 * 0.3 * 4.0) / 3.0, rel=1e-2)  # errors 1, -2, -2


@JOINT
def test_critic_and_policy_see_the_value_after_its_step_or_jointly_before_it(joint):
    learner, batch = tabular(joint, inverse_temperature=2.0)
    old = values(learner, batch.obs), values(learner, batch.next_obs)
    with torch.no_grad():
        log_prob = learner.nets.policy.log_prob(batch.obs, batch.action)
    metrics = learner.step(batch, 0)
    value, next_value = old if joint else (values(learner, batch.obs), values(learner, batch.next_obs))
    weight = (2.0 * (torch.tensor([1.0, 3.0, 3.0]) - value)).exp()
    torch.testing.assert_close(metrics["loss/policy"], -(weight * log_prob).mean(), rtol=1e-5, atol=0)
    target = 1.0 + 0.5 * next_value * torch.tensor([1.0, 1.0, 0.0])
    torch.testing.assert_close(metrics["loss/critic"], 2.0 * target.square().mean(), rtol=1e-5, atol=0)
    assert (old[0] - values(learner, batch.obs)).abs().min() > 0.1, "else the two orders could not be told apart"


@JOINT
def test_the_values_learning_rate_reaches_the_critic_within_one_step_unless_joint(joint):
    gradients = []
    for rate in (0.0, 0.25):
        learner, batch = tabular(joint)
        learner.opt["value"].learning_rate.fill_(rate)
        learner.step(batch, 0)
        gradients.append(learner.opt["critic"].flat.grad.clone())
    assert torch.equal(*gradients) == joint


@JOINT
def test_the_policy_is_weighed_by_target_critics_alone(joint):
    def gradient(net: str) -> Tensor:
        learner, batch = tabular(joint)
        for head in getattr(learner.nets, net).heads:
            write(head, [2.5, 2.5])
        learner.step(batch, 0)
        return learner.opt["policy"].flat.grad.clone()

    learner, batch = tabular(joint)
    learner.step(batch, 0)
    assert torch.equal(gradient("critic"), learner.opt["policy"].flat.grad)
    assert not torch.equal(gradient("target"), learner.opt["policy"].flat.grad)


@JOINT
def test_the_policy_ignores_a_constant_added_to_both_values(joint):
    found = []
    for constant in (0.0, 3.0):
        learner, batch = tabular(joint)
        freeze(learner, "value")
        with torch.no_grad():
            for net in (*learner.nets.target.heads, learner.nets.value.net):
                net[0].bias.add_(constant)
        learner.step(batch, 0)
        found.append(learner.opt["policy"].flat.grad.clone())
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


@JOINT
def test_targets_follow_the_new_critics_on_every_step_and_have_no_value_among_them(joint):
    learner = made("iql", 3, 2, hidden=[8], joint=joint, tau=0.1)
    old = weights(learner, "target")
    assert torch.equal(old, weights(learner, "critic")), "targets begin as copies"
    learner.update(noise_rows(16, 3, 2))
    expected = 0.1 * weights(learner, "critic").double() + 0.9 * old.double()
    assert (weights(learner, "target") - expected).abs().max() < 1e-7
    assert list(learner.targets) == ["critic"]


def test_joint_and_in_sequence_agree_where_the_value_stands_still():
    ends = []
    for joint in (False, True):
        learner = made("iql", 3, 2, hidden=[8], joint=joint)
        freeze(learner, "value")
        for seed in range(3):
            learner.update(noise_rows(16, 3, 2, seed=seed))
        ends.append([weights(learner, name) for name in ("policy", "critic", "target")])
    torch.testing.assert_close(*ends, rtol=0, atol=1e-7)


@JOINT
def test_no_loss_reaches_another_network(joint):
    def after(shifted: str) -> dict[str, Tensor]:
        learner = made("iql", 3, 2, hidden=[8], joint=joint)
        with torch.no_grad():
            for p in getattr(learner.nets, shifted).parameters():
                p.add_(0.25 if shifted else 0.0)
        learner.update(noise_rows(16, 3, 2))
        return {name: learner.opt[name].flat.grad.clone() for name in ("value", "policy", "critic")}

    plain = after("normalizer")  # which has no parameters
    for shifted, untouched in (("policy", ("value", "critic")), ("critic", ("value", "policy"))):
        found = after(shifted)
        for name in untouched:
            assert torch.equal(found[name], plain[name]), f"{shifted} reaches {name}"
        assert not torch.equal(found[shifted], plain[shifted])


def standing_still(advantage: float, action_dim: int = 2, **settings: object) -> tuple[IQLLearner, Transition]:
    """One state whose advantage is given, and rows whose actions are the policy's mean, 0."""
    learner = made("iql", 1, action_dim, **settings)
    freeze(learner, "value")
    for head in learner.nets.target.heads:
        write(head, [advantage])
    write(learner.nets.value.net, [0.0])
    write_actions(learner.nets.policy.net, [[0.0] * action_dim])
    return learner, rows([0, 0], torch.zeros(2, action_dim), n_obs=1)


def test_the_density_is_a_plain_gaussian_even_at_the_ends_of_the_box():
    learner, batch = standing_still(0.0)
    assert learner.step(batch, 0)["loss/policy"].item() == pytest.approx(1.837877, abs=1e-6)
    learner, batch = standing_still(0.0)
    batch.action.fill_(1.0)
    assert learner.step(batch, 0)["loss/policy"].item() == pytest.approx(1.837877 + 1.0, abs=1e-6)


def test_the_clip_is_on_the_weight():
    for advantage, weight in ((0.5, 4.48169), (2.0, 100.0)):
        learner, batch = standing_still(advantage)
        assert learner.step(batch, 0)["loss/policy"].item() == pytest.approx(weight * 1.837877, rel=2e-6)


def test_bounds_on_the_weight_and_on_the_deviation_are_those_of_the_config():
    learner, batch = standing_still(2.0, max_weight=7.0)
    assert learner.step(batch, 0)["loss/policy"].item() == pytest.approx(7.0 * 1.837877, rel=2e-6)
    policy = made("iql", 1, 2, log_std_min=-3.0).nets.policy
    for value, bound in ((-30.0, -3.0), (30.0, 2.0)):
        torch.nn.init.constant_(policy.log_std, value)
        assert policy(torch.ones(1, 1))[1].tolist() == [bound, bound]


def test_the_deterministic_policy_sums_over_dimensions():
    learner, batch = standing_still(0.0, deterministic_policy=True)
    batch.action.copy_(torch.tensor([[0.1, 0.3], [0.1, 0.3]]))
    assert learner.step(batch, 0)["loss/policy"].item() == pytest.approx(0.1, rel=1e-6)


def test_the_policys_learning_rate_falls_as_a_cosine_and_the_others_stand():
    seen: dict[str, list[float]] = {"policy": [], "value": [], "critic": []}
    learner = made("iql", 3, 2)
    data = Dataset.of(noise_rows(40, 3, 2))
    inner = learner.update

    def update(batch: Transition) -> dict[str, Tensor]:
        for name, rates in seen.items():
            rates.append(learner.opt[name].learning_rate.item())
        return inner(batch)

    learner.update = update
    loop = OfflineLoop(learner, data, gradient_steps=8, batch_size=4)
    loop.iterate()
    assert seen["policy"] == pytest.approx([3e-4 * 0.5 * (1.0 + math.cos(math.pi * t / 8)) for t in range(8)], rel=1e-5)
    assert seen["value"] == seen["critic"] == pytest.approx([3e-4] * 8)
    constant = made("iql", 3, 2, policy_lr_schedule="constant")
    constant.set_progress(0.9)
    assert constant.opt["policy"].learning_rate.item() == pytest.approx(3e-4)


def test_in_the_environment_the_rate_is_whole_again_or_another_or_goes_on_as_that_of_corl():
    one = torch.nn.Parameter(torch.zeros(1))
    corl = torch.optim.Adam([one], lr=3e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(corl, 8)
    wanted = []
    for _ in range(20):
        wanted.append(corl.param_groups[0]["lr"])
        corl.step()
        scheduler.step()
    assert wanted[8] < 1e-9 < 1e-4 < wanted[12]
    rows, found = noise_rows(40, 3, 2), {"constant": list[float](), "cosine": list[float](), 1e-5: list[float]()}
    for kind, rates in found.items():
        learner = made("iql", 3, 2, policy_lr_online=kind)
        OfflineLoop(learner, Dataset.of(rows), gradient_steps=8, batch_size=4).iterate()
        learner.begin_online()
        for n in range(12):
            if n == 5:  # a run that was cut
                twin = made("iql", 3, 2, policy_lr_online=kind)
                twin.load_model_state(learner.model_state())
                twin.load_training_state(learner.training_state())
                learner = twin
                if kind != 1e-5:
                    learner.begin_online()
            learner.update(rows)
            rates.append(learner.opt["policy"].learning_rate.item())
    assert found["constant"] == pytest.approx(12 * [3e-4])
    assert found[1e-5] == pytest.approx(12 * [1e-5])
    assert found["cosine"] == pytest.approx(wanted[8:], rel=1e-5, abs=1e-10)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_more_updates_on_the_data_after_the_environment_have_the_offline_rate_again(schedule):
    learner, rows = made("iql", 3, 2, policy_lr_schedule=schedule, policy_lr_online=1e-6), noise_rows(40, 3, 2)

    def rate() -> float:
        learner.update(rows)
        return learner.opt["policy"].learning_rate.item()

    learner.set_progress(0.0)
    assert rate() == pytest.approx(3e-4)
    learner.begin_online()
    assert rate() == pytest.approx(1e-6)
    learner.set_progress(0.0)
    assert rate() == pytest.approx(3e-4)


def test_an_online_rate_that_nothing_leads_to_is_refused():
    with pytest.raises(ValueError, match="policy_lr_online=cosine goes on with policy_lr_schedule=cosine"):
        made("iql", 3, 2, policy_lr_schedule="constant", policy_lr_online="cosine")


def test_dropout_is_the_policys_and_of_training_alone():
    learner = made("iql", 3, 2, hidden=[32, 32], policy_dropout=0.5)
    kinds = {name: [type(m).__name__ for m in getattr(learner.nets, name).modules()] for name in ("policy", "value")}
    assert (kinds["policy"].count("Dropout"), kinds["value"].count("Dropout")) == (2, 0)
    obs = torch.randn(5, 3)
    assert torch.equal(learner.act(obs, deterministic=True).action, learner.act(obs, deterministic=True).action)
    losses = []
    for seed in (0, 1):
        twin = made("iql", 3, 2, hidden=[32, 32], policy_dropout=0.5)
        twin.act(obs)
        torch.manual_seed(seed)
        losses.append(twin.update(noise_rows(16, 3, 2)))
    assert losses[0]["loss/policy"] != losses[1]["loss/policy"]
    assert losses[0]["loss/critic"] == losses[1]["loss/critic"]


def test_every_layer_starts_orthogonal_with_gain_root_two_and_no_bias():
    learner = made("iql", 5, 2, hidden=[16, 16])
    for name in ("policy", "critic", "value"):
        for layer in getattr(learner.nets, name).modules():
            if isinstance(layer, torch.nn.Linear):
                singular = torch.linalg.svdvals(layer.weight.detach())
                torch.testing.assert_close(singular, torch.full_like(singular, math.sqrt(2.0)))
                assert not layer.bias.any()
    assert not learner.nets.policy.log_std.any()


def test_only_the_three_networks_learn():
    names = ("policy", "critic", "value", "target")
    learner = made("iql", 3, 2, hidden=[8])
    before = {name: weights(learner, name) for name in names}
    learner.update(noise_rows(16, 3, 2))
    assert moved(before, learner) == set(names)
    assert set(learner.opt) == {"policy", "critic", "value"}


def test_the_settings_of_the_reference_runs():
    hopper = typed(train_config(["experiment=iql/corl_hopper_medium", "data=file", "data.path=x"]))
    assert hopper.data.return_range
    assert hopper.data.clip_actions is None
    assert (hopper.algo.tau, hopper.algo.deterministic_policy, hopper.algo.joint) == (0.001, True, True)
    cheetah = typed(train_config(["experiment=iql/corl_halfcheetah_medium", "data=file", "data.path=x"]))
    assert (cheetah.algo.tau, cheetah.algo.deterministic_policy, cheetah.algo.log_std_min) == (0.005, False, -20.0)
    authors = typed(train_config(["algo=iql", "env=walker2d-v4", "data=file", "data.path=x"]))
    assert (authors.experiment, authors.data.return_range, authors.data.clip_actions) == (
        "iql/walker2d-v4",
        True,
        0.99999,
    )
    assert authors.algo == IQLConfig()
    assert (authors.algo.buffer_size, authors.algo.offline_share) == (2_000_000, None), "a million rows of data stay"
    maze = typed(train_config(["experiment=iql/antmaze", "data=file", "data.path=x", "env=gym", "env.id=X"]))
    assert (maze.data.reward_shift, maze.algo.expectile, maze.algo.inverse_temperature) == (-1.0, 0.9, 10.0)


@pytest.mark.parametrize(
    "bad",
    [
        {"expectile": 1.0},
        {"tau": 2.0},
        {"learning_rate": 0.0},
        {"batch_size": 0},
        {"init": "zeros"},
        {"policy_lr_schedule": 0.5},
        {"policy_lr_online": "linear"},
        {"policy_lr_online": -1.0},
    ],
)
def test_settings_out_of_range_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=f"IQLConfig.{next(iter(bad))}"):
        IQLConfig(**bad)

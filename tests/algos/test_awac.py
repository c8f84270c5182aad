"""AWAC against sums by hand: the policy's own clamped actions, online critics after their step, and clipped weights."""

import math

import pytest
import torch
from by_hand import freeze, made, moved, noise_rows, rows, weights, write

from ctrlrl.algos.awac import AWACConfig, AWACLearner
from ctrlrl.settings import train_config, typed
from ctrlrl.types import Transition


def certain(means: list[list[float]], **settings: object) -> AWACLearner:
    """A learner whose policy takes means[i] in state i with a deviation of e^-20."""
    learner = made("awac", len(means), len(means[0]), **settings)
    write(learner.nets.policy.net, means)
    with torch.no_grad():
        learner.nets.policy.log_std.fill_(-30.0)
    return learner


def one_advantage(advantage: float, **settings: object) -> tuple[AWACLearner, Transition]:
    """Two critics that still agree on `advantage` of the data's action 0.5 over the policy's 0; std 1."""
    learner = made("awac", 1, **settings)
    freeze(learner, "critic")
    write(learner.nets.policy.net, [[0.0]])
    for k, head in enumerate(learner.nets.critic.heads):
        write(head, [10.0 * k], slope=2.0 * advantage)
    return learner, rows([0], [[0.5]], n_obs=1)


def test_the_target_takes_the_smaller_target_critic_at_the_policys_action_cut_to_the_box():
    learner = certain([[0.25], [3.0]], gamma=0.5)  # the mean is not squashed: 3 becomes 1
    nets = learner.nets
    for k in range(2):
        write(nets.critic.heads[k], [0.0, 0.0])
        write(nets.target.heads[k], [[4.0, 9.0], [9.0, 4.0]][k], slope=2.0)
    batch = rows([0, 0, 0], [0.1, 0.2, 0.3], n_obs=2, reward=1.0, next_obs=[0, 1, 1], terminated=[False, False, True])
    expected = 2.0 * ((1.0 + 0.5 * 4.5) ** 2 + (1.0 + 0.5 * 6.0) ** 2 + 1.0) / 3.0
    assert learner.step(batch, 0)["loss/critic"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("advantage", "weight"), [(0.1, math.exp(0.1 / 0.3333)), (-1.0, math.exp(-1.0 / 0.3333)), (2.0, 100.0)]
)
def test_the_policy_loss_is_the_weighed_log_density(advantage, weight):
    learner, batch = one_advantage(advantage)
    with torch.no_grad():
        learner.nets.policy.log_std.fill_(-20.0)
    # the sample is the mean, 0, so the advantage is exact; the density then is that of the narrow policy
    log_prob = -0.5 * math.exp(40.0) * 0.25 + 20.0 - 0.5 * math.log(2.0 * math.pi)
    metrics = learner.step(batch, 0)
    assert metrics["policy/weight"].item() == pytest.approx(weight, rel=1e-5)
    assert metrics["loss/policy"].item() == pytest.approx(-weight * log_prob, rel=1e-5)


def test_equal_values_everywhere_make_it_maximum_likelihood():
    learner, batch = one_advantage(0.0)
    metrics = learner.step(batch, 0)
    assert metrics["policy/weight"].item() == 1.0
    assert metrics["loss/policy"].item() == pytest.approx(0.5 * 0.25 + 0.5 * math.log(2.0 * math.pi), rel=1e-6)


def test_the_advantage_is_that_of_the_online_critics_after_their_step():
    learner = certain([[0.2]], learning_rate=0.3)
    nets = learner.nets
    for k in range(2):
        write(nets.critic.heads[k], [0.0], slope=0.0)
        write(nets.target.heads[k], [50.0], slope=-50.0)  # says the opposite and must not be heard
    batch = rows([0], [[0.5]], n_obs=1, reward=1.0, terminated=[True])
    metrics = learner.step(batch, 0)
    with torch.no_grad():
        value, q = nets.critic(batch.obs, torch.tensor([[0.2]])).amin(0), nets.critic(batch.obs, batch.action).amin(0)
    assert metrics["policy/weight"].item() == pytest.approx(((q - value) / 0.3333).exp().item(), rel=1e-5)
    assert q - value > 0.05, "Adam's first step raises Q along the data's action by 0.3 * (0.5 - 0.2)"


def test_the_advantage_is_between_the_smaller_critics_at_either_action():
    learner = certain([[0.0]])
    freeze(learner, "critic")
    write(learner.nets.critic.heads[0], [1.0], slope=-1.0)  # 1 at the policy's action, 0.5 at the data's
    write(learner.nets.critic.heads[1], [0.2], slope=1.0)  # 0.2 and 0.7
    metrics = learner.step(rows([0], [[0.5]], n_obs=1), 0)
    assert metrics["policy/weight"].item() == pytest.approx(math.exp((0.5 - 0.2) / 0.3333), rel=1e-5)


def test_samples_are_drawn_anew_for_the_target_and_for_the_baseline():
    learner = made("awac", 1)
    seen = []
    inner = learner._sample
    learner._sample = lambda obs: seen.append(inner(obs)) or seen[-1]
    learner.step(rows([0] * 500, torch.zeros(500, 1), n_obs=1), 0)
    first, second = seen
    assert not torch.equal(first, second)
    assert max(first.abs().max(), second.abs().max()) == 1.0
    assert first.std() > 0.5


def test_targets_follow_the_critics_on_every_step():
    names = ("policy", "critic", "target")
    learner = made("awac", 3, 2, hidden=[8])
    before = {name: weights(learner, name) for name in names}
    assert torch.equal(before["critic"], before["target"])
    learner.update(noise_rows(16, 3, 2))
    assert moved(before, learner) == set(names)
    expected = 0.005 * weights(learner, "critic").double() + 0.995 * before["target"].double()
    assert (weights(learner, "target") - expected).abs().max() < 1e-7


def test_the_policys_loss_does_not_reach_the_critics():
    ends = []
    for frozen in ((), ("policy",)):
        learner = made("awac", 3, 2, hidden=[8])
        freeze(learner, *frozen)
        torch.manual_seed(1)
        learner.update(noise_rows(16, 3, 2))
        ends.append((weights(learner, "critic"), weights(learner, "policy")))
    assert torch.equal(ends[0][0], ends[1][0])
    assert not torch.equal(ends[0][1], ends[1][1])


def test_the_networks_have_three_layers_and_torchs_own_weights():
    learner = made("awac", 5, 2, hidden=AWACConfig().hidden)
    linear = [layer for layer in learner.nets.policy.net if isinstance(layer, torch.nn.Linear)]
    assert [layer.out_features for layer in linear] == [256, 256, 256, 2]
    assert linear[-1].weight.abs().max() <= 1.0 / 16.0
    assert learner.nets.policy.log_std_bounds == (-20.0, 2.0)


def test_the_preset_of_antmaze_is_corls():
    cfg = typed(train_config(["experiment=awac/antmaze", "data=file", "data.path=x"]))
    assert cfg.algo == AWACConfig(temperature=0.1)
    assert cfg.data.reward_shift == -1.0


@pytest.mark.parametrize("bad", [{"temperature": 0.0}, {"learning_rate": -1.0}, {"tau": 1.5}, {"batch_size": 0}])
def test_settings_out_of_range_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=f"AWACConfig.{next(iter(bad))}"):
        AWACConfig(**bad)

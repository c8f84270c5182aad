"""H2O's update by hand, its gradient routing, and two systems whose dynamics are known."""

import math
from typing import Any

import pytest
import torch
from by_hand import made, moved, noise_rows, weights
from torch import Tensor

from ctrlrl.algos.h2o import H2OConfig, H2OLearner
from ctrlrl.data.dataset import Dataset
from ctrlrl.data.replay import Pair
from ctrlrl.functional.distributions import tanh_gaussian_sample
from ctrlrl.functional.gap import log_share
from ctrlrl.types import HybridBatch, Transition, tree_map

ALL = ("marginal", "transition", "policy", "critic", "target", "log_temperature")
SMALL = {"batch_size": 32, "discriminator_batch_size": 48}


def batch(learner: H2OLearner, seed: int = 0) -> HybridBatch:
    n = learner.rows // 2
    parts = [noise_rows(n, 3, 2, seed=seed + i)._replace(extras={}) for i in range(2)]
    return HybridBatch(*parts)


def learner_of(**settings: Any) -> Any:
    learner = made("h2o", 3, 2, **{**SMALL, **settings})
    learner.prefit(noise_rows(500, 3, 2, seed=9))
    return learner


def before(learner: H2OLearner) -> dict[str, Tensor]:
    return {name: weights(learner, name) for name in ALL}


def frozen(learner: H2OLearner, *names: str) -> H2OLearner:
    for name in names:
        learner.opt[name].learning_rate.fill_(0.0)
    return learner


def test_classifiers_that_know_nothing_give_weight_one_and_the_smallest_gap():
    learner = learner_of()
    for name in ("marginal", "transition"):
        for p in getattr(learner.nets, name).parameters():
            torch.nn.init.zeros_(p)
    weight, u = learner.weight_and_gap(batch(learner).sim)
    assert torch.equal(weight, torch.ones_like(weight))
    assert torch.equal(u, torch.full_like(u, 1e-37))


def test_the_authors_smallest_gap_is_shared_evenly_where_denormal_numbers_are_zero():
    learner = learner_of(gap_min=1e-45)
    for p in learner.nets.transition.parameters():
        torch.nn.init.zeros_(p)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush denormal numbers")
    try:
        share = log_share(learner.weight_and_gap(batch(learner).sim)[1])
    finally:
        torch.set_flush_denormal(False)
    torch.testing.assert_close(share, torch.full_like(share, -math.log(len(share))))


def test_one_update_is_the_definitions_with_plain_adam():
    """Classifiers; then temperature, policy and critics, whose losses all read the networks before their steps."""
    settings = {
        "learning_rate": 1e-2,
        "train_marginal_on_joint": True,
        "bound_marginal": True,
        "conservative_coef": 0.3,
        "hidden": [5],
    }
    learner, twin = learner_of(**settings), learner_of(**settings)
    for each in (learner, twin):
        each.targets["critic"].flat.add_(0.3)  # else the critics themselves would do as well
    data = batch(learner)
    torch.manual_seed(3)
    learner.update(data)

    nets = twin.nets
    parts = {name: getattr(nets, name).requires_grad_(True) for name in ALL if name != "target"}
    adams = {name: torch.optim.Adam(net.parameters(), lr=1e-2) for name, net in parts.items()}
    torch.manual_seed(3)
    real, sim = (tree_map(lambda x: x[16:], part) for part in data)
    inputs = torch.cat([torch.cat((r.obs, r.action, r.next_obs), 1) for r in (real, sim)])
    inputs = inputs + 0.1 * torch.randn_like(inputs)

    def logits(net: Any, x: Tensor) -> Tensor:
        return 2.0 * torch.tanh(net.net(x))

    p_sa = logits(nets.marginal, inputs[:, :5]).softmax(1)
    p_sas = (logits(nets.transition, inputs) + logits(nets.marginal, inputs[:, :5])).softmax(1)
    for p in (p_sa, p_sas):
        (-p[:24, 0].log().mean() - p[24:, 1].log().mean()).backward(retain_graph=True)
    for name in ("marginal", "transition"):
        adams[name].step()

    real, sim = (tree_map(lambda x: x[:16], part) for part in data)
    obs, after = torch.cat((real.obs, sim.obs)), torch.cat((real.next_obs, sim.next_obs))
    mean, log_std = nets.policy(obs)
    action, log_prob = tanh_gaussian_sample(mean, log_std, torch.randn_like(mean))
    alpha_loss = -(nets.log_temperature.value * (log_prob - 2.0).detach()).mean()
    policy_loss = (nets.log_temperature.value.exp().detach() * log_prob - nets.critic(obs, action).amin(0)).mean()
    with torch.no_grad():
        next_mean, next_log_std = nets.policy(after)
        next_action, _ = tanh_gaussian_sample(next_mean, next_log_std, torch.randn_like(next_mean))
        y = torch.cat((real.reward, sim.reward)) + 0.99 * ~torch.cat((real.terminated, sim.terminated)) * nets.target(
            after, next_action
        ).amin(0)
        deviation = noise_rows(500, 3, 2, seed=9).obs.std(0, unbiased=False) + 1e-3
        near = sim.next_obs + deviation * torch.randn(10, 16, 3)

        def raw(next_obs: Tensor) -> Tensor:
            marginal = logits(nets.marginal, torch.cat((sim.obs, sim.action), 1))
            extra = logits(nets.transition, torch.cat((sim.obs, sim.action, next_obs), 1))
            p_sa, p_sas = marginal.softmax(1), (extra + marginal).softmax(1)
            return p_sas[:, 0] * p_sa[:, 1] / (p_sas[:, 1] * p_sa[:, 0])

        w = raw(sim.next_obs).clamp(1e-5, 1.0)
        u = torch.stack([-raw(x).log() for x in near]).mean(0).clamp(1e-37, 10.0)
    q_real, q_sim = nets.critic(real.obs, real.action), nets.critic(sim.obs, sim.action)
    critic_loss = 0.0
    for i in range(2):
        bellman = (q_real[i] - y[:16]).square().mean() + (w * (q_sim[i] - y[16:]).square()).mean()
        critic_loss = critic_loss + bellman
        critic_loss = critic_loss + 0.3 * (((u / u.sum()) * q_sim[i].exp()).sum().log() - q_real[i].mean())
    for name, loss in (("log_temperature", alpha_loss), ("policy", policy_loss), ("critic", critic_loss)):
        adams[name].zero_grad()
        grads = torch.autograd.grad(loss, list(parts[name].parameters()), retain_graph=True)
        for p, g in zip(parts[name].parameters(), grads, strict=True):
            p.grad = g
    for name in ("log_temperature", "policy", "critic"):
        adams[name].step()
    with torch.no_grad():
        for old, new in zip(nets.target.parameters(), nets.critic.parameters(), strict=True):
            old.lerp_(new, 0.005)
    for (name, ours), theirs in zip(learner.nets.named_parameters(), nets.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_critics_teach_the_classifiers_nothing_and_classifiers_nobody_else():
    learner = frozen(learner_of(), "marginal", "transition")
    was = before(learner)
    learner.update(batch(learner))
    assert moved(was, learner) == {"policy", "critic", "target", "log_temperature"}
    learner = frozen(learner_of(), "policy", "critic", "log_temperature")
    was = before(learner)
    learner.update(batch(learner))
    assert moved(was, learner) == {"marginal", "transition"}


@pytest.mark.parametrize("asked", [False, True])
def test_the_loss_of_the_step_reaches_the_classifier_of_states_only_where_asked(asked):
    """Else that learns the same whether the other network learns or not."""
    ends = []
    for fixed in (True, False):
        learner = learner_of(train_marginal_on_joint=asked)
        frozen(learner, *(("transition",) if fixed else ()))
        torch.manual_seed(1)
        for seed in range(3):
            learner.update(batch(learner, seed))
        ends.append(weights(learner, "marginal"))
    assert torch.equal(*ends) is not asked


def test_without_the_penalty_everything_still_learns():
    """The authors' code takes its steps inside the branch of the penalty."""
    learner = learner_of(conservative_coef=0.0)
    was = before(learner)
    learner.update(batch(learner))
    assert moved(was, learner) == set(ALL)


def test_normalised_critics_stay_bounded_far_from_the_data():
    """RLPD's bound: the last layer reads normalised features, so values far away cannot grow with the distance."""
    growth = []
    for layer_norm in (False, True):
        critic = learner_of(layer_norm=layer_norm, hidden=[16, 16]).nets.critic
        near, far = (critic(torch.full((1, 3), x), torch.zeros(1, 2)).abs().max() for x in (1e3, 1e5))
        growth.append((far / near).item())
    assert growth[0] > 50.0
    assert growth[1] < 1.1


def test_simulated_rows_count_by_their_weight_alone():
    """With the weight at its floor and no penalty a simulated reward says nothing to the critics."""
    ends = []
    for reward in (0.0, 100.0):
        learner = learner_of(conservative_coef=0.0, weight_min=1e-12, weight_max=1e-12)
        data = batch(learner)
        torch.manual_seed(1)
        learner.update(HybridBatch(data.real, data.sim._replace(reward=data.sim.reward * 0 + reward)))
        ends.append(weights(learner, "critic"))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-7)


def test_next_states_are_spread_as_the_real_states_are_and_the_switch_counts_empty_rows():
    data = noise_rows(500, 3, 2, seed=9).obs * torch.tensor([0.1, 1.0, 5.0]) + 2.0
    rows = noise_rows(500, 3, 2, seed=9)._replace(obs=data)
    learner, padded = (made("h2o", 3, 2, **SMALL, next_state_noise=0.5, pad_state_std=pad) for pad in (False, True))
    for each in (learner, padded):
        each.prefit(rows)
    torch.testing.assert_close(learner.next_state_std(), 0.5 * (data.std(0, unbiased=False) + 1e-3))
    buffer = torch.cat((data, torch.zeros(5000, 3)))
    torch.testing.assert_close(padded.next_state_std(), 0.5 * buffer.std(0, unbiased=False), rtol=1e-2, atol=0)


def test_normalized_observations_are_what_every_network_sees():
    raw = noise_rows(500, 3, 2, seed=9)
    shifted = raw._replace(obs=3.0 * raw.obs + 5.0, next_obs=3.0 * raw.next_obs + 5.0)
    ends = []
    for rows, scale, shift in ((raw, 1.0, 0.0), (shifted, 3.0, 5.0)):
        learner = made("h2o", 3, 2, **SMALL, normalize_obs=True)
        learner.nets.normalizer.eps = learner.nets.real_states.eps = 0.0
        learner.prefit(rows)
        torch.manual_seed(1)
        learner.update(
            HybridBatch(
                *(p._replace(obs=scale * p.obs + shift, next_obs=scale * p.next_obs + shift) for p in batch(learner))
            )
        )
        ends.append(before(learner))
    for name in ALL:
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=1e-3, atol=1e-5)


def systems(n: int, *, shift: float, apart: float = 0.7, seed: int = 0) -> HybridBatch:
    """s' = a + N(0, 1) in reality and a + shift + N(0, 1) simulated; states are N(0, 1) and N(apart, 1)."""
    random = torch.Generator().manual_seed(seed)
    parts = []
    for offset, centre in ((0.0, 0.0), (shift, apart)):
        obs = centre + torch.randn(n, 1, generator=random)
        action = 2.0 * torch.rand(n, 1, generator=random) - 1.0
        after = action + offset + torch.randn(n, 1, generator=random)
        never = torch.zeros(n, dtype=torch.bool)
        parts.append(Transition(obs, action, torch.zeros(n), after, never, {}))
    return HybridBatch(*parts)


def judged(updates: int, shift: float, apart: float = 0.7, **settings: Any) -> H2OLearner:
    """A learner whose classifiers alone have learned."""
    fixed = {"hidden": [32, 32], "batch_size": 2, "discriminator_batch_size": 512, "learning_rate": 3e-3}
    learner = made("h2o", 1, 1, **fixed, **{"input_noise": 0.0, "logit_bound": None, **settings})
    data = systems(20_000, shift=shift, apart=apart)
    learner.prefit(data.real)
    source = Pair(Dataset.of(data.real), Dataset.of(data.sim))
    for i in range(updates):
        learner.opt["marginal"].learning_rate.fill_(3e-3 * (1.0 - i / updates))
        learner.opt["transition"].learning_rate.fill_(3e-3 * (1.0 - i / updates))
        learner._classify(*source.sample(512))
    return learner


def test_classifiers_of_known_gaussians_learn_the_known_ratio_whatever_states_each_saw():
    """log N(s'; a, 1) - log N(s'; a + 1, 1) = 1/2 - (s' - a); the states' own ratio is log-linear too and cancels."""
    learner = judged(500, shift=1.0)
    action = torch.linspace(-0.8, 0.8, 5).repeat(5).unsqueeze(1)
    after = action + torch.linspace(-0.5, 1.5, 5).repeat_interleave(5).unsqueeze(1)
    obs = torch.full_like(action, 0.3)
    found = learner.log_ratio(obs, action, after.unsqueeze(0))[0]
    expected = 0.5 - (after - action)[:, 0]
    assert (found - expected).abs().mean() < 0.12
    states = torch.linspace(-1.0, 2.0, 7).unsqueeze(1)
    told = learner.nets.marginal(states, torch.zeros(7, 1)).detach()
    assert (told - (0.5 * 0.49 - 0.7 * states[:, 0])).abs().mean() < 0.15


def test_equal_dynamics_are_told_apart_by_states_alone_and_every_step_counts():
    learner = judged(500, shift=0.0, next_state_noise=0.1)
    sim = systems(2000, shift=0.0, seed=1).sim
    weight, u = learner.weight_and_gap(sim)
    assert weight.mean() > 0.93
    assert u.mean() < 0.07


def test_states_that_the_simulator_alone_reaches_are_less_of_a_gap_without_the_authors_bound():
    """Equal dynamics, states four deviations apart: the true ratio is 0 nats everywhere."""
    found = {}
    for released in (False, True):
        switches = {"bound_marginal": released, "train_marginal_on_joint": released}
        learner = judged(400, shift=0.0, apart=4.0, logit_bound=2.0, **switches)
        sim = systems(2000, shift=0.0, apart=4.0, seed=1).sim
        found[released] = learner.dynamics_gap(sim.obs, sim.action, sim.next_obs).mean()
    assert found[True] > 1.3
    assert found[False] < found[True] - 0.4


def test_the_gap_of_shifted_gaussians_is_half_the_square_of_the_shift():
    learner = judged(500, shift=1.0, next_state_noise=1e-3)
    _, u = learner.weight_and_gap(systems(2000, shift=1.0, seed=1).sim)
    # the mean of what is clipped at 0 from below: E max(0, x), x ~ N(1/2, 1)
    assert u.mean().item() == pytest.approx(0.698, abs=0.1)


@pytest.mark.parametrize(
    ("settings", "optimum"), [({}, 0.6), ({"weight_min": 1.0, "conservative_coef": 0.0}, 0.36)], ids=["h2o", "blind"]
)
def test_in_a_simulator_that_doubles_every_action_it_finds_the_real_optimum(settings, optimum):
    """The reward is -4 (s' - 0.6)^2, s' = a in reality and 2a simulated: 0.6 is best, or 0.3 in the simulator.

    Whoever lets both count alike finds the least of (a - 0.6)^2 + (2a - 0.6)^2, a = 0.36.
    """
    n, random, parts = 4000, torch.Generator().manual_seed(0), []
    for gain in (1.0, 2.0):
        action = 2.0 * torch.rand(n, 1, generator=random) - 1.0
        after = gain * action + 0.05 * torch.randn(n, 1, generator=random)
        reward = -4.0 * (after[:, 0] - 0.6).square()
        parts.append(
            Dataset.of(Transition(torch.zeros(n, 1), action, reward, after, torch.ones(n, dtype=torch.bool), {}))
        )
    sizes = {"hidden": [32, 32], "batch_size": 64, "discriminator_batch_size": 64, "n_next_states": 2}
    learner = made("h2o", 1, 1, learning_rate=3e-3, **sizes, **settings)
    learner.nets.log_temperature.value.data.fill_(-4.0)
    learner.prefit(parts[0].all())
    source = Pair(*parts)
    for _ in range(400):
        learner.update(source.sample(learner.rows))
    assert learner.act(torch.zeros(1, 1), deterministic=True).action.item() == pytest.approx(optimum, abs=0.1)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"batch_size": 7}, "batch_size must be even"),
        ({"discriminator_batch_size": 0}, "discriminator_batch_size must be even"),
        ({"weight_min": 2.0}, "0 < weight_min <= weight_max"),
        ({"gap_min": 0.0}, "0 < gap_min <= gap_max"),
        ({"logit_bound": 0.0}, "logit_bound"),
        ({"penalty_bound": -1.0}, "penalty_bound"),
        ({"n_next_states": 0}, "n_next_states must be at least 1"),
        ({"n_steps": 3}, "n_steps must be 1"),
        ({"offline_share": 0.25}, "offline_share must be 0.5"),
        ({"input_noise": -0.1}, "input_noise"),
    ],
)
def test_settings_out_of_range_are_named(settings, told):
    with pytest.raises(ValueError, match=told):
        H2OConfig(**settings)

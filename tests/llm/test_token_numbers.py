"""The numbers worked out in the specification, with their gradients."""

import pytest
import torch
from four_responses import CHANGE, F64, GROUP, MASK, OLD, REF_CHANGE, REWARD, close, current, plain

from ctrlrl.functional.adaptive_bounds import bound_sums
from ctrlrl.functional.kl import kl_estimate
from ctrlrl.functional.masked import masked_mean
from ctrlrl.llm.advantages import advantages
from ctrlrl.llm.losses import token_loss

ADVANTAGES = {
    "group_z": ({}, [1.452437, -0.660199, -0.132040, -0.660199]),
    "group_center": ({}, [0.6875, -0.3125, -0.0625, -0.3125]),
    "rloo": ({}, [0.916667, -0.416667, -0.083333, -0.416667]),
    "opo": ({}, [0.6, -0.4, -0.15, -0.4]),
    "reinforce_pp": ({"whiten": "tokens"}, [1.401298, -0.934199, -0.350325, -0.934199]),
    "gbpo": ({"advantage_eps": 1e-6, "surrogate": "bounded"}, [1.452741, -0.660337, -0.132067, -0.660337]),
    "virtual_max": ({"advantage_eps": 1e-6}, [1.073488, -0.878308, -0.390359, -0.878308]),
}


@pytest.mark.parametrize("name", ADVANTAGES)
def test_advantages(name):
    changes, wanted = ADVANTAGES[name]
    config = plain("grpo", advantage=name, **changes)
    got = advantages(config, REWARD, GROUP, MASK).advantage
    if got.ndim == 2:
        got, wanted = got[MASK], torch.tensor(wanted, dtype=F64).unsqueeze(1).expand(4, 4)[MASK]
    close(got, wanted)


def test_remax():
    greedy = torch.full((4,), 0.5, dtype=F64)
    out = advantages(plain("remax"), REWARD, GROUP, MASK, greedy_reward=greedy)
    close(out.advantage, [0.5, -0.5, -0.25, -0.5])


def test_the_median_signal_of_gbpo():
    out = advantages(plain("gbpo", advantage_eps=1e-6), REWARD, GROUP, MASK)
    close(out.target, [1.848943, -0.264135, 0.264135, -0.264135])


def test_the_median_of_five_and_the_row_it_drops():
    reward = torch.tensor([1.0, 0.0, 0.25, 0.0, 0.1], dtype=F64)
    mask = torch.ones(5, 1, dtype=torch.bool)
    out = advantages(plain("mc_grpo"), reward, torch.zeros(5, dtype=torch.int64), mask)
    close(out.advantage, [11.138614, -1.237624, 1.856436, -1.237624, 0.0])
    assert out.keep.tolist() == [True, True, True, True, False]


def test_two_rewards_each_normalized_before_their_sum():
    rewards = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 1.0], [0.0, 0.0]], dtype=F64)
    close(advantages(plain("gdpo"), rewards, GROUP, MASK).advantage, [0.371831, 0.069968, 0.953567, -1.395367])
    close(advantages(plain("grpo"), rewards, GROUP, MASK).advantage, [0.198648, 0.198648, 0.993241, -1.390538])


def test_beta_normalization_of_three_prompts():
    p = torch.tensor([0.25, 0.75, 0.5], dtype=F64)
    reward = torch.cat([(torch.arange(4) < 4 * rate).to(F64) for rate in p])
    group = torch.arange(3).repeat_interleave(4)
    out = advantages(plain("bnpo"), reward, group, torch.ones(12, 1, dtype=torch.bool))
    pdf = torch.tensor([1.1238, 1.1238, 1.428251], dtype=F64)
    close(out.advantage, ((reward - p[group]) / pdf[group]), atol=1e-5)


V = torch.tensor([[0.2, 0.4, 0.5, 0.8]], dtype=F64)


@pytest.mark.parametrize(
    ("preset", "reward", "gae_lambda", "wanted"),
    [
        ("ppo_tokens", 1.0, 1.0, [0.8, 0.6, 0.5, 0.2]),
        ("ppo_tokens", 1.0, 0.95, [0.737225, 0.5655, 0.49, 0.2]),
        ("tppo", 0.0, 0.95, [0.56575, 0.385, 0.3, 0.0]),
    ],
)
def test_advantages_over_tokens(preset, reward, gae_lambda, wanted):
    config = plain(preset, gae_lambda=gae_lambda, whiten="none", kl_kind="k1")
    truncated = torch.tensor([preset == "tppo"])
    mask, rewards = torch.ones(1, 4, dtype=torch.bool), torch.tensor([reward], dtype=F64)
    out = advantages(config, rewards, torch.zeros(1, dtype=torch.int64), mask, value=V, truncated=truncated)
    close(out.advantage, [wanted])
    # T-PPO's critic learns Monte-Carlo returns, of finished responses
    close(out.returns, torch.full_like(V, reward) if preset == "tppo" else out.advantage + V)


LOSSES = [  # preset, changes, loss, gradient of row 0, gradient of row 3's token
    ("grpo", {}, 0.083590, [-0.13377, -0.11513, 0], 0.27212),
    ("grpo", {"aggregation": "token_mean"}, -0.172731, [-0.16052, -0.13816, 0], 0.10885),
    ("dapo", {}, -0.184351, [-0.16052, -0.13816, 0], 0.10885),
    ("dr_grpo", {}, -0.051101, [-0.04749, -0.04087, 0], 0.03220),
    ("gspo", {}, 0.106867, [0, 0, 0], 0.27212),
    ("gspo", {"clip_range": 0.2, "clip_range_high": 0.2}, 0.041241, [-0.14062] * 3, 0.27212),
    ("gspo", {"ratio": "sequence", "clip_range": 0.2, "clip_range_high": 0.2}, 0.041241, [-0.14062] * 3, 0.27212),
    ("holder_po", {"holder_p": 0.0}, 0.041241, [-0.14062] * 3, 0.27212),
    ("holder_po", {"holder_p": 2.0}, 0.042337, [0, 0, 0], 0.27212),
    ("holder_po", {"holder_p": 1.0}, 0.041311, [-0.13377, -0.11513, -0.18057], 0.27212),
    ("holder_po", {"holder_p": -1.0}, 0.040844, [-0.14289, -0.16601, -0.10585], 0.27212),
    ("gbpo", {"advantage_eps": 1e-6}, 0.201077, [-0.16055, -0.13819, 0.21672], 0.10887),
    ("gbpo", {"advantage_eps": 1e-6, "target_temperature": 1.0}, 0.177112, [-0.16055, -0.13819, 0.21672], 0.10887),
    ("simple_po_tokens", {}, 0.329644, [-0.06342, -0.14321, 0.26347], 1.15477),
    ("r2vpo", {"variance_coef": 0.5}, -0.164368, [-0.14890, -0.14280, -0.14331], 0.21580),
    ("topr", {}, 0.217860, [-0.17188] * 3, 0.07812),
    ("rloo", {}, 0.012495, [0, 0, 0], 0.17174),
    ("cispo", {}, 0.220684, [-0.16052, -0.13816, -0.18591], 0.08451),
    ("sapo", {}, 0.003951, [-0.13340, -0.11506, -0.17007], 0.24285),
    ("gmpo", {}, 0.042780, [-0.14062] * 3, 0.27212),
]


@pytest.mark.parametrize(("name", "changes", "loss", "row", "token"), LOSSES)
def test_losses_and_gradients(name, changes, loss, row, token):
    config = plain(name, **changes)
    out = advantages(config, REWARD, GROUP, MASK)
    log_prob = current()
    got, _ = token_loss(config, log_prob, OLD, out.advantage, MASK, target=out.target)
    got.backward()
    close(got.detach(), loss)
    close(log_prob.grad[0, :3], row, atol=5.1e-6)
    close(log_prob.grad[3, 0], token, atol=5.1e-6)
    assert bool((log_prob.grad[~MASK] == 0).all())


def test_clip_fraction_counts_only_where_the_gradient_is_gone():
    config = plain("grpo")
    out = advantages(config, REWARD, GROUP, MASK)
    _, metrics = token_loss(config, current(), OLD, out.advantage, MASK)
    close(metrics["policy/clip_fraction_low"] + metrics["policy/clip_fraction_high"], 0.3)
    close(metrics["ratio/variance"], 0.115945)
    _, turned = token_loss(config, current(), OLD, -out.advantage, MASK)
    close(turned["policy/clip_fraction_low"], 0.0)
    close(turned["policy/clip_fraction_high"], 0.3)
    outside = (CHANGE.exp() - 1).abs() > 0.2
    close(masked_mean(outside.to(F64), MASK), 0.6)


def test_divergences_from_the_reference():
    means = [masked_mean(kl_estimate(OLD + CHANGE, OLD + REF_CHANGE, kind=k), MASK) for k in ("k1", "k2", "k3")]
    close(torch.stack(means), [0.067, 0.101395, 0.102577])


def test_good_over_bad_weight_of_three_pairs_of_bounds():
    advantage = advantages(plain("grpo"), REWARD, GROUP, MASK).advantage.unsqueeze(1).expand(4, 4)
    lows, highs = torch.tensor([[0.6, 0.9, 0.9], [1.2, 1.2, 3.0]], dtype=F64)
    sums = bound_sums(CHANGE.exp(), advantage, MASK, lows, highs)
    close(sums[:, 0] / sums[:, 1], [1.610433, 1.534812, 1.672355])

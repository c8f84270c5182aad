"""Laws between methods, and invariances of the loss."""

import pytest
import torch
from four_responses import F64, GROUP, MASK, OLD, REWARD, current, plain

from ctrlrl.llm.advantages import advantages
from ctrlrl.llm.controls import controls, next_controls
from ctrlrl.llm.critic import value_loss
from ctrlrl.llm.losses import summed, token_loss
from ctrlrl.llm.presets import PRESETS

NEEDS_VALUE = {"ppo_tokens": 1, "tppo": 1, "bpo_tokens": 2}


def batch(n=12, length=5, group_size=4, seed=0):
    """Random responses of 1 ... length tokens with a hole in one of them, as a tool leaves it."""
    torch.manual_seed(seed)
    mask = torch.arange(length) < torch.randint(1, length + 1, (n, 1))
    mask[0] = torch.tensor([True, False, True, True, False])
    old = torch.where(mask, -torch.rand(n, length, dtype=F64) * 3, torch.nan)
    change = torch.where(mask, 0.3 * torch.randn(n, length, dtype=F64), torch.nan)
    reward = torch.rand(n, dtype=F64)
    return old, change, reward, torch.arange(n) // group_size, mask


def signals(config, reward, group, mask, old=None, ref=None):
    n = NEEDS_VALUE.get(config.name, 1)
    value = torch.rand(*mask.shape, n, dtype=F64)
    counts = (torch.rand(len(reward), dtype=F64), torch.rand(len(reward), dtype=F64))
    return advantages(
        config,
        reward,
        group,
        mask,
        log_prob_old=old,
        log_prob_ref=ref,
        value=value.squeeze(-1),
        greedy_reward=torch.rand(len(reward), dtype=F64),
        state=counts,
    )


def loss_and_gradient(config, old, change, out, mask, **more):
    log_prob = (old + change).detach().requires_grad_()
    loss, _ = token_loss(config, log_prob, old, out.advantage, mask, target=out.target, **more)
    return loss.detach(), torch.autograd.grad(loss, log_prob)[0]


def same(a, b, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def compare(one, other, *, at_old=False, gradient_only=False, atol=1e-12):
    """The same loss and gradient of two configurations on random responses."""
    old, change, reward, group, mask = batch()
    change = torch.zeros_like(change) if at_old else change
    results = [
        loss_and_gradient(config, old, change, signals(config, reward, group, mask), mask) for config in (one, other)
    ]
    if not gradient_only:
        same(results[0][0], results[1][0], atol)
    same(results[0][1], results[1][1], atol)
    assert bool((results[0][1] != 0).any())


# methods that are the same


@pytest.mark.parametrize("surrogate", ["clip", "is", "cispo", "sapo", "simple_quad", "ratio_var"])
@pytest.mark.parametrize("aggregation", ["token_mean", "seq_mean", "seq_sum", "const"])
def test_on_the_policy_every_surrogate_is_reinforce(surrogate, aggregation):
    extra = {"clip_range_high": 0.28} if surrogate == "cispo" else {}
    one = plain("grpo", surrogate=surrogate, aggregation=aggregation, max_tokens=9, **extra)
    other = plain("grpo", surrogate="pg", aggregation=aggregation, max_tokens=9)
    compare(one, other, at_old=True, gradient_only=True)


@pytest.mark.parametrize("ratio", ["sequence", "sequence_token", "holder"])
@pytest.mark.parametrize("surrogate", ["clip", "is"])
def test_on_the_policy_a_ratio_of_responses_is_reinforce_by_sequences(ratio, surrogate):
    one = plain("grpo", ratio=ratio, surrogate=surrogate)
    compare(one, plain("grpo", surrogate="pg"), at_old=True, gradient_only=True)


def test_on_the_policy_the_product_ratio_and_topr_are_reinforce_by_sums():
    for name, advantage in (("rloo", "rloo"), ("topr", "group_center")):
        other = plain("grpo", advantage=advantage, surrogate="pg", aggregation="seq_sum")
        compare(plain(name), other, at_old=True, gradient_only=True)


def test_gmpo_on_the_policy_is_reinforce_by_sequences():
    compare(plain("gmpo"), plain("grpo", surrogate="pg"), at_old=True, gradient_only=True)


def test_the_geometric_hoelder_mean_is_gspo():
    bounds = {"clip_range": 0.1, "clip_range_high": 0.2}
    compare(plain("holder_po", holder_p=0.0, **bounds), plain("gspo", **bounds))
    compare(plain("gspo", ratio="sequence", **bounds), plain("gspo", **bounds))


def test_in_its_token_form_the_ratio_of_a_response_meets_an_advantage_a_token():
    old, change, _, _, mask = batch()
    advantage = torch.randn(12, 5, dtype=F64)
    config = plain("ppo_tokens", ratio="sequence_token", surrogate="is")
    log_prob = (old + change).requires_grad_()
    loss, _ = token_loss(config, log_prob, old, advantage, mask)
    (gradient,) = torch.autograd.grad(loss, log_prob)
    ratio = (torch.where(mask, change, 0.0).sum(1, keepdim=True) / mask.sum(1, keepdim=True)).exp()
    same(gradient, torch.where(mask, -advantage * ratio, 0.0) / mask.sum())


def test_rloo_advantages_stretch_those_of_dr_grpo():
    _, _, reward, group, mask = batch()
    stretched = signals(plain("dr_grpo"), reward, group, mask).advantage * 4 / 3
    same(signals(plain("rloo"), reward, group, mask).advantage, stretched)


def test_ratio_variance_without_multiplier_is_importance_sampling():
    compare(plain("r2vpo", variance_coef=0.0), plain("r2vpo", surrogate="is"))


def test_a_stiff_elastic_bound_is_grpo():
    one = plain("etr", elastic_advantage=0.0, elastic_variance=0.0)
    compare(one, plain("grpo", aggregation="token_mean"))


def test_fixed_bounds_are_the_dual_clip():
    one = plain("bapo", bounds_low=[0.8, 0.8], bounds_high=[1.2, 1.2])
    compare(one, plain("grpo", aggregation="token_mean", dual_clip=3.0))


@pytest.mark.parametrize("name", ["spo", "bapo", "etr"])
def test_the_loss_of_a_bad_token_stops_at_the_dual_bound(name):
    config = plain(name, dual_clip=1.5, group_size=4)
    old = torch.zeros(1, 2, dtype=F64)
    new = torch.tensor([[1.0, 0.1]], dtype=F64, requires_grad=True)
    target = torch.full((1,), 0.2, dtype=F64) if name == "etr" else None
    loss, _ = token_loss(config, new, old, torch.tensor([-2.0], dtype=F64), old == 0, target=target)
    (gradient,) = torch.autograd.grad(loss, new)
    same(gradient, torch.stack([torch.zeros_like(new[0, 1]), new[0, 1].exp()]).detach().unsqueeze(0))


def test_gdpo_of_one_reward_is_grpo_whitened():
    compare(plain("gdpo"), plain("dapo", whiten="responses", clip_range_high=None))


def test_a_tracker_at_the_group_mean_is_reinforce_pp_baseline_where_lengths_are_equal():
    _, _, reward, group, _ = batch()
    mask = torch.ones(12, 3, dtype=torch.bool)
    mean = signals(plain("dr_grpo"), reward, group, mask)
    mean = reward - mean.advantage
    spo = advantages(plain("spo", advantage_eps=0.0), reward, group, mask, state=(mean, 1 - mean)).advantage
    baseline = signals(plain("reinforce_pp_baseline"), reward, group, mask).advantage
    # by responses the variance is sum / 11, by tokens 3 sum / 35
    same(spo.unsqueeze(1).expand(12, 3) * ((35 / 33) ** 0.5), baseline, atol=1e-6)


def test_finished_responses_have_the_same_extended_advantage():
    _, _, reward, group, mask = batch()
    value = torch.rand(12, 5, dtype=F64)
    one, other = (
        advantages(plain(name, gae_lambda=0.9), reward, group, mask, value=value).advantage
        for name in ("tppo", "ppo_tokens")
    )
    same(one, other)


# what the numbers of a batch may depend on


@pytest.mark.parametrize("name", PRESETS)
def test_padding_and_what_lies_in_it_change_nothing(name):
    config = plain(name, max_tokens=9)
    old, change, reward, group, mask = batch()
    out = signals(config, reward, group, mask)
    entropy = torch.ones(12, 7, dtype=F64)
    loss, gradient = loss_and_gradient(config, old, change, out, mask, entropy=entropy[:, :5])
    assert bool(loss.isfinite() & gradient.isfinite().all())
    assert bool((gradient[~mask] == 0).all())

    def wider(x):
        return x if x is None or x.ndim == 1 else torch.cat([x, torch.full_like(x[:, :2], torch.inf)], 1)

    wide = torch.cat([mask, torch.zeros_like(mask[:, :2])], 1)
    widened = out._replace(advantage=wider(out.advantage), target=wider(out.target))
    got, wide_gradient = loss_and_gradient(config, wider(old), wider(change), widened, wide, entropy=entropy)
    same(got, loss)
    same(wide_gradient[:, :5], gradient)


@pytest.mark.parametrize("name", [n for n in PRESETS if n != "bapo"])
def test_micro_batches_add_up_to_the_step(name):
    config = plain(name, ent_coef=0.01, max_tokens=9, **KL.get(name, {}))
    old, change, reward, group, mask = batch()
    out = signals(config, reward, group, mask, old, old - 0.1)
    entropy = torch.rand(12, 5, dtype=F64)
    counts = {"n_tokens": mask.sum(), "n_sequences": torch.tensor(12)}
    log_prob = (old + change).requires_grad_()

    def part(rows):
        return token_loss(
            config,
            log_prob[rows],
            old[rows],
            out.advantage[rows],
            mask[rows],
            target=None if out.target is None else out.target[rows],
            log_prob_ref=old[rows] - 0.1,
            entropy=entropy[rows],
            **counts,
        )

    whole, metrics = part(slice(None))
    size = 2 if name == "dpo" else 1  # whose pairs stay together
    parts = [part(slice(i, i + size)) for i in range(0, 12, size)]
    total = sum(loss for loss, _ in parts)
    same(total, whole)
    same(torch.autograd.grad(total, log_prob)[0], torch.autograd.grad(whole, log_prob)[0])
    joined = summed([m for _, m in parts])
    assert joined.keys() == metrics.keys()
    for key, value in metrics.items():
        same(joined[key], value)


KL = {"grpo": {"kl": "loss", "kl_kind": "k3", "kl_coef": 0.1}, "gspo": {"kl": "loss", "kl_kind": "k2", "kl_coef": 0.1}}


def test_a_response_without_tokens_is_not_counted():
    old, change, reward, group, mask = batch()
    empty = mask.clone()
    empty[3] = False
    rest = torch.arange(12) != 3
    for aggregation in ("token_mean", "seq_mean", "seq_sum", "const"):
        config = plain("grpo", aggregation=aggregation, max_tokens=9)
        out = signals(config, reward, group, mask)
        got = loss_and_gradient(config, old, change, out, empty)
        kept = out._replace(advantage=out.advantage[rest])
        wanted = loss_and_gradient(config, old[rest], change[rest], kept, mask[rest])
        same(got[0], wanted[0])
        same(got[1][rest], wanted[1])


@pytest.mark.parametrize("name", ["grpo", "gbpo", "mc_grpo", "gdpo", "dr_grpo", "rloo", "bnpo", "opo"])
def test_a_group_with_equal_rewards_teaches_nothing(name):
    config = plain(name, group_size=3)
    old, change, _, group, mask = batch(group_size=3)
    same_reward = torch.tensor([0.0, 0.7, 1.0, 0.3], dtype=F64)[group]
    out = signals(config, same_reward, group, mask)
    assert bool((out.advantage == 0).all())
    _, gradient = loss_and_gradient(config, old, change, out, mask)
    assert bool((gradient == 0).all())


def test_beside_a_virtual_success_an_all_wrong_group_is_pushed_away():
    out = signals(plain("ngrpo", advantage_eps=0.0), torch.zeros(4, dtype=F64), GROUP, MASK)
    same(out.advantage, torch.full((4,), -0.2 / 0.2**0.5, dtype=F64))


def test_the_side_of_bpo_is_the_return_less_the_median_and_its_weight_the_return_less_the_mean():
    value = torch.rand(4, 4, 2, dtype=F64)
    out = advantages(plain("bpo_tokens", gae_lambda=1.0), REWARD, GROUP, MASK, value=value)
    zero = torch.zeros((), dtype=F64)
    same(out.advantage, torch.where(MASK, REWARD.unsqueeze(1) - value[..., 0], zero))
    same(out.target, torch.where(MASK, REWARD.unsqueeze(1) - value[..., 1], zero))


def test_tokens_of_a_tool_cost_no_discount():
    mask = torch.tensor([[True, False, False, True]])
    rewards, group = torch.ones(1, dtype=F64), torch.zeros(1, dtype=torch.int64)
    value = torch.tensor([[0.2, torch.nan, torch.nan, 0.6]], dtype=F64)
    out = advantages(plain("ppo_tokens", whiten="none", gamma=0.9, gae_lambda=0.5), rewards, group, mask, value=value)
    last = 1 - 0.6
    first = 0.9 * 0.6 - 0.2 + 0.45 * last
    same(out.advantage, torch.tensor([[first, 0.0, 0.0, last]], dtype=F64))
    discounted = advantages(plain("reinforce_pp", whiten="none", gamma=0.9), rewards, group, mask)
    same(discounted.advantage, torch.tensor([[0.9, 0.0, 0.0, 1.0]], dtype=F64))


# KL, entropy, rules


def test_kl_in_the_reward_lowers_the_return_by_the_log_ratio_of_the_policy_that_sampled():
    kl = {"kl": "reward", "kl_kind": "k1", "kl_coef": 0.5}
    ref = torch.where(MASK, OLD - 0.2, torch.nan)
    rloo = advantages(plain("rloo", **kl), REWARD, GROUP, MASK, log_prob_old=OLD, log_prob_ref=ref).advantage
    same(rloo, signals(plain("rloo"), REWARD - 0.1 * MASK.double().sum(1), GROUP, MASK).advantage)
    config = plain("reinforce_pp", whiten="none", **kl)
    got = advantages(config, REWARD, GROUP, MASK, log_prob_old=OLD, log_prob_ref=ref).advantage
    left = MASK.double().flip(1).cumsum(1).flip(1)
    same(got, torch.where(MASK, REWARD.unsqueeze(1) - 0.1 * left, 0.0))


@pytest.mark.parametrize(("kind", "slope"), [("k2", 0.1), ("k3", 1 - torch.tensor(-0.1).exp().item())])
def test_kl_in_the_loss_pulls_to_the_reference(kind, slope):
    config = plain("grpo", kl="loss", kl_kind=kind, kl_coef=2.0, aggregation="token_mean")
    log_prob = OLD.clone().requires_grad_()
    zero = torch.zeros(4, dtype=F64)
    loss, metrics = token_loss(config, log_prob, OLD, zero, MASK, log_prob_ref=OLD - 0.1)
    (gradient,) = torch.autograd.grad(loss, log_prob)
    same(gradient, MASK.double() * 2.0 * slope / 10, atol=1e-7)
    same(metrics["policy/kl_ref"] * 2.0, loss.detach())


def test_times_the_ratio_the_kl_in_the_loss_follows_the_reverse_divergence_also_off_the_policy():
    theta = torch.tensor([0.3, -0.2, 0.5], dtype=F64, requires_grad=True)
    ref = torch.tensor([0.1, 0.4, -0.3], dtype=F64).log_softmax(0)
    old = torch.tensor([0.0, 0.3, 0.1], dtype=F64).log_softmax(0)
    log_p = theta.log_softmax(0)
    (wanted,) = torch.autograd.grad((log_p.exp() * (log_p - ref)).sum(), theta, retain_graph=True)
    config = plain("grpo", kl="loss", kl_kind="k3", kl_coef=1.0, kl_off_policy=True, aggregation="token_mean")
    one = torch.ones(1, 1, dtype=torch.bool)
    total = torch.zeros((), dtype=F64)
    for word in range(3):  # the expectation over samples of the old policy
        each = (log_p[word].view(1, 1), old[word].view(1, 1))
        loss, _ = token_loss(config, *each, torch.zeros(1, dtype=F64), one, log_prob_ref=ref[word].view(1, 1))
        total = total + old[word].exp() * loss
    same(torch.autograd.grad(total, theta)[0], wanted)


def test_the_entropy_bonus_is_a_mean_over_tokens_whatever_the_aggregation():
    config = plain("grpo", ent_coef=0.3)
    entropy = torch.where(MASK, 1.0, torch.nan).double().requires_grad_()
    loss, metrics = token_loss(config, current(), OLD, torch.zeros(4, dtype=F64), MASK, entropy=entropy)
    (gradient,) = torch.autograd.grad(loss, entropy)
    same(gradient, MASK.double() * -0.03)
    assert metrics["policy/entropy"] == 1.0


def test_the_adaptive_bonus_grows_below_its_target_and_is_off_above_it():
    config = plain("grpo", ent_coef=0.01, ent_target=0.5, ent_delta=0.005, ent_coef_max=0.016)
    now, seen = controls(config), []
    for entropy in (0.4, 0.4, 0.6, 0.4):
        now = next_controls(config, now, {"policy/entropy": torch.tensor(entropy)})
        seen.append(round(now.ent_coef.item(), 6))
    assert seen == [0.015, 0.016, 0.0, 0.016]


def test_the_multiplier_and_the_hoelder_exponent_move_along_the_run():
    config = plain("r2vpo", variance_coef=0.1, variance_bound=0.2, variance_rate=0.5)
    now = next_controls(config, controls(config), {"ratio/variance": torch.tensor(0.6)})
    torch.testing.assert_close(now.variance_coef, torch.tensor(0.3))
    config = plain("holder_po")
    now = next_controls(config, controls(config), {}, progress=0.5)
    assert now.holder_p == 0.5


def test_only_tokens_of_high_entropy_are_trained_and_the_mean_stays_over_all():
    entropy = torch.rand(4, 4, dtype=F64)
    config = plain("dapo", entropy_share=0.3)
    out = signals(config, REWARD, GROUP, MASK)
    log_prob = current()
    loss, _ = token_loss(config, log_prob, OLD, out.advantage, MASK, entropy=entropy)
    (gradient,) = torch.autograd.grad(loss, log_prob)
    highest = torch.where(MASK, entropy, -1.0).flatten().topk(3).indices
    whole = current()
    _, everywhere = loss_and_gradient(plain("dapo"), OLD, (whole - OLD).detach(), out, MASK)
    wanted = torch.zeros(16, dtype=F64)
    wanted[highest] = everywhere.flatten()[highest]
    same(gradient.flatten(), wanted)


def test_covariance_rules_choose_tokens_that_lower_the_entropy():
    old, change, reward, group, mask = batch(n=40, group_size=8)
    out = signals(plain("dapo"), reward, group, mask)
    base = loss_and_gradient(plain("dapo"), old, change, out, mask)[1]
    share = {"covariance_share": 0.1, "covariance_range": [0.0, 100.0]}
    left_out = loss_and_gradient(plain("dapo", covariance="clip", **share), old, change, out, mask)[1]
    gone = mask & (left_out == 0) & (base != 0)
    n = int(mask.sum() * 0.1)
    assert 1 <= int(gone.sum()) <= n
    paying = loss_and_gradient(plain("dapo", covariance="kl", **share), old, change, out, mask)[1] - base
    assert int((paying.abs() > 1e-12).sum()) == n
    same(paying[paying.abs() > 1e-12].abs(), torch.full((n,), 1.0 / mask.sum().item(), dtype=F64))


def test_bad_responses_that_the_policy_left_are_not_trained():
    config = plain("grpo", off_policy_limit=0.05)
    out = signals(config, REWARD, GROUP, MASK)
    log_prob = current()
    loss, _ = token_loss(config, log_prob, OLD, out.advantage, MASK)
    (gradient,) = torch.autograd.grad(loss, log_prob)
    assert (gradient != 0).any(1).tolist() == [True, True, False, True]  # the third's mean drop is 0.095


def test_weights_of_another_engine_scale_the_policy_loss():
    config = plain("dapo", surrogate="is")
    out = signals(config, REWARD, GROUP, MASK)
    weight = torch.where(MASK, 0.5, torch.nan).double()
    loss, _ = token_loss(config, current(), OLD, out.advantage, MASK, weight=weight)
    whole, _ = token_loss(config, current(), OLD, out.advantage, MASK)
    same(loss, 0.5 * whole)


def test_data_rules_say_which_rows_stay():
    reward = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 0.0], dtype=F64)
    group, mask = torch.arange(6) // 2, torch.ones(6, 1, dtype=torch.bool)
    cut = torch.tensor([0, 0, 0, 1, 1, 0]).bool()

    def kept(**rules):
        return advantages(plain("grpo", **rules), reward, group, mask, truncated=cut).keep.tolist()

    assert kept() == [True] * 6
    assert kept(overlong="mask") == [True, True, True, False, False, True]
    assert kept(drop_solved=True) == [False, False, True, True, True, True]
    assert kept(dynamic_sampling=True) == [False, False, True, True, False, False]


def test_the_soft_rule_on_length_is_a_reward():
    config = plain("dr_grpo", overlong="soft", overlong_buffer=2, max_tokens=4)
    got = advantages(config, REWARD, GROUP, MASK).advantage
    same(got, signals(plain("dr_grpo"), REWARD - torch.tensor([0.5, 0.0, 1.0, 0.0]), GROUP, MASK).advantage)
    fifth = plain("dr_grpo", overlong="soft", max_tokens=5)  # a buffer of one token
    got = advantages(fifth, REWARD, GROUP, MASK, lengths=torch.tensor([3, 5, 4, 9])).advantage
    same(got, signals(plain("dr_grpo"), REWARD - torch.tensor([0.0, 1.0, 0.0, 1.0]), GROUP, MASK).advantage)


def test_a_reward_that_does_not_apply_is_left_out_of_the_sum():
    rewards = torch.tensor([[1.0, 2.0], [0.5, torch.nan], [0.0, 1.0], [1.0, torch.nan]], dtype=F64)
    config = plain("grpo", reward_weights=[1.0, 0.5])
    wanted = signals(plain("grpo"), torch.tensor([2.0, 0.5, 0.5, 1.0], dtype=F64), GROUP, MASK).advantage
    same(advantages(config, rewards, GROUP, MASK).advantage, wanted)
    alone = advantages(plain("gdpo", whiten="none", reward_weights=[0.0, 1.0]), rewards, GROUP, MASK).advantage
    pair = 0.5 / (0.5**0.5 + 1e-4)
    same(alone, torch.tensor([pair, 0.0, -pair, 0.0], dtype=F64))


def test_a_single_response_may_keep_its_reward():
    group, mask = torch.tensor([0, 1, 1, 3]), torch.ones(4, 1, dtype=torch.bool)
    got = advantages(plain("grpo", single="raw"), REWARD, group, mask).advantage
    assert (got[0], got[3]) == (1.0, 0.0)
    same(got[1:3], torch.tensor([-1.0, 1.0], dtype=F64) * 0.125 / (0.25 / 2**0.5 + 1e-4))


# the critic


def test_the_value_loss_is_half_the_larger_squared_error_over_the_mask():
    config = plain("ppo_tokens", clip_range_vf=0.2)
    value, old = torch.tensor([[1.0, 0.5, torch.nan]]), torch.tensor([[0.0, 0.5, torch.nan]])
    mask = torch.tensor([[True, True, False]])
    loss, _ = value_loss(config, value, old, torch.tensor([[1.0, 1.0, torch.nan]]), mask)
    torch.testing.assert_close(loss, torch.tensor((0.5 * 0.8**2 + 0.5 * 0.25) / 2))
    away, _ = value_loss(config, value, old, torch.tensor([[0.0, 1.0, torch.nan]]), mask)
    torch.testing.assert_close(away, torch.tensor((0.5 + 0.5 * 0.25) / 2))


def test_the_second_head_rests_at_the_median():
    config = plain("bpo_tokens", median_temperature=0.01)
    returns = torch.tensor([[0.0, 0.0, 0.0, 1.0, 5.0]], dtype=F64)
    mask = torch.ones(1, 5, dtype=torch.bool)
    heads = torch.zeros(2, dtype=F64, requires_grad=True)
    for _ in range(150):
        value = heads.expand(1, 5, 2)
        loss, _ = value_loss(config, value, value.detach(), returns, mask)
        (gradient,) = torch.autograd.grad(loss, heads)
        heads = (heads - torch.tensor([0.5, 0.004]) * gradient).detach().requires_grad_()
    torch.testing.assert_close(heads.detach(), torch.tensor([1.2, 0.0], dtype=F64), rtol=0, atol=0.05)

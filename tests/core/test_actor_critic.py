"""The on-policy core through its learners: ratios at the old policy, normalisers, learning rates, masks and losses."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ctrlrl.algos.bpo import BPOConfig, BPOLearner
from ctrlrl.algos.ppo import PPOConfig, PPOLearner
from ctrlrl.core.actor_critic import Batch
from ctrlrl.envs.classic import CartPole, Pendulum
from ctrlrl.envs.sim import BatchedSim
from ctrlrl.functional.returns import gae
from ctrlrl.train.on_policy import OnPolicyLoop
from ctrlrl.train.rollout import Collector
from ctrlrl.types import EnvSpec, Rollout

SMALL: dict[str, Any] = {"n_steps": 16, "n_minibatches": 4, "n_epochs": 2, "hidden": [16, 16]}
SPEC = EnvSpec(3, 2, 0, 1, 4, 0, torch.device("cpu"))
LEARNERS = {"ppo": (PPOLearner, PPOConfig), "bpo": (BPOLearner, BPOConfig)}


def make(algo: str, spec: EnvSpec = SPEC, **settings: Any) -> Any:
    torch.manual_seed(1)
    learner, config = LEARNERS[algo]
    return learner(config(**{**SMALL, **settings}), spec)


def on_env(algo: str, task: str = "pendulum", n_envs: int = 8, **settings: Any) -> tuple[Any, Collector]:
    sim = CartPole() if task == "cartpole" else Pendulum()
    env = BatchedSim(sim, n_envs, seed=0, episode_length=10)
    learner = make(algo, env.spec, **settings)
    collector = Collector(env, learner, learner.cfg.n_steps)
    collector.reset(0)
    return learner, collector


def random_rollout(t: int = 12, b: int = 4, *, seed: int = 0) -> Rollout:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(t, b, *shape, generator=g)

    ends = torch.rand(t, b, generator=g) < 0.2
    kind = torch.rand(t, b, generator=g) < 0.5
    return Rollout(normal(3), normal(2), normal() - 2, normal(), normal(), normal(), ends & kind, ends & ~kind, {})


def random_batch(n: int = 32, **fields: Tensor) -> Batch:
    values = {
        "obs": torch.randn(n, 3),
        "action": torch.randn(n, 2),
        "log_prob": torch.randn(n) - 2,
        "value": torch.randn(n),
        "advantage": torch.randn(n),
        "target": torch.randn(n),
        "extras": {},
    }
    return Batch(**{**values, **fields})


def spy(learner: Any, method: str, record: Any) -> None:
    """Call `record(result, *args)` after every call of a method."""
    inner = getattr(learner, method)

    def wrapped(*args: Any) -> Any:
        out = inner(*args)
        record(out, *args)
        return out

    setattr(learner, method, wrapped)


def flat(learner: Any) -> Tensor:
    return learner.opt["actor_critic"].flat.detach().clone()


# the old policy ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", LEARNERS)
@pytest.mark.parametrize("task", ["pendulum", "cartpole"])
def test_first_ratio_is_one(algo, task):
    """In later rollouts too, when the normaliser has moved; and so is the exact KL, from the kept distributions."""
    settings = {"normalize_obs": True, "normalize_reward": True, "desired_kl": 0.01, "learning_rate": 3e-3}
    learner, collector = on_env(algo, task, **settings)
    seen: list[tuple[Tensor, Tensor]] = []
    spy(learner, "log_ratio", lambda out, batch: seen.append((out[0].detach(), out[2].detach())))
    for _ in range(3):
        rollout = collector.collect()
        seen.clear()
        learner.update(rollout)
        # 0 to the bit with one matrix kernel; a CPU may use two kernels for two batch sizes, which differ by an ulp
        assert float(seen[0][0].abs().max()) < 2e-6
        assert float(seen[0][1].mean().abs()) < 1e-6
        assert float(seen[-1][0].abs().max()) > 1e-3, "the policy must have moved since"


@pytest.mark.parametrize("algo", LEARNERS)
def test_the_normalizer_is_frozen_during_rollout_and_update_and_then_merges_the_rollout(algo):
    learner, collector = on_env(algo, normalize_obs=True)
    for _ in range(2):
        shift, count = learner.normalizer.shift.clone(), learner.normalizer.moments.count.clone()
        mean = learner.normalizer.moments.mean.clone()
        rollout = collector.collect()
        raw = rollout.obs.flatten(0, 1).double().clone()
        shifts: list[Tensor] = [learner.normalizer.shift.clone()]
        spy(learner, "surrogate", lambda *_, shifts=shifts: shifts.append(learner.normalizer.shift.clone()))
        learner.update(rollout)
        assert all(torch.equal(s, shift) for s in shifts)
        expected = (mean * count + raw.sum(0)) / (count + len(raw))
        assert torch.allclose(learner.normalizer.moments.mean, expected, atol=1e-6)


# what ends or steers an update ---------------------------------------------------------------------------------------


def test_target_kl_stops_before_the_step_that_would_follow():
    free, stopped = (
        make("ppo", learning_rate=0.05, n_epochs=1),
        make("ppo", learning_rate=0.05, n_epochs=4, target_kl=1e-6),
    )
    log_prob = free.policy.log_prob
    rollout = random_rollout()
    rollout = rollout._replace(
        log_prob=log_prob(rollout.obs, rollout.action).detach()
    )  # the old policy is the present one
    steps: list[Tensor] = []
    spy(free, "_step", lambda *_: steps.append(flat(free)))
    torch.manual_seed(7)
    free.update(rollout)
    torch.manual_seed(7)
    metrics = stopped.update(rollout)
    assert metrics["train/gradient_steps"] == 1.0  # the first minibatch has KL 0, the second one's is above 1.5e-6
    assert torch.equal(flat(stopped), steps[0])


@pytest.mark.parametrize(("shift", "factor"), [(0.2, 1 / 1.5), (0.05, 1.5), (0.1, 1.0), (0.0, 1.0)])
def test_desired_kl_adapts_the_rate_before_the_step_as_rsl_rl_does(shift, factor):
    """One dimension, unit deviation: KL = shift^2 / 2 = 0.02, 0.00125 and 0.005 against 0.01. Spec 1.7."""
    learner = make("ppo", SPEC._replace(action_dim=1), learning_rate=1e-3, desired_kl=0.01)
    obs = torch.randn(8, 3)
    mean = learner.policy.mean(obs).detach()
    # a hair above 2 * desired_kl: spec 1.7's 0.02001 has rsl_rl's 1e-5 inside its logarithm
    old = {"mean": mean + shift * 1.001, "log_std": torch.zeros(8, 1)}
    batch = random_batch(8, obs=obs, action=torch.randn(8, 1), extras=old)
    metrics = learner.step(batch)
    assert float(metrics["policy/kl"]) == pytest.approx(0.5 * (shift * 1.001) ** 2, abs=1e-6)
    assert float(learner.opt["actor_critic"].learning_rate) == pytest.approx(1e-3 * factor, rel=1e-5)


def test_the_adapted_rate_persists_and_stays_in_its_bounds():
    learner, collector = on_env("ppo", learning_rate=1e-2, desired_kl=1e-5, n_epochs=10)
    for _ in range(4):
        learner.update(collector.collect())
    rate = learner.opt["actor_critic"].learning_rate
    assert float(rate) == pytest.approx(1e-5)  # 17 divisions by 1.5 would go below


def test_the_epoch_rule_adapts_once_an_epoch_by_the_mean_kl_of_the_update_so_far():
    """As skrl does. KLs of 0.1, 0, 0, 0 in two epochs of two: means 0.05 and 0.025, both above 2 x 0.01."""
    learner = make("ppo", desired_kl=0.01, desired_kl_rule="epoch", learning_rate=1e-4, n_epochs=2, n_minibatches=2)
    rates: list[float] = []
    kls = iter([0.1, 0.0, 0.0, 0.0])
    inner = learner.log_ratio

    def log_ratio(batch: Batch) -> tuple[Tensor, ...]:
        rates.append(float(learner.opt["actor_critic"].learning_rate))
        log_ratio, entropy, _ = inner(batch)
        return log_ratio, entropy, torch.full_like(log_ratio, next(kls))

    learner.log_ratio = log_ratio
    rollout = random_rollout()
    metrics = learner.update(rollout)
    assert rates == pytest.approx([1e-4, 1e-4, 1e-4 / 1.5, 1e-4 / 1.5])
    assert float(metrics["train/learning_rate"]) == pytest.approx(1e-4 / 1.5**2)


def test_a_penalty_is_added_to_the_loss():
    learner, batch = make("ppo"), random_batch()
    plain, metrics = learner.loss(batch)
    inner = learner.log_ratio
    learner.log_ratio = lambda batch: (*inner(batch), torch.full((32,), 0.25), torch.full((32,), 0.5))
    total, penalized = learner.loss(batch)
    assert (total - plain).item() == pytest.approx(0.75, abs=1e-6)
    assert float(penalized["loss/penalty"]) == pytest.approx(0.75)
    assert "loss/penalty" not in metrics


def test_the_linear_schedule_falls_from_the_rate_to_zero_over_the_runs_steps():
    env = BatchedSim(Pendulum(), 4, seed=0)
    learner = make("ppo", env.spec, learning_rate=0.4, lr_schedule="linear", n_steps=4, max_grad_norm=1e-9)
    loop = OnPolicyLoop(learner, env, n_steps=4, total_steps=64, seed=0, staggered=False)
    rates = []
    while not loop.done:
        rates.append(float(loop.iterate()["train/learning_rate"]))
    assert rates == pytest.approx([0.4, 0.3, 0.2, 0.1])


# advantages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["minibatch", "batch", "none"])
def test_advantages_are_standardized_over_the_minibatch_or_the_batch(kind):
    learner, collector = on_env("ppo", normalize_advantage=kind, n_epochs=1)
    seen: list[Tensor] = []
    spy(learner, "surrogate", lambda out, log_ratio, batch, value: seen.append(batch.advantage.clone()))
    rollout = collector.collect()
    advantage = learner.advantages(rollout)[0].flatten()
    learner.update(rollout)
    together = torch.cat(seen)
    if kind == "none":
        assert torch.equal(together.sort().values, advantage.sort().values)
        return
    each_is_standard = all(abs(float(a.mean())) < 1e-5 and abs(float(a.std()) - 1) < 1e-5 for a in seen)
    assert each_is_standard == (kind == "minibatch")
    if kind == "batch":
        expected = (advantage - advantage.mean()) / advantage.std()
        assert torch.allclose(together.sort().values, expected.sort().values, atol=1e-5)


@pytest.mark.parametrize("algo", LEARNERS)
def test_without_bootstrap_a_time_limit_is_a_termination(algo):
    """CleanRL's rule: whatever the value behind the limit, the update is that of a rollout that terminated there."""
    rollout = random_rollout()
    assert rollout.truncated.any()
    ends = rollout.terminated | rollout.truncated
    terminated = rollout._replace(terminated=ends, truncated=torch.zeros_like(ends))
    results = []
    for bootstrap, seen in ((False, rollout), (True, terminated), (True, rollout)):
        learner = make(algo, bootstrap_truncated=bootstrap)
        torch.manual_seed(3)
        learner.update(seen)
        results.append(flat(learner))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("algo", LEARNERS)
def test_rows_that_were_only_a_reset_teach_nothing(algo):
    """Gymnasium's NEXT_STEP: the step after an episode's end. Whatever stands in its row, the update is the same."""
    rollout = random_rollout()
    done = rollout.terminated | rollout.truncated
    mask = torch.cat((torch.ones(1, 4, dtype=torch.bool), ~done[:-1]))
    assert 4 < int((~mask).sum()) < 24
    ends = {"terminated": rollout.terminated & mask, "truncated": rollout.truncated & mask}
    results = []
    for garbage in (0.0, 1e3):
        learner = make(algo, normalize_obs=True, normalize_reward=True)
        rows = {k: getattr(rollout, k).clone() for k in ("obs", "action", "log_prob", "value", "next_value")}
        for tensor in rows.values():
            tensor[~mask] = garbage
        reward = rollout.reward * mask
        sizes: list[int] = []
        spy(learner, "surrogate", lambda out, *_, sizes=sizes: sizes.append(len(out)))
        torch.manual_seed(3)
        learner.update(rollout._replace(**rows, **ends, reward=reward, extras={"mask": mask}))
        assert sum(sizes) == 2 * int(mask.sum())
        assert int(learner.normalizer.moments.count) == int(mask.sum())
        assert int(learner.reward_scaler.moments.count) == int(mask.sum())
        results.append(torch.cat((flat(learner), learner.normalizer.shift)))
    assert torch.equal(*results)


def test_rewards_are_scaled_as_vec_normalize_does():
    """A plain loop over time and lanes: G <- gamma G + r, its moments, then G <- 0 where an episode ended."""
    learner = make("ppo", normalize_reward=True, gamma=0.9)
    sums: list[float] = []
    running = [0.0] * 4
    for seed in (0, 1):
        rollout = random_rollout(seed=seed)
        for t in range(12):
            for lane in range(4):
                running[lane] = 0.9 * running[lane] + float(rollout.reward[t, lane])
                sums.append(running[lane])
                if rollout.terminated[t, lane] or rollout.truncated[t, lane]:
                    running[lane] = 0.0
        scaled: list[Tensor] = []
        spy(learner, "advantages", lambda out, rollout, scaled=scaled: scaled.append(rollout.reward))
        learner.update(rollout)
        expected = np.clip(rollout.reward.numpy() / np.sqrt(np.var(sums) + 1e-8), -10, 10)
        assert np.allclose(scaled[0].numpy(), expected, atol=1e-4)


# losses --------------------------------------------------------------------------------------------------------------


def by_hand(learner: Any, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """New log-probabilities, value and (for BPO) median of a batch."""
    log_prob = learner.policy.log_prob(batch.obs, batch.action)
    out = learner.critic(batch.obs)
    return log_prob, *((out[..., 0], out[..., 1]) if out.ndim == 2 else (out, out))


@pytest.mark.parametrize("take_max", [True, False])
def test_ppos_loss_is_the_formula(take_max):
    learner = make("ppo", ent_coef=0.01, vf_coef=0.7, clip_range=0.1, clip_range_vf=0.2, value_clip_max=take_max)
    batch = random_batch()
    log_prob, value, _ = by_hand(learner, batch)
    rho = (log_prob - batch.log_prob).exp()
    a = (batch.advantage - batch.advantage.mean()) / (batch.advantage.std() + 1e-8)
    policy = torch.maximum(-a * rho, -a * rho.clamp(0.9, 1.1)).mean()
    clipped = batch.value + (value - batch.value).clamp(-0.2, 0.2)
    errors = (value - batch.target).square(), (clipped - batch.target).square()
    critic = (torch.maximum(*errors) if take_max else errors[1]).mean()
    entropy = 2 * 0.5 * math.log(2 * math.pi * math.e)
    total, metrics = learner.loss(batch)
    assert total.item() == pytest.approx((policy + 0.7 * critic).item() - 0.01 * entropy, rel=1e-5)
    assert float(metrics["policy/kl"]) == pytest.approx(((rho - 1) - rho.log()).mean().item(), rel=1e-4)


@pytest.mark.parametrize("weight", ["online", "batch"])
@pytest.mark.parametrize("median", ["learned", "value"])
def test_bpos_loss_is_algorithm_1(median, weight):
    learner = make("bpo", median=median, weight=weight, temperature=0.5, vf_coef=0.7, median_coef=0.3, clip_range=0.2)
    batch = random_batch()
    log_prob, value, mu = by_hand(learner, batch)
    rho = (log_prob - batch.log_prob).exp()
    target = 1 - 0.2 + 0.4 * ((batch.target - mu).detach() / 0.5).sigmoid()
    size = (batch.target - value).detach().abs() if weight == "online" else batch.advantage.abs()
    error = batch.target - mu
    soft_median = F.softplus(-error.abs()) + error.abs() / 2
    expected = ((rho - target).abs() * size).mean() + 0.7 * (value - batch.target).square().mean()
    expected = expected + (0.3 * soft_median.mean() if median == "learned" else 0.0)
    assert learner.loss(batch)[0].item() == pytest.approx(expected.item(), rel=1e-5)


def policy_gradient(learner: Any, batch: Batch) -> Tensor:
    loss = learner.loss(batch)[0]
    grads = torch.autograd.grad(loss, list(learner.policy.parameters()))
    return torch.cat([g.flatten() for g in grads])


def test_at_ratio_one_with_hard_sides_bpos_first_step_is_ppos():
    """Spec 2.10: lambda -> 0 and one sign: the slope of |rho - rho*| |A| at rho = 1 is -A, which is PPO's."""
    settings = {
        "n_epochs": 1,
        "n_minibatches": 1,
        "normalize_advantage": "none",
        "max_grad_norm": 0.5,
        "activation": "tanh",
    }
    ppo = make("ppo", **settings)
    bpo = make("bpo", median="value", weight="batch", temperature=0.0, **settings)
    assert torch.equal(flat(ppo), flat(bpo))
    rollout = random_rollout()
    rollout = rollout._replace(
        log_prob=ppo.policy.log_prob(rollout.obs, rollout.action).detach(), value=ppo.value(rollout.obs)
    )
    for learner in (ppo, bpo):
        torch.manual_seed(0)
        learner.update(rollout)
    assert torch.allclose(flat(ppo), flat(bpo), atol=1e-6)
    assert not torch.allclose(flat(ppo), flat(make("ppo", **settings)), atol=1e-4)


def test_beyond_the_bound_bpo_pulls_back_where_ppo_is_silent():
    """Spec 2.10: rho = 1 + 2 eps and A > 0: BPO's slope in rho is +|A|, PPO's is 0."""
    settings = {"normalize_advantage": "none", "clip_range": 0.2, "activation": "tanh"}
    ppo, bpo = make("ppo", **settings), make("bpo", median="value", weight="batch", temperature=0.0, **settings)
    batch = random_batch()
    log_prob = ppo.policy.log_prob(batch.obs, batch.action)
    advantage = batch.advantage.abs()
    batch = batch._replace(
        log_prob=(log_prob - math.log(1.4)).detach(), advantage=advantage, target=ppo.value(batch.obs) + advantage
    )
    assert not policy_gradient(ppo, batch).any()
    reference = torch.autograd.grad((1.4 * advantage * log_prob).mean(), list(ppo.policy.parameters()))
    expected = torch.cat([g.flatten() for g in reference])
    assert torch.allclose(policy_gradient(bpo, batch), expected, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 0.3])
def test_asymmetric_bpo_with_equal_bounds_is_symmetric_bpo(temperature):
    """Spec 8.4, 9: b = 0."""
    results = []
    for high in (None, 0.3):
        learner = make("bpo", clip_range=0.3, clip_range_high=high, temperature=temperature)
        torch.manual_seed(2)
        learner.update(random_rollout())
        results.append(flat(learner))
    assert torch.allclose(*results, atol=1e-6)


def test_the_policys_loss_sends_no_gradient_into_the_value_networks():
    """Spec 2.9, 8."""
    learner = make("bpo", vf_coef=1e-12, median_coef=0.0)
    batch = random_batch()
    grads = torch.autograd.grad(learner.loss(batch)[0], list(learner.critic.parameters()), materialize_grads=True)
    assert all(float(g.abs().max()) < 1e-9 for g in grads)


def test_the_learned_median_goes_to_the_median_and_the_value_to_the_mean():
    """Returns 0 (three in four) and 8: soft median near 0, mean 2. The distribution stays the same under any policy."""
    learner = make("bpo", median_temperature=0.05, learning_rate=3e-3, median_coef=0.5, max_grad_norm=1e9)
    obs = torch.ones(64, 3)
    target = torch.tensor([0.0, 0.0, 0.0, 8.0]).repeat(16)
    for _ in range(600):
        learner.step(random_batch(64, obs=obs, target=target))
    value, median = learner.critic(obs[:1])[0].tolist()
    assert value == pytest.approx(2.0, abs=0.1)
    # sum of sigmoid((R - mu) / T) - 1/2 is 0: 3 (sigmoid(-mu / T) - 1/2) + 1/2 = 0
    assert median == pytest.approx(0.05 * math.log(2.0), abs=0.05)


def test_recomputed_returns_come_from_the_present_critic_and_keep_the_advantages():
    learner = make("bpo", recompute_returns=True, n_epochs=2, n_minibatches=1, learning_rate=0.05)
    rollout = random_rollout()
    rollout = rollout._replace(truncated=torch.zeros_like(rollout.truncated), value=learner.value(rollout.obs))
    last = torch.randn(4)
    rollout = rollout._replace(next_value=torch.cat((rollout.value[1:], last[None])))
    seen: list[tuple[Batch, Tensor]] = []
    spy(learner, "after_epoch", lambda out, *_: seen.append((out, learner.value(rollout.obs))))
    advantage, target = learner.advantages(rollout)
    learner.update(rollout)
    (batch, value), *others = seen
    assert not others  # nothing learns from what a last epoch would recompute
    _, expected = gae(
        rollout.reward,
        value,
        torch.cat((value[1:], last[None])),
        rollout.terminated,
        rollout.truncated,
        gamma=learner.cfg.gamma,
        gae_lambda=learner.cfg.gae_lambda,
    )
    assert torch.allclose(batch.target, expected.flatten(), atol=1e-6)
    assert not torch.allclose(batch.target, target.flatten(), atol=1e-2)
    assert torch.equal(batch.advantage, advantage.flatten())


# settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algo", "settings", "named"),
    [
        ("ppo", {"gamma": 1.1}, "gamma"),
        ("ppo", {"n_steps": 0}, "n_steps"),
        ("ppo", {"learning_rate": -1.0}, "learning_rate"),
        ("ppo", {"clip_range": 0.0}, "clip_range"),
        ("ppo", {"clip_range_high": -0.1}, "clip_range_high"),
        ("ppo", {"target_kl": 0.0}, "target_kl"),
        ("ppo", {"hidden": [64, 0]}, "hidden"),
        ("ppo", {"activation": "sigmoid"}, "activation"),
        ("bpo", {"median": "mean"}, "median"),
        ("bpo", {"temperature": -1.0}, "temperature"),
        ("bpo", {"temperature": 0.0, "median_temperature": None}, "median_temperature"),
        ("bpo", {"hidden": []}, "hidden"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(algo, settings, named):
    with pytest.raises(ValueError, match=named):
        LEARNERS[algo][1](**settings)


def test_bfloat16_changes_the_products_and_neither_the_weights_nor_what_networks_return():
    spec = EnvSpec(4, 2, 0, 1, 8, 100, torch.device("cpu"))
    learner = PPOLearner(PPOConfig(hidden=[32, 32]), spec)
    obs = torch.randn(64, 4)
    exact = learner.value(obs)
    learner.set_dtype("bfloat16")
    rounded = learner.value(obs)
    assert rounded.dtype == learner.act(obs).action.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in learner.nets.parameters())
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    "wrong",
    [{"vf_coef": 0.0}, {"median_temperature": 0.0}, {"logit_clip": -1.0}, {"normalize_advantage": "batch"}],
)
def test_a_bpo_setting_that_would_divide_by_zero_or_do_nothing_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BPOConfig(**wrong)

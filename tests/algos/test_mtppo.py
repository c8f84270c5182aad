"""Multi-timescale PPO against single-discount PPO, and its three ways to an advantage against their formulas."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ctrlrl.algos.mtppo import MTPPOConfig, MTPPOLearner
from ctrlrl.algos.ppo import PPOConfig, PPOLearner
from ctrlrl.core.actor_critic import Batch
from ctrlrl.envs.classic import CartPole
from ctrlrl.envs.sim import BatchedSim
from ctrlrl.functional.returns import gae
from ctrlrl.train.on_policy import OnPolicyLoop
from ctrlrl.types import EnvSpec, Rollout

K = 4
SMALL: dict[str, Any] = {"n_steps": 12, "n_minibatches": 3, "n_epochs": 2, "hidden": [16, 16]}
SPEC = EnvSpec(3, 0, 4, 1, 4, 0, torch.device("cpu"))
ROUTINGS = ("decoupled", "attention", "error")


def made(spec: EnvSpec = SPEC, **settings: Any) -> MTPPOLearner:
    torch.manual_seed(1)
    return MTPPOLearner(MTPPOConfig(**{**SMALL, **settings}), spec)


def random_rollout(t: int = 12, b: int = 4, *, seed: int = 0, heads: bool = True) -> Rollout:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(t, b, *shape, generator=g)

    ends, kind = torch.rand(2, t, b, generator=g)
    terminated = (ends < 0.2) & (kind < 0.5)
    truncated = (ends < 0.2) & ~terminated
    action = torch.randint(4, (t, b), generator=g)
    value, following = 3.0 * normal(K), 3.0 * normal(K)
    if not heads:  # what single-discount PPO sees of it
        value, following = value[..., -1], following[..., -1]
    return Rollout(normal(3), action, normal() - 2, value, following, 5.0 * normal(), terminated, truncated, {})


def random_batch(n: int = 32, *, advantage: Tensor | None = None) -> Batch:
    torch.manual_seed(5)
    obs, action, log_prob = torch.randn(n, 3), torch.randint(4, (n,)), torch.randn(n) - 1.4
    value, target = torch.randn(2, n, K)
    return Batch(obs, action, log_prob, value, torch.randn(n) if advantage is None else advantage, target, {})


def policy_weights(learner: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in learner.policy.parameters()])


# beside PPO ----------------------------------------------------------------------------------------------------------


def pair(spec: EnvSpec, **settings: Any) -> tuple[PPOLearner, MTPPOLearner]:
    """Single-discount PPO and the decoupled critic with weight 0 on its short heads, from the same seed."""
    torch.manual_seed(1)
    ppo = PPOLearner(PPOConfig(gamma=0.999, **{**SMALL, **settings}), spec)
    ours = made(spec, aux_coef=0.0, **settings)
    assert torch.equal(policy_weights(ppo), policy_weights(ours)), "equal initial weights"
    return ppo, ours


def test_without_auxiliary_losses_the_actors_updates_are_those_of_ppo_to_the_bit():
    """Spec 4.7, below the norm's limit. The critics agree but for the rounding of one sum: the last head's bias."""
    ppo, ours = pair(SPEC, max_grad_norm=1e9, clip_range_vf=0.2, ent_coef=0.01)
    obs = torch.randn(7, 3)
    assert torch.equal(ppo.value(obs), ours.value(obs)[..., -1])
    for seed in range(3):
        torch.manual_seed(seed)
        one = ppo.update(random_rollout(seed=seed, heads=False))
        torch.manual_seed(seed)
        two = ours.update(random_rollout(seed=seed))
        assert all(float(two[name]) == pytest.approx(float(one[name]), rel=1e-6) for name in one)
    assert torch.equal(policy_weights(ppo), policy_weights(ours))
    assert torch.allclose(ppo.value(obs), ours.value(obs)[..., -1], rtol=0, atol=1e-6)
    assert not torch.equal(policy_weights(ours), policy_weights(made())), "something was learned"


def test_whole_runs_without_auxiliary_losses_are_those_of_ppo():
    """Through loop, collector, time limits and the joint clip, whose norm may differ in its last bit."""
    found = []
    for kind in (0, 1):
        env = BatchedSim(CartPole(), 4, seed=0, episode_length=10)
        learner = pair(env.spec)[kind]
        loop = OnPolicyLoop(learner, env, n_steps=12, total_steps=240, seed=0, staggered=False)
        torch.manual_seed(2)
        while not loop.done:
            loop.iterate()
        found.append(policy_weights(learner))
    assert torch.allclose(*found, rtol=0, atol=1e-6)
    assert not torch.allclose(found[0], policy_weights(made(env.spec)), atol=1e-3)


def test_auxiliary_losses_change_the_update():
    results = []
    for aux_coef in (0.0, 1.0):
        learner = made(aux_coef=aux_coef)
        torch.manual_seed(0)
        learner.update(random_rollout())
        results.append(policy_weights(learner))
    assert not torch.equal(*results), "they share the norm that is clipped"


def gradients(learner: MTPPOLearner, batch: Batch, module: Any) -> Tensor:
    loss = learner.loss(batch)[0]
    grads = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in grads])


def test_no_policy_gradient_reaches_an_auxiliary_head():
    learner = made(vf_coef=0.0)
    assert not gradients(learner, random_batch(), learner.critic).any()
    learner = made(vf_coef=0.5)
    assert gradients(learner, random_batch(), learner.critic.others).all()


# the critic ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean_over_heads", [False, True])
@pytest.mark.parametrize("clip", [None, 0.2])
def test_the_value_loss_is_the_long_heads_and_a_share_of_the_others(clip, mean_over_heads):
    learner = made(aux_coef=0.3, clip_range_vf=clip, mean_over_heads=mean_over_heads)
    batch = random_batch()
    value = learner.critic(batch.obs)
    per_head = []
    for k in range(K):
        error = (value[:, k] - batch.target[:, k]).square()
        if clip is not None:
            moved = batch.value[:, k] + (value[:, k] - batch.value[:, k]).clamp(-clip, clip)
            error = torch.maximum(error, (moved - batch.target[:, k]).square())
        per_head.append(error.mean().item())
    expected = (per_head[3] + 0.3 * sum(per_head[:3])) / (K if mean_over_heads else 1)
    assert learner.loss(batch)[1]["loss/value"].item() == pytest.approx(expected, rel=1e-5)


def test_every_head_has_the_targets_of_its_own_discount_and_the_actor_those_of_gamma():
    learner, rollout = made(), random_rollout()
    advantage, target = learner.advantages(rollout)
    ends = rollout.terminated, rollout.truncated
    for k, gamma in enumerate((0.5, 0.9, 0.99, 0.999)):
        values = rollout.value[..., k], rollout.next_value[..., k]
        alone = gae(rollout.reward, *values, *ends, gamma=gamma, gae_lambda=0.95)
        assert torch.allclose(target[..., k], alone[1], atol=1e-5)
    assert torch.allclose(advantage, alone[0], atol=1e-5)


def test_the_metrics_of_the_critic_are_those_of_the_policys_own_head():
    learner, rollout = made(), random_rollout()
    advantage, target = learner.advantages(rollout)
    metrics = learner.update(rollout)
    assert float(metrics["value/advantage_variance"]) == pytest.approx(advantage.var().item(), rel=1e-5)
    share = 1.0 - advantage.var(unbiased=False) / target[..., -1].var(unbiased=False)
    assert float(metrics["value/explained_variance"]) == pytest.approx(share.item(), abs=1e-5)


# the routings --------------------------------------------------------------------------------------------------------


def test_attention_trains_the_router_through_the_standardized_mixture():
    learner = made(routing="attention", vf_coef=0.0)
    with torch.no_grad():
        for p in learner.router.parameters():
            p.add_(0.3 * torch.randn_like(p))
    advantage = torch.tensor([1.0, 3.0, 10.0, 30.0]) * torch.randn(32, K)
    batch = random_batch(advantage=advantage)
    weight = learner.router(batch.obs).softmax(-1)
    mixed = (weight * advantage).sum(-1)
    mixed = (mixed - mixed.mean()) / (mixed.std() + 1e-8)
    rho = (learner.policy.log_prob(batch.obs, batch.action) - batch.log_prob).exp()
    expected = torch.maximum(-mixed * rho, -mixed * rho.clamp(0.8, 1.2)).mean()
    total, metrics = learner.loss(batch)
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    by_hand = torch.autograd.grad(expected, list(learner.router.parameters()))
    found = gradients(learner, batch, learner.router)
    assert found.abs().max() > 1e-4
    assert torch.allclose(found, torch.cat([g.flatten() for g in by_hand]), atol=1e-6)
    shares = weight.detach().mean(0)
    names = ("0.5", "0.9", "0.99", "0.999")
    assert [float(metrics[f"policy/weight_{g}"]) for g in names] == pytest.approx(shares.tolist(), rel=1e-5)
    hacks = (weight.argmax(-1) == advantage.argmax(-1)).float().mean()
    assert float(metrics["policy/hack_rate"]) == pytest.approx(hacks.item())
    entropy = -(weight * weight.log()).sum(-1).mean()
    assert float(metrics["policy/router_entropy"]) == pytest.approx(entropy.item(), rel=1e-5)


def test_a_router_over_equal_advantages_changes_nothing_and_learns_nothing():
    losses = []
    for scale in (0.0, 1.0, 5.0):
        learner = made(routing="attention", vf_coef=0.0)
        with torch.no_grad():
            for p in learner.router.parameters():
                p.add_(scale * torch.randn_like(p))
        batch = random_batch(advantage=torch.linspace(-2.0, 2.0, 32).unsqueeze(1).expand(32, K))
        losses.append(learner.loss(batch)[0].item())
        assert gradients(learner, batch, learner.router).abs().max() < 1e-6
    assert losses == pytest.approx(3 * [losses[0]], rel=1e-5)


def test_an_update_moves_the_router_and_its_state_is_saved():
    learner = made(routing="attention", learning_rate=1e-2)
    before = [p.detach().clone() for p in learner.router.parameters()]
    learner.update(random_rollout())
    assert all(not torch.equal(a, b) for a, b in zip(before, learner.router.parameters(), strict=True))
    assert any(name.startswith("router.") for name in learner.model_state())


def test_error_routing_weighs_heads_by_their_errors_once_a_batch():
    learner, rollout = made(routing="error", error_temperature=3.0), random_rollout()
    advantage, target = learner.advantages(rollout)
    heads = target - rollout.value
    weight = (-heads.abs() / 3.0).softmax(-1)
    assert torch.allclose(advantage, (weight * heads).sum(-1), atol=1e-5)
    metrics = learner.update(rollout)
    assert not hasattr(learner.nets, "router")
    for gamma, share in zip(("0.5", "0.9", "0.99", "0.999"), weight.mean((0, 1)).tolist(), strict=True):
        assert float(metrics[f"policy/weight_{gamma}"]) == pytest.approx(share, rel=1e-4)


@pytest.mark.parametrize("routing", ROUTINGS)
def test_rows_that_were_only_a_reset_change_neither_the_update_nor_the_metrics(routing):
    rollout = random_rollout()
    done = rollout.terminated | rollout.truncated
    mask = torch.cat((torch.ones(1, 4, dtype=torch.bool), ~done[:-1]))
    ends = {"terminated": rollout.terminated & mask, "truncated": rollout.truncated & mask}
    results = []
    for garbage in (0.0, 1e3):
        rows = {k: getattr(rollout, k).clone() for k in ("obs", "log_prob", "value", "next_value")}
        for tensor in rows.values():
            tensor[~mask] = garbage
        learner = made(routing=routing, normalize_reward=True)
        torch.manual_seed(3)
        changed = rollout._replace(**rows, **ends, reward=rollout.reward * mask, extras={"mask": mask})
        metrics = learner.update(changed)
        results.append((policy_weights(learner), torch.stack(list(metrics.values()))))
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.slow  # a compiler's minute; PPO's own is in tests/core
@pytest.mark.filterwarnings("default")  # the compiler's own
@pytest.mark.parametrize("routing", ROUTINGS)
def test_compile_gives_the_eager_update(routing):
    results = []
    for mode in ("eager", "compile"):
        learner = made(routing=routing, clip_range_vf=0.2, ent_coef=0.01)
        learner.set_compile(mode)
        torch.manual_seed(0)
        metrics = learner.update(random_rollout())
        results.append((learner.opt["actor_critic"].flat.detach().clone(), metrics))
    assert torch.allclose(results[0][0], results[1][0], atol=1e-5)
    for name, value in results[0][1].items():
        assert float(value) == pytest.approx(float(results[1][1][name]), rel=1e-3, abs=1e-5)


# settings ------------------------------------------------------------------------------------------------------------


def test_a_changed_gamma_is_the_long_heads():
    learner, rollout = made(), random_rollout()
    learner.set_hyper("gamma", 0.95)
    expected, _ = made(gamma=0.95).advantages(rollout)
    assert torch.equal(learner.advantages(rollout)[0], expected)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"routing": "mean"}, "routing must be decoupled, attention or error, got 'mean'"),
        ({"aux_gammas": []}, "aux_gammas must hold at least one discount; algo=ppo has none"),
        ({"aux_gammas": [0.5, 0.999]}, "aux_gammas must differ from each other and from gamma=0.999"),
        ({"aux_gammas": [0.5, 1.5]}, "aux_gammas must"),
        ({"aux_coef": -1.0}, "aux_coef must"),
        ({"error_temperature": 0.0}, "error_temperature must be above 0, got 0.0"),
        ({"routing": "attention", "normalize_advantage": "batch"}, "use minibatch or none"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(settings, words):
    with pytest.raises(ValueError, match=f"MTPPOConfig.*{words}"):
        MTPPOConfig(**settings)

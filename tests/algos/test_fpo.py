"""FPO: ratios and gradients at the old policy, the two ways to average pairs, what the value learns from."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ctrlrl.algos.fpo import FPOConfig, FPOLearner
from ctrlrl.core.actor_critic import Batch
from ctrlrl.envs.classic import Pendulum
from ctrlrl.envs.sim import BatchedSim
from ctrlrl.train.rollout import Collector
from ctrlrl.types import EnvSpec

SMALL: dict[str, Any] = {"n_steps": 16, "n_minibatches": 4, "n_epochs": 2, "hidden": [16, 16], "vf_hidden": [16]}
SPEC = EnvSpec(3, 2, 0, 1, 4, 0, torch.device("cpu"))


def make(spec: EnvSpec = SPEC, **settings: Any) -> FPOLearner:
    torch.manual_seed(1)
    return FPOLearner(FPOConfig(**{**SMALL, **settings}), spec)


def on_env(**settings: Any) -> tuple[FPOLearner, Collector]:
    env = BatchedSim(Pendulum(), 8, seed=0, episode_length=10)
    learner = make(env.spec, **settings)
    collector = Collector(env, learner, learner.cfg.n_steps)
    collector.reset(0)
    return learner, collector


def acted(learner: FPOLearner, n: int = 64, **fields: Tensor) -> Batch:
    obs = torch.randn(n, 3)
    with torch.no_grad():
        out = learner.policy.act(obs)
    extras = {**out.extras, "truncated": torch.zeros(n, dtype=torch.bool)}
    batch = Batch(obs, out.action, out.log_prob, torch.randn(n), torch.randn(n), torch.randn(n), extras)  # type: ignore[arg-type]
    return batch._replace(**fields)


def gradient(loss: Tensor, learner: FPOLearner) -> Tensor:
    params = list(learner.policy.parameters())
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, params)])


def matching_errors(learner: FPOLearner, batch: Batch) -> Tensor:
    old, policy = batch.extras, learner.policy
    return policy.matching_error(policy.velocity.context(batch.obs), old["end"], old["noise"], old["step"])


@pytest.mark.parametrize("per_pair", [False, True])
def test_the_first_ratio_of_every_update_is_one(per_pair):
    learner, collector = on_env(per_pair=per_pair, learning_rate=3e-3)
    seen: list[Tensor] = []
    inner = learner.log_ratio

    def log_ratio(batch: Batch) -> tuple[Any, ...]:
        out = inner(batch)
        seen.append(out[0].detach())
        return out

    learner.log_ratio = log_ratio  # type: ignore[method-assign]
    for _ in range(3):
        rollout = collector.collect()
        seen.clear()
        learner.update(rollout)
        assert seen[0].shape == ((32, 8) if per_pair else (32,))
        # other numbers of rows may take another matrix kernel: an ulp of errors of size 1
        assert float(seen[0].abs().max()) < 5e-6
        assert float(seen[-1].abs().max()) > 1e-3


def test_at_the_old_policy_the_gradient_is_the_advantage_weighted_flow_matching_gradient():
    """Spec 3.C: d rho / d theta = -d (mean error) / d theta, so that of the loss is mean(A d error)."""
    learner = make(normalize_advantage="none", vf_coef=0.0)
    batch = acted(learner)
    expected = (batch.advantage * matching_errors(learner, batch).mean(-1)).mean()
    torch.testing.assert_close(
        gradient(learner.loss(batch)[0], learner), gradient(expected, learner), rtol=0, atol=1e-6
    )


def test_the_ratio_is_the_exponential_of_the_mean_errors_fall():
    learner = make(normalize_advantage="none", vf_coef=0.0, clip_range=0.05)
    batch = acted(learner)
    with torch.no_grad():
        learner.policy.velocity.rest[-1].bias.add_(1.0)
    rho = (batch.extras["error"].mean(-1) - matching_errors(learner, batch).mean(-1)).exp()
    a = batch.advantage
    expected = torch.maximum(-a * rho, -a * rho.clamp(0.95, 1.05)).mean()
    assert (rho - 1).abs().max().item() > 0.05
    torch.testing.assert_close(learner.loss(batch)[0], expected, rtol=1e-5, atol=1e-6)


def test_per_pair_every_pair_has_its_own_clipped_ratio():
    learner = make(normalize_advantage="none", vf_coef=0.0, clip_range=0.05, per_pair=True)
    batch = acted(learner)
    with torch.no_grad():
        learner.policy.velocity.rest[-1].bias.add_(30.0)
    difference = batch.extras["error"] - matching_errors(learner, batch)
    assert difference.min() < -3.0
    rho, a = difference.clamp(-3.0, 3.0).exp(), batch.advantage.unsqueeze(-1)
    expected = torch.maximum(-a * rho, -a * rho.clamp(0.95, 1.05)).mean()
    torch.testing.assert_close(learner.loss(batch)[0], expected, rtol=1e-5, atol=1e-6)


def test_a_truncated_step_teaches_the_value_nothing_unless_asked():
    value, target = torch.zeros(4), torch.tensor([1.0, 2.0, 3.0, 4.0])
    cut = torch.tensor([False, True, False, True])
    for asked, expected in ((False, [1.0, 0.0, 9.0, 0.0]), (True, [1.0, 4.0, 9.0, 16.0])):
        learner = make(learn_truncated_values=asked)
        batch = acted(learner, 4, target=target, extras={"truncated": cut})
        assert learner.value_loss(value, batch).tolist() == expected


def test_an_update_knows_which_steps_were_cut_and_leaves_the_rollout_as_it_was():
    learner, collector = on_env()
    rollout = collector.collect()
    assert rollout.truncated.any()
    seen: list[Tensor] = []
    inner = learner.value_loss

    def value_loss(value: Tensor, batch: Batch) -> Tensor:
        seen.append(batch.extras["truncated"])
        return inner(value, batch)

    learner.value_loss = value_loss  # type: ignore[method-assign]
    learner.update(rollout)
    assert int(torch.cat(seen).sum()) == 2 * int(rollout.truncated.sum())
    assert "truncated" not in rollout.extras


@pytest.mark.parametrize("normalize", ["minibatch", "batch"])
def test_the_next_epochs_advantages_are_those_of_the_present_critic(normalize):
    learner, collector = on_env(normalize_advantage=normalize, learning_rate=3e-3)
    rollout, seen = collector.collect(), []
    inner = learner.after_epoch

    def after_epoch(rollout: Any, batch: Batch) -> Batch:
        out = inner(rollout, batch)
        seen.append((learner.revalued(rollout), out))
        return out

    learner.after_epoch = after_epoch  # type: ignore[method-assign]
    learner.update(rollout)
    ((revalued, batch),) = seen
    advantage, target = (x.flatten() for x in learner.advantages(revalued))
    assert torch.equal(batch.target, target)
    if normalize == "batch":
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    torch.testing.assert_close(batch.advantage, advantage)
    assert not torch.allclose(revalued.value, rollout.value)


def test_no_entropy_is_claimed_and_none_can_be_rewarded():
    learner = make()
    assert "policy/entropy" not in learner.loss(acted(learner))[1]
    with pytest.raises(ValueError, match="ent_coef must be 0"):
        FPOConfig(ent_coef=0.01)


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"n_pairs": 0}, "n_pairs"), ({"flow_steps": 0}, "flow_steps"), ({"velocity_scale": 0.0}, "velocity_scale")],
)
def test_a_setting_out_of_range_is_refused_by_name(settings, named):
    with pytest.raises(ValueError, match=named):
        FPOConfig(**settings)

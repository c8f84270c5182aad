"""A response of one token is one step of control: one function, one gradient, to the last bit."""

import pytest
import torch
from torch import nn

from ctrlrl.algos.bpo import BPOConfig, BPOLearner
from ctrlrl.algos.ppo import PPOConfig, PPOLearner
from ctrlrl.core.actor_critic import Batch
from ctrlrl.functional import surrogate
from ctrlrl.functional.distributions import categorical_log_prob
from ctrlrl.functional.masked import masked_mean
from ctrlrl.llm import objectives
from ctrlrl.llm.config import TokenConfig
from ctrlrl.llm.losses import token_loss
from ctrlrl.types import EnvSpec

SPEC = EnvSpec(5, 0, 7, 1, 4, 100, torch.device("cpu"))


def control(learner, logits, action, old, advantage, target=None):
    """Loss of the control core's surrogate on a flat batch [B], reduced as the core reduces it."""
    nothing = torch.zeros_like(advantage)
    target = nothing if target is None else target
    batch = Batch(logits, action, old, nothing, advantage, target, {})
    log_ratio = categorical_log_prob(logits, action) - old
    value = torch.zeros(*advantage.shape, 2) if isinstance(learner, BPOLearner) else nothing
    return masked_mean(learner.surrogate(log_ratio, batch, value))


def tokens(config, logits, action, old, advantage, target=None):
    """The same of responses of one token, [B, 1]."""
    log_prob = categorical_log_prob(logits, action).unsqueeze(1)
    mask = torch.ones_like(log_prob, dtype=torch.bool)
    return token_loss(config, log_prob, old.unsqueeze(1), advantage, mask, target=target)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("high", [None, 0.28])
def test_ppo_of_control_and_of_one_token_have_the_same_gradient_to_the_bit(dtype, high):
    learner = PPOLearner(PPOConfig(clip_range_high=high), SPEC)
    config = TokenConfig(clip_range_high=high)
    compare(learner, config, dtype, advantage=torch.randn(33, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bpo_of_control_and_of_one_token_have_the_same_gradient_to_the_bit(dtype):
    learner = BPOLearner(BPOConfig(clip_range=0.3, temperature=1e-3), SPEC)
    config = TokenConfig(advantage="gbpo", surrogate="bounded", clip_range=0.3, target_temperature=1e-3)
    signal = torch.randn(33, dtype=dtype)  # R, with V = mu = 0
    compare(learner, config, dtype, advantage=signal, target=signal)


def compare(learner, config, dtype, *, advantage, target=None):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 7)).to(dtype)
    obs, action = torch.randn(33, 5, dtype=dtype), torch.randint(7, (33,))
    old = (categorical_log_prob(net(obs), action) + 0.3 * torch.randn(33, dtype=dtype)).detach()
    losses = [
        control(learner, net(obs), action, old, advantage, target),
        tokens(config, net(obs), action, old, advantage, target),
    ]
    grads = [torch.autograd.grad(loss, tuple(net.parameters())) for loss in losses]
    assert torch.equal(*losses)
    for one, other in zip(*grads, strict=True):
        assert torch.equal(one, other)
        assert bool((one != 0).any())


def test_both_call_one_function(monkeypatch):
    calls = []

    def counted(log_ratio, advantage, **settings):
        calls.append(tuple(log_ratio.shape))
        return surrogate.ppo_clip(log_ratio, advantage, **settings)

    assert objectives.surrogate.ppo_clip is surrogate.ppo_clip
    monkeypatch.setattr("ctrlrl.algos.ppo.ppo_clip", counted)
    monkeypatch.setattr(objectives, "surrogate", type("S", (), {"ppo_clip": staticmethod(counted)}))
    compare(PPOLearner(PPOConfig(), SPEC), TokenConfig(), torch.float32, advantage=torch.randn(33))
    assert calls == [(33,), (33, 1)]


@pytest.mark.parametrize("name", ["token", "sequence", "sequence_token", "product", "holder"])
@pytest.mark.parametrize("aggregation", ["token_mean", "seq_mean", "seq_sum", "const"])
def test_for_one_token_all_ratios_and_aggregations_are_one(name, aggregation):
    config = TokenConfig(ratio=name, aggregation=aggregation, max_tokens=1)
    torch.manual_seed(0)
    new, old = torch.randn(2, 9, 1, dtype=torch.float64)
    advantage = torch.randn(9, dtype=torch.float64)
    mask = torch.ones(9, 1, dtype=torch.bool)
    got, _ = token_loss(config, new, old, advantage, mask)
    wanted = surrogate.ppo_clip((new - old).squeeze(1), advantage, clip_range=0.2).mean()
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)

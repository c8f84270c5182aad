import math

import pytest
import torch

from ctrlrl.functional.returns import gae
from ctrlrl.functional.routing import error_weights, follows_largest, heads_loss, routed_advantage, weight_entropy

F64 = torch.float64


def tensor(*values):
    return torch.tensor(values, dtype=F64)


def close(actual, expected, atol=1e-12):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def test_equal_errors_weigh_every_head_alike_whatever_their_signs():
    value, error = torch.randn(5, 4, dtype=F64), torch.randn(5, 1, dtype=F64)
    sign = tensor(1, -1, -1, 1)
    close(error_weights(value, value + sign * error, temperature=10.0), torch.full((5, 4), 0.25, dtype=F64))


def test_an_error_larger_by_temperature_times_log_2_halves_a_heads_weight():
    target = tensor(3.0, 3.0 + 10.0 * math.log(2.0), 3.0 - 10.0 * math.log(4.0))
    close(error_weights(tensor(3.0, 3.0, 3.0), target, temperature=10.0), tensor(4, 2, 1) / 7)


def test_heads_of_one_discount_have_one_advantage_and_no_router_can_choose_among_them():
    torch.manual_seed(0)
    t, b, k = 6, 3, 4
    value, following = torch.randn(2, t, b, 1, dtype=F64).expand(2, t, b, k)
    never, reward = torch.zeros(t, b, dtype=torch.bool), torch.randn(t, b, 1, dtype=F64)
    gamma = torch.full((k,), 0.9, dtype=F64)
    advantage, _ = gae(reward, value, following, never, never, gamma=gamma, gae_lambda=0.95)
    close(advantage, advantage[..., :1].expand(t, b, k))
    logits = torch.randn(t, b, k, dtype=F64, requires_grad=True)
    mixed = routed_advantage(logits.softmax(-1), advantage)
    close(mixed, advantage[..., 0])
    (gradient,) = torch.autograd.grad(mixed.square().sum(), logits)
    close(gradient, torch.zeros_like(gradient))


def test_the_gradient_of_a_mixture_moves_weight_to_heads_above_the_mean():
    """d(w . A) / d logit_k = w_k (A_k - w . A): the scale of the advantages, not their use, decides."""
    logits, advantage = tensor(0.3, -1.0, 0.5).requires_grad_(), tensor(1.0, 5.0, 80.0)
    weight = logits.softmax(-1)
    mixed = routed_advantage(weight, advantage)
    (gradient,) = torch.autograd.grad(mixed, logits)
    close(gradient, (weight * (advantage - mixed)).detach())


def test_a_router_follows_the_largest_advantage_by_its_own_largest_weight():
    weight = tensor([0.1, 0.7, 0.2], [0.5, 0.3, 0.2])
    advantage = tensor([-3.0, -1.0, -2.0], [1.0, 2.0, 0.0])
    assert follows_largest(weight, advantage).tolist() == [True, False]


def test_entropy_runs_from_0_to_log_k():
    entropy = weight_entropy(tensor([0.25] * 4, [0.0, 0.0, 1.0, 0.0], [0.5, 0.0, 0.5, 0.0]))
    close(entropy, tensor(math.log(4.0), 0.0, math.log(2.0)))


def test_the_loss_of_all_heads_is_the_last_ones_and_a_share_of_the_others():
    loss = tensor([1.0, 10.0, 100.0, 1000.0], [1.0, 2.0, 3.0, 4.0])
    close(heads_loss(loss, aux_coef=0.0), tensor(1000.0, 4.0))
    close(heads_loss(loss, aux_coef=0.1), tensor(1011.1, 4.6))
    close(heads_loss(loss, aux_coef=1.0) / 4, loss.mean(-1))  # experiments 2-4 of the paper


@pytest.mark.parametrize("function", [routed_advantage, follows_largest])
def test_heads_must_match(function):
    with pytest.raises(ValueError, match=rf"{function.__name__}: shapes must match"):
        function(torch.ones(3, 4), torch.ones(3, 1))

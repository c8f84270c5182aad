"""Layer gains of the two initialisations, and the shapes of the critics."""

import math

import pytest
import torch
from torch import Tensor, nn

from ctrlrl.nn.critics import ValueCritic, ValueMedianCritic
from ctrlrl.nn.mlp import mlp
from ctrlrl.policies.discrete import CategoricalPolicy
from ctrlrl.policies.gaussian import GaussianPolicy


def singular_values(layer: nn.Module) -> Tensor:
    assert isinstance(layer, nn.Linear)
    return torch.linalg.svdvals(layer.weight.detach())


def test_orthogonal_layers_have_all_singular_values_equal_to_their_gain():
    net = mlp((6, 16, 16, 3), activation="tanh", output_gain=0.01)
    for layer, gain in ((net[0], math.sqrt(2)), (net[2], math.sqrt(2)), (net[4], 0.01)):
        assert torch.allclose(singular_values(layer), torch.tensor(gain), atol=1e-5)
        assert isinstance(layer, nn.Linear)
        assert torch.equal(layer.bias, torch.zeros_like(layer.bias))


def test_the_action_layer_starts_at_gain_001_and_the_value_layer_at_1():
    gaussian = GaussianPolicy(5, 2, (8,), activation="relu")
    discrete = CategoricalPolicy(5, 3, (8,), activation="relu")
    critic = ValueCritic(5, (8,), activation="relu")
    assert torch.allclose(singular_values(gaussian.mean[-1]), torch.tensor(0.01), atol=1e-6)
    assert torch.allclose(singular_values(discrete.logits[-1]), torch.tensor(0.01), atol=1e-6)
    assert torch.allclose(singular_values(critic.net[-1]), torch.tensor(1.0), atol=1e-5)


def test_without_orthogonal_the_layers_are_torchs_own():
    torch.manual_seed(5)
    net = mlp((4, 3), activation="tanh", output_gain=1.0, orthogonal=False)
    torch.manual_seed(5)
    assert torch.equal(net[0].weight, nn.Linear(4, 3).weight)


def test_a_trunk_ends_with_an_activation():
    assert isinstance(mlp((4, 3), activation="relu", output_gain=1.0, activate_last=True)[-1], nn.ReLU)
    assert isinstance(mlp((4, 3), activation="relu", output_gain=1.0)[-1], nn.Linear)


@pytest.mark.parametrize("shared", [True, False])
def test_critics_map_observations_of_any_batch_shape_to_values(shared):
    obs = torch.randn(7, 5, 4)
    assert ValueCritic(4, (8, 8), activation="tanh")(obs).shape == (7, 5)
    both = ValueMedianCritic(4, (8, 6), (5,), activation="tanh", shared=shared)
    assert both(obs).shape == (7, 5, 2)


@pytest.mark.parametrize("shared", [True, False])
def test_the_median_trains_the_trunk_only_where_it_is_shared(shared):
    critic = ValueMedianCritic(4, (8,), (8,), activation="tanh", shared=shared)
    critic(torch.randn(3, 4))[..., 1].sum().backward()
    trunk = critic.trunk[0]
    assert isinstance(trunk, nn.Linear)
    moved = trunk.weight.grad is not None and bool(trunk.weight.grad.any())
    assert moved == shared
    assert critic.value[0].weight.grad is None or float(critic.value[0].weight.grad.abs().sum()) == 0.0


@pytest.mark.parametrize(
    "policy", [GaussianPolicy(3, 2, (8,), activation="tanh"), CategoricalPolicy(3, 4, (8,), activation="tanh")]
)
def test_a_policys_sample_carries_the_log_prob_that_it_evaluates_to(policy):
    obs = torch.randn(6, 3)
    out = policy.act(obs)
    assert torch.allclose(out.log_prob, policy.log_prob(obs, out.action), atol=1e-6)
    log_prob, entropy, kl = policy.evaluate(obs, out.action, out.extras)
    assert torch.allclose(log_prob, out.log_prob, atol=1e-6)
    assert entropy.shape == (6,)
    assert torch.allclose(kl, torch.zeros(6), atol=1e-7)
    greedy = policy.act(obs, deterministic=True)
    assert greedy.log_prob is None
    assert torch.equal(greedy.action, policy.act(obs, deterministic=True).action)

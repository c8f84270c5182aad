"""Layer gains of the two initialisations, and the shapes of the critics."""

import math

import pytest
import torch
from torch import Tensor, nn

from ctrlrl.nn.critics import QCritic, ValueCritic, ValueHeads, ValueMedianCritic, VectorCritic
from ctrlrl.nn.ensembles import QEnsemble
from ctrlrl.nn.mlp import mlp
from ctrlrl.nn.stacked import stack
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


CRITICS = {
    "value": lambda: ValueCritic(3, [16], activation="relu"),
    "heads": lambda: ValueHeads(3, [16], 3, activation="relu"),
    "vector": lambda: VectorCritic(3, [16], 2, activation="relu"),
    "median": lambda: ValueMedianCritic(3, [16], [16], activation="relu"),
    "median apart": lambda: ValueMedianCritic(3, [16], [16], activation="relu", shared=False),
    "q": lambda: QCritic(2, 1, [16]),
    "q of objectives": lambda: QCritic(2, 1, [16], width=2),
    "ensemble": lambda: QEnsemble(2, 1, [16], n=3),
    "stacked": lambda: stack([ValueCritic(3, [16], activation="relu") for _ in range(2)], lambda x, p: x),
}


@pytest.mark.parametrize("make", CRITICS.values(), ids=CRITICS)
def test_values_of_hundreds_stay_apart_under_autocast(make):
    """The numbers of bfloat16 lie 2 apart there."""
    critic = make()
    for name, p in critic.named_parameters():
        if p.shape[-1] < 16 and name.endswith("bias"):  # of the last layers alone
            nn.init.constant_(p, 400.0)
    x = torch.randn(500, 3).expand(2, 500, 3) if make is CRITICS["stacked"] else torch.randn(500, 3)
    inputs = (x[..., :2], x[..., 2:]) if isinstance(critic, QCritic | QEnsemble) else (x,)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = critic(*inputs).detach()
    exact = critic(*inputs).detach()
    assert rough.dtype == torch.float32
    assert exact.mean() == pytest.approx(400.0, abs=5.0)
    torch.testing.assert_close(rough, exact, rtol=0, atol=0.03 * float((exact - 400.0).abs().max()))
    assert not torch.equal(rough, exact), "products of hidden layers are bfloat16's"


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

import math

import pytest
import torch

from ctrlrl.functional.weights import awr_weight, q_scale


def test_weight_is_the_exponential_of_the_scaled_advantage():
    advantage = torch.linspace(-3, 1, 41, dtype=torch.float64)
    expected = torch.tensor([math.exp(3.0 * a) for a in advantage.tolist()], dtype=torch.float64)
    weight = awr_weight(advantage, inverse_temperature=3.0, max_weight=100.0)
    torch.testing.assert_close(weight, expected, rtol=1e-12, atol=0)


def test_the_clip_is_on_the_weight_and_hit_at_its_logarithm():
    hit = math.log(100.0) / 10.0
    advantage = torch.tensor([hit - 0.01, hit + 0.01, 1e6], dtype=torch.float64)
    weight = awr_weight(advantage, inverse_temperature=10.0, max_weight=100.0)
    assert weight[0] < 100.0
    assert (weight[1:] == 100.0).all()


def test_no_advantage_or_no_temperature_weighs_everything_alike():
    advantage = torch.randn(9)
    assert (awr_weight(torch.zeros(9), inverse_temperature=3.0, max_weight=100.0) == 1.0).all()
    assert (awr_weight(advantage, inverse_temperature=0.0, max_weight=100.0) == 1.0).all()


def test_awr_numbers_of_the_specification():
    def weight(a, beta):
        return awr_weight(torch.tensor(a, dtype=torch.float64), inverse_temperature=beta, max_weight=100.0).item()

    assert weight(0.5, 3.0) == pytest.approx(4.48169, abs=5e-6)  # IQL
    assert weight(2.0, 3.0) == 100.0  # 403.43 without the clip
    assert weight(1.535, 3.0) < 100.0 == weight(1.536, 3.0)
    assert weight(1.0, 1.0 / 0.3333) == pytest.approx(20.0916, abs=5e-5)  # AWAC
    assert weight(1.5348, 1.0 / 0.3333) < 100.0 == weight(1.535, 1.0 / 0.3333)


def test_q_scale_number_of_the_specification():
    q = torch.tensor([2.0, -4.0], dtype=torch.float64)
    scale = q_scale(q, alpha=2.5)
    assert scale.item() == pytest.approx(2.5 / 3.0, abs=1e-12)
    assert (-scale * q).mean().item() == pytest.approx(0.83333, abs=5e-6)


def test_a_scaled_value_does_not_depend_on_the_unit_of_rewards():
    q = torch.randn(64, dtype=torch.float64)
    torch.testing.assert_close(q_scale(1000.0 * q) * 1000.0 * q, q_scale(q) * q, rtol=1e-12, atol=0)
    torch.testing.assert_close((q_scale(q) * q).abs().mean().item(), 1.0)


def test_the_scale_carries_no_gradient():
    q = torch.tensor([2.0, -4.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad((q_scale(q, alpha=3.0) * q).sum(), q)
    assert slope.tolist() == [1.0, 1.0]


def test_each_of_several_seeds_has_its_own_scale():
    q = torch.randn(3, 64, dtype=torch.float64)
    scale = q_scale(q)
    assert scale.shape == (3, 1)
    for s in range(3):
        torch.testing.assert_close(scale[s], q_scale(q[s]))

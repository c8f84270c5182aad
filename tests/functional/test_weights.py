import math

import torch

from ctrlrl.functional.weights import awr_weight


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

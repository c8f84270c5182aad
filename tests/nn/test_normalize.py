"""Running moments against NumPy on the concatenated data, and the two normalisers made of them."""

import numpy as np
import pytest
import torch

from ctrlrl.nn.normalize import MinMaxNormalizer, ObsNormalizer, RewardScaler, RunningMoments


def test_merged_moments_equal_numpy_over_the_concatenation():
    parts = [5.0 * torch.randn(n, 3) + torch.tensor([0.0, 10.0, -300.0]) for n in (1, 50, 7, 400)]
    moments = RunningMoments(3)
    for part in parts:
        moments.merge(part)
    together = torch.cat(parts).double().numpy()
    assert np.allclose(moments.mean.numpy(), together.mean(0), atol=1e-3)  # 1e-4 pseudo-samples at 0 weigh in
    assert np.allclose(moments.var.numpy(), together.var(0), rtol=5e-4, atol=0.05)
    assert float(moments.count) == pytest.approx(458 + 1e-4)


def test_merging_in_parts_equals_merging_at_once():
    x = torch.randn(300, 2) * 3 + 7
    whole, parts = RunningMoments(2), RunningMoments(2)
    whole.merge(x)
    for part in x.split(37):
        parts.merge(part)
    assert torch.allclose(whole.mean, parts.mean, atol=1e-6)
    assert torch.allclose(whole.var, parts.var, rtol=1e-5)


def test_moments_equal_those_with_sb3s_pseudo_count_in_closed_form():
    x = torch.tensor([[2.0], [4.0]])
    moments = RunningMoments(1)
    moments.merge(x)
    c, n = 1e-4, 2.0
    mean = 3.0 * n / (n + c)
    var = (1.0 * c + 1.0 * n + 9.0 * c * n / (n + c)) / (n + c)
    assert float(moments.mean) == pytest.approx(mean, abs=1e-12)
    assert float(moments.var) == pytest.approx(var, abs=1e-12)


def test_the_observation_normaliser_is_the_identity_until_it_merges_and_clips_at_10():
    norm = ObsNormalizer(2)
    x = torch.tensor([[1.5, -3.0]])
    assert torch.equal(norm(x), x)
    data = torch.randn(1000, 2) * torch.tensor([2.0, 0.1]) + 5.0
    norm.merge(data)
    z = norm(data)
    assert torch.allclose(z.mean(0), torch.zeros(2), atol=1e-3)
    assert torch.allclose(z.std(0, correction=0), torch.ones(2), atol=1e-3)
    assert torch.equal(norm(torch.tensor([[1e6, -1e6]])), torch.tensor([[10.0, -10.0]]))


def test_no_rows_change_nothing():
    norm, same = ObsNormalizer(2), ObsNormalizer(2)
    data = torch.randn(1000, 2)
    norm.merge(data)
    same.merge(data)
    norm.merge(data[:0])
    torch.testing.assert_close(norm(data), same(data), rtol=0, atol=1e-6)


def test_a_saved_normaliser_gives_the_same_bits():
    norm, copy = ObsNormalizer(3), ObsNormalizer(3)
    norm.merge(torch.randn(100, 3))
    copy.load_state_dict(norm.state_dict())
    x = torch.randn(10, 3)
    assert torch.equal(norm(x), copy(x))


def test_the_reward_scaler_divides_by_the_deviation_and_keeps_the_mean():
    scaler = RewardScaler()
    scaler.merge(torch.tensor([8.0, 12.0]).repeat(50_000))  # deviation 2, mean 10
    assert torch.allclose(scaler(torch.tensor([0.0, 3.0, -2.0])), torch.tensor([0.0, 1.5, -1.0]), atol=1e-3)
    assert torch.equal(scaler(torch.tensor([1e9, -1e9])), torch.tensor([10.0, -10.0]))


def test_the_range_of_the_data_becomes_the_unit_box_and_what_hardly_varies_is_moved_to_zero():
    low, high = torch.tensor([-3.0, 0.0, 5.0, 7.0]), torch.tensor([1.0, 1e-3, 5.0 + 5e-5, 7.0])
    x = low + (high - low) * torch.rand(500, 4)
    x[:2] = torch.stack((low, high))
    made = MinMaxNormalizer(4)
    assert torch.equal(made(x), x), "identity until it has seen data"
    made.fit(x)
    unit = made(x)
    torch.testing.assert_close(unit[0], torch.tensor([-1.0, -1.0, -2.5e-5, 0.0]), rtol=0, atol=1e-5)
    torch.testing.assert_close(unit[1], torch.tensor([1.0, 1.0, 2.5e-5, 0.0]), rtol=0, atol=1e-5)
    assert made.scale[2:].tolist() == [1.0, 1.0]
    torch.testing.assert_close(made.inverse(unit), x)
    made.refuse_outside(x, "these", "Mend.")
    with pytest.raises(ValueError, match="these: number 0 reaches -4, below the -3 at which"):
        made.refuse_outside(x - torch.tensor([1.0, 0, 0, 0]), "these", "Mend.")

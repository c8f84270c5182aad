import math

import pytest
import torch

from ctrlrl.functional.conservative import calibrated, conservative_gap, uniform_log_density
from ctrlrl.functional.distributions import tanh_gaussian_sample


def test_the_uniform_density_on_the_box():
    assert uniform_log_density(3) == pytest.approx(-2.0794415416798357, abs=1e-12)


def test_thirty_equal_values_under_the_uniform_density():
    q = torch.zeros(30, 4, dtype=torch.float64)
    gap = conservative_gap(q, torch.full_like(q, uniform_log_density(3)), torch.zeros(4, dtype=torch.float64))
    expected = 3.0 * math.log(2.0) + math.log(30.0)  # 5.480639
    torch.testing.assert_close(gap, torch.full((4,), expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_constant_added_to_all_values_changes_nothing():
    q, log_density = torch.randn(2, 12, 5, dtype=torch.float64), torch.randn(12, 5, dtype=torch.float64)
    q_data = torch.randn(2, 5, dtype=torch.float64)
    for temperature in (0.5, 1.0, 3.0):
        gap = conservative_gap(q, log_density, q_data, temperature=temperature)
        moved = conservative_gap(q + 70.0, log_density, q_data + 70.0, temperature=temperature)
        torch.testing.assert_close(moved, gap, rtol=0, atol=1e-11)


@pytest.mark.parametrize("proposal", ["uniform", "policy"])
def test_importance_weights_make_the_sum_an_integral_over_all_actions(proposal):
    slope, n = 2.0, 400_000
    if proposal == "uniform":
        action = 2.0 * torch.rand(n, 1, dtype=torch.float64) - 1.0
        log_density = torch.full((n,), uniform_log_density(1), dtype=torch.float64)
    else:
        mean = torch.full((n, 1), 0.3, dtype=torch.float64)
        action, log_density = tanh_gaussian_sample(mean, torch.zeros(1, dtype=torch.float64))
    gap = conservative_gap(slope * action, log_density.unsqueeze(-1), torch.zeros(1, dtype=torch.float64))
    integral = 2.0 * math.sinh(slope) / slope  # of exp(slope * a) over [-1, 1]
    assert gap.item() - math.log(n) == pytest.approx(math.log(integral), abs=0.01)


def test_a_low_temperature_gives_the_maximum():
    q, nothing = torch.tensor([[1.0], [4.0], [-2.0]], dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)
    gap = conservative_gap(q, nothing, torch.tensor([1.5], dtype=torch.float64), temperature=1e-3)
    assert gap.item() == pytest.approx(2.5, abs=1e-9)


def test_the_gap_is_clipped_and_silent_outside_its_bounds():
    q_data = torch.tensor([-10.0, 0.0, 10.0], dtype=torch.float64, requires_grad=True)
    q = torch.zeros(1, 3, dtype=torch.float64)
    gap = conservative_gap(q, torch.zeros_like(q), q_data, low=-1.0, high=2.0)
    torch.testing.assert_close(gap, torch.tensor([2.0, 0.0, -1.0], dtype=torch.float64), rtol=0, atol=1e-12)
    gap.sum().backward()
    assert q_data.grad.tolist() == [0.0, -1.0, 0.0]


def test_the_gradient_pushes_sampled_values_down_by_their_share_and_the_data_up_by_one():
    q = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    q_data = torch.randn(4, dtype=torch.float64, requires_grad=True)
    log_density = torch.randn(6, 4, dtype=torch.float64)
    conservative_gap(q, log_density, q_data, temperature=2.0).sum().backward()
    torch.testing.assert_close(q.grad, torch.softmax((q.detach() - log_density) / 2.0, 0), rtol=0, atol=1e-12)
    assert (q_data.grad == -1.0).all()


def test_ensemble_and_seed_axes_in_front_are_independent():
    q, log_density = torch.randn(2, 3, 6, 5, dtype=torch.float64), torch.randn(3, 6, 5, dtype=torch.float64)
    q_data = torch.randn(2, 3, 5, dtype=torch.float64)
    gap = conservative_gap(q, log_density, q_data)
    assert gap.shape == (2, 3, 5)
    torch.testing.assert_close(gap[1, 2], conservative_gap(q[1, 2], log_density[2], q_data[1, 2]), rtol=0, atol=1e-12)


def test_a_batch_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"conservative_gap: shapes must match.*squeeze"):
        conservative_gap(torch.zeros(6, 4), torch.zeros(6, 4), torch.zeros(4, 1))


def test_calibration_lifts_to_the_return_and_takes_the_gradient_there():
    q = torch.tensor([[1.0, 1.0], [5.0, 5.0]], requires_grad=True)
    lifted = calibrated(q, torch.tensor([3.0, -torch.inf]))
    assert lifted.tolist() == [[3.0, 1.0], [5.0, 5.0]]
    lifted.sum().backward()
    assert q.grad.tolist() == [[0.0, 1.0], [1.0, 1.0]]


def test_without_a_bound_calibration_changes_no_bit():
    q = torch.randn(2, 7, 5)
    assert torch.equal(calibrated(q, torch.full((5,), -torch.inf)), q)

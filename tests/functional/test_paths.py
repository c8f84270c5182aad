import pytest
import torch

from ctrlrl.functional.distributions import gaussian_log_prob
from ctrlrl.functional.paths import (
    END_TIMES,
    PATHS,
    brownian_residual,
    path_point,
    predicted_noise,
    sample_path,
    velocity_log_ratio,
)


def test_the_path_leads_from_noise_to_data():
    x1, x0 = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    for t, end in ((0.0, x0), (1.0, x1)):
        point, _ = sample_path(x1, x0, torch.full((6, 1), t, dtype=torch.float64))
        assert torch.equal(point, end)


def test_the_velocity_is_the_derivative_of_the_point_in_time():
    x1, x0 = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    t = torch.rand(6, 1, dtype=torch.float64)
    ahead, _ = sample_path(x1, x0, t + 0.5)
    point, velocity = sample_path(x1, x0, t)
    torch.testing.assert_close(velocity, (ahead - point) / 0.5, rtol=0, atol=1e-12)


def test_every_row_stands_at_its_own_time():
    x1, x0 = torch.ones(3, 2), torch.zeros(3, 2)
    point, _ = sample_path(x1, x0, torch.tensor([[0.0], [0.25], [1.0]]))
    assert point.tolist() == [[0.0, 0.0], [0.25, 0.25], [1.0, 1.0]]


def test_noise_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="sample_path: shapes must match"):
        sample_path(torch.zeros(3, 2), torch.zeros(1, 2), torch.zeros(3, 1))


# PolicyFlow ----------------------------------------------------------------------------------------------------------


def doubles(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("path", PATHS)
def test_every_path_leads_from_noise_to_data(path):
    x1, x0 = doubles(6, 3), doubles(6, 3)
    for t, end in ((0.0, x0), (END_TIMES[path], x1)):
        point = path_point(path, x1, x0, torch.full((6, 1), t, dtype=torch.float64))
        torch.testing.assert_close(point, end, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("path", "variance"), [("straight", 0.0), ("interpolant", 0.375)])
def test_a_paths_point_has_its_mean_and_spread(path, variance):
    """t = 1/4: the interpolant adds a deviation of sqrt(2 t (1 - t)) = sqrt(0.375)."""
    x1, x0 = torch.full((100_000, 1), 3.0), torch.full((100_000, 1), -1.0)
    point = path_point(path, x1, x0, torch.full((100_000, 1), 0.25))
    assert float(point.mean()) == pytest.approx(0.75 * -1.0 + 0.25 * 3.0, abs=0.01)
    assert float(point.var()) == pytest.approx(variance, abs=0.01)


def test_the_trigonometric_path_keeps_the_variance_of_independent_ends():
    x1, x0 = torch.randn(100_000, 1), torch.randn(100_000, 1)
    t = torch.rand(100_000, 1) * END_TIMES["trigonometric"]
    assert float(path_point("trigonometric", x1, x0, t).var()) == pytest.approx(1.0, abs=0.02)


def test_the_velocity_log_ratio_of_one_dimension_is_the_closed_form():
    """Spec 3.A.9: n = .3, dv = .1, sigma = .5, old sigma = .6."""
    noise, change = torch.tensor([[0.3]]), torch.tensor([[0.1]])
    found = velocity_log_ratio(noise, change, torch.tensor([0.5]).log(), torch.tensor([0.6]).log())
    assert found.shape == (1,)
    assert float(found) == pytest.approx(0.227322, abs=1e-6)
    assert float(found.exp()) == pytest.approx(1.255233, abs=1e-6)


def test_nothing_changed_is_a_log_ratio_of_exactly_zero():
    noise, log_std = torch.randn(64, 17), torch.randn(17)
    found = velocity_log_ratio(noise, torch.zeros_like(noise), log_std, log_std.expand_as(noise))
    assert torch.equal(found, torch.zeros(64))


def test_for_constant_fields_the_velocity_log_ratio_is_the_exact_conditional_ratio():
    """v = c and v_old = c_old give ends z + c and z + c_old; given z, the action is Gaussian around them."""
    z, c, c_old, noise, log_std, old_log_std = (doubles(5, 3) for _ in range(6))
    action = z + c_old + noise
    exact = gaussian_log_prob(action, z + c, log_std) - gaussian_log_prob(action, z + c_old, old_log_std)
    torch.testing.assert_close(velocity_log_ratio(noise, c - c_old, log_std, old_log_std), exact, rtol=0, atol=1e-12)


def test_the_brownian_residual_vanishes_for_the_expansion_and_is_the_point_for_resting_fields():
    """Spec 3.A.9: v = v_old = x; and v = v_old = 0: eta = -x."""
    x, t = doubles(6, 3), torch.rand(6, 1, dtype=torch.float64)
    zero = torch.zeros_like(x)
    torch.testing.assert_close(brownian_residual("straight", x, t, x, x), zero, rtol=0, atol=1e-12)
    assert torch.equal(brownian_residual("straight", x, t, zero, zero), -x)


def test_the_straight_residual_at_rest_is_the_score_of_a_gaussian():
    """x1 ~ N(0, 1): v_old = (2t - 1) x / var and score -x / var with var = (1 - t)^2 + t^2."""
    x, t = doubles(6, 3), torch.rand(6, 1, dtype=torch.float64) * 0.9
    var = (1 - t) ** 2 + t**2
    score = brownian_residual("straight", x, t, torch.zeros_like(x), (2 * t - 1) * x / var) / (1 - t)
    torch.testing.assert_close(score, -x / var, rtol=0, atol=1e-12)


def test_the_trigonometric_residual_vanishes_for_the_heat_flow_of_a_gaussian():
    """x1 ~ N(0, s^2): var = cos^2 + s^2 sin^2, v_old = sin cos (s^2 - 1) x / var, heat flow x / var."""
    x, t, s2 = doubles(6, 3), torch.rand(6, 1, dtype=torch.float64) * 1.5, 0.3
    var = t.cos() ** 2 + s2 * t.sin() ** 2
    old = t.sin() * t.cos() * (s2 - 1) * x / var
    residual = brownian_residual("trigonometric", x, t, x / var, old)
    torch.testing.assert_close(residual, torch.zeros_like(x), rtol=0, atol=1e-12)


def test_the_interpolants_residual_is_the_codes():
    """(2 (t - 1/2)^2 + 1/2) v against x - t v_old: at t = 1/4, 0.625 v - x + 0.25 v_old."""
    x, v, old = doubles(6, 3), doubles(6, 3), doubles(6, 3)
    found = brownian_residual("interpolant", x, torch.full((6, 1), 0.25, dtype=torch.float64), v, old)
    torch.testing.assert_close(found, 0.625 * v - x + 0.25 * old, rtol=0, atol=1e-12)


# FPO -----------------------------------------------------------------------------------------------------------------


def test_the_two_forms_of_fpos_error_are_one():
    """(e - predicted e)^2 = t^2 ((a - e) - u)^2 in this library's time; spec 3.C has 1 - t for it."""
    a, e, u = doubles(6, 3), doubles(6, 3), doubles(6, 3)
    t = torch.rand(6, 1, dtype=torch.float64)
    point, velocity = sample_path(a, e, t)
    error = (e - predicted_noise(point, u, t)).square()
    torch.testing.assert_close(error, (t * (velocity - u)).square(), rtol=0, atol=1e-12)
    torch.testing.assert_close(predicted_noise(point, velocity, t), e, rtol=0, atol=1e-12)

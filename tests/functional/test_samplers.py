import pytest
import torch

from ctrlrl.functional.paths import sample_path
from ctrlrl.functional.samplers import euler, midpoint, uniform_times


def test_uniform_times_end_exactly_at_one():
    assert uniform_times(1) == [0.0, 1.0]
    assert uniform_times(10)[0] == 0.0
    assert uniform_times(10)[-1] == 1.0
    assert [round(b - a, 12) for a, b in zip(uniform_times(4), uniform_times(4)[1:], strict=False)] == [0.25] * 4


@pytest.mark.parametrize("n", [1, 3, 10])
def test_euler_is_exact_for_a_constant_velocity(n):
    x, velocity = torch.randn(5, 2, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    torch.testing.assert_close(euler(lambda x, t: velocity, x, uniform_times(n)), x + velocity, rtol=0, atol=1e-14)


def test_euler_multiplies_by_its_known_factor_where_the_velocity_is_the_point():
    x = torch.tensor([1.0, -2.0], dtype=torch.float64)
    found = euler(lambda x, t: x, x, uniform_times(10))
    torch.testing.assert_close(found, x * 1.1**10, rtol=0, atol=1e-12)


def test_the_field_is_asked_at_the_start_of_every_step_and_never_at_the_end():
    asked = []

    def velocity(x, t):
        asked.append(t)
        return x

    euler(velocity, torch.zeros(1), uniform_times(4))
    assert asked == [0.0, 0.25, 0.5, 0.75]


def test_one_step_along_the_conditional_velocity_leads_to_the_data():
    x1, x0 = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    velocity = sample_path(x1, x0, torch.zeros(6, 1, dtype=torch.float64))[1]
    torch.testing.assert_close(euler(lambda x, t: velocity, x0, uniform_times(1)), x1, rtol=0, atol=1e-14)


def test_the_flow_of_a_gaussian_is_its_affine_map_up_to_an_error_of_first_order():
    m, s = 1.0, 0.5

    def velocity(x, t):
        return m + (t * s**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * s**2) * (x - t * m)

    noise = torch.linspace(-1, 1, 21, dtype=torch.float64)
    errors = [(euler(velocity, noise, uniform_times(n)) - (m + s * noise)).abs().max().item() for n in (100, 1000)]
    assert errors[0] / errors[1] == pytest.approx(10.0, rel=0.02)
    assert errors[1] < 1e-3


def test_the_midpoint_rule_is_exact_where_the_velocity_is_linear_in_time():
    x = torch.zeros(3, dtype=torch.float64)
    found = midpoint(lambda x, t: torch.full_like(x, 2.0 * t), x, uniform_times(3))
    torch.testing.assert_close(found, torch.ones_like(x), rtol=0, atol=1e-14)


def test_the_midpoint_rule_asks_twice_a_step_also_at_another_end():
    asked = []

    def velocity(x, t):
        asked.append(t)
        return x

    midpoint(velocity, torch.zeros(1), uniform_times(2, 4.0))
    assert asked == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("sampler", "printed"), [(euler, (0.090, 0.0096, 0.00097)), (midpoint, (1.5e-4, 1.5e-7))], ids=["euler", "midpoint"]
)
def test_flows_of_a_gaussian_end_with_their_printed_errors(sampler, printed):
    """Spec 0.2 of the generative policies: N(1, 0.5^2), noise up to 1.3, 10, 100 and 1000 steps.

    The error is that of a linear field, so it grows with the noise. The midpoint rule's falls as N^-3 on this one.
    """
    m, s = 1.0, 0.5

    def velocity(x, t):
        return m + (t * s**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * s**2) * (x - t * m)

    noise = torch.tensor([1.3], dtype=torch.float64)
    errors = [abs(float(sampler(velocity, noise, uniform_times(10 ** (i + 1)))) - (m + s * 1.3)) for i in range(3)]
    assert errors[: len(printed)] == pytest.approx(printed, rel=0.04)

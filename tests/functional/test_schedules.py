"""Every number that the specification of the generative policies prints for schedules (3.1, 3.3, 4.2, 9.2)."""

import math

import pytest
import torch

from ctrlrl.functional.schedules import (
    cosine_schedule,
    exponential_levels,
    karras_levels,
    leading_levels,
    level_at,
    linear_levels,
    schedule_of,
    trailing_levels,
    vp_schedule,
)


def test_the_cosine_schedule_has_its_printed_values():
    schedule = cosine_schedule(100)
    betas = {0: 6.31282e-4, 1: 1.11694e-3, 50: 0.0315463, 98: 0.749939, 99: 0.999}
    kept = {0: 0.999368719, 10: 0.966716705, 50: 0.478264633, 98: 2.42857e-4, 99: 2.42857e-7}
    assert {k: schedule.beta[k] for k in betas} == pytest.approx(betas, rel=5e-6)
    assert {k: schedule.alpha_bar[k] for k in kept} == pytest.approx(kept, rel=5e-6)


def test_the_cosine_schedule_of_ten_levels_has_its_printed_values():
    printed = [0.972093, 0.898706, 0.786911, 0.647478, 0.493844, 0.340810, 0.203121, 0.0940456, 0.0240917, 2.40917e-5]
    assert cosine_schedule(10).alpha_bar == pytest.approx(printed, rel=5e-6)


def test_diffusion_qls_schedule_has_its_printed_values():
    schedule = vp_schedule(5)
    assert schedule.beta == pytest.approx([0.195875, 0.458818, 0.635781, 0.754878, 0.835031], abs=6e-7)
    assert schedule.alpha_bar == pytest.approx([0.804125, 0.435178, 0.158500, 0.038852, 0.006409], abs=6e-7)


def test_scales_are_those_of_a_variance_preserving_path_and_level_minus_one_is_the_data():
    schedule = cosine_schedule(10)
    assert schedule.scales(-1) == (1.0, 0.0)
    for k in range(10):
        alpha, sigma = schedule.scales(k)
        assert alpha**2 + sigma**2 == pytest.approx(1.0, abs=1e-15)
        assert alpha == math.sqrt(schedule.alpha_bar[k])


def test_the_tables_hold_the_scales_of_all_levels():
    schedule = cosine_schedule(100)
    alpha, sigma = schedule.tables()
    assert alpha.dtype == sigma.dtype == torch.float32
    exact = torch.tensor([schedule.scales(k) for k in range(100)], dtype=torch.float64)
    torch.testing.assert_close(torch.stack((alpha, sigma), 1).double(), exact, rtol=1e-7, atol=0)


def test_leading_levels_miss_the_noisiest_and_trailing_ones_start_there():
    assert leading_levels(100, 10) == [90, 80, 70, 60, 50, 40, 30, 20, 10, 0]
    assert trailing_levels(100, 10) == [99, 89, 79, 69, 59, 49, 39, 29, 19, 9]
    assert leading_levels(100, 100) == trailing_levels(100, 100) == list(range(99, -1, -1))
    assert leading_levels(100, 16)[:2] == [90, 84]
    assert trailing_levels(100, 16)[:4] == [99, 93, 87, 80]
    assert trailing_levels(100, 1) == [99]


def test_deviation_lists_have_their_printed_values_and_end_at_zero():
    assert karras_levels(3, 1.0, 0.005) == pytest.approx([1.0, 0.138356, 0.005, 0.0], abs=5e-7)
    assert exponential_levels(3, 1.0, 0.005) == pytest.approx([1.0, 0.0707107, 0.005, 0.0], abs=5e-8)
    assert linear_levels(3, 1.0, 0.005) == pytest.approx([1.0, 0.5025, 0.005, 0.0], abs=1e-12)
    assert karras_levels(3, 1.0, 0.05) == pytest.approx([1.0, 0.278933, 0.05, 0.0], abs=5e-7)
    for levels in (karras_levels, exponential_levels, linear_levels):
        assert levels(1, 2.0, 0.1) == pytest.approx([2.0, 0.0], abs=1e-14)
        assert levels(5, 2.0, 0.1)[-1] == 0.0


def test_impossible_lists_are_refused():
    with pytest.raises(ValueError, match="sampling in 6 steps needs between 1 and n_levels=5"):
        leading_levels(5, 6)
    with pytest.raises(ValueError, match="sampling in 0 steps"):
        trailing_levels(5, 0)
    with pytest.raises(ValueError, match="0 < low <= high, got 3 from 1 to 2"):
        karras_levels(3, 1.0, 2.0)
    with pytest.raises(ValueError, match=r"betas in \(0, 1\)"):
        schedule_of([0.1, 1.0])


@pytest.mark.parametrize("kind", [cosine_schedule, vp_schedule])
def test_a_schedule_has_at_most_ten_thousand_levels(kind):
    assert len(kind(10_000).beta) == 10_000
    for n in (0, -1, 10_001, 10**12):
        with pytest.raises(ValueError, match=f"1 to 10000 levels, got n_levels={n}"):
            kind(n)


@pytest.mark.parametrize("schedule", [cosine_schedule(100), vp_schedule(7)])
def test_a_level_is_found_by_its_signal_to_noise_ratio(schedule):
    for k in range(len(schedule.beta)):
        alpha, sigma = schedule.scales(k)
        assert level_at(schedule, alpha, sigma) == k
        assert level_at(schedule, alpha / (alpha + sigma), sigma / (alpha + sigma)) == pytest.approx(k, abs=1e-6)
    (a, s), (b, t) = schedule.scales(3), schedule.scales(4)
    assert level_at(schedule, 1.0, math.sqrt(s / a * t / b)) == pytest.approx(3.5)


def test_beyond_a_schedule_lie_its_first_and_its_last_level():
    schedule = cosine_schedule(100)
    assert level_at(schedule, 1.0, 0.0) == level_at(schedule, 1.0, 1e-6) == 0.0
    assert level_at(schedule, 0.0, 1.0) == level_at(schedule, 1e-9, 1.0) == 99.0

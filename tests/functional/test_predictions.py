"""The conversions of section 0.1 of the generative policies' specification, and EDM's scales (4.1)."""

import math

import pytest
import torch

from ctrlrl.functional.predictions import (
    PREDICTIONS,
    edm_denoised,
    edm_scales,
    edm_target,
    ends,
    log_logistic_levels,
    noisy,
    on_path,
    prediction,
    reversed_time,
)
from ctrlrl.functional.samplers import euler, uniform_times

PLACES = {"preserving": (0.6, 0.8), "exploding": (1.0, 3.0), "straight": (0.3, 0.7)}


def doubles(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("place", PLACES)
def test_a_prediction_leads_back_to_the_ends_it_was_made_of(kind, place):
    alpha, sigma = PLACES[place]
    data, noise = doubles(5, 4, 2), doubles(5, 4, 2)
    x = noisy(data, noise, alpha, sigma)
    found = ends(kind, prediction(kind, data, noise, alpha, sigma), x, alpha, sigma)
    torch.testing.assert_close(found, (data, noise), rtol=0, atol=1e-12)


def test_the_scales_may_differ_by_row():
    data, noise = doubles(3, 4, 2), doubles(3, 4, 2)
    alpha = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64).view(3, 1, 1)
    sigma = (1 - alpha**2).sqrt()
    x = noisy(data, noise, alpha, sigma)
    for kind in PREDICTIONS:
        whole = ends(kind, prediction(kind, data, noise, alpha, sigma), x, alpha, sigma)
        for i in range(3):
            a, s = float(alpha[i]), float(sigma[i])
            row = ends(kind, prediction(kind, data[i], noise[i], a, s), x[i], a, s)
            torch.testing.assert_close(row, (whole[0][i], whole[1][i]), rtol=0, atol=1e-12)


def test_every_kind_has_its_printed_form():
    """0.1: on the variance-preserving path, on a flow's and with exploding variance."""
    x, p = doubles(7), doubles(7)
    alpha, sigma, t = 0.6, 0.8, 0.3
    assert torch.equal(ends("noise", p, x, alpha, sigma)[0], (x - sigma * p) / alpha)
    assert torch.equal(ends("data", p, x, 1.0, 3.0)[1], (x - p) / 3.0)
    close = {"rtol": 0, "atol": 1e-14}
    torch.testing.assert_close(ends("v", p, x, alpha, sigma), (alpha * x - sigma * p, alpha * p + sigma * x), **close)
    torch.testing.assert_close(ends("velocity", p, x, t, 1 - t), (x + (1 - t) * p, x - t * p), **close)
    data, noise = ends("velocity", p, x, t, 1 - t)
    torch.testing.assert_close(prediction("score", data, noise, t, 1 - t), (t * p - x) / (1 - t), **close)
    data, noise = ends("data", p, x, 1.0, 3.0)
    torch.testing.assert_close(prediction("score", data, noise, 1.0, 3.0), (p - x) / 9.0, **close)


def test_the_printed_gaussian_agrees_through_all_paths():
    """0.1, check: N(1, 0.5^2) at alpha = .6, sigma = .8, x = .3."""
    m, s, alpha, sigma, x = 1.0, 0.5, 0.6, 0.8, torch.tensor(0.3, dtype=torch.float64)
    score = -(x - alpha * m) / (alpha**2 * s**2 + sigma**2)
    data, noise = ends("score", score, x, alpha, sigma)
    assert float(data) == pytest.approx(0.93835616, abs=5e-9)
    assert float(noise) == pytest.approx(-0.32876712, abs=5e-9)
    there, t, rest = on_path("straight", x, alpha, sigma)
    assert (t, rest) == (pytest.approx(0.42857143, abs=5e-9), pytest.approx(1 - 0.42857143, abs=5e-9))
    assert float(there) == pytest.approx(0.21428571, abs=5e-9)
    u = m + (t * s**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * s**2) * (there - t * m)
    assert float(u) == pytest.approx(1.26712329, abs=5e-9)
    torch.testing.assert_close(ends("velocity", u, there, t, rest), (data, noise), rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", PLACES)
@pytest.mark.parametrize("place", PLACES)
def test_a_change_of_path_keeps_data_noise_and_their_ratio(path, place):
    alpha, sigma = PLACES[place]
    data, noise = doubles(5), doubles(5)
    x, new_alpha, new_sigma = on_path(path, noisy(data, noise, alpha, sigma), alpha, sigma)
    torch.testing.assert_close(x, noisy(data, noise, new_alpha, new_sigma), rtol=0, atol=1e-14)
    assert new_alpha / new_sigma == pytest.approx(alpha / sigma, abs=1e-14)
    size = {"preserving": new_alpha**2 + new_sigma**2, "exploding": new_alpha, "straight": new_alpha + new_sigma}
    assert size[path] == pytest.approx(1.0, abs=1e-15)
    rows = torch.full((5,), alpha, dtype=torch.float64), torch.full((5,), sigma, dtype=torch.float64)
    by_row = on_path(path, x, *rows)
    assert float(by_row[1][0]) == pytest.approx(new_alpha, abs=1e-14)


def test_unknown_words_are_refused_with_the_known_ones():
    x = torch.zeros(2)
    with pytest.raises(ValueError, match="unknown prediction 'eps'; known: noise, data, v"):
        ends("eps", x, x, 0.6, 0.8)
    with pytest.raises(ValueError, match="unknown prediction 'eps'"):
        prediction("eps", x, x, 0.6, 0.8)
    with pytest.raises(ValueError, match="unknown path 'flow'; known: preserving"):
        on_path("flow", x, 0.6, 0.8)
    with pytest.raises(ValueError, match="ends: shapes must match"):
        ends("noise", x, torch.zeros(2, 1), 0.6, 0.8)


def test_a_flow_against_time_arrives_where_the_flow_does():
    """Self-check 9: u' from 1 to 0 with the same noise."""
    m, s = 1.0, 0.5

    def velocity(x, t):
        return m + (t * s**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * s**2) * (x - t * m)

    noise = doubles(9)
    forth = euler(velocity, noise, uniform_times(8))
    back = euler(reversed_time(velocity), noise, uniform_times(8)[::-1])
    torch.testing.assert_close(back, forth, rtol=0, atol=1e-14)


def test_edms_scales_have_their_printed_values():
    sigma = torch.tensor([0.05, 0.5, 1.0], dtype=torch.float64)
    printed = [[0.990099, 0.5, 0.2], [0.0497519, 0.3535534, 0.4472136], [1.9900744, 1.4142136, 0.8944272]]
    found = torch.stack(edm_scales(sigma, 0.5))
    torch.testing.assert_close(found, torch.tensor(printed, dtype=torch.float64), rtol=0, atol=5e-7)
    assert edm_scales(0.05, 0.5) == pytest.approx([row[0] for row in printed], abs=5e-7), "a number for all rows"


def test_edms_inputs_and_targets_have_unit_variance_at_every_level():
    data, noise = 0.5 * torch.randn(200_000), torch.randn(200_000)
    for value in (0.05, 0.5, 2.0):
        sigma = torch.tensor(value)
        x = data + sigma * noise
        assert float((edm_scales(sigma, 0.5)[2] * x).var()) == pytest.approx(1.0, abs=0.02)
        assert float(edm_target(data, x, sigma, 0.5).var()) == pytest.approx(1.0, abs=0.02)


def test_the_denoised_x_of_edms_target_is_the_data():
    data, noise, sigma = doubles(5, 4, 2), doubles(5, 4, 2), torch.rand(5, 1, 1).double() + 0.1
    x = data + sigma * noise
    found = edm_denoised(edm_target(data, x, sigma, 0.5), x, sigma, 0.5)
    torch.testing.assert_close(found, data, rtol=0, atol=1e-12)


def test_training_deviations_follow_the_truncated_log_logistic_law():
    """log sigma = log .5 + .5 logit(u): u = 1/2 is the median, ends are the bounds, and the distribution is its cdf."""
    u = torch.tensor([0.0, 1.0], dtype=torch.float64)
    found = log_logistic_levels(u, 0.005, 1.0, median=0.5)
    torch.testing.assert_close(found, torch.tensor([0.005, 1.0], dtype=torch.float64), rtol=1e-9, atol=0)
    free = log_logistic_levels(torch.tensor([0.5, 0.75], dtype=torch.float64), 1e-9, 1e9, median=0.5)
    torch.testing.assert_close(free, torch.tensor([0.5, 0.5 * math.sqrt(3.0)], dtype=torch.float64), rtol=1e-6, atol=0)

    def cdf(sigma):  # 1 / (1 + (median / sigma)^2)
        return 1.0 / (1.0 + (0.5 / sigma) ** 2)

    draws = log_logistic_levels(torch.rand(100_000), 0.005, 1.0, median=0.5)
    for sigma in (0.1, 0.3, 0.6):
        share = (cdf(sigma) - cdf(0.005)) / (cdf(1.0) - cdf(0.005))
        assert float((draws < sigma).float().mean()) == pytest.approx(share, abs=0.006)

"""Diffusion samplers against Gaussians, whose noise predictions are known (sections 0.2, 3, 4.2, 7, 13 of the spec)."""

import math
from itertools import pairwise

import pytest
import torch

from ctrlrl.functional.predictions import PREDICTIONS, ends, prediction
from ctrlrl.functional.samplers import (
    ancestral_deviations,
    ddim,
    ddim_step,
    ddpm,
    edm_ancestral,
    edm_ddim,
    edm_heun,
    edm_heun_step,
    edm_step,
    euler,
    posterior_mean,
    posterior_std,
    shifted,
)
from ctrlrl.functional.schedules import (
    cosine_schedule,
    exponential_levels,
    karras_levels,
    leading_levels,
    linear_levels,
    trailing_levels,
)

SCHEDULE = cosine_schedule(100)


def doubles(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def gaussian_data(x, alpha, sigma, m, s):
    """E[data | x] for data ~ N(m, s^2), 0.2."""
    return (alpha * s**2 * x + sigma**2 * m) / (alpha**2 * s**2 + sigma**2)


def gaussian(m, s, schedule=SCHEDULE, kind="noise"):
    """The exact network of N(m, s^2) data."""

    def predict(x, k):
        alpha, sigma = schedule.scales(k)
        return prediction(kind, *ends("data", gaussian_data(x, alpha, sigma, m, s), x, alpha, sigma), alpha, sigma)

    return predict


def denoiser(m, s):
    return lambda x, sigma: gaussian_data(x, 1.0, sigma, m, s)


# DDPM -----------------------------------------------------------------------------------------------------------------


def test_the_posterior_is_the_gaussian_of_the_level_below_given_level_and_data():
    """By completing the square in x_(k-1): prior N(sqrt(ab) a, 1 - ab) there, likelihood N(sqrt(1 - beta) x, beta)."""
    x, data = doubles(5), doubles(5)
    for k in (1, 30, 99):
        beta, before = SCHEDULE.beta[k], SCHEDULE.kept(k - 1)
        precision = 1.0 / (1.0 - before) + (1.0 - beta) / beta
        mean = (math.sqrt(before) * data / (1.0 - before) + math.sqrt(1.0 - beta) * x / beta) / precision
        torch.testing.assert_close(posterior_mean(x, data, SCHEDULE, k), mean, rtol=0, atol=1e-12)
        assert posterior_std(SCHEDULE, k) == pytest.approx(precision**-0.5, rel=1e-9)


def test_the_last_step_gives_the_data_and_no_noise():
    x, data = doubles(5), doubles(5)
    torch.testing.assert_close(posterior_mean(x, data, SCHEDULE, 0), data, rtol=0, atol=1e-12)
    assert posterior_std(SCHEDULE, 0) == 0.0


def ancestral_moments(m, s, n_levels):
    """Mean and variance of DDPM's output for N(m, s^2): every step is affine in x, so the moments have a recursion."""
    schedule = cosine_schedule(n_levels)
    mean, var, predict = 0.0, 1.0, gaussian(m, s, schedule, "data")
    for k in reversed(range(n_levels)):
        x = torch.tensor([0.0, 1.0], dtype=torch.float64)
        low, high = posterior_mean(x, predict(x, k), schedule, k).tolist()
        mean, var = low + (high - low) * mean, (high - low) ** 2 * var + posterior_std(schedule, k) ** 2
    return mean, var


@pytest.mark.parametrize(("n_levels", "variance"), [(100, 0.23275), (1000, 0.24800)])
def test_the_ancestral_sampler_shrinks_a_gaussian_by_its_printed_amount(n_levels, variance):
    """Self-check 5."""
    mean, var = ancestral_moments(-1.0, 0.5, n_levels)
    assert mean == pytest.approx(-1.0, abs=1e-3)
    assert var == pytest.approx(variance, abs=1e-5)


def test_the_ancestral_loop_has_the_moments_of_its_recursion():
    torch.manual_seed(3)
    out = ddpm(gaussian(-1.0, 0.5), doubles(100_000), range(99, -1, -1), SCHEDULE, clip=None)
    assert float(out.mean()) == pytest.approx(-1.0, abs=0.01)
    assert float(out.var()) == pytest.approx(0.23275, abs=0.004)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_the_kind_of_prediction_does_not_change_the_sample(kind):
    noise, start = doubles(12, 4, 2), doubles(4, 2)

    def run(kind):
        draws = iter(noise)
        predict = gaussian(0.3, 0.2, kind=kind)
        stochastic = ddpm(predict, start, [50, 40, 3, 2, 1, 0], SCHEDULE, kind=kind, noise=lambda x: next(draws))
        return stochastic, ddim(predict, start, [50, 20, 0], SCHEDULE, kind=kind)

    torch.testing.assert_close(run(kind), run("noise"), rtol=0, atol=1e-10)


def test_skipped_levels_still_take_the_full_schedules_steps():
    """Real-time iteration: a step from level 5 goes to level 4, also where the next level of the list is 3."""
    x, data = doubles(3, 4, 2), doubles(3, 4, 2) / 10
    noise = [doubles(3, 4, 2) for _ in range(3)]
    draws = iter(noise)
    found = ddpm(lambda x, k: data, x, [5, 3, 1, 0], SCHEDULE, kind="data", noise=lambda x: next(draws))
    for k, z in zip([5, 3, 1], noise, strict=True):
        x = posterior_mean(x, data, SCHEDULE, k) + posterior_std(SCHEDULE, k) * z
    torch.testing.assert_close(found, posterior_mean(x, data, SCHEDULE, 0), rtol=0, atol=1e-12)
    assert next(draws, None) is None, "level 0 asks for no noise"


def test_predicted_data_are_clipped_and_the_noise_is_not():
    x, predicted = torch.full((1, 1, 1), 3.0).double(), torch.full((1, 1, 1), -0.5).double()
    alpha, sigma = SCHEDULE.scales(50)
    far = (x - sigma * predicted) / alpha
    assert float(far) > 1.0
    found = ddim(lambda x, k: predicted, x, [50], SCHEDULE)
    assert float(found) == 1.0
    once = ddim(lambda x, k: predicted if k == 50 else torch.zeros_like(x), x, [50, 20], SCHEDULE, clip=None)
    a, s = SCHEDULE.scales(20)
    torch.testing.assert_close(once, ddim_step(far, predicted, a, s) / a, rtol=0, atol=1e-12)
    seen = []
    ddim(lambda x, k: seen.append(x) or predicted, x, [50, 20], SCHEDULE)
    torch.testing.assert_close(seen[1], a * torch.ones_like(x) + s * predicted, rtol=0, atol=1e-12)


# DDIM -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, 10, 50, 99])
def test_a_point_mass_is_reached_in_one_ddim_step_from_any_level(k):
    found = ddim(gaussian(0.7, 0.0), doubles(50), [k], SCHEDULE)
    torch.testing.assert_close(found, torch.full_like(found, 0.7), rtol=0, atol=1e-9)


def test_many_ddim_steps_reach_the_exact_flow_of_a_gaussian():
    """From the level where alpha is nearly 0, noise e goes to m + s e."""
    schedule = cosine_schedule(4000)
    noise = torch.linspace(-1, 1, 21, dtype=torch.float64)
    found = ddim(gaussian(1.0, 0.5, schedule), noise, trailing_levels(4000, 4000), schedule, clip=None)
    torch.testing.assert_close(found, 1.0 + 0.5 * noise, rtol=0, atol=5e-3)


def two_modes(schedule, at=0.6, s=0.1):
    """The exact network of (N(-at, s^2) + N(at, s^2)) / 2."""

    def predict(x, k):
        alpha, sigma = schedule.scales(k)
        right = torch.sigmoid(2.0 * alpha * at * x / (alpha**2 * s**2 + sigma**2))
        return sum(share * gaussian(m, s, schedule)(x, k) for share, m in ((right, at), (1.0 - right, -at)))

    return predict


@pytest.mark.parametrize(("levels", "beside"), [(leading_levels, 0.031), (trailing_levels, 0.023)])
def test_ten_ddim_steps_leave_three_samples_of_a_hundred_beside_two_modes(levels, beside):
    """Of the exact network; by quantiles of the noise, so that nothing is drawn. All levels leave a tenth of that."""
    schedule = cosine_schedule(50)
    start = math.sqrt(2.0) * torch.erfinv(torch.linspace(-1, 1, 20_001, dtype=torch.float64)[1:-1:2])

    def share_beside(steps):
        x = ddim(two_modes(schedule), start, levels(50, steps), schedule)
        torch.testing.assert_close(x.flip(0), -x, rtol=0, atol=1e-9)
        return float(((x.abs() - 0.6).abs() > 0.3).double().mean())

    assert share_beside(10) == pytest.approx(beside, abs=0.003)
    assert share_beside(50) == pytest.approx(0.1 * beside, abs=0.002)


def test_all_levels_are_asked_in_their_order():
    asked = []
    predict = lambda x, k: asked.append(k) or torch.zeros_like(x)  # noqa: E731
    ddim(predict, torch.zeros(1), leading_levels(100, 10), SCHEDULE)
    ddpm(predict, torch.zeros(1), [2, 1, 0], SCHEDULE)
    assert asked == [90, 80, 70, 60, 50, 40, 30, 20, 10, 0, 2, 1, 0]


# EDM ------------------------------------------------------------------------------------------------------------------


def test_ddim_is_euler_where_the_variance_explodes():
    levels, start = karras_levels(7, 5.0, 0.01), 5.0 * doubles(9)
    D = denoiser(1.0, 0.5)
    slope = euler(lambda x, sigma: (x - D(x, sigma)) / sigma, start, levels)
    torch.testing.assert_close(edm_ddim(D, start, levels), slope, rtol=0, atol=1e-12)
    x, data, now, then = start, D(start, 5.0), 5.0, 2.0
    printed = (then / now) * x + (1 - then / now) * data
    torch.testing.assert_close(edm_step(x, data, now, then), printed, rtol=0, atol=1e-12)


def test_ddim_steps_of_both_paths_meet():
    """Exploding levels at the signal-to-noise ratios of a preserving schedule: the same data, x scaled by alpha."""
    levels = [80, 50, 20, 0]
    alphas, sigmas = zip(*(SCHEDULE.scales(k) for k in levels), strict=True)
    start = doubles(9)
    preserved = ddim(gaussian(1.0, 0.5), start, levels, SCHEDULE, clip=None)
    exploded = edm_ddim(
        denoiser(1.0, 0.5), start / alphas[0], [*(s / a for s, a in zip(sigmas, alphas, strict=True)), 0.0]
    )
    torch.testing.assert_close(exploded, preserved, rtol=0, atol=1e-12)


@pytest.mark.parametrize("levels", [karras_levels, exponential_levels, linear_levels])
def test_a_point_mass_is_reached_exactly_by_every_edm_sampler(levels):
    start = doubles(50)
    D = denoiser(0.7, 0.0)
    for found in (
        edm_ddim(D, start, [1.0, 0.0]),
        edm_ddim(D, start, levels(3, 1.0, 0.005)),
        edm_heun(D, start, levels(3, 1.0, 0.005)),
        edm_ancestral(D, start, levels(3, 1.0, 0.005)),
    ):
        torch.testing.assert_close(found, torch.full_like(found, 0.7), rtol=0, atol=1e-12)


def exact_flow(x, sigma, m, s):
    """Where the probability flow takes x at deviation sigma: (x - m) shrinks as sqrt(s^2 + sigma^2)."""
    return m + (x - m) * s / math.sqrt(s**2 + sigma**2)


def test_heun_is_of_second_order_and_ddim_of_first():
    start = 1.0 * torch.linspace(-1, 1, 21, dtype=torch.float64)
    exact = exact_flow(start, 1.0, 1.0, 0.5)

    def error(sampler, n):
        levels = [1.0 - i / n for i in range(n + 1)]
        return float((sampler(denoiser(1.0, 0.5), start, levels) - exact).abs().max())

    assert error(edm_ddim, 100) / error(edm_ddim, 400) == pytest.approx(4.0, rel=0.05)
    assert error(edm_heun, 100) / error(edm_heun, 400) == pytest.approx(16.0, rel=0.1)
    assert error(edm_heun, 100) < 2e-4 < error(edm_ddim, 100)


def test_ancestral_deviations_add_up_to_the_next_level():
    down, up = ancestral_deviations(1.0, 0.5, 1.0)
    assert up == pytest.approx(math.sqrt(0.25 * 0.75))
    assert down**2 + up**2 == pytest.approx(0.25)
    assert ancestral_deviations(1.0, 0.5, 0.0) == (0.5, 0.0)
    assert ancestral_deviations(1.0, 0.0, 1.0) == (0.0, 0.0)
    assert ancestral_deviations(1.0, 0.5, 10.0) == (0.0, 0.5), "never more noise than the level holds"


def test_the_ancestral_sampler_without_noise_is_ddim_and_with_it_samples_the_gaussian():
    levels, start = karras_levels(60, 3.0, 0.01), 3.0 * doubles(100_000)
    D = denoiser(1.0, 0.5)
    assert torch.equal(edm_ancestral(D, start, levels, eta=0.0), edm_ddim(D, start, levels))
    out = edm_ancestral(D, start + 1.0, levels)
    assert float(out.mean()) == pytest.approx(1.0, abs=0.01)
    assert float(out.std()) == pytest.approx(0.5, abs=0.03)


def test_the_ancestral_sampler_takes_the_printed_steps_with_the_noise_it_is_given():
    levels, x, z = [1.0, 0.5, 0.1, 0.0], 3.0 * doubles(5), doubles(2, 5)
    D, draws = denoiser(0.2, 0.3), iter(z)
    found = edm_ancestral(D, x, levels, noise=lambda x: next(draws), clip=0.4)
    for now, then, i in ((1.0, 0.5, 0), (0.5, 0.1, 1)):
        up = min(then, math.sqrt(then**2 * (now**2 - then**2) / now**2))
        down = math.sqrt(then**2 - up**2)
        x = (x + (x - D(x, now)) / now * (down - now) + up * z[i]).clamp(-0.4, 0.4)
    torch.testing.assert_close(found, D(x, 0.1).clamp(-0.4, 0.4), rtol=0, atol=1e-12)


def test_edm_samplers_bound_x_after_every_step():
    levels, start = [5.0, 1.0, 0.5, 0.0], 5.0 * doubles(9)
    D = denoiser(3.0, 0.5)
    by_ddim = by_heun = start
    for now, then in pairwise(levels):
        by_ddim = edm_step(by_ddim, D(by_ddim, now), now, then).clamp(-0.4, 0.4)
        by_heun = edm_heun_step(D, by_heun, now, then).clamp(-0.4, 0.4)
    assert torch.equal(edm_ddim(D, start, levels, clip=0.4), by_ddim)
    assert torch.equal(edm_heun(D, start, levels, clip=0.4), by_heun)
    assert torch.equal(edm_ancestral(D, start, levels, eta=0.0, clip=0.4), by_ddim)


# Warm starts ----------------------------------------------------------------------------------------------------------


def test_the_guess_is_the_last_sample_one_step_on():
    """Self-check 12."""
    chunk = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1).repeat(2, 1, 3)
    assert shifted(chunk)[:, :, 0].tolist() == [[2.0, 3.0, 4.0, 4.0]] * 2


def test_a_point_masss_own_chunk_is_a_fixed_point_of_real_time_iteration():
    """Self-check of section 7: a resting observation and a deterministic expert."""
    target = torch.full((2, 4, 3), 0.3, dtype=torch.float64)
    found = ddpm(gaussian(0.3, 0.0), shifted(target), [2, 1, 0], SCHEDULE)
    torch.testing.assert_close(found, target, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("levels", "shares"), [([2, 1, 0], (0.57, 0.25, 0.08, 0.03)), (range(20, -1, -1), (0.98, 0.92, 0.74, 0.56))]
)
def test_a_warm_start_goes_part_of_the_way_to_what_the_observation_asks_for(levels, shares):
    """The less, the wider the data's spread is under one observation (docs/algorithms/diffusion.md)."""
    guess = torch.tensor([0.0, 0.1], dtype=torch.float64)
    for spread, share in zip((0.05, 0.1, 0.2, 0.3), shares, strict=True):
        found = ddpm(gaussian(0.0, spread), guess, levels, SCHEDULE, noise=torch.zeros_like)
        assert 1.0 - float(found[1] - found[0]) / 0.1 == pytest.approx(share, abs=0.006)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "heun", "ancestral"])
def test_every_sampler_is_one_graph(sampler):
    """No step of a loop depends on values: torch.compile traces it whole, torch.export too."""
    weight = torch.randn(2, 2) / 4

    class Loop(torch.nn.Module):
        def forward(self, x, z):
            draws = iter(z.unbind(0))

            def predict(x, level):
                return (x * level) @ weight

            def noise(x):
                return next(draws)

            if sampler == "ddpm":
                return ddpm(predict, x, [3, 1, 0], SCHEDULE, noise=noise)
            if sampler == "ddim":
                return ddim(predict, x, [40, 20, 0], SCHEDULE)
            if sampler == "heun":
                return edm_heun(predict, x, [1.0, 0.5, 0.0])
            return edm_ancestral(predict, x, [1.0, 0.5, 0.1, 0.0], noise=noise)

    x, z = torch.randn(3, 4, 2), torch.randn(2, 3, 4, 2)
    exported = torch.export.export(Loop(), (x, z)).module()
    torch.testing.assert_close(exported(x, z), Loop()(x, z))
    compiled = torch.compile(Loop(), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, z), Loop()(x, z))

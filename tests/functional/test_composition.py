"""Composed Gaussians, whose scores are known: sections 6.4, 6.6, 12.2 and self-checks of the specification."""

import math

import pytest
import torch

from ctrlrl.functional.composition import (
    and_along_flow,
    and_weights,
    and_weights_flow,
    best_weight,
    combined,
    convex,
    divergence,
    guided,
    hutchinson,
    log_density_change,
    mixing_error,
    or_rule,
    or_weights,
    row_weights,
    superpose,
    superposed,
)
from ctrlrl.functional.predictions import ends, prediction
from ctrlrl.functional.samplers import ddim, ddim_step, ddpm, posterior_mean, posterior_std
from ctrlrl.functional.schedules import cosine_schedule

SCHEDULE = cosine_schedule(100)
FINE = cosine_schedule(1000)


def doubles(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def gaussian(m, s, schedule=SCHEDULE, kind="noise"):
    """The exact network of N(m, s^2); m and s may differ by coordinate."""

    def predict(x, k):
        alpha, sigma = schedule.scales(k)
        data = (alpha * s**2 * x + sigma**2 * m) / (alpha**2 * s**2 + sigma**2)
        return prediction(kind, *ends("data", data, x, alpha, sigma), alpha, sigma)

    return predict


def moments(step, schedule):
    """Mean and variance after all steps x -> step(x, k) + sd_k z from N(0, 1); step is affine and gives (x', sd_k)."""
    mean, var = 0.0, 1.0
    for k in reversed(range(len(schedule.beta))):
        x, sd = step(torch.tensor([0.0, 1.0], dtype=torch.float64), k)
        low, high = x.tolist()
        mean, var = low + (high - low) * mean, (high - low) ** 2 * var + sd**2
    return mean, var


# Convex and product form ----------------------------------------------------------------------------------------------


def broken(x, level):
    return torch.full_like(x, math.nan)


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0)])
def test_weights_one_and_zero_reproduce_the_parent_to_the_bit(weights):
    """Self-check 1: the other parent says NaN."""
    parent = gaussian(0.3, 0.4)
    models = (parent, broken) if weights[0] else (broken, parent)
    start = torch.randn(5, 4, 2)

    def run(predict, sampler):
        torch.manual_seed(4)
        return sampler(predict, start, range(99, -1, -1), SCHEDULE)

    for sampler in (ddpm, ddim):
        assert torch.equal(run(convex(models, weights), sampler), run(parent, sampler))


def test_guidance_of_one_and_zero_is_the_conditional_and_the_unconditional_model_to_the_bit():
    """Self-check 14."""
    x, a, b = torch.randn(7, 3), gaussian(0.3, 0.4), gaussian(-0.2, 1.0)
    assert torch.equal(guided(broken, [a], [1.0])(x, 50), a(x, 50))
    assert torch.equal(guided(b, [broken], [0.0])(x, 50), b(x, 50))
    stronger = guided(b, [a], [1.5])(x, 50)
    torch.testing.assert_close(stronger, b(x, 50) + 1.5 * (a(x, 50) - b(x, 50)), rtol=0, atol=1e-5)


def test_the_product_form_adds_what_every_condition_changes():
    x, one, two, free = doubles(7, 3), gaussian(0.3, 0.4), gaussian(-0.2, 1.0), gaussian(0.0, 2.0)
    printed = free(x, 50) + 0.7 * (one(x, 50) - free(x, 50)) + 0.9 * (two(x, 50) - free(x, 50))
    torch.testing.assert_close(guided(free, [one, two], [0.7, 0.9])(x, 50), printed, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["data", "v", "score", "velocity"])
def test_mixing_in_any_form_gives_the_same_step(kind):
    """Self-check 2."""
    x, w = doubles(9), (0.3, 0.7)
    for k in (0, 40, 99):
        alpha, sigma = SCHEDULE.scales(k)
        mixes = [convex([gaussian(-1.0, 0.5, kind=q), gaussian(1.0, 1.0, kind=q)], w)(x, k) for q in ("noise", kind)]
        steps = [ddim_step(*ends(q, p, x, alpha, sigma), 0.9, 0.4) for q, p in zip(("noise", kind), mixes, strict=True)]
        torch.testing.assert_close(steps[1], steps[0], rtol=1e-10, atol=1e-10)


def mixed_gaussian(w, alpha, sigma):
    """Mean and variance whose score is the mix of those of N(-1, .5^2) and N(1, 1) diffused to (alpha, sigma)."""
    variances = (alpha**2 * 0.25 + sigma**2, alpha**2 + sigma**2)
    precision = w / variances[0] + (1 - w) / variances[1]
    return alpha * (-w / variances[0] + (1 - w) / variances[1]) / precision, 1.0 / precision


def test_a_convex_mix_of_gaussian_scores_is_the_score_of_the_mean_precision():
    """Self-check 3, and the composed field of 4."""
    assert mixed_gaussian(0.5, 1.0, 0.0) == pytest.approx((-0.6, 0.4))
    half = math.sqrt(0.5)
    assert mixed_gaussian(0.5, half, half) == pytest.approx((-0.1632, 0.7692), abs=5e-5)
    assert half * -0.6 == pytest.approx(-0.4243, abs=5e-5), "the diffused product is another one"
    x = doubles(9)
    for k in (0, 40, 99):
        mean, var = mixed_gaussian(0.3, *SCHEDULE.scales(k))
        score = convex([gaussian(-1.0, 0.5, kind="score"), gaussian(1.0, 1.0, kind="score")], (0.3, 0.7))(x, k)
        torch.testing.assert_close(score, -(x - mean) / var, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("parents", "w", "printed"),
    [
        (((-1.0, 0.5), (1.0, 1.0)), 0.5, (-0.2259, 0.5)),
        (((-1.0, 0.5), (1.0, 1.0)), 0.3, (0.199307, 0.659754)),
        (((-1.0, 0.5), (1.0, 0.5)), 0.5, (0.0, 0.25)),
    ],
)
def test_the_probability_flow_of_a_mix_has_the_geometric_mean_of_the_deviations(parents, w, printed):
    """Self-check 4: not the product of the densities, but for equal variances."""
    schedule = cosine_schedule(4000)
    mix = convex([gaussian(m, s, schedule) for m, s in parents], (w, 1 - w))

    def step(x, k):
        return ddim_step(*ends("noise", mix(x, k), x, *schedule.scales(k)), *schedule.scales(k - 1)), 0.0

    assert moments(step, schedule) == pytest.approx(printed, abs=2e-3)


def test_ancestral_sampling_of_a_mix_lies_between_flow_and_product():
    """Self-check 4: variance .4620 and mean -.3333 with many steps."""
    schedule = cosine_schedule(4000)
    mix = convex([gaussian(-1.0, 0.5, schedule), gaussian(1.0, 1.0, schedule)], (0.5, 0.5))

    def step(x, k):
        data, _ = ends("noise", mix(x, k), x, *schedule.scales(k))
        return posterior_mean(x, data, schedule, k), posterior_std(schedule, k)

    assert moments(step, schedule) == pytest.approx((-0.3333, 0.4620), abs=2e-3)


def test_impossible_weights_are_refused():
    model = gaussian(0.0, 1.0)
    with pytest.raises(ValueError, match=r"at least 0 and add up to 1, got \[0.6, 0.6\]"):
        convex([model, model], [0.6, 0.6])
    with pytest.raises(ValueError, match="at least 0 and add up to 1"):
        convex([model, model], [1.5, -0.5])
    with pytest.raises(ValueError, match="at least 0 and add up to 1"):
        convex([model, model], [math.nan, 0.5])
    with pytest.raises(ValueError, match="2 models need as many weights, got 1"):
        combined([model, model], [1.0])
    with pytest.raises(ValueError, match="at least one weight"):
        combined([model], [0.0])


def test_rows_that_some_models_leave_out_are_the_others():
    covers = torch.tensor([[True, True, True, False], [False, True, True, False], [False, False, True, True]])
    found = row_weights(torch.tensor([0.2, 0.3, 0.5]), covers)
    wanted = torch.tensor([[1.0, 0.4, 0.2, 0.0], [0.0, 0.6, 0.3, 0.0], [0.0, 0.0, 0.5, 1.0]])
    torch.testing.assert_close(found, wanted)


# Prop. 4.1 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("b1", "b2", "printed", "weight"),
    [((1.0, 0.0), (-1.0, 0.0), (4.0, -4.0, 1.0), 0.5), ((1.0, 0.0), (3.0, 0.0), (4.0, -12.0, 9.0), 1.5)],
)
def test_the_mixing_error_of_opposite_and_of_like_biases(b1, b2, printed, weight):
    """Self-check 15: biases that oppose cancel at one half; like ones have no gain inside (0, 1)."""
    a, b, c = mixing_error(torch.tensor(b1), torch.tensor(b2))
    assert (float(a), float(b), float(c)) == printed
    w = best_weight(a, b)
    assert float(w) == weight
    assert float(a * w**2 + b * w + c) == 0.0


def test_the_mixing_error_has_the_propositions_terms_in_the_mean():
    b1, b2 = torch.tensor([0.4, -0.2, 0.1]).double(), torch.tensor([-0.3, 0.3, 0.5]).double()
    shared, one, two = 0.5 * doubles(400_000, 3), 0.7 * doubles(400_000, 3), 0.3 * doubles(400_000, 3)
    n1, n2, cross = 3 * (0.25 + 0.49), 3 * (0.25 + 0.09), 3 * 0.25
    a, b, c = (x.mean() for x in mixing_error(b1 + shared + one, b2 + shared + two))
    gap = b1 - b2
    assert float(a) == pytest.approx(float(gap @ gap) + n1 + n2 - 2 * cross, rel=0.01)
    assert float(b) == pytest.approx(float(2 * b2 @ gap) - 2 * n2 + 2 * cross, rel=0.03)
    assert float(c) == pytest.approx(float(b2 @ b2) + n2, rel=0.01)
    w = best_weight(a, b)
    at_best = a * w**2 + b * w + c
    torch.testing.assert_close(c - at_best, b**2 / (4 * a))
    torch.testing.assert_close(a + b + c - at_best, (2 * a + b) ** 2 / (4 * a))


# Superposition --------------------------------------------------------------------------------------------------------


def ancestral(rule, parents, x, schedule=SCHEDULE):
    models = [gaussian(m, s, schedule) for m, s in parents]
    return superpose(models, rule, x, range(len(schedule.beta) - 1, -1, -1), schedule, clip=None)


def log_normal(x, m, s):
    return (-0.5 * ((x - m) / s).square() - torch.as_tensor(s).log()).flatten(1).sum(-1)


LEFT, RIGHT = torch.tensor([-2.0, 0.0]).double(), torch.tensor([2.0, 0.0]).double()


def always_half(means, log_density, z, beta):
    return torch.full_like(log_density, 0.5)


@pytest.mark.parametrize(
    ("rule", "schedule", "measured"),
    [(always_half, SCHEDULE, 0.12), (always_half, FINE, 0.012), (or_rule, SCHEDULE, 0.6)],
    ids=["half-100", "half-1000", "or-100"],
)
def test_the_tracked_log_densities_differ_as_the_true_ones_up_to_the_measured_error(rule, schedule, measured):
    """Self-check 8 and 6.6, with the forward variance."""
    x, found = ancestral(rule, [(LEFT, 0.5), (RIGHT, 0.5)], doubles(1000, 2), schedule)
    exact = log_normal(x, LEFT, 0.5) - log_normal(x, RIGHT, 0.5)
    assert float((found[0] - found[1] - exact).abs().mean()) == pytest.approx(measured, rel=0.12)


def test_small_steps_change_the_log_densities_as_itos_estimator_says():
    """6.6, general form, in units of beta dt: <dx - x / 2, score> - |score|^2 / 2, and terms common to all models."""
    schedule, k, x = cosine_schedule(4000), 2000, doubles(200, 2)
    scores = torch.stack([gaussian(m, s, schedule, "score")(x, k) for m, s in ((LEFT, 0.5), (RIGHT, 0.8))])
    scales, beta = schedule.scales(k), schedule.beta[k]
    means = torch.stack([posterior_mean(x, ends("score", s, x, *scales)[0], schedule, k) for s in scores])
    step = 0.3 * means[0] + 0.7 * means[1] + math.sqrt(beta) * doubles(200, 2) - x
    found = log_density_change(x + step, means, beta)
    ito = ((step - 0.5 * beta * x) * scores).sum(-1) - 0.5 * beta * scores.square().sum(-1)
    assert float((ito[0] - ito[1]).abs().mean()) > 0.02
    torch.testing.assert_close(found[0] - found[1], ito[0] - ito[1], rtol=0, atol=1e-3)


def test_or_samples_both_modes_alike():
    """Self-check 6."""
    x, _ = ancestral(or_rule, [(LEFT, 0.5), (RIGHT, 0.5)], doubles(4000, 2))
    near_left = (x - LEFT).norm(dim=-1) < 1.8
    near_right = (x - RIGHT).norm(dim=-1) < 1.8
    assert float((near_left | near_right).double().mean()) > 0.98
    assert float(near_left.double().mean()) == pytest.approx(0.5, abs=0.04)


def test_superposed_twins_are_one_of_them():
    """Self-check 6: identical parents, weight one half."""
    start = doubles(50, 2)
    outs = []
    for rule in (or_rule, and_weights, always_half):
        torch.manual_seed(5)
        outs.append(ancestral(rule, [(LEFT, 0.5), (LEFT, 0.5)], start)[0])
    torch.manual_seed(5)
    outs.append(ancestral(lambda means, *_: torch.ones_like(means[:, :, 0]), [(LEFT, 0.5)], start)[0])
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0], rtol=0, atol=1e-9)


def test_and_samples_where_the_densities_are_equal():
    """Self-check 7: the first coordinate collapses to 0, the second keeps its spread."""
    x, log_density = ancestral(and_weights, [(LEFT, 0.5), (RIGHT, 0.5)], doubles(2000, 2))
    assert float(x[:, 0].std()) < 0.01
    assert float(x[:, 0].mean()) == pytest.approx(0.0, abs=0.01)
    assert float(x[:, 1].std()) == pytest.approx(0.5, abs=0.05)
    torch.testing.assert_close(log_density[0], log_density[1], rtol=1e-9, atol=1e-9)


def test_and_of_two_has_its_printed_weight():
    means, log_density, z, beta = doubles(2, 6, 3), doubles(2, 6), doubles(6, 3), 0.3
    gap = means[0] - means[1]
    size = gap.square().sum(-1)
    first = 0.5 - math.sqrt(beta) * (z * gap).sum(-1) / size - beta * (log_density[0] - log_density[1]) / size
    torch.testing.assert_close(and_weights(means, log_density, z, beta), torch.stack((first, 1 - first)))


def test_and_of_three_equals_all_three_log_densities_in_every_step():
    means, log_density, z, beta = doubles(3, 6, 4, 2), doubles(3, 6), doubles(6, 4, 2), 0.3
    weights = and_weights(means, log_density, z, beta)
    torch.testing.assert_close(weights.sum(0), torch.ones(6).double())
    after = log_density + log_density_change(superposed(means, weights) + math.sqrt(beta) * z, means, beta)
    torch.testing.assert_close(after, after[:1].expand_as(after), rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(20, 1), (20, 4, 2)])
@pytest.mark.parametrize("places", [(-0.3, -0.3, 0.3), (-0.3, 0.1, 0.3), (0.2, 0.2, 0.2)])
def test_and_of_three_in_one_line_samples_all_the_same(places, shape):
    """Twins, models in one line and numbers alone leave fewer directions than there are equations."""
    torch.manual_seed(6)
    models, levels = [gaussian(m, 0.4) for m in places], range(99, -1, -1)
    x, log_density = superpose(models, and_weights, torch.randn(*shape), levels, SCHEDULE)
    assert float(x.abs().max()) < 3.0
    if places[0] == places[1]:
        torch.testing.assert_close(log_density[0], log_density[2], rtol=0, atol=1e-2)


def test_models_that_agree_are_superposed_as_one_of_them_whatever_their_weights():
    """Where models agree, AND cannot change how far their log densities are apart, and its weights explode."""
    mean, z = torch.rand(6, 4, 2), torch.randn(6, 4, 2)
    means, log_density = torch.stack((mean, mean)), torch.stack((torch.zeros(6), torch.ones(6)))
    weights = and_weights(means, log_density, z, 0.01)
    assert float(weights.abs().min()) > 1e6
    assert torch.equal(superposed(means, weights), mean)


def test_or_weights_follow_temperature_and_bias():
    log_density = torch.tensor([[0.0, 2.0], [1.0, 0.0]])
    torch.testing.assert_close(or_weights(log_density).sum(0), torch.ones(2))
    assert float(or_weights(log_density)[1, 0]) == pytest.approx(math.e / (1 + math.e))
    assert float(or_weights(log_density, temperature=2.0)[1, 0]) == pytest.approx(math.e**2 / (1 + math.e**2))
    biased = or_weights(log_density, bias=torch.tensor([[1.0], [0.0]]))
    assert float(biased[1, 0]) == pytest.approx(0.5)


def flow_and(parents, x, schedule, **how):
    models = [gaussian(m, s, schedule) for m, s in parents]
    return ddim(and_along_flow(models, schedule, **how), x, range(len(schedule.beta) - 1, -1, -1), schedule, clip=None)


def test_and_along_the_flow_is_unbiased_where_curvatures_differ_and_the_stochastic_one_is_not():
    """6.6, caution: N(-1, .5^2) and N(1, 1): a true difference of log 2 against about 4e-4."""
    parents = [(-1.0, 0.5), (1.0, 1.0)]

    def difference(x):
        return log_normal(x, *parents[0]) - log_normal(x, *parents[1])

    stochastic, tracked = ancestral(and_weights, parents, doubles(300, 1), FINE)
    assert float((tracked[0] - tracked[1]).abs().max()) < 1e-6
    assert float(difference(stochastic).mean().abs()) == pytest.approx(math.log(2.0), abs=0.02)
    start = doubles(300, 1)
    exact = flow_and(parents, start, FINE)
    assert float(difference(exact).abs().mean()) < 2e-3
    one_dimension = flow_and(parents, start, FINE, probe=lambda x: torch.randn_like(x).sign())
    torch.testing.assert_close(one_dimension, exact, rtol=0, atol=1e-9)


def test_superposition_takes_every_kind_of_prediction_and_clips_what_each_model_predicts():
    noise, start, levels = doubles(3, 5, 2), doubles(5, 2), [20, 10, 0]

    def run(kind, clip):
        draws = iter(noise)
        models = [gaussian(m, 0.5, kind=kind) for m in (LEFT, RIGHT)]
        return superpose(models, or_rule, start, levels, SCHEDULE, kind=kind, clip=clip, noise=lambda x: next(draws))

    torch.testing.assert_close(run("v", None), run("noise", None), rtol=0, atol=1e-9)
    free, clip = run("noise", None)[0], run("noise", 0.1)[0]
    beta = SCHEDULE.beta[0]
    assert float(free.abs().max()) > 1.0
    assert float((clip - math.sqrt(beta) * noise[2]).abs().max()) <= 0.1 + 1e-12


def test_the_flows_weight_is_the_printed_one():
    noises, slopes, sigma = doubles(2, 6, 3), doubles(2, 6), 0.7
    scaled = -noises  # sigma * score
    gap = scaled[0] - scaled[1]
    first = (sigma * (-(slopes[0] - slopes[1])) + (scaled[0] * gap).sum(-1)) / gap.square().sum(-1)
    torch.testing.assert_close(and_weights_flow(noises, slopes, sigma)[0], first)


def test_divergences_of_a_linear_field_are_its_trace():
    matrix = doubles(6, 6)

    def field(x):
        return (x.flatten(1) @ matrix).view_as(x)

    x = doubles(5, 3, 2)
    value, found = divergence(field, x)
    torch.testing.assert_close(value, field(x))
    torch.testing.assert_close(found, matrix.trace().expand(5))
    probe = doubles(5, 3, 2)
    flat = probe.flatten(1)
    _, estimate = hutchinson(field, x, probe)
    torch.testing.assert_close(estimate, ((flat @ matrix) * flat).sum(-1))
    with torch.no_grad():
        many = hutchinson(field, doubles(40_000, 3, 2), doubles(40_000, 3, 2).sign())[1]
    assert float(many.mean()) == pytest.approx(float(matrix.trace()), abs=0.1)
    assert not many.requires_grad


def test_superposing_one_model_is_refused():
    with pytest.raises(ValueError, match="at least 2 models, got 1"):
        and_weights(doubles(1, 6, 3), doubles(1, 6), doubles(6, 3), 0.3)


# Half-blind experts (12.2) --------------------------------------------------------------------------------------------


PRINTED = {0.0: 0.22, 0.1: 0.29, 0.2: 0.37, 0.3: 0.46, 0.4: 0.53, 0.5: 0.56, 0.6: 0.53, 0.8: 0.38, 1.0: 0.22}


def half_blind(predict_of, n=20_000):
    """Share of samples whose largest error is below .4, with 400 levels uniform in alpha_bar."""
    goal, x = doubles(n, 2), doubles(n, 2)
    wide = math.sqrt(1.01)
    kept = [1.0 - (i + 0.5) / 400 for i in range(400)]
    scales = [(math.sqrt(ab), math.sqrt(1 - ab)) for ab in kept] + [(1.0, 0.0)]

    def expert(column):
        m = torch.zeros_like(goal)
        m[:, column] = goal[:, column]
        s = torch.tensor([wide, wide]).double()
        s[column] = 0.1
        return lambda x, i: noise_of(x, i, m, s)

    def noise_of(x, i, m, s):
        alpha, sigma = scales[i]
        data = (alpha * s**2 * x + sigma**2 * m) / (alpha**2 * s**2 + sigma**2)
        return (x - alpha * data) / sigma

    predict = predict_of(expert(0), expert(1), lambda x, i: noise_of(x, i, 0.0, wide))
    for i in reversed(range(400)):
        x = ddim_step(*ends("noise", predict(x, i), x, *scales[i]), *(scales[i - 1] if i else (1.0, 0.0)))
    return float(((x - goal).abs().amax(-1) < 0.4).double().mean())


@pytest.mark.parametrize("w", PRINTED)
def test_two_half_blind_experts_succeed_together_as_printed(w):
    found = half_blind(lambda one, two, free: convex([one, two], (w, 1.0 - w)))
    assert found == pytest.approx(PRINTED[w], abs=0.02)


def test_the_product_form_of_half_blind_experts_always_succeeds():
    assert half_blind(lambda one, two, free: guided(free, [one, two], [1.0, 1.0])) > 0.995

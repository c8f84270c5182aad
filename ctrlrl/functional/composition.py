"""Several generative models sampled as one: what is mixed, and with which weights.

Convex and product forms: GPC, arXiv:2510.01068. Superposition: Skreta et al., arXiv:2412.17762; its discrete form here
is for the ancestral sampler. M models lie on axis 0, rows of a batch B on the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ctrlrl.functional.checks import same_shape
from ctrlrl.functional.predictions import ends
from ctrlrl.functional.samplers import Noise, PredictStep, clipped, posterior_mean
from ctrlrl.functional.schedules import Schedule

Model = Callable[[Tensor, Any], Tensor]  # (x, level) -> prediction
Rule = Callable[[Tensor, Tensor, Tensor, float], Tensor]  # (means, log density, noise, beta) -> weights
TINY = 1e-12


def combined(models: Sequence[Model], weights: Sequence[float]) -> Model:
    """The sum of weight * prediction; a model of weight exactly 0 is not asked, so nothing of it leaks in."""
    if len(models) != len(weights):
        raise ValueError(f"{len(models)} models need as many weights, got {len(weights)}")
    used = [(model, weight) for model, weight in zip(models, weights, strict=True) if weight != 0.0]
    if not used:
        raise ValueError(f"at least one weight must differ from 0, got {list(weights)}")

    def predict(x: Tensor, level: Any) -> Tensor:
        parts = [model(x, level) if weight == 1.0 else weight * model(x, level) for model, weight in used]
        return sum(parts[1:], parts[0])

    return predict


def convex(models: Sequence[Model], weights: Sequence[float]) -> Model:
    """GPC's mixture of predictions of one kind at one (x, level): weights >= 0 that add up to 1. Eq. 7."""
    if not (all(w >= 0.0 for w in weights) and abs(math.fsum(weights) - 1.0) <= 1e-6):
        raise ValueError(f"convex weights must be at least 0 and add up to 1, got {list(weights)}")
    return combined(models, weights)


def row_weights(weights: Tensor, covers: Tensor) -> Tensor:
    """Weights [M] of models that speak of some rows only, covers [M, H] bool, to weights [M, H] that add up to 1.

    A row of which one model alone speaks is that model's. GPC, appendix on unequal horizons.
    """
    found = weights.unsqueeze(1) * covers
    return found / found.sum(0)


def guided(unconditional: Model, conditional: Sequence[Model], weights: Sequence[float]) -> Model:
    """prediction_0 + sum_i weight_i (prediction_i - prediction_0): the product form, GPC eq. 5.

    One model is classifier-free guidance, arXiv:2207.12598: weight 1 is the conditional model and 0 the unconditional
    one, to the bit.
    """
    return combined((unconditional, *conditional), (1.0 - math.fsum(weights), *weights))


def mixing_error(error_1: Tensor, error_2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A, B and C of ||w error_1 + (1 - w) error_2||^2 = A w^2 + B w + C, summed over the last axis: [...] each.

    error_i: [..., D], a model's score less the true one. Their means over samples are GPC's, Prop. 4.1.
    """
    same_shape("mixing_error", error_1=error_1, error_2=error_2)
    gap = error_1 - error_2
    return gap.square().sum(-1), 2.0 * (error_2 * gap).sum(-1), error_2.square().sum(-1)


def best_weight(a: Tensor, b: Tensor) -> Tensor:
    """Where A w^2 + B w + C is least: -B / (2A). Mixing beats both models iff it lies in (0, 1). GPC, Prop. 4.1."""
    return -b / (2.0 * a)


# Superposition: weights that are new at every step --------------------------------------------------------------------


def superpose(
    models: Sequence[PredictStep],
    rule: Rule,
    x: Tensor,
    levels: Sequence[int],
    schedule: Schedule,
    *,
    kind: str = "noise",
    clip: float | None = 1.0,
    noise: Noise = torch.randn_like,
) -> tuple[Tensor, Tensor]:
    """Ancestral sampling from x [B, ...] under weights that a rule gives anew at every level.

    rule: such as `or_rule` or `and_weights`. Also returned: what the steps added to each model's log density [M, B], up
    to a common term. The noise has the forward variance, at level 0 too, where it is smallest: the log densities, and
    AND's weights, are only right for that one. kind, clip: as `ddpm` has them.
    """
    log_density = x.new_zeros(len(models), x.shape[0])
    for k in levels:
        scales, beta, z = schedule.scales(k), schedule.beta[k], noise(x)
        data = [clipped(ends(kind, model(x, k), x, *scales)[0], clip) for model in models]
        means = torch.stack([posterior_mean(x, d, schedule, k) for d in data])
        x = superposed(means, rule(means, log_density, z, beta)) + math.sqrt(beta) * z
        log_density = log_density + log_density_change(x, means, beta)
    return x, log_density


def superposed(means: Tensor, weights: Tensor) -> Tensor:
    """sum_i weights[i] means[i] for weights of sum 1: [M, B, ...] and [M, B] -> [B, ...].

    As steps away from the last one, because AND's weights are huge where models nearly agree.
    """
    return means[-1] + ((means[:-1] - means[-1]) * _beside(weights[:-1], means)).sum(0)


def log_density_change(x_next: Tensor, means: Tensor, beta: float) -> Tensor:
    """What a step to x_next adds to every model's log density, up to a common term: [M, B] nats.

    -||x_next - mean_i||^2 / (2 beta), with the model's posterior means [M, B, ...] and the forward variance beta_k, not
    the smaller posterior variance, by Bayes' rule. x_next: [B, ...].
    """
    return -(x_next - means).square().flatten(2).sum(-1) / (2.0 * beta)


def or_weights(log_density: Tensor, *, temperature: float = 1.0, bias: Tensor | float = 0.0) -> Tensor:
    """Softmax over the models of temperature * log density + bias: samples of any of them. [M, B] -> [M, B]."""
    return torch.softmax(temperature * log_density + bias, 0)


def or_rule(means: Tensor, log_density: Tensor, noise: Tensor, beta: float) -> Tensor:
    """`or_weights` of the log densities so far, for `superpose`."""
    return or_weights(log_density)


def and_weights(means: Tensor, log_density: Tensor, noise: Tensor, beta: float) -> Tensor:
    """Weights, of sum 1, after whose step with this noise all models have one log density: [M, B].

    means: posterior means [M, B, ...]. log_density: so far [M, B]. noise: standard normal [B, ...], added with variance
    beta. Weights may lie outside [0, 1]. Biased where the models' curvatures differ along the difference of their
    scores; `and_weights_flow` is not.
    """
    gap, rest = _gaps(means), log_density[:-1] - log_density[-1]
    gain = -beta * rest - math.sqrt(beta) * _dot(gap, noise)
    return _around_equal(gap, gain + 0.5 * _dot(gap, gap))


def and_along_flow(
    models: Sequence[PredictStep],
    schedule: Schedule,
    *,
    kind: str = "noise",
    probe: Noise | None = None,
    least: float = TINY,
) -> PredictStep:
    """The noise prediction of all models' AND, for `ddim`: deterministic, and without the bias of `and_weights`.

    probe: makes random vectors for `hutchinson`'s estimate, or None for exact divergences, a backward pass an element.
    least: as `and_weights_flow` has it.
    """

    def predict(x: Tensor, k: int) -> Tensor:
        alpha, sigma = schedule.scales(k)

        def noise_of(model: PredictStep) -> Callable[[Tensor], Tensor]:
            return lambda y: ends(kind, model(y, k), y, alpha, sigma)[1]

        fields = [noise_of(model) for model in models]
        found = [divergence(f, x) if probe is None else hutchinson(f, x, probe(x)) for f in fields]
        noises, slopes = (torch.stack(part) for part in zip(*found, strict=True))
        return superposed(noises, and_weights_flow(noises, slopes, sigma, least=least))

    return predict


def and_weights_flow(noises: Tensor, divergences: Tensor, sigma: float, *, least: float = TINY) -> Tensor:
    """Weights, of sum 1, under which all models' log densities change alike along the probability flow: [M, B].

    noises: the models' noise predictions at one x, [M, B, ...], -sigma times their scores. divergences: of the noise
    predictions, [M, B] (`divergence`, `hutchinson`). sigma: the level's. least: squared distance of two predictions
    below which their weights fade to equal ones; 1e-4 for float32, whose divergences differ by their rounding at the
    noisiest levels. The densities drift apart by about its root there.
    """
    gap = _gaps(noises)
    return _around_equal(gap, _dot(gap, noises[:-1]) - sigma * (divergences[:-1] - divergences[-1]), least)


def hutchinson(field: Callable[[Tensor], Tensor], x: Tensor, probe: Tensor) -> tuple[Tensor, Tensor]:
    """field(x) [B, ...] and an estimate [B] of its divergence: probe^T J probe, exact in the mean.

    probe: of the shape of x, independent entries of mean 0 and variance 1. Rows of x must not see each other. No
    gradient passes through either.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        value = field(x)
        (product,) = torch.autograd.grad(value, x, probe)
    return value.detach(), (product * probe).flatten(1).sum(-1)


def divergence(field: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """field(x) [B, ...] and its exact divergence [B], by one backward pass an element of a row."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        value = field(x)
        flat = value.flatten(1)
        total = torch.zeros_like(flat[:, 0])
        for i in range(flat.shape[1]):
            (slope,) = torch.autograd.grad(flat[:, i].sum(), x, retain_graph=True)
            total = total + slope.flatten(1)[:, i]
    return value.detach(), total.detach()


def _gaps(values: Tensor) -> Tensor:
    """[M, B, ...] to the differences from the last model, [M - 1, B, ...]."""
    if values.shape[0] < 2:
        raise ValueError(f"superposition needs at least 2 models, got {values.shape[0]}")
    return values[:-1] - values[-1]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(2).sum(-1)


def _around_equal(gap: Tensor, wanted: Tensor, least: float = TINY) -> Tensor:
    """Weights [M, B] with sum_j weight_j <gap_j, gap_i> = wanted_i [M - 1, B] and sum 1; equal for equal models.

    Where the gaps do not span M - 1 directions, as close to that as can be, and as close to equal. Squared gaps below
    `least` count as none.
    """
    n_models = gap.shape[0] + 1
    flat = gap.flatten(2).transpose(0, 1)
    gram = flat @ flat.transpose(1, 2)  # [B, M - 1, M - 1]
    lack = wanted.T - gram.sum(-1) / n_models
    if n_models == 2:
        change = lack / gram[..., 0].clamp(min=least)
    else:
        within = 64.0 * torch.finfo(gram.dtype).eps
        inverse = torch.linalg.pinv(gram, atol=least, rtol=within, hermitian=True)
        change = (inverse @ lack.unsqueeze(-1)).squeeze(-1)
    first = change.T + 1.0 / n_models
    return torch.cat((first, 1.0 - first.sum(0, keepdim=True)))


def _beside(weights: Tensor, values: Tensor) -> Tensor:
    """[M, B] with the axes that it needs to broadcast against [M, B, ...]."""
    return weights.reshape(*weights.shape, *[1] * (values.ndim - 2))

import math

import pytest
import torch
from torch import distributions as td

from ctrlrl.functional.distributions import (
    adapt_learning_rate,
    approx_kl,
    categorical_entropy,
    categorical_kl,
    categorical_log_prob,
    categorical_sample,
    gaussian_entropy,
    gaussian_kl,
    gaussian_log_prob,
    gaussian_sample,
    smoothed_action,
    tanh_gaussian_log_prob,
    tanh_gaussian_sample,
)

F64 = torch.float64
LOG_STD_SHAPES = [(5, 3), (3,), (5, 1), (1,), ()]


def tensor(*values):
    return torch.tensor(values, dtype=F64)


def close(actual, expected, atol=1e-9):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=atol)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# Gaussian


@pytest.mark.parametrize("shape", LOG_STD_SHAPES)
def test_gaussian_log_prob_entropy_and_kl_are_those_of_torch(shape):
    mean, old_mean, action = (torch.randn(5, 3, dtype=F64) for _ in range(3))
    log_std, old_log_std = torch.randn(shape, dtype=F64), torch.randn(shape, dtype=F64)
    new, old = (td.Normal(m, s.exp().expand(5, 3)) for m, s in ((mean, log_std), (old_mean, old_log_std)))
    close(gaussian_log_prob(action, mean, log_std), new.log_prob(action).sum(-1))
    close(gaussian_entropy(log_std, mean.shape), new.entropy().sum(-1))
    close(gaussian_kl(old_mean, old_log_std, mean, log_std), td.kl_divergence(old, new).sum(-1))


def test_gaussian_gradients_are_those_of_torch():
    mean, log_std = torch.randn(5, 3, dtype=F64, requires_grad=True), torch.randn(3, dtype=F64, requires_grad=True)
    action = torch.randn(5, 3, dtype=F64)
    ours = torch.autograd.grad(gaussian_log_prob(action, mean, log_std).sum(), (mean, log_std))
    theirs = torch.autograd.grad(td.Normal(mean, log_std.exp()).log_prob(action).sum(), (mean, log_std))
    for a, b in zip(ours, theirs, strict=True):
        close(a, b)


def test_gaussian_entropy_without_a_shape_is_that_of_log_std():
    log_std = tensor(0.1, -0.3)
    close(gaussian_entropy(log_std), -0.2 + math.log(2 * math.pi * math.e))
    assert gaussian_entropy(log_std, (7, 2)).shape == (7,)


def test_gaussian_samples_have_their_mean_and_deviation():
    mean, log_std = tensor(1.0, -2.0).expand(200_000, 2), tensor(0.0, -1.0)
    sample = gaussian_sample(mean, log_std)
    close(sample.mean(0), mean[0], atol=0.01)  # four standard errors are 0.009
    close(sample.std(0), log_std.exp(), atol=0.01)
    close(torch.corrcoef(sample.T)[0, 1], 0.0, atol=0.01)


def test_gaussian_sample_is_reparametrised():
    mean, log_std = torch.zeros(4, 2, dtype=F64, requires_grad=True), torch.zeros(2, dtype=F64, requires_grad=True)
    sample = gaussian_sample(mean, log_std)
    in_mean, in_log_std = torch.autograd.grad(sample.sum(), (mean, log_std))
    close(in_mean, torch.ones(4, 2))
    close(in_log_std, sample.detach().sum(0))  # std 1, mean 0: d sample / d log_std = noise


def test_kl_numbers_of_the_specification():
    zero = tensor(0.0)
    for mean, printed in ((0.2, 0.0200100), (0.05, 0.00126), (0.1, 0.00501)):
        kl = gaussian_kl(zero, zero, tensor(mean), zero, eps=1e-5)
        close(kl, printed, atol=5.1e-6)
        close(kl, 0.5 * mean**2 + math.log1p(1e-5))
        close(gaussian_kl(zero, zero, tensor(mean), zero), 0.5 * mean**2)


def test_equal_policies_have_zero_kl_and_one_eps_per_dimension_with_rsl_rls_offset():
    mean, log_std = torch.randn(5, 3, dtype=F64), torch.randn(3, dtype=F64)
    close(gaussian_kl(mean, log_std, mean, log_std), torch.zeros(5))
    close(gaussian_kl(mean, log_std, mean, log_std, eps=1e-5), torch.full((5,), 3e-5), atol=1e-9)


def test_gaussian_log_prob_refuses_actions_of_another_size():
    with pytest.raises(
        ValueError, match=r"gaussian_log_prob: shapes must match, got action \(4,\), mean \(4, 1\)\. A v"
    ):
        gaussian_log_prob(torch.zeros(4), torch.zeros(4, 1), torch.zeros(1))


# tanh-Gaussian


@pytest.mark.parametrize("shape", LOG_STD_SHAPES)
def test_tanh_gaussian_log_prob_is_the_change_of_variables(shape):
    mean, log_std = torch.randn(5, 3, dtype=F64), torch.randn(shape, dtype=F64)
    action = torch.rand(5, 3, dtype=F64) * 1.98 - 0.99
    base = td.Normal(mean, log_std.exp().expand(5, 3)).log_prob(action.atanh())
    close(tanh_gaussian_log_prob(action, mean, log_std), (base - (1 - action**2).log()).sum(-1))


def test_tanh_gaussian_density_integrates_to_one():
    action = torch.linspace(-1, 1, 200_001, dtype=F64)[1:-1, None]
    density = tanh_gaussian_log_prob(action, tensor(0.3), tensor(-0.5)).exp()
    close(density.sum() * 1e-5, 1.0, atol=1e-6)


def test_tanh_gaussian_sample_carries_its_own_log_prob():
    mean, log_std = torch.randn(1000, 3, dtype=F64), torch.randn(3, dtype=F64) - 1.0
    action, log_prob = tanh_gaussian_sample(mean, log_std)
    assert (action.abs() <= 1).all()
    inside = (action.abs() < 0.999).all(-1)
    close(log_prob[inside], tanh_gaussian_log_prob(action, mean, log_std)[inside], atol=1e-8)


def test_tanh_gaussian_sample_moments():
    action, log_prob = tanh_gaussian_sample(torch.full((200_000, 1), 0.5, dtype=F64), tensor(-1.0))
    grid = torch.linspace(-1, 1, 200_001, dtype=F64)[1:-1, None]
    log_density = tanh_gaussian_log_prob(grid, tensor(0.5), tensor(-1.0))
    density = log_density.exp()
    close(action.mean(), (grid[:, 0] * density).sum() * 1e-5, atol=0.003)
    close(log_prob.mean(), (log_density * density).sum() * 1e-5, atol=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_tanh_gaussian_extremes_are_finite_in_value_and_gradient(dtype):
    mean = torch.tensor([[-1e3], [-30.0], [0.0], [30.0], [1e3]], dtype=dtype, requires_grad=True)
    log_std = torch.zeros(1, dtype=dtype, requires_grad=True)
    action, log_prob = tanh_gaussian_sample(mean, log_std)
    assert log_prob.isfinite().all()
    for gradient in torch.autograd.grad(log_prob.sum() + action.sum(), (mean, log_std)):
        assert gradient.isfinite().all()
    edges = torch.tensor([[-1.0], [1.0], [0.0], [1.0], [-1.0]], dtype=dtype)
    log_prob = tanh_gaussian_log_prob(edges, mean, log_std)
    assert log_prob.isfinite().all()
    for gradient in torch.autograd.grad(log_prob.sum(), (mean, log_std)):
        assert gradient.isfinite().all()


# categorical


def test_categorical_functions_are_those_of_torch():
    logits, old_logits = torch.randn(4, 5, 6, dtype=F64), torch.randn(4, 5, 6, dtype=F64)
    action = torch.randint(6, (4, 5))
    new, old = td.Categorical(logits=logits), td.Categorical(logits=old_logits)
    close(categorical_log_prob(logits, action), new.log_prob(action))
    close(categorical_entropy(logits), new.entropy())
    close(categorical_kl(old_logits, logits), td.kl_divergence(old, new))


def test_categorical_functions_ignore_a_shift_of_the_logits():
    logits, action = torch.randn(5, 6, dtype=F64), torch.randint(6, (5,))
    close(categorical_log_prob(logits + 100.0, action), categorical_log_prob(logits, action))
    close(categorical_entropy(logits + 100.0), categorical_entropy(logits))
    close(categorical_kl(logits + 100.0, logits), torch.zeros(5))


def test_categorical_samples_occur_with_their_probabilities():
    logits = tensor(0.0, 1.0, -1.0, -math.inf, 2.0)
    action = categorical_sample(logits.expand(200_000, 5))
    assert action.dtype == torch.int64
    assert action.shape == (200_000,)
    close(torch.bincount(action, minlength=5) / action.numel(), logits.softmax(-1).float(), atol=0.005)
    assert not (action == 3).any()


def test_a_forbidden_action_leaves_entropy_kl_and_gradients_finite():
    logits = tensor(0.3, -0.4, -math.inf).requires_grad_()
    close(categorical_entropy(logits), categorical_entropy(logits[:2]))
    close(categorical_kl(tensor(0.0, 0.0, -math.inf), logits), categorical_kl(tensor(0.0, 0.0), logits[:2]))
    loss = categorical_entropy(logits) + categorical_kl(tensor(0.0, 0.0, -math.inf), logits)
    loss = loss + categorical_log_prob(logits, torch.tensor(0))
    assert torch.autograd.grad(loss, logits)[0].isfinite().all()


def test_uniform_entropy_is_the_log_of_the_number_of_actions():
    close(categorical_entropy(torch.zeros(3, 7, dtype=F64)), torch.full((3,), math.log(7.0), dtype=F64))


def test_categorical_log_prob_refuses_actions_with_an_extra_axis():
    with pytest.raises(ValueError, match=r"categorical_log_prob: .* got action \(4, 1\), logits \(4, 3\)"):
        categorical_log_prob(torch.zeros(4, 3), torch.zeros(4, 1, dtype=torch.int64))


# KL estimate and learning rate


def test_approx_kl_is_zero_at_equal_policies_and_never_negative():
    log_ratio = torch.linspace(-3, 3, 61, dtype=F64)
    close(approx_kl(log_ratio), log_ratio.exp() - 1.0 - log_ratio)
    assert (approx_kl(log_ratio) >= 0).all()
    close(approx_kl(tensor(0.0)), [0.0])


def test_approx_kl_averages_to_the_exact_kl():
    old, new = torch.randn(6, dtype=F64), torch.randn(6, dtype=F64)
    log_ratio = new.log_softmax(-1) - old.log_softmax(-1)
    close((old.softmax(-1) * approx_kl(log_ratio)).sum(), categorical_kl(old, new))


def test_approx_kl_keeps_its_digits_at_small_ratios():
    close(approx_kl(torch.tensor([1e-3])) / 5e-7, [1.0 + 1e-3 / 3.0], atol=1e-3)  # float32


def test_the_learning_rate_follows_the_printed_kls():
    lr, zero = torch.tensor(1e-3, dtype=F64), tensor(0.0)
    for mean, expected in ((0.2, 1e-3 / 1.5), (0.05, 1.5e-3), (0.1, 1e-3)):
        kl = gaussian_kl(zero, zero, tensor(mean), zero, eps=1e-5)
        close(adapt_learning_rate(lr, kl, desired_kl=0.01), expected)


def test_the_learning_rate_stays_within_its_ends_and_ignores_zero_and_nan():
    def step(lr, kl):
        return adapt_learning_rate(torch.tensor(lr, dtype=F64), torch.tensor(kl, dtype=F64), desired_kl=0.01)

    close(step(1.2e-5, 1.0), 1e-5)
    close(step(9e-3, 1e-4), 1e-2)
    close(step(1e-3, 0.0), 1e-3)
    close(step(1e-3, math.nan), 1e-3)
    close(step(1e-3, 3 * 1e-5), 1.5e-3)  # equal policies under rsl_rl's offset: it grows


# off-policy methods


def test_gaussian_and_tanh_gaussian_numbers_of_the_specification():
    close(gaussian_log_prob(tensor(0.3, -0.7), tensor(0.3, -0.7), tensor(0.0, 0.0)), -1.837877, atol=5e-7)
    close(torch.tanh(tensor(0.5)), [0.462117], atol=5e-7)
    close(tanh_gaussian_log_prob(torch.tanh(tensor(0.5)), tensor(0.0), tensor(0.0)), -0.803710, atol=5e-7)


def test_smoothed_actions_clip_the_noise_and_then_the_action():
    action, noise = tensor(0.0, 0.0, 0.9, 0.9, -0.9), tensor(1.0, -30.0, 1.0, -1.0, -30.0)
    close(smoothed_action(action, noise, std=0.2, clip=0.5), [0.2, -0.5, 1.0, 0.7, -1.0])


def test_the_clipped_noise_has_the_variance_of_a_censored_normal():
    noise = smoothed_action(torch.zeros(400_000, dtype=F64), torch.randn(400_000, dtype=F64), std=0.2, clip=0.5)
    # z = noise / 0.2 censored at c = 2.5: 1 - 2 (c phi(c) + Q(c)) + 2 c^2 Q(c)
    density, tail = math.exp(-0.5 * 2.5**2) / math.sqrt(2.0 * math.pi), 0.5 * math.erfc(2.5 / math.sqrt(2.0))
    expected = 0.04 * (1.0 - 2.0 * (2.5 * density + tail) + 2.0 * 2.5**2 * tail)
    close(noise.square().mean(), expected, atol=4e-4)
    close(noise.abs().max(), 0.5)

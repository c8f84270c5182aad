import pytest
import torch

from ctrlrl.functional.masked import (
    batch_mean,
    masked_mean,
    masked_std,
    pooled_std_mean,
    sequence_mean,
    sequence_sum,
    standardize,
    whiten,
)

F64 = torch.float64


def sample(shape=(6, 7)):
    torch.manual_seed(0)
    return torch.randn(shape, dtype=F64), torch.rand(shape) < 0.6


def test_mean_and_std_are_those_of_the_elements_that_count():
    x, mask = sample()
    torch.testing.assert_close(masked_mean(x, mask), x[mask].mean(), rtol=0, atol=1e-12)
    for unbiased in (True, False):
        expected = x[mask].std(correction=int(unbiased))
        torch.testing.assert_close(masked_std(x, mask, unbiased=unbiased), expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(
            masked_std(x, unbiased=unbiased), x.std(correction=int(unbiased)), rtol=0, atol=1e-12
        )


def test_a_full_mask_equals_no_mask():
    x, _ = sample()
    full = torch.ones_like(x, dtype=torch.bool)
    for f in (masked_mean, masked_std, standardize):
        torch.testing.assert_close(f(x, full), f(x), rtol=0, atol=1e-12)


def test_a_nan_that_does_not_count_reaches_neither_value_nor_gradient():
    x, mask = sample()
    x[~mask] = float("nan")
    x.requires_grad_()
    mean = masked_mean(x, mask)
    (gradient,) = torch.autograd.grad(mean, x)
    assert mean.isfinite()
    torch.testing.assert_close(gradient, mask / mask.sum().to(F64), rtol=0, atol=1e-12)
    assert masked_std(x.detach(), mask).isfinite()
    assert standardize(x.detach(), mask).isfinite().all()


@pytest.mark.parametrize("with_mask", [True, False])
def test_micro_batches_with_the_global_count_sum_to_the_mean_of_the_whole(with_mask):
    x, mask = sample()
    count = mask.sum() if with_mask else x.numel()
    parts = [masked_mean(x[i], mask[i] if with_mask else None, count=count) for i in (slice(0, 1), slice(1, 6))]
    torch.testing.assert_close(sum(parts), masked_mean(x, mask if with_mask else None), rtol=0, atol=1e-12)


def test_a_mask_expands_over_leading_axes():
    x, mask = sample()
    heads = torch.stack([x, 3.0 * x])
    torch.testing.assert_close(masked_mean(heads, mask), 2.0 * masked_mean(x, mask), rtol=0, atol=1e-12)


def test_an_empty_mask_gives_zeros():
    x, mask = sample()
    nothing = torch.zeros_like(mask)
    assert masked_mean(x, nothing) == 0
    assert masked_std(x, nothing) == 0
    assert not standardize(x, nothing).any()


def test_results_are_zero_dimensional():
    x, mask = sample()
    for m in (None, mask):
        assert masked_mean(x, m).shape == masked_std(x, m).shape == ()


def test_standardized_elements_have_mean_zero_and_unit_unbiased_std():
    x, mask = sample()
    for m in (None, mask):
        z = standardize(5.0 + 3.0 * x, m, eps=0.0)
        inside = z if m is None else z[m]
        assert inside.mean().abs() < 1e-12
        torch.testing.assert_close(inside.std(), torch.ones((), dtype=F64), rtol=0, atol=1e-12)
    assert not standardize(x, mask)[~mask].any()


def test_standardize_ignores_shift_and_positive_scale():
    x, mask = sample()
    torch.testing.assert_close(standardize(7.0 * x + 2.0, mask), standardize(x, mask), rtol=0, atol=1e-7)  # eps


def test_a_single_element_standardizes_to_zero_not_nan():
    assert standardize(torch.tensor([3.0])) == 0
    assert masked_std(torch.tensor([3.0])) == 0
    mask = torch.tensor([False, True, False])
    assert not standardize(torch.tensor([1.0, 3.0, 5.0]), mask).any()
    assert masked_std(torch.tensor([1.0, 3.0, 5.0]), mask) == 0


def test_equal_elements_standardize_to_zero():
    assert not standardize(torch.full((5,), 2.0)).any()


def test_the_batch_mean_leaves_the_axes_of_stacked_runs():
    x, _ = sample((3, 5))
    assert batch_mean(x[0]).ndim == 0
    torch.testing.assert_close(batch_mean(x), torch.stack([row.mean() for row in x]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("sizes", [(42,), (21, 21), (1, 10, 31), (0, 42)])
def test_pooled_moments_are_those_of_the_union(sizes):
    x = sample()[0].flatten() * 3.0 + 100.0
    parts = x.split(list(sizes))
    n = torch.tensor([float(len(part)) for part in parts], dtype=F64)
    mean = torch.stack([part.mean() if len(part) else torch.zeros((), dtype=F64) for part in parts])
    var = torch.stack([part.var(correction=0) if len(part) else torch.zeros((), dtype=F64) for part in parts])
    std, center = pooled_std_mean(n, mean, var)
    torch.testing.assert_close(std, x.std(), rtol=0, atol=1e-10)
    torch.testing.assert_close(center, x.mean(), rtol=0, atol=1e-10)


def test_a_part_standardized_by_the_moments_of_the_whole_is_a_part_of_the_standardized_whole():
    x, mask = sample()
    part = standardize(x[2:4], std_mean=(x.std(), x.mean()))
    torch.testing.assert_close(part, standardize(x)[2:4], rtol=0, atol=1e-12)
    masked = standardize(x[2:4], mask[2:4], std_mean=(masked_std(x, mask), masked_mean(x, mask)))
    torch.testing.assert_close(masked, standardize(x, mask)[2:4], rtol=0, atol=1e-12)


def test_whitening_has_unit_variance_but_for_eps_inside_the_root():
    x = torch.tensor([1.0, 2.0, 4.0, torch.nan], dtype=torch.float64)
    mask = torch.tensor([True, True, True, False])
    wanted = (x[:3] - x[:3].mean()) / (x[:3].var() + 0.5).sqrt()
    torch.testing.assert_close(whiten(x, mask, eps=0.5)[:3], wanted)
    assert whiten(x, mask)[3] == 0.0
    torch.testing.assert_close(whiten(x[:3], eps=0.5), wanted)


def test_sequences_count_alike_in_their_mean_and_by_their_length_in_their_sum():
    x = torch.tensor([[1.0, 3.0, torch.nan], [5.0, torch.nan, torch.nan], [torch.nan] * 3])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]]).bool()
    assert sequence_mean(x, mask) == 3.5  # the empty row is no sequence
    assert sequence_sum(x, mask) == 4.5
    assert sequence_mean(x, mask, n_sequences=7) == 1.0
    assert sequence_sum(x, mask, n_sequences=9) == 1.0


def test_sequences_without_any_element_have_mean_zero_and_no_gradient():
    x = torch.full((2, 3), torch.nan, requires_grad=True)
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    loss = sequence_mean(x, nothing) + sequence_sum(x, nothing)
    loss.backward()
    assert loss == 0.0
    assert bool((x.grad == 0).all())

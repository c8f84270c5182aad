import math

import pytest
import torch

from ctrlrl.functional.ratio import (
    holder_log_ratio,
    product_log_ratio,
    sequence_log_ratio,
    silenced,
    token_form,
    truncated_importance,
)

F64 = torch.float64
MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 1], [0, 0, 0, 0]]).bool()
X = torch.tensor([[0.1, -0.05, 0.4, 9.0], [-0.3, 5.0, 0.25, 0.2], [1.0, 1.0, 1.0, 1.0]], dtype=F64)


def log_ratio():
    return torch.where(MASK, X, 0.0).requires_grad_()


def by_hand(f):
    return torch.stack([f(X[i][MASK[i]]) for i in range(2)]).unsqueeze(1)


def test_what_lies_under_the_mask_reaches_neither_value_nor_gradient():
    new = torch.where(MASK, X, torch.nan).requires_grad_()
    out = silenced(new, torch.where(MASK, 0.0, torch.inf), MASK)
    torch.testing.assert_close(out.detach(), torch.where(MASK, X, 0.0))
    out.exp().sum().backward()
    assert bool(new.grad.isfinite().all())
    assert bool((new.grad[~MASK] == 0).all())


def test_log_ratios_stop_at_twenty():
    ones = torch.ones(1, 2, dtype=torch.bool)
    assert silenced(torch.tensor([[300.0, -300.0]]), torch.zeros(1, 2), ones).tolist() == [[20.0, -20.0]]


def test_means_and_products_are_over_the_counting_tokens():
    torch.testing.assert_close(sequence_log_ratio(log_ratio(), MASK)[:2], by_hand(torch.mean))
    torch.testing.assert_close(product_log_ratio(log_ratio(), MASK)[:2], by_hand(torch.sum))


@pytest.mark.parametrize("p", [2.0, 1.0, -1.0, 0.05, -0.07, 13.0])
def test_holder_mean_by_its_definition(p):
    wanted = by_hand(lambda x: ((p * x).exp().mean() ** (1 / p)).log())
    torch.testing.assert_close(holder_log_ratio(log_ratio(), MASK, p=p)[:2], wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_near_zero_the_holder_mean_is_the_geometric_one(dtype):
    x = log_ratio().detach().to(dtype)
    for p in (1e-6, -1e-6, 0.0):
        got = holder_log_ratio(x, MASK, p=p)
        torch.testing.assert_close(got, sequence_log_ratio(x, MASK), rtol=0, atol=1e-6)


def test_far_from_zero_the_holder_mean_is_the_largest_or_smallest_ratio():
    # an L-th of the tokens is the largest one: the mean is log(L) / p away from it
    for p, extreme in ((200.0, torch.amax), (-200.0, torch.amin)):
        got = holder_log_ratio(log_ratio(), MASK, p=p)[:2]
        torch.testing.assert_close(got, by_hand(extreme), rtol=0, atol=math.log(3) / 200 + 1e-6)


@pytest.mark.parametrize("p", [2.0, -1.0, 0.01, 0.0, 1.0])
def test_gradient_shares_of_the_holder_mean_add_up_to_the_ratio(p):
    x = log_ratio()
    ratio = holder_log_ratio(x, MASK, p=p).exp()
    (gradient,) = torch.autograd.grad(ratio.sum(), x)
    torch.testing.assert_close(gradient.sum(1, keepdim=True)[:2], ratio.detach()[:2])
    power = torch.where(MASK, (p * X).exp(), 0.0)[:2]
    wanted = ratio.detach()[:2] * power / power.sum(1, keepdim=True)
    torch.testing.assert_close(gradient[:2], wanted)
    assert bool((gradient[2] == 0).all())


@pytest.mark.parametrize("p", [2.0, 0.01])
def test_an_empty_row_has_ratio_one_and_no_gradient(p):
    x = log_ratio()
    for out in (holder_log_ratio(x, MASK, p=p), sequence_log_ratio(x, MASK), product_log_ratio(x, MASK)):
        assert out[2].item() == 0.0
        (gradient,) = torch.autograd.grad(out.sum(), x)
        assert bool((gradient[2] == 0).all() & gradient.isfinite().all())


def test_the_token_form_has_the_value_of_the_response_and_the_gradient_of_the_token():
    x = log_ratio()
    sequence = sequence_log_ratio(x, MASK)
    out = token_form(sequence, x).exp()
    torch.testing.assert_close(out.detach(), sequence.exp().detach().expand_as(x))
    (gradient,) = torch.autograd.grad(out[0, 1], x)
    wanted = torch.zeros_like(x)
    wanted[0, 1] = sequence[0].exp().item()
    torch.testing.assert_close(gradient, wanted)


def test_weights_of_tokens_from_another_engine_are_bounded_above_and_carry_no_gradient():
    old, other = torch.tensor([[0.0, 0.0, 0.0]], requires_grad=True), torch.tensor([[-5.0, 0.5, 7.0]])
    mask = torch.tensor([[True, True, False]])
    weight = truncated_importance(old, other, mask, limit=2.0)
    torch.testing.assert_close(weight, torch.tensor([[2.0, math.exp(-0.5), 1.0]]))
    assert not weight.requires_grad

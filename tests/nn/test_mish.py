"""Mish by one exponential against its definition in float64, where exponentials over- and underflow too."""

import pytest
import torch
import torch.nn.functional as F

from ctrlrl.nn.mish import Mish

ROWS = torch.cat((torch.linspace(-30, 30, 2001), torch.tensor([-1e4, -200.0, -88.8, 0.0, 88.8, 200.0, 1e4])))


def test_value_and_slope_are_those_of_the_definition():
    x, exact = ROWS.clone().requires_grad_(), ROWS.double().requires_grad_()
    mine, theirs = Mish()(x), exact * torch.tanh(F.softplus(exact))
    torch.testing.assert_close(mine, theirs.float(), rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(
        torch.autograd.grad(mine.sum(), x)[0], torch.autograd.grad(theirs.sum(), exact)[0].float(), rtol=0, atol=3e-6
    )


def test_with_and_without_gradients_it_is_one_number_to_the_bit():
    x = torch.randn(64, 32)
    with torch.no_grad():
        quiet = Mish()(x)
    assert torch.equal(quiet, Mish()(x.clone().requires_grad_()))


def test_a_second_derivative_is_refused_and_not_wrong():
    x = torch.randn(8, requires_grad=True)
    (slope,) = torch.autograd.grad(Mish()(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_the_argument_is_left_alone():
    x = ROWS.clone()
    Mish()(x)
    assert torch.equal(x, ROWS)


def test_other_types_take_torchs_own():
    x = torch.randn(64)
    assert torch.equal(Mish()(x.double()), F.mish(x.double()))
    assert torch.equal(Mish()(x.bfloat16()), F.mish(x.bfloat16()))

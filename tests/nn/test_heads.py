"""What every head of a generative policy must do, and what each of them is."""

import pytest
import torch

from ctrlrl.nn.heads import MLPHead, ResidualHead
from ctrlrl.nn.unet1d import UNet1D

HEADS = {
    "mlp": lambda: MLPHead(4, 3, 5, hidden=(16, 16)),
    "residual": lambda: ResidualHead(4, 3, 5, width=16, n_blocks=2),
    "unet": lambda: UNet1D(4, 3, 5, widths=(8, 16), embed_dim=8),
}


@pytest.fixture(params=HEADS)
def head(request):
    return HEADS[request.param]().double().eval()


def example(n=6):
    return torch.randn(n, 4, 3).double(), torch.arange(n), torch.randn(n, 5).double()


def test_a_row_does_not_see_the_rest_of_its_batch(head):
    x, level, condition = example()
    together = head(x, level, condition)
    assert together.shape == x.shape
    order = torch.randperm(6)
    torch.testing.assert_close(head(x[order], level[order], condition[order]), together[order], rtol=0, atol=1e-12)
    alone = torch.cat([head(x[i : i + 1], level[i : i + 1], condition[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-12)


def test_one_level_for_all_equals_a_column_of_it(head):
    x, _, condition = example()
    torch.testing.assert_close(head(x, 7, condition), head(x, torch.full((6,), 7), condition), rtol=0, atol=1e-12)


def test_the_prediction_depends_on_chunk_level_and_condition_and_has_gradients_to_all_weights(head):
    x, level, condition = example()
    here = head(x, level, condition)
    for other in (head(x + 1, level, condition), head(x, level + 1, condition), head(x, level, condition + 1)):
        assert not torch.allclose(here, other)
    condition.requires_grad_(True)
    head(x, level, condition).square().sum().backward()
    assert (condition.grad.abs().sum(0) > 0).all()
    for name, p in head.named_parameters():
        assert p.grad is not None, name
        assert p.grad.any(), name


def test_a_context_serves_many_levels(head):
    x, level, condition = example()
    context = head.context(condition)
    for k in (level, level + 3):
        torch.testing.assert_close(head.at(x, k, context), head(x, k, condition), rtol=0, atol=1e-12)

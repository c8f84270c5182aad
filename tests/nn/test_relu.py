"""ReLU compiled: the values and slopes of torch's own, at 0 and where numbers are not finite too."""

import pytest
import torch

from ctrlrl.nn.mlp import mlp
from ctrlrl.nn.relu import ReLU

INF = float("inf")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_value_and_slope_are_torchs(dtype):
    rows = torch.tensor([-INF, -2.0, -1e-30, -0.0, 0.0, 1e-30, 3.0, INF], dtype=dtype)
    relu = torch.compile(lambda x: ReLU()(x + 0.0))
    x, y = rows.clone().requires_grad_(), rows.clone().requires_grad_()
    mine, theirs = relu(x), torch.relu(y)
    assert torch.equal(mine, theirs)
    grad = torch.arange(1.0, 9.0, dtype=dtype)
    assert torch.equal(torch.autograd.grad(mine, x, grad)[0], torch.autograd.grad(theirs, y, grad)[0])


def test_a_compiled_network_has_the_gradients_of_the_eager_one():
    net = mlp((5, 32, 32, 1), activation="relu")
    rows = torch.randn(64, 5)
    compiled = torch.compile(net)
    for x in (rows, rows.clone().requires_grad_()):
        eager = torch.autograd.grad(net(x).square().mean(), list(net.parameters()))
        fast = torch.autograd.grad(compiled(x).square().mean(), list(net.parameters()))
        torch.testing.assert_close(fast, eager)

"""The networks of S learners as one module whose parameters have a leading [S] axis: several seeds in one pass.

Inputs are [S, N, ...] throughout, and nothing computed for one seed depends on another's numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctrlrl.nn.mlp import Float32Linear, without_autocast
from ctrlrl.nn.relu import ReLU

Draw = Callable[[Tensor, float], Tensor]  # (x [S, ...], p) -> 1 with probability p, else 0, from each seed's numbers
PLAIN = (nn.ReLU, ReLU, nn.SiLU, nn.ELU, nn.Tanh, nn.GELU, nn.Identity)


def stack(modules: Sequence[nn.Module], draw: Draw) -> Any:
    """One module from S of the same make, with their values and the names of their parameters.

    A module's own vectors [A] become [S, 1, A] and its numbers [S, 1], which broadcast against [S, N, A] and [S, N].
    draw: for dropout. Raises ValueError that names the layer where there is no stacked form of it.
    """
    first = modules[0]
    kind = type(first)
    if kind in PLAIN:
        return first
    if kind is nn.Linear:
        return StackedLinear(modules)  # type: ignore[arg-type]
    if kind is Float32Linear:
        return StackedFloat32Linear(modules)  # type: ignore[arg-type]
    if kind is nn.LayerNorm:
        return StackedLayerNorm(modules)  # type: ignore[arg-type]
    if kind is nn.Dropout:
        return StackedDropout(first.p, draw)  # type: ignore[arg-type]
    own = {**first._parameters, **first._buffers}
    unknown = bool(own) and kind.__module__.startswith("torch.")
    if unknown or any(x is not None and x.ndim > 1 for x in own.values()):
        raise ValueError(f"seeds: {kind.__name__} has no stacked form")
    twin = nn.Module.__new__(kind)
    twin.__dict__ = {k: v for k, v in first.__dict__.items() if k not in ("_parameters", "_buffers", "_modules")}
    twin.__dict__ |= {"_parameters": {}, "_buffers": {}, "_modules": {}}
    for name in own:
        rows = torch.stack([getattr(m, name).detach() for m in modules]).unsqueeze(1)
        if name in first._buffers:
            twin.register_buffer(name, rows)
        else:
            twin.register_parameter(name, nn.Parameter(rows))
    for name, _ in first.named_children():
        twin.add_module(name, stack([getattr(m, name) for m in modules], draw))
    return twin


class StackedLinear(nn.Module):
    """x_s W_s^T + b_s: [S, ..., n_in] -> [S, ..., n_out].

    The weights [S, n_out, n_in] of layers that do not narrow lie in memory column by column. So does the gradient that
    autograd forms of them, x^T g: nothing is transposed to store it.
    """

    def __init__(self, layers: Sequence[nn.Linear]):
        super().__init__()
        weights = [layer.weight.detach() for layer in layers]
        by_column = layers[0].in_features <= layers[0].out_features
        self.weight = nn.Parameter(
            torch.stack([w.t() for w in weights]).transpose(1, 2) if by_column else torch.stack(weights)
        )
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]).unsqueeze(1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x.flatten(1, -2))
        return y if x.ndim == 3 else y.view(*x.shape[:-1], -1)  # in place on a view, a ReLU costs a copy going back

    def product(self, x: Tensor) -> Tensor:
        """[S, N, n_in] -> [S, N, n_out]"""
        return torch.baddbmm(self.bias, x, self.weight.mT)


class StackedFloat32Linear(StackedLinear):
    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x):
            return super().forward(x.to(self.weight.dtype))

    def product(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not torch.jit.is_tracing():  # a trace takes no Python functions
            return _NarrowProduct.apply(x, self.weight, self.bias)
        return _narrow_product(x, self.weight, self.bias)


def _narrow_product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W^T + b for few outputs, formed as W x^T."""
    return torch.baddbmm(bias.mT, weight, x.mT).mT


class _NarrowProduct(torch.autograd.Function):
    """`_narrow_product` whose weights' gradient is formed as g^T x.

    For the x^T g that autograd would form, CPU libraries take 4 (oneDNN) to 15 (MKL) times as long at one output.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _narrow_product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            torch.bmm(grad, weight) if for_x else None,
            torch.bmm(grad.mT, x) if for_weight else None,
            grad.sum(1, keepdim=True) if for_bias else None,
        )


class StackedLayerNorm(nn.Module):
    def __init__(self, layers: Sequence[nn.LayerNorm]):
        super().__init__()
        self.eps = layers[0].eps
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]).unsqueeze(1))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]).unsqueeze(1))

    def forward(self, x: Tensor) -> Tensor:
        wide = (len(x), *[1] * (x.ndim - 2), x.shape[-1])
        return F.layer_norm(x, x.shape[-1:], eps=self.eps) * self.weight.view(wide) + self.bias.view(wide)


class StackedDropout(nn.Module):
    def __init__(self, p: float, draw: Draw):
        super().__init__()
        self.p, self.draw = p, draw

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        return x * self.draw(x, 1.0 - self.p).div_(1.0 - self.p)

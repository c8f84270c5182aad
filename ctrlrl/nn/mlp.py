"""Multi-layer perceptrons, and the initialisations in use: each paper's code has its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ctrlrl.nn.mish import Mish
from ctrlrl.nn.relu import ReLU

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": ReLU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "mish": Mish,
}
NORM_EPS = 1e-6  # of Flax's LayerNorm, which the JAX codes of the papers use; torch's is 1e-5
Init = Callable[[nn.Linear, bool], None]  # (layer, is the last one); changes it in place


def mlp(
    sizes: Sequence[int],
    *,
    activation: str,
    output_gain: float = 1.0,
    orthogonal: bool = True,
    activate_last: bool = False,
    init: Init | None = None,
    norm: str = "none",
    dropout: float = 0.0,
    values: bool = False,
) -> nn.Sequential:
    """Linear layers of the given sizes with an activation between them.

    orthogonal: gain sqrt(2) on hidden layers, `output_gain` on the last, zero bias; otherwise torch's default.
    init: instead of both.
    activate_last: also after the last layer, for a trunk that several heads share.
    norm: LayerNorm "before" or "after" every activation.
    dropout: after every activation, in training mode.
    values: the last layer is a `Float32Linear`.
    """
    if min(sizes[1:], default=1) < 1:
        raise ValueError(f"hidden: a layer is at least 1 wide, got {list(sizes[1:])}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(pairwise(sizes)):
        last = i == len(sizes) - 2
        linear = (Float32Linear if last and values else nn.Linear)(n_in, n_out)
        if init is not None:
            init(linear, last)
        elif orthogonal:
            nn.init.orthogonal_(linear.weight, output_gain if last else math.sqrt(2.0))
            nn.init.zeros_(linear.bias)
        if n_in < n_out:
            # Weights [n_out, n_in] laid out column by column: autograd then forms their gradient as x^T g, which CPU
            # libraries compute up to six times faster than g^T x when there are few inputs.
            linear.weight = nn.Parameter(linear.weight.detach().t().contiguous().t())
        layers.append(linear)
        if last and not activate_last:
            continue
        if norm == "before":
            layers.append(nn.LayerNorm(n_out, eps=NORM_EPS))
        layers.append(ACTIVATIONS[activation]())
        if norm == "after":
            layers.append(nn.LayerNorm(n_out, eps=NORM_EPS))
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)


class Float32Linear(nn.Linear):
    """A layer whose product is taken in the precision of its weights under autocast too.

    The eight bits of bfloat16 lie 2 apart at a return of 400: values that differ by less would be one value.
    """

    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x):
            return super().forward(x.to(self.weight.dtype))


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    on = x.device.type
    return torch.autocast(on, enabled=False) if torch.is_autocast_enabled(on) else nullcontext()


def torch_default(layer: nn.Linear, last: bool) -> None:
    """U(+-1/sqrt(n_in)) on weights and biases, as torch makes them: TD3 and its descendants, CORL."""


def torch_small_last(layer: nn.Linear, last: bool) -> None:
    """torch's default on hidden layers; Xavier uniform with gain 0.01 and biases 0 on the last one. CORL's cql.py."""
    if last:
        nn.init.xavier_uniform_(layer.weight, 1e-2)
        nn.init.zeros_(layer.bias)


def orthogonal_small_last(layer: nn.Linear, last: bool) -> None:
    """Gain sqrt(2) on hidden layers, 0.01 on the last one; biases 0. The codes of Cal-QL and PA-RL."""
    nn.init.orthogonal_(layer.weight, 1e-2 if last else math.sqrt(2.0))
    nn.init.zeros_(layer.bias)


def orthogonal_everywhere(layer: nn.Linear, last: bool) -> None:
    """Gain sqrt(2) on every layer, the last one too; biases 0. IQL's code, arXiv:2110.06169."""
    nn.init.orthogonal_(layer.weight, math.sqrt(2.0))
    nn.init.zeros_(layer.bias)


def xavier_uniform(layer: nn.Linear, last: bool) -> None:
    """Variance scaling with gain 1 over the mean of fan-in and fan-out, uniform; biases 0. RLPD's and FQL's codes."""
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)


def lecun_uniform(layer: nn.Linear, last: bool) -> None:
    """U(+-sqrt(3 / n_in)), variance 1 / n_in; biases 0. JAX codes, FPO's among them."""
    bound = math.sqrt(3.0 / layer.in_features)
    nn.init.uniform_(layer.weight, -bound, bound)
    nn.init.zeros_(layer.bias)


def xavier_normal(output_gain: float) -> Init:
    """Variance 2 / (n_in + n_out), times output_gain^2 in the last layer; biases 0. PolicyFlow, arXiv:2602.01156."""

    def init(layer: nn.Linear, last: bool) -> None:
        nn.init.xavier_normal_(layer.weight, gain=output_gain if last else 1.0)
        nn.init.zeros_(layer.bias)

    return init

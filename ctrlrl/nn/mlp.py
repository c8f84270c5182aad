"""Multi-layer perceptrons with the two initialisations in use: orthogonal (SB3, CleanRL) and torch's own (rsl_rl)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
}


def mlp(
    sizes: Sequence[int], *, activation: str, output_gain: float, orthogonal: bool = True, activate_last: bool = False
) -> nn.Sequential:
    """Linear layers of the given sizes with an activation between them.

    orthogonal: gain sqrt(2) on hidden layers, `output_gain` on the last, zero bias; otherwise torch's default.
    activate_last: also after the last layer, for a trunk that several heads share.
    """
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(pairwise(sizes)):
        last = i == len(sizes) - 2
        linear = nn.Linear(n_in, n_out)
        if orthogonal:
            nn.init.orthogonal_(linear.weight, output_gain if last else math.sqrt(2.0))
            nn.init.zeros_(linear.bias)
        if n_in < n_out:
            # Weights [n_out, n_in] laid out column by column: autograd then forms their gradient as x^T g, which CPU
            # libraries compute up to six times faster than g^T x when there are few inputs.
            linear.weight = nn.Parameter(linear.weight.detach().t().contiguous().t())
        layers.append(linear)
        if not last or activate_last:
            layers.append(ACTIVATIONS[activation]())
    return nn.Sequential(*layers)

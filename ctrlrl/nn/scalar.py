"""One learned number: a temperature, a Lagrange multiplier."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Scalar(nn.Module):
    """A 0-dim parameter; in stacked runs of S seeds [S, 1]. Broadcasts against a batch [N] and [S, N]."""

    def __init__(self, initial: float):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(float(initial)))

    def forward(self) -> Tensor:
        return self.value

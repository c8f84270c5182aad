"""Two classes told apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ctrlrl.nn.mlp import mlp, torch_default


class Discriminator(nn.Module):
    """Log-odds of the first class against the second, nats: any number of [..., n_i] -> [...].

    bound: each of the two logits is bound * tanh, so the log-odds lie in (-2 bound, 2 bound); None leaves them free.
    """

    def __init__(self, n_in: int, hidden: Sequence[int], *, bound: float | None = None):
        super().__init__()
        self.bound = bound
        self.net = mlp((n_in, *hidden, 2), activation="relu", init=torch_default)

    def forward(self, *parts: Tensor) -> Tensor:
        logits = self.net(torch.cat(parts, -1)).float()
        if self.bound is not None:
            logits = self.bound * torch.tanh(logits)
        return logits[..., 0] - logits[..., 1]

"""Many critics of one shape as products of stacked matrices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ctrlrl.nn.mlp import Init, mlp, torch_default
from ctrlrl.nn.stacked import stack


class QEnsemble(nn.Module):
    """K action values Q_k(s, a), each network with its own start: [N, O] and [N, A] -> [K, N]."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        *,
        n: int,
        activation: str = "relu",
        init: Init = torch_default,
        norm: str = "none",
    ):
        super().__init__()
        sizes = (obs_dim + action_dim, *hidden, 1)
        members = [mlp(sizes, activation=activation, init=init, norm=norm, values=True) for _ in range(n)]
        self.n = n
        self.net = stack(members, lambda x, p: torch.ones_like(x))

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        return self.net(self._inputs(obs, action, self.n)).squeeze(-1)

    def of(self, members: Tensor, obs: Tensor, action: Tensor) -> Tensor:
        """Those of the members [M] int64 alone, [M, N]; no other is computed."""
        chosen = {name: p.index_select(0, members) for name, p in self.net.named_parameters()}
        x = self._inputs(obs, action, len(members))
        out: Tensor = functional_call(self.net, chosen, (x,))
        return out.squeeze(-1)

    def _inputs(self, obs: Tensor, action: Tensor, n: int) -> Tensor:
        x = torch.cat((obs, action), -1)
        return x.expand(n, *x.shape)

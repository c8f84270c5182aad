"""Categorical policies: one discrete action, or several taken together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ctrlrl.functional import distributions as dist
from ctrlrl.nn.mlp import mlp
from ctrlrl.types import Extras, PolicyOutput


class CategoricalPolicy(nn.Module):
    def __init__(
        self, obs_dim: int, n_actions: int, hidden: Sequence[int], *, activation: str, orthogonal: bool = True
    ):
        super().__init__()
        self.logits = mlp((obs_dim, *hidden, n_actions), activation=activation, output_gain=0.01, orthogonal=orthogonal)

    def act(self, obs: Tensor, *, deterministic: bool = False) -> PolicyOutput:
        """obs [B, O] -> action [B] int64; log_prob is None for a deterministic action."""
        logits = self.logits(obs).float()
        if deterministic:
            return PolicyOutput(logits.argmax(-1), None, {})
        action = dist.categorical_sample(logits)
        return PolicyOutput(action, dist.categorical_log_prob(logits, action), {"logits": logits})

    def log_prob(self, obs: Tensor, action: Tensor) -> Tensor:
        return dist.categorical_log_prob(self.logits(obs).float(), action)

    def evaluate(self, obs: Tensor, action: Tensor, old: Extras) -> tuple[Tensor, Tensor, Tensor | None]:
        """log_prob [N], entropy [N], and KL(old || new) [N] when `old` holds the acting policy's logits."""
        logits = self.logits(obs).float()
        kl = dist.categorical_kl(old["logits"], logits.detach()) if "logits" in old else None
        return dist.categorical_log_prob(logits, action), dist.categorical_entropy(logits), kl


class MultiCategoricalPolicy(nn.Module):
    """D independent choices given the observation, of nvec[d] options each; log-probabilities and entropies add up.

    joint: False keeps those of every choice, [..., D].
    """

    index: Tensor
    missing: Tensor

    def __init__(
        self,
        obs_dim: int,
        nvec: Sequence[int],
        hidden: Sequence[int],
        *,
        activation: str,
        orthogonal: bool = True,
        joint: bool = True,
    ):
        super().__init__()
        self.joint = joint
        self.net = mlp((obs_dim, *hidden, sum(nvec)), activation=activation, output_gain=0.01, orthogonal=orthogonal)
        self.even = len(set(nvec)) == 1
        # rows of unequal length, padded to [D, max]: a missing option has logit -inf
        option = torch.arange(max(nvec))
        sizes = torch.tensor(list(nvec)).unsqueeze(1)
        index = (sizes.cumsum(0) - sizes + option).clamp(max=sum(nvec) - 1)
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("missing", option >= sizes, persistent=False)

    def logits(self, obs: Tensor) -> Tensor:
        """[..., D, max(nvec)]."""
        flat = self.net(obs).float()
        if self.even:  # a view: no gather, and no scatter in its gradient
            return flat.unflatten(-1, self.index.shape)
        return flat[..., self.index].masked_fill(self.missing, -torch.inf)

    def act(self, obs: Tensor, *, deterministic: bool = False) -> PolicyOutput:
        """obs [B, O] -> action [B, D] int64; log_prob is None for a deterministic action."""
        logits = self.logits(obs)
        if deterministic:
            return PolicyOutput(logits.argmax(-1), None, {})
        action = dist.categorical_sample(logits)
        return PolicyOutput(action, self._total(dist.categorical_log_prob(logits, action)), {"logits": logits})

    def log_prob(self, obs: Tensor, action: Tensor) -> Tensor:
        return self._total(dist.categorical_log_prob(self.logits(obs), action))

    def _total(self, x: Tensor) -> Tensor:
        return x.sum(-1) if self.joint else x

    def evaluate(self, obs: Tensor, action: Tensor, old: Extras) -> tuple[Tensor, Tensor, Tensor | None]:
        """log_prob, entropy, [N] or [N, D], and KL(old || new) when `old` holds the acting policy's logits."""
        logits = self.logits(obs)
        kl = self._total(dist.categorical_kl(old["logits"], logits.detach())) if "logits" in old else None
        log_prob, entropy = dist.categorical_log_prob(logits, action), dist.categorical_entropy(logits)
        return self._total(log_prob), self._total(entropy), kl

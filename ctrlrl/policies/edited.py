"""A base policy's actions, some edited by a small Gaussian, and the best of them by value. EXPO, arXiv:2507.07986."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ctrlrl.functional.distributions import categorical_sample, tanh_gaussian_sample
from ctrlrl.functional.edits import edited, picked
from ctrlrl.nn.ensembles import QEnsemble
from ctrlrl.policies.diffusion import ChunkPolicy
from ctrlrl.policies.squashed import SquashedGaussianPolicy
from ctrlrl.types import PolicyOutput


class EditedPolicy(nn.Module):
    """The action of highest value among n_samples of the base and n_edits of them plus scale * e, e ~ edit(s, a).

    base: chunks of one action under one observation. critic: says which is best, the least of n_min members drawn
    anew. temperature: 0 = the best; else drawn with probability softmax(Q / temperature). act_multiple, act_by_mean:
    where it acts, so many times the candidates of both kinds, by the mean of all critics.
    """

    def __init__(
        self,
        base: ChunkPolicy,
        edit: SquashedGaussianPolicy,
        critic: QEnsemble,
        *,
        n_samples: int,
        n_edits: int,
        n_min: int,
        scale: float,
        temperature: float = 0.0,
        act_multiple: int = 1,
        act_by_mean: bool = False,
    ):
        super().__init__()
        self.base, self.edit, self.critic = base, edit, critic
        self.n_samples, self.n_edits, self.n_min = n_samples, n_edits, n_min
        self.scale, self.temperature = scale, temperature
        self.act_multiple, self.act_by_mean = act_multiple, act_by_mean

    def edits(self, obs: Tensor, action: Tensor, *, deterministic: bool = False) -> Tensor:
        """Actions [n, N, A], edited; within the box, since that is what the environment takes."""
        mean, log_std = self.edit(torch.cat((obs.expand(len(action), *obs.shape), action), -1))
        edit = mean.tanh() if deterministic else tanh_gaussian_sample(mean, log_std)[0]
        return edited(action, edit, scale=self.scale).clamp(-1.0, 1.0)

    def candidates(self, obs: Tensor, *, head: Any = None, multiple: int = 1, deterministic: bool = False) -> Tensor:
        """[multiple * (n_samples + n_edits), N, A], the base's first. Deterministic: without noise, so one of each."""
        n, n_edits = multiple * self.n_samples, multiple * self.n_edits
        if deterministic:
            n, n_edits = 1, min(n_edits, 1)
        action = self.base.draws(obs, n, head=head, deterministic=deterministic)
        if n_edits == 0:
            return action
        return torch.cat((action, self.edits(obs, action[:n_edits], deterministic=deterministic)))

    def members(self) -> Tensor:
        """Numbers [n_min] int64 of critics, drawn without replacement."""
        return torch.rand(self.critic.n, device=next(self.critic.parameters()).device).argsort()[: self.n_min]

    def values(self, obs: Tensor, action: Tensor, members: Tensor | None, *, mean: bool = False) -> Tensor:
        """The least or the mean value of the members, or of all critics, for [C, N, A] under [N, O]: [C, N]."""
        flat = obs.expand(len(action), *obs.shape).flatten(0, 1), action.flatten(0, 1)
        q = self.critic(*flat) if members is None else self.critic.of(members, *flat)
        return (q.mean(0) if mean else q.amin(0)).unflatten(0, (len(action), -1))

    def choice(self, value: Tensor) -> Tensor:
        """[C, N] -> [N] int64."""
        return categorical_sample(value.T / self.temperature) if self.temperature else value.argmax(0)

    def act(self, obs: Tensor, *, deterministic: bool = False) -> PolicyOutput:
        """Deterministic: the base's action of noise 0 or its median edit, by the least (or mean) of all critics."""
        action = self.candidates(obs, multiple=self.act_multiple, deterministic=deterministic)
        if len(action) == 1:
            return PolicyOutput(action[0], None, {})
        members = None if deterministic or self.act_by_mean else self.members()
        value = self.values(obs, action, members, mean=self.act_by_mean)
        index = value.argmax(0) if deterministic else self.choice(value)
        return PolicyOutput(picked(action, index), None, {})

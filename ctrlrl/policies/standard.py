"""The policy that fits an environment's actions."""

from __future__ import annotations

from collections.abc import Sequence

from ctrlrl.policies.discrete import CategoricalPolicy
from ctrlrl.policies.gaussian import GaussianPolicy
from ctrlrl.types import EnvSpec


def standard_policy(
    spec: EnvSpec, hidden: Sequence[int], *, activation: str, log_std_init: float, orthogonal: bool
) -> GaussianPolicy | CategoricalPolicy:
    if spec.n_actions:
        return CategoricalPolicy(spec.obs_dim, spec.n_actions, hidden, activation=activation, orthogonal=orthogonal)
    return GaussianPolicy(
        spec.obs_dim, spec.action_dim, hidden, activation=activation, log_std_init=log_std_init, orthogonal=orthogonal
    )

"""Conservative Q-learning: how far a soft maximum of Q over all actions lies above Q at the data's action.

Sampled actions stand on the axis before the batch: [..., M, N].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ctrlrl.functional.checks import same_shape


def uniform_log_density(action_dim: int) -> float:
    """Of the uniform distribution on [-1, 1]^A, nats."""
    return -action_dim * math.log(2.0)


def conservative_gap(
    q_sampled: Tensor,
    log_density: Tensor,
    q_data: Tensor,
    *,
    temperature: float = 1.0,
    low: float | None = None,
    high: float | None = None,
) -> Tensor:
    """T * logsumexp_m((Q(s, a_m) - log mu(a_m)) / T) - Q(s, a), clipped into [low, high]; [..., N], return units.

    q_sampled:   [..., M, N] Q at M actions a_m of each state.
    log_density: [M, N] of a_m under what it was drawn from: importance weights, so that the sum estimates an integral
                 over all actions (times M, a constant). No gradient.
    q_data:      [..., N] Q at the data's action.
    Source: CQL(H), arXiv:2006.04779, eq. 4.
    """
    same_shape("conservative_gap", q_sampled=q_sampled[..., 0, :], q_data=q_data)
    soft_max = temperature * torch.logsumexp((q_sampled - log_density) / temperature, -2)
    gap = soft_max - q_data
    return gap if low is None and high is None else gap.clamp(low, high)


def calibrated(q_sampled: Tensor, return_to_go: Tensor) -> Tensor:
    """max(Q(s, a_m), G(s)), [..., M, N]: a value that is already below the data's return is not pushed down further.

    return_to_go: [N], no gradient. Source: Cal-QL, arXiv:2303.05479.
    """
    return torch.maximum(q_sampled, return_to_go.unsqueeze(-2))

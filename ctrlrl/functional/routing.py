"""Several discounts, one policy: advantages mixed over K heads, what the mixing does, and the loss of all heads.

K is the last axis, its last head that of the policy's own discount. Source: Sun 2026, arXiv:2604.13517, and its code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctrlrl.functional.checks import same_shape


def error_weights(value: Tensor, target: Tensor, *, temperature: float) -> Tensor:
    """softmax over heads of -|V_k - R_k| / temperature; value, target [..., K], the weights sum to 1.

    temperature: return units; 10 in the authors' code. R is the lambda-return, so |V - R| is the size of the advantage.
    """
    same_shape("error_weights", value=value, target=target)
    return (-(value - target).abs() / temperature).softmax(-1)


def routed_advantage(weight: Tensor, advantage: Tensor) -> Tensor:
    """sum over heads of w_k A_k: two [..., K] -> [...]. A gradient flows into the weights where they carry one."""
    same_shape("routed_advantage", weight=weight, advantage=advantage)
    return (weight * advantage).sum(-1)


def follows_largest(weight: Tensor, advantage: Tensor) -> Tensor:
    """Whether the head with the largest weight is the one with the largest advantage: two [..., K] -> [...] bool.

    Its mean is the hack rate; weights that do not look at the advantages have about 1/K.
    """
    same_shape("follows_largest", weight=weight, advantage=advantage)
    return weight.argmax(-1) == advantage.argmax(-1)


def weight_entropy(weight: Tensor) -> Tensor:
    """-sum over heads of w log w, [..., K] -> [...] nats, between 0 (one head takes all) and log K."""
    return -torch.special.xlogy(weight, weight).sum(-1)


def heads_loss(loss: Tensor, *, aux_coef: float) -> Tensor:
    """The last head's loss + aux_coef * the sum of the others': [..., K] -> [...]."""
    return loss[..., -1] + aux_coef * loss[..., :-1].sum(-1)

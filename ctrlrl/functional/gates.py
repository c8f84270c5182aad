"""Which of two actions a policy is pulled to, and whether at all: gates on advantages, per element."""

from __future__ import annotations

import torch
from torch import Tensor

from ctrlrl.functional.checks import same_shape


def better_action(proposal: Tensor, action: Tensor, advantage_proposal: Tensor, advantage: Tensor) -> Tensor:
    """The proposal where its advantage is at least the data action's, else the data action; [..., A], advantages [...].

    Carries the gradient of what it chooses. A2PR, arXiv:2405.19909, as the authors coded it.
    """
    same_shape("better_action", proposal=proposal, action=action)
    return torch.where((advantage_proposal >= advantage).unsqueeze(-1), proposal, action)


def advantage_gate(q_proposal: Tensor, q: Tensor, value: Tensor) -> Tensor:
    """bool: the proposal is at least as good as the state's value, or the data action is better; same shape.

    A logical or: the authors add two boolean tensors. A2PR, arXiv:2405.19909.
    """
    same_shape("advantage_gate", q_proposal=q_proposal, q=q, value=value)
    return (q_proposal >= value) | (q > value)

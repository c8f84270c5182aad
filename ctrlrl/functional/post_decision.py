"""Two halves of a step: what the decision does, which is known at once, and what chance does afterwards."""

from __future__ import annotations

import torch
from torch import Tensor

from ctrlrl.functional.checks import same_shape


def post_decision_advantage(post: Tensor, pre: Tensor) -> Tensor:
    """The larger of two advantages, of the same shape and units; biased upwards by intention.

    post: returns of the rewards known after the decision, minus V_x(post-decision state).
    pre:  returns of all other rewards, minus V_pre(state).
    Source: PDPPO, arXiv:2504.05150, and the authors' code.
    """
    same_shape("post_decision_advantage", post=post, pre=pre)
    return torch.maximum(post, pre)

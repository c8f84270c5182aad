"""Losses for recorded responses that are no policy gradients: of pairs, and of log-ratios that are regressed."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ctrlrl.functional.checks import same_shape


def dpo(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, *, beta: float) -> Tensor:
    """-log sigmoid(beta (chosen - rejected)) of a pair of responses to one prompt; [P].

    log-ratios: log pi - log reference of the whole response, nats, summed over its tokens.
    Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7.
    """
    same_shape("dpo", chosen_log_ratio=chosen_log_ratio, rejected_log_ratio=rejected_log_ratio)
    return -F.logsigmoid(beta * (chosen_log_ratio - rejected_log_ratio))


def direct_advantage(log_ratio: Tensor, advantage: Tensor, *, beta: float) -> Tensor:
    """(log_ratio - advantage / beta)^2 / 2, same shape: zero at the KL-regularised optimum pi = ref exp(A / beta).

    log_ratio: log pi - log reference of one step (a line of reasoning, or a whole response), nats.
    advantage: of the reference policy, reward units. Source: Direct Advantage Policy Optimization, arXiv:2412.18279.
    """
    same_shape("direct_advantage", log_ratio=log_ratio, advantage=advantage)
    return 0.5 * (log_ratio - advantage / beta).square()

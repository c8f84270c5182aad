"""Losses on recorded responses, of whose policy nothing is known but a reference's log-probabilities.

TOPR is the algebra's: `token_loss` with the preset "topr" and the reference as the old policy. The other two are no
compositions of it: DPO compares pairs, and direct advantage regresses log-ratios of steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctrlrl.functional.masked import masked_mean
from ctrlrl.functional.preference import direct_advantage, dpo
from ctrlrl.functional.ratio import product_log_ratio, silenced
from ctrlrl.types import Metrics

LIMIT = 1e4  # nats: a response has many tokens, and nothing here takes the exponential of its log-ratio


def dpo_loss(
    log_prob: Tensor, log_prob_ref: Tensor, mask: Tensor, pairs: tuple[Tensor, Tensor], *, beta: float
) -> tuple[Tensor, Metrics]:
    """Mean over pairs of rows (chosen [K], rejected [K]), 0-dim, and metrics; 0 without pairs.

    log_prob, log_prob_ref: [N, L] nats, under the mask anything.
    """
    whole = product_log_ratio(silenced(log_prob, log_prob_ref, mask, limit=LIMIT), mask, limit=LIMIT).squeeze(1)
    chosen, rejected = whole[pairs[0]], whole[pairs[1]]
    count = max(len(chosen), 1)
    loss = masked_mean(dpo(chosen, rejected, beta=beta), count=count)
    margin = beta * (chosen - rejected).detach()
    metrics = {
        "loss/policy": loss.detach(),
        "policy/margin": margin.sum() / count,
        "policy/accuracy": (margin > 0).to(margin.dtype).sum() / count,
    }
    return loss, metrics


def direct_advantage_loss(
    log_prob: Tensor,
    log_prob_ref: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    beta: float,
    step: Tensor | None = None,
    n_steps: Tensor | float | None = None,
) -> tuple[Tensor, Metrics]:
    """Mean over steps of (log pi/ref of the step - A/beta)^2 / 2, 0-dim, and metrics.

    step:      [N, L] int64 in 0 ... L - 1: which step of its response a token belongs to (`line_steps`); None: a
               response is one step.
    advantage: of the reference policy: [N] where a response is one step, else [N, L], read at the step's number.
    n_steps:   of the whole optimizer step, as `masked_mean.count`.
    Source: arXiv:2412.18279; how it weighs steps, and its beta, are not known.
    """
    log_ratio = silenced(log_prob, log_prob_ref, mask, limit=LIMIT)
    if step is None:
        step = torch.zeros_like(mask, dtype=torch.int64)
    wide = advantage.unsqueeze(1).expand(mask.shape) if advantage.ndim == 1 else advantage
    total = torch.zeros_like(log_ratio).scatter_add(1, step, log_ratio)  # at place k the sum over step k
    exists = torch.zeros_like(mask, dtype=torch.int64).scatter_add(1, step, mask.long()) > 0
    error = direct_advantage(total, torch.where(exists, wide, 0.0), beta=beta)
    loss = masked_mean(error, exists, count=n_steps)
    return loss, {"loss/policy": loss.detach(), "policy/log_ratio": masked_mean(total, exists, count=n_steps).detach()}


def line_steps(ids: Tensor, newline: Tensor) -> Tensor:
    """[N, L] int64: how many line ends come before a token. newline: [K] ids of the tokens that end a line."""
    ends = torch.isin(ids, newline).long()
    return ends.cumsum(1) - ends

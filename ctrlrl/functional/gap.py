"""How far two systems differ in their dynamics, from two classifiers; H2O, arXiv:2206.13464, sections 4.2 and 4.3.

A classifier's log-odds are log p(real | x) - log p(simulated | x), nats: positive where x looks real. Everything is the
same with the systems swapped and the signs turned, so a swap trains as well and learns the opposite.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ctrlrl.functional.checks import same_shape


def classification_loss(log_odds: Tensor, *, real: bool) -> Tensor:
    """-log p(what the rows are), nats, the shape of log_odds."""
    return F.softplus(-log_odds if real else log_odds)


def log_dynamics_ratio(joint: Tensor, marginal: Tensor) -> Tensor:
    """log P_real(s'|s,a) - log P_sim(s'|s,a), nats, same shape: by Bayes' rule how the two systems' shares of (s, a),
    and of the batches, cancel.

    joint:    log-odds given (s, a, s').
    marginal: log-odds given (s, a).
    Source: H2O, eq. 9.
    """
    same_shape("log_dynamics_ratio", joint=joint, marginal=marginal)
    return joint - marginal


def dynamics_weight(log_ratio: Tensor, *, low: float, high: float) -> Tensor:
    """P_real / P_sim clipped into [low, high], unitless, same shape: with high = 1 a simulated transition never counts
    for more than a real one."""
    return log_ratio.exp().clamp(low, high)


def dynamics_gap(log_ratio: Tensor, *, low: float, high: float) -> Tensor:
    """mean_k log P_sim / P_real clipped into [low, high], nats: [..., K, N] at K next states near the simulated one ->
    [..., N]. An estimate of KL(sim || real), of which errors may make a negative number. Source: H2O, eq. 8.
    """
    return (-log_ratio).mean(-2).clamp(low, high)


def log_share(gap: Tensor) -> Tensor:
    """log(gap / sum of the batch's gaps), same shape; the batch is the last axis. Gaps are positive."""
    log_gap = gap.log()
    return log_gap - log_gap.logsumexp(-1, keepdim=True)


def gap_penalty(q_sim: Tensor, log_share: Tensor, q_real: Tensor, *, bound: float | None = None) -> Tensor:
    """log sum_n share_n exp(Q(s_n, a_n)) - mean Q at the real rows, clipped into [-bound, bound]; return units.

    q_sim:  [..., N] Q at simulated states and actions. q_real: [..., M]. log_share: [N]. The result is [...].
    Adding a constant to all Q changes nothing; a batch twice as large neither. Source: H2O, eq. 6.
    """
    soft_max = torch.logsumexp(q_sim + log_share, -1)
    penalty = soft_max - q_real.mean(-1)
    return penalty if bound is None else penalty.clamp(-bound, bound)


def padded_std(mean: Tensor, std: Tensor, *, copies: float) -> Tensor:
    """Standard deviation of values among `copies` times as many zeros, same shape. H2O's code takes that of its buffer,
    ten parts of which are still empty, for that of the data."""
    n = 1.0 + copies
    return ((std.square() + mean.square()) / n - (mean / n).square()).sqrt()

"""From the log-ratios of tokens to those that a surrogate sees: log-ratios [N, L] -> [N, L] or [N, 1], in nats.

mask: [N, L] bool, True = counts; what lies under False must be finite (`silenced`).
"""

from __future__ import annotations

import torch
from torch import Tensor

LIMIT = 20.0  # nats; exp(20) = 5e8 is far outside every bound, and its square is finite


def silenced(log_prob: Tensor, log_prob_old: Tensor, mask: Tensor, *, limit: float = LIMIT) -> Tensor:
    """log_prob - log_prob_old within +-limit, and 0 under the mask, whatever lies there; same shape."""
    return torch.where(mask, log_prob - log_prob_old, 0.0).clamp(-limit, limit)


def sequence_log_ratio(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """Log of the geometric mean of the ratios of a response, [N, 1]. Source: GSPO, arXiv:2507.18071."""
    return _total(log_ratio, mask) / _length(mask, log_ratio)


def product_log_ratio(log_ratio: Tensor, mask: Tensor, *, limit: float = LIMIT) -> Tensor:
    """Log of the ratio of the whole response, the product of its tokens', within +-limit, [N, 1]."""
    return _total(log_ratio, mask).clamp(-limit, limit)


def holder_log_ratio(log_ratio: Tensor, mask: Tensor, *, p: float) -> Tensor:
    """Log of the Hoelder mean ((1/L) sum_t ratio_t^p)^(1/p) of the ratios of a response, [N, 1].

    p: 1 arithmetic, 0 geometric, -1 harmonic, far from 0 the largest or the smallest. Hoelder PO, arXiv:2605.12058.
    """
    if p == 0.0:
        return sequence_log_ratio(log_ratio, mask)
    n = _length(mask, log_ratio)
    if abs(p) * LIMIT <= 2.0:  # the logarithm of a number near 1, divided by a small one: keep the digits
        return (_total(torch.expm1(p * log_ratio), mask) / n).log1p() / p
    some = mask.any(-1, keepdim=True)
    powers = (p * log_ratio).masked_fill(~mask & some, -torch.inf)  # a row without tokens stays 0
    total = powers.logsumexp(-1, keepdim=True) - n.log()
    return torch.where(some, total, 0.0) / p


def token_form(sequence: Tensor, log_ratio: Tensor) -> Tensor:
    """The value of a response's log-ratio [N, 1] at each of its tokens, with that token's own gradient; [N, L].

    Source: GSPO-token, arXiv:2507.18071.
    """
    return sequence.detach() + (log_ratio - log_ratio.detach())


def truncated_importance(log_prob_old: Tensor, log_prob_generator: Tensor, mask: Tensor, *, limit: float) -> Tensor:
    """min(pi_old / generator, limit) per token, no gradient; 1 under the mask. For tokens sampled by another engine.

    Its log-probs differ for equal weights; independent of the ratio of the surrogate. Yao et al. 2025, truncated IS.
    """
    return silenced(log_prob_old, log_prob_generator, mask).detach().exp().clamp(max=limit)


def _total(x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, x, 0.0).sum(-1, keepdim=True)


def _length(mask: Tensor, like: Tensor) -> Tensor:
    return mask.sum(-1, keepdim=True).clamp(min=1).to(like.dtype)

"""The one place where losses are averaged, and statistics that ignore masked elements. mask: True = counts."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor | None = None, *, count: Tensor | float | None = None) -> Tensor:
    """Sum of the counting elements over their number, 0-dim; 0 when nothing counts.

    x:     any shape; what lies under a False mask may be NaN.
    mask:  bool, expands to x.
    count: the number to divide by instead, e.g. the tokens of the whole batch: then the sum over micro-batches or ranks
           is the mean of the whole.
    """
    if mask is None:
        return x.mean() if count is None else x.sum() / count
    mask = mask.expand_as(x)
    total = torch.where(mask, x, 0.0).sum()
    return total / (mask.sum().clamp(min=1) if count is None else count)


def batch_mean(x: Tensor) -> Tensor:
    """Mean over the batch, which is the last axis: [N] -> 0-dim; [S, N], stacked runs of S seeds, -> [S]."""
    return x.mean(-1)


def masked_std(x: Tensor, mask: Tensor | None = None, *, unbiased: bool = True) -> Tensor:
    """Standard deviation of the counting elements, 0-dim; 0, not NaN, when fewer than two count.

    unbiased: divide by n - 1.
    """
    if mask is None:
        return x.std(correction=int(unbiased)) if x.numel() > 1 else torch.zeros_like(x).sum()
    mask = mask.expand_as(x)
    deviation = torch.where(mask, x - masked_mean(x, mask), 0.0)
    return (deviation.square().sum() / (mask.sum() - int(unbiased)).clamp(min=1)).sqrt()


def sequence_mean(x: Tensor, mask: Tensor, *, n_sequences: Tensor | float | None = None) -> Tensor:
    """Mean over sequences of the mean over a sequence's counting elements; [N, L] -> 0-dim.

    A sequence without any is not one of them. n_sequences: their number to divide by instead, as `masked_mean.count`.
    """
    length = mask.sum(-1)
    per_sequence = torch.where(mask, x, 0.0).sum(-1) / length.clamp(min=1)
    return masked_mean(per_sequence, length > 0, count=n_sequences)


def sequence_sum(x: Tensor, mask: Tensor, *, n_sequences: Tensor | float | None = None) -> Tensor:
    """Mean over sequences of the sum over a sequence's counting elements; otherwise as `sequence_mean`."""
    return masked_mean(torch.where(mask, x, 0.0).sum(-1), mask.any(-1), count=n_sequences)


def pooled_std_mean(n: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Unbiased std and mean of the union of R samples, 0-dim, from their sizes, means and biased variances [R]."""
    total = n.sum()
    center = (n * mean).sum() / total
    squares = (n * (var + (mean - center).square())).sum()
    return (squares / (total - 1).clamp(min=1)).sqrt(), center


def whiten(x: Tensor, mask: Tensor | None = None, *, eps: float = 1e-8) -> Tensor:
    """(x - mean) / sqrt(var + eps) over the counting elements, with the unbiased variance; 0 where masked.

    As `standardize`, but for where eps stands: the form of verl and TRL for token advantages.
    """
    scale = (masked_std(x, mask).square() + eps).sqrt()
    whitened = (x - masked_mean(x, mask)) / scale
    return whitened if mask is None else torch.where(mask, whitened, 0.0)


def standardize(
    x: Tensor, mask: Tensor | None = None, *, eps: float = 1e-8, std_mean: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """(x - mean) / (std + eps) over the counting elements, with the unbiased std; same shape as x.

    Masked elements become 0, and so does a single element (its std is undefined).
    std_mean: to take instead, e.g. those of a batch of which x is a part.
    """
    if std_mean is not None:
        std, mean = std_mean
        scaled = (x - mean) / (std + eps)
        return scaled if mask is None else torch.where(mask, scaled, 0.0)
    if mask is None:
        if x.numel() < 2:
            return torch.zeros_like(x)
        std, mean = torch.std_mean(x)
        return (x - mean) / (std + eps)
    scaled = (x - masked_mean(x, mask)) / (masked_std(x, mask) + eps)
    return torch.where(mask, scaled, 0.0)

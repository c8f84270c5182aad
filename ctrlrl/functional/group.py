"""Statistics of the responses to one prompt, and the advantages that rest on them; all [N], one row a response.

group: [N] int64, which prompt a row answers, numbers in 0 ... N - 1; rows of one prompt need not be neighbours.
Standard deviations are unbiased; that of a single row is 0. Nothing here reads the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctrlrl.functional.checks import same_shape

MAD_EPS = 1e-3  # MC-GRPO's


def group_sum(x: Tensor, group: Tensor) -> Tensor:
    """Sum over the rows of the same group, at each of them."""
    same_shape("group_sum", x=x, group=group)
    return torch.zeros_like(x).index_add_(0, group, x)[group]


def group_size(group: Tensor) -> Tensor:
    """Number of rows in each row's group, int64."""
    return group_sum(torch.ones_like(group), group)


def group_mean(x: Tensor, group: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean over the group's rows, or over those of them where `valid`; 0 where there are none."""
    if valid is None:
        return group_sum(x, group) / group_size(group)
    return group_sum(x.masked_fill(~valid, 0.0), group) / group_sum(valid.to(x.dtype), group).clamp(min=1.0)


def group_std(x: Tensor, group: Tensor, valid: Tensor | None = None) -> Tensor:
    """Unbiased standard deviation of the group; 0 where fewer than two rows count."""
    deviation = group_center(x, group, valid)
    n = group_size(group) if valid is None else group_sum(valid.to(x.dtype), group)
    return (group_sum(deviation.square(), group) / (n - 1).clamp(min=1)).sqrt()


def group_median(x: Tensor, group: Tensor) -> Tensor:
    """Median of the group; of an even number of rows the mean of the two in the middle."""
    same_shape("group_median", x=x, group=group)
    by_value = x.argsort(stable=True)
    order = by_value[group[by_value].argsort(stable=True)]  # by group, inside it by value
    counts = torch.zeros_like(group).index_add_(0, group, torch.ones_like(group))
    first = (counts.cumsum(0) - counts)[group]
    n = counts[group]
    ordered = x[order]
    return 0.5 * (ordered[first + (n - 1) // 2] + ordered[first + n // 2])


def group_center(reward: Tensor, group: Tensor, valid: Tensor | None = None) -> Tensor:
    """R - mean of its group, and 0 where not `valid`. Source: Dr.GRPO, arXiv:2503.20783.

    Exactly 0 where all are equal: a rest of rounding, divided by a tiny deviation, would be an advantage.
    """
    above = _above_least(reward, group, valid)
    centered = above - group_mean(above, group, valid)
    return centered if valid is None else centered.masked_fill(~valid, 0.0)


def group_z(reward: Tensor, group: Tensor, *, eps: float, valid: Tensor | None = None) -> Tensor:
    """(R - mean) / (std + eps) of its group; 0 where all are equal, and where not `valid`.

    eps: 1e-4 in TRL, 1e-6 in verl, 1e-9 in OpenRLHF. Source: GRPO, arXiv:2402.03300.
    """
    return group_center(reward, group, valid) / (group_std(reward, group, valid) + eps)


def leave_one_out(reward: Tensor, group: Tensor) -> Tensor:
    """R minus the mean of the group's other rows: n / (n - 1) times `group_center`. RLOO, arXiv:2402.14740."""
    n = group_size(group)
    return group_center(reward, group) * n / (n - 1).clamp(min=1)


def length_baseline(reward: Tensor, group: Tensor, length: Tensor) -> Tensor:
    """R minus the group's mean weighted by response length [N] (tokens). OPO, arXiv:2505.23585."""
    length, above = length.to(reward.dtype), _above_least(reward, group)
    return above - group_sum(length * above, group) / group_sum(length, group).clamp(min=1.0)


def median_mad(reward: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """(R - median) / (median |R - median| + 1e-3), and keep [N] bool, False at the first row equal to the median.

    Rows other than 0 are scaled by n / (number of them), n the group's size. With an odd n one row is the median.
    Source: MC-GRPO, arXiv:2601.22582.
    """
    distance = reward - group_median(reward, group)
    scaled = distance / (group_median(distance.abs(), group) + MAD_EPS)
    n, others = group_size(group), group_sum((scaled != 0).to(group.dtype), group)
    at_median = distance == 0
    row = torch.arange(len(reward), device=reward.device)
    candidates = torch.where(at_median, row, len(reward))
    first = torch.full_like(row, len(reward)).scatter_reduce(0, group, candidates, "amin")[group]
    return scaled * n / others.clamp(min=1), row != first


def bounded_signals(reward: Tensor, group: Tensor, *, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """(R - mean) / (std + eps), the weight, and (R - median) / (std + eps), which chooses the side, in `bpo`.

    Source: GBPO, arXiv:2604.18578, and its authors' token code.
    """
    scale = group_std(reward, group) + eps
    return group_center(reward, group) / scale, (reward - group_median(reward, group)) / scale


def virtual_max(
    reward: Tensor, group: Tensor, *, n_virtual: int = 1, reward_max: float = 1.0, eps: float = 1e-6
) -> Tensor:
    """`group_z` with the statistics of the group and `n_virtual` further rewards of `reward_max`.

    A group that is all wrong gets negative advantages instead of 0. Source: NGRPO, arXiv:2509.18851.
    """
    n = group_size(group) + n_virtual
    mean = (group_sum(reward, group) + n_virtual * reward_max) / n
    squares = group_sum((reward - mean).square(), group) + n_virtual * (reward_max - mean).square()
    return (reward - mean) / ((squares / (n - 1)).sqrt() + eps)


def beta_norm(reward: Tensor, group: Tensor, *, max_scale: float = 1e6) -> Tensor:
    """(R - p) / BetaPDF(p; a, b), p the group's mean of rewards in [0, 1], a and b from the spread of p over prompts.

    Every prompt counts once, with the population variance. Source: BNPO, arXiv:2506.02864.
    """
    p = group_mean(reward, group)
    share = 1.0 / group_size(group)  # of a prompt in each of its rows
    n_prompts = share.sum()
    mean = (share * p).sum() / n_prompts
    var = (share * (p - mean).square()).sum() / n_prompts
    # bounded together, so that prompts that are all alike keep their mean
    spread = (mean * (1.0 - mean) / var.clamp(min=torch.finfo(p.dtype).tiny) - 1.0).clamp(0.0, 3e6)
    a = 1.0 + spread * mean / 3.0
    b = 1.0 + spread * (1.0 - mean) / 3.0
    log_pdf = torch.xlogy(a - 1.0, p) + torch.xlogy(b - 1.0, 1.0 - p)
    log_pdf = log_pdf - (a.lgamma() + b.lgamma() - (a + b).lgamma())
    return group_center(reward, group) * torch.exp(-log_pdf).clamp(max=max_scale)


def equal_rewards(reward: Tensor, group: Tensor) -> Tensor:
    """[N] bool: all rewards of the row's group are equal, so that a centered advantage is 0. No tolerance."""
    high = torch.full_like(reward, -torch.inf).scatter_reduce(0, group, reward, "amax")[group]
    return group_sum((reward < high).to(group.dtype), group) == 0


def _above_least(x: Tensor, group: Tensor, valid: Tensor | None = None) -> Tensor:
    """x less the least (valid) one of its group; differences of equal numbers are exact."""
    counted = x if valid is None else x.masked_fill(~valid, torch.inf)
    above = x - torch.full_like(x, torch.inf).scatter_reduce(0, group, counted, "amin")[group]
    return above if valid is None else above.masked_fill(~valid, 0.0)

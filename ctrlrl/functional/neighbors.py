"""Nearest neighbours, two ways: any query by chunked matrix products, a row of the set by a table. Both with a proof.

The table serves PRDC (arXiv:2306.06569): the row j that minimises beta^2 |s_i - s_j|^2 + |a - a_j|^2 for a state s_i of
the data set and any action a. Every state outside the list of s_i is farther from it than the last one in the list, so
the best of the list is the best of all where its distance is not larger than that.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ctrlrl.functional.products import whole_products

GROUP = 32  # rows of which only the nearest is looked at first
SPARE = 8  # groups kept besides those that exact arithmetic needs
UNIT = 2.0**-24  # of float32 rounding
SCORES = {"cpu": 2**19, "cuda": 2**26}  # held at a time: on a CPU what its cache holds


class Keys(NamedTuple):
    """Rows to search, filled up to whole groups. The nearer they lie to the origin, the more the products can prove."""

    rows: Tensor  # [N', D] float32
    squared: Tensor  # [N'] squared norms; infinite for rows that only fill up
    n: int


class Nearest(NamedTuple):
    row: Tensor  # [Q, k] int64, nearest first
    squared: Tensor  # [Q, k] float32, squared distances to relative float32 precision
    proven: Tensor  # [Q] bool: no other row is nearer, rounding of the products included


class Lists(NamedTuple):
    """Of each of N states the K nearest, itself included."""

    row: Tensor  # [N, K] int32
    squared: Tensor  # [N, K] float32, ascending


class Match(NamedTuple):
    row: Tensor  # [...] int64
    squared: Tensor  # [...]
    proven: Tensor  # [...] bool


def keys(rows: Tensor) -> Keys:
    """rows: [N, D], float32 or float64."""
    n, dim = rows.shape
    full = rows.new_zeros(-(-n // GROUP) * GROUP, dim)
    full[:n] = rows
    squared = torch.cat([block.double().square().sum(-1).to(rows.dtype) for block in full.split(2**16)])
    squared[n:] = float("inf")
    return Keys(full, squared, n)


def k_nearest(query: Tensor, keys: Keys, k: int) -> Nearest:
    """The k nearest of N rows to each query [Q, D] float32, without a host read.

    |x|^2 - 2 q x by matrix products, the minimum of every group of rows, and the members of the best groups anew by
    differences in float64. A row outside them could be nearer only by an error of its product.
    """
    n_queries, dim = query.shape
    with whole_products(query.device):
        scores, width = _group_minima(query, keys)
    kept = min(k + SPARE, scores.shape[1])
    best, group = scores.topk(kept, largest=False)
    members = _members(group, width, scores.shape[1]).reshape(n_queries, -1)
    apart = (keys.rows[members] - query.unsqueeze(1)).double().square_().sum(-1)
    apart.masked_fill_(members >= keys.n, float("inf"))
    squared, place = apart.topk(k, largest=False)
    norm = query.double().square().sum(-1)
    last = squared[:, -1]
    error = (dim + 4) * UNIT * (2.0 * norm.sqrt() + last.sqrt()).square()  # of a row that is nearer than `last`
    proven = (best[:, -1] + norm >= last + error) | (last == 0.0)
    if kept == scores.shape[1]:
        proven = torch.ones_like(proven)
    return Nearest(members.gather(-1, place), squared.to(query.dtype), proven)


def _group_minima(query: Tensor, keys: Keys) -> tuple[Tensor, int]:
    """[Q, groups] the smallest |x|^2 - 2 q x of each, and the number of groups a pass takes.

    A pass reads consecutive rows; group g of it holds every `groups of the pass`-th row from the g-th on.
    """
    n_groups, size = len(keys.rows) // GROUP, SCORES.get(query.device.type, 2**26)
    width = max(1, min(n_groups, size // (GROUP * max(len(query), 1))))
    minima = query.new_empty(len(query), n_groups)
    for begin in range(0, n_groups, width):
        end = min(begin + width, n_groups)
        rows = slice(begin * GROUP, end * GROUP)
        score = torch.addmm(keys.squared[rows], query, keys.rows[rows].T, alpha=-2.0)
        torch.amin(score.view(len(query), GROUP, end - begin), 1, out=minima[:, begin:end])
    return minima, width


def _members(group: Tensor, width: int, n_groups: int) -> Tensor:
    """Row numbers of groups [...]: [..., GROUP]."""
    first = group // width * width  # the first group of its pass
    step = (n_groups - first).clamp(max=width)
    inside = torch.arange(GROUP, device=group.device)
    return (first * GROUP + group - first).unsqueeze(-1) + inside * step.unsqueeze(-1)


def look_up(lists: Lists, row: Tensor, action: Tensor, actions: Tensor, *, beta: float) -> Match:
    """The nearest of N pairs (beta s_j, a_j) to (beta s_i, a), among the list of i, and whether that is proven.

    row:     [...] int64, the numbers i.
    action:  [..., A]
    actions: [N, A]
    """
    index, state = lists.row[row].long(), beta**2 * lists.squared[row]
    apart = state + (actions[index] - action.unsqueeze(-2)).square().sum(-1)
    squared, place = apart.min(-1)
    proven = squared <= state[..., -1]
    if lists.row.shape[1] == len(actions):
        proven = torch.ones_like(proven)
    return Match(index.gather(-1, place.unsqueeze(-1)).squeeze(-1), squared, proven)

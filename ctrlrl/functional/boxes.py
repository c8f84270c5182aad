"""Exact nearest rows on a CPU: rows in leaves of 16 and cells of 128, of which only those within reach are looked at.

Splitting by the direction of largest spread makes small cells; the boxes around them, axis by axis, leave out ten times
more rows than balls do, and all queries go through the levels together. A k-d tree takes several times as long.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ctrlrl.functional.neighbors import UNIT, Lists

LEAF, CELL = 16, 128
FIRST = 16  # cells whose rows bound how far away the nearest k can be
AT_ONCE = 64  # queries that go through the levels together
GATHERED = 2**17  # numbers of boxes or rows that are looked at together: they stay in the processor's cache
FAR = 1e30  # rows that fill up the last cell lie farther away


class Boxes(NamedTuple):
    leaves: Tensor  # [C * CELL / LEAF, D, LEAF] float32: a row is a column; infinite where it only fills up
    order: Tensor  # [C * CELL] the rows' numbers, leaf by leaf, cell by cell
    center: Tensor  # [C, D]
    radius: Tensor  # [C]
    cell_low: Tensor  # [C, D]
    cell_high: Tensor
    leaf_low: Tensor  # [C * CELL / LEAF, D]
    leaf_high: Tensor


def boxes(rows: Tensor) -> Boxes:
    """rows: [N, D] float32 on a CPU."""
    n, dim = rows.shape
    order = _cells(rows)
    order = torch.cat((order, order[-1:].expand(-n % CELL)))
    size = CELL
    while size > LEAF:
        groups = order.view(-1, size)
        order = groups.gather(1, _sorted(rows[groups])).flatten()
        size //= 2
    cells, leaves = rows[order].view(-1, CELL, dim), rows[order].view(-1, LEAF, dim)
    center = cells.mean(1)
    radius = (cells - center.unsqueeze(1)).square().sum(-1).amax(1).sqrt() * (1.0 + 1e-5)
    packed = rows[order]
    packed[_repeated(order)] = float("inf")
    packed = packed.view(-1, LEAF, dim).transpose(1, 2).contiguous()
    return Boxes(packed, order, center, radius, cells.amin(1), cells.amax(1), leaves.amin(1), leaves.amax(1))


def _cells(rows: Tensor) -> Tensor:
    """Row numbers in an order in which every CELL of them lie close together."""
    order, open_ = torch.arange(len(rows)), [(0, len(rows))]
    while open_:
        begin, end = open_.pop()
        n_cells = -(-(end - begin) // CELL)
        if n_cells > 1:
            part = order[begin:end]
            order[begin:end] = part[_sorted(rows[part].unsqueeze(0)).squeeze(0)]
            middle = begin + n_cells // 2 * CELL
            open_ += [(begin, middle), (middle, end)]
    return order


def _sorted(x: Tensor) -> Tensor:
    """[B, n] places of the rows of x [B, n, D] along its direction of largest spread. Draws no random numbers."""
    away = x - x.mean(1, keepdim=True)
    spread = away.transpose(1, 2) @ away
    widest = spread.diagonal(dim1=1, dim2=2).argmax(1)
    direction = spread[torch.arange(len(x)), widest].unsqueeze(2)
    for _ in range(6):
        direction = spread @ torch.nn.functional.normalize(direction, dim=1)
    return (away @ direction).squeeze(2).argsort(1)


def _repeated(order: Tensor) -> Tensor:
    """bool: places that repeat a row number."""
    _, inverse = order.unique(return_inverse=True)
    first = torch.full_like(order, len(order)).scatter_reduce_(0, inverse, torch.arange(len(order)), "amin")
    return first[inverse] != torch.arange(len(order))


def nearest_within(boxes: Boxes, query: Tensor, limit: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """Numbers [Q, k] and squared distances [Q, k] of the rows nearest to each query [Q, D], nearest first.

    limit: [Q], at least the squared distance of the k-th, as some other computation found it.
    A query with NaN gets row 0 at distance NaN.
    """
    parts = zip(query.split(AT_ONCE), limit.split(AT_ONCE), strict=True)
    found = [_nearest_within(boxes, q, bound, k) for q, bound in parts]
    if not found:
        return torch.empty(0, k, dtype=torch.long), query.new_empty(0, k)
    index, squared = zip(*found, strict=True)
    return torch.cat(index), torch.cat(squared)


def _nearest_within(boxes: Boxes, query: Tensor, limit: Tensor, k: int) -> tuple[Tensor, Tensor]:
    norm = query.square().sum(-1)
    reach = ((limit.sqrt() * (1.0 + 1e-5) + 8.0 * UNIT * norm.sqrt()).square() + 1e-30).clamp(max=FAR)
    lane, cell = _near_cells(boxes, query, norm, reach)
    lane, cell = _touched(boxes.cell_low, boxes.cell_high, query, reach, lane, cell)
    inside = CELL // LEAF
    leaf = (cell.unsqueeze(1) * inside + torch.arange(inside)).flatten()
    lane = lane.repeat_interleave(inside)
    lane, leaf = _touched(boxes.leaf_low, boxes.leaf_high, query, reach, lane, leaf)
    lane, row, squared = _rows_within(boxes.leaves, query, reach, lane, leaf)
    by_distance = squared.argsort()
    best = by_distance[lane[by_distance].argsort(stable=True)]
    lane = lane[best]
    rank = torch.arange(len(lane)) - torch.searchsorted(lane, lane)
    lane, rank, best = lane[rank < k], rank[rank < k], best[rank < k]
    numbers = torch.zeros(len(query), k, dtype=torch.long)
    distances = query.new_full((len(query), k), float("nan"))
    numbers[lane, rank], distances[lane, rank] = boxes.order[row[best]], squared[best]
    return numbers, distances


def _near_cells(boxes: Boxes, query: Tensor, norm: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs (query, cell) whose balls touch; the error of the product is taken off the distance."""
    error = 2.0 * (query.shape[1] + 4) * UNIT
    norms = norm.unsqueeze(1) + boxes.center.square().sum(-1)
    apart = torch.addmm(norms, query, boxes.center.T, beta=1.0 - 2.0 * error, alpha=-2.0)
    lane, cell = (apart <= (boxes.radius + reach.sqrt().unsqueeze(1)).square_()).nonzero().unbind(1)
    return lane, cell


def _touched(
    low: Tensor, high: Tensor, query: Tensor, reach: Tensor, lane: Tensor, box: Tensor
) -> tuple[Tensor, Tensor]:
    """Of the pairs (query, box) those whose box [low, high] lies within the query's reach."""
    keep = []
    n = max(1, GATHERED // (2 * query.shape[1]))
    for i, j in zip(lane.split(n), box.split(n), strict=True):
        point = query.index_select(0, i)
        gap = torch.maximum(low.index_select(0, j).sub_(point), point.sub_(high.index_select(0, j)))
        keep.append(gap.clamp_(min=0.0).square_().sum(-1) <= reach.index_select(0, i))
    kept = torch.cat(keep)
    return lane[kept], box[kept]


def _rows_within(
    leaves: Tensor, query: Tensor, reach: Tensor, lane: Tensor, leaf: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Triples (query, place in the order of the leaves, squared distance) of rows within the query's reach."""
    found = []
    n = max(1, GATHERED // (LEAF * query.shape[1]))
    for i, j in zip(lane.split(n), leaf.split(n), strict=True):
        apart = leaves.index_select(0, j).sub_(query.index_select(0, i).unsqueeze(2)).square_().sum(1)
        pair, place = (apart <= reach.index_select(0, i).unsqueeze(1)).nonzero().unbind(1)
        found.append((i[pair], j[pair] * LEAF + place, apart[pair, place]))
    lane, row, squared = (torch.cat(column) for column in zip(*found, strict=True))
    return lane, row, squared


def near_lists(states: Tensor, k: int = 16) -> Lists:
    """The k nearest states of each of N states [N, D] float32; N of them where there are fewer."""
    ready, k, n = boxes(states), min(k, len(states)), len(states)
    cells = ready.leaves.view(-1, CELL // LEAF, states.shape[1], LEAF)
    n_first = min(max(FIRST, -(-k // CELL) + 1), len(cells))  # that hold k rows, places left open included
    index, squared = torch.empty(n, k, dtype=torch.int32), torch.empty(n, k)
    for i in range(len(cells)):
        mine = cells[i].transpose(1, 2).flatten(0, 1)
        real = mine[:, 0].isfinite()
        mine, rows = mine[real], ready.order[i * CELL : (i + 1) * CELL][real]
        first = (ready.center - ready.center[i]).square().sum(-1).topk(n_first, largest=False).indices
        others = cells[first].transpose(2, 3).flatten(0, 2)
        apart = torch.cdist(mine, others, compute_mode="donot_use_mm_for_euclid_dist")
        numbers, distances = nearest_within(ready, mine, apart.kthvalue(k).values.square(), k)
        index[rows], squared[rows] = numbers.int(), distances
    return Lists(index, squared)

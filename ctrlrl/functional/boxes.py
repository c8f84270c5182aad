"""Exact nearest rows on a CPU: rows in cells of 128, of which only those within a query's reach are looked at.

Splitting by the direction of largest spread makes small cells. Their balls, then the boxes around them, axis by axis,
leave few of them to a query; a cell's rows are held against all queries that came to it by one matrix product, and
those that may lie within reach are measured anew by differences. A k-d tree takes twenty times as long.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ctrlrl.functional.neighbors import UNIT, Lists
from ctrlrl.functional.products import whole_products

CELL = 128
FIRST = 16  # cells whose rows bound how far away the nearest k can be
AT_ONCE = 256  # queries that go through the levels together
SLOT = 16  # queries that look at a cell's rows in one product
GATHERED = 2**17  # numbers of boxes that are looked at together: they stay in the processor's cache
PRODUCTS = 2**19  # numbers that products look at together
FAR = 1e30  # no limit is larger


class Boxes(NamedTuple):
    cells: Tensor  # [C, D + 1, CELL] float32: a column is a row and its |x|^2; that is infinite where it only fills up
    order: Tensor  # [C * CELL] the rows' numbers, cell by cell
    balls: Tensor  # [C, D + 2] center c, |c|^2 - r^2, radius r
    low: Tensor  # [C, D]
    high: Tensor  # [C, D]


def boxes(rows: Tensor) -> Boxes:
    """rows: [N, D] float32 on a CPU."""
    n, dim = rows.shape
    order = _cells(rows)
    order = torch.cat((order, order[-1:].expand(-n % CELL)))
    cells, error = rows[order].view(-1, CELL, dim), _error(dim)
    center = cells.mean(1)
    radius = (cells - center.unsqueeze(1)).square().sum(-1).amax(1).sqrt() * (1.0 + 1e-5)
    apart = center.square().sum(-1) * (1.0 - error) - radius.square() * (1.0 + error)
    apart = apart.nan_to_num(nan=-float("inf"))  # of a cell with a row whose square is beyond float32
    balls = torch.cat((center, apart.unsqueeze(1), radius.unsqueeze(1)), 1)
    norm = (cells.square().sum(-1) * (1.0 - error)).clamp(max=torch.finfo(torch.float32).max)
    norm.flatten()[_repeated(order)] = float("inf")
    packed = torch.cat((cells, norm.unsqueeze(2)), 2).transpose(1, 2).contiguous()
    return Boxes(packed, order, balls, cells.amin(1), cells.amax(1))


def _error(dim: int) -> float:
    """Of a product of two [dim + 2] vectors in float32, relative to the sum of their squared norms."""
    return 4.0 * (dim + 4) * UNIT


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

    limit: [Q], at least the squared distance of the k-th, as some other computation found it. Above 1e30 it is 1e30.
    A query with NaN gets row 0 at distance NaN.
    """
    parts = zip(query.split(AT_ONCE), limit.split(AT_ONCE), strict=True)
    with whole_products(query.device):
        found = [_nearest_within(boxes, q, bound, k) for q, bound in parts]
    if not found:
        return torch.empty(0, k, dtype=torch.long), query.new_empty(0, k)
    index, squared = zip(*found, strict=True)
    return torch.cat(index), torch.cat(squared)


def _nearest_within(boxes: Boxes, query: Tensor, limit: Tensor, k: int) -> tuple[Tensor, Tensor]:
    norm = query.square().sum(-1)
    reach = ((limit.sqrt() * (1.0 + 1e-5) + 8.0 * UNIT * norm.sqrt()).square() + 1e-30).clamp(max=FAR)
    cell, lane = _near_cells(boxes, query, norm, reach)
    cell, lane = _touched(boxes, query, reach, cell, lane)
    cell, lane = _seen(boxes, query, norm, reach, cell, lane)
    lane, row, squared = _rows_within(boxes, query, reach, cell, lane)
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
    """Pairs (cell, query), cell by cell, whose balls touch: |q - c|^2 <= (r + reach)^2 as one product."""
    error = _error(query.shape[1])
    touching = torch.cat((-2.0 * query, torch.ones_like(norm).unsqueeze(1), -2.0 * reach.sqrt().unsqueeze(1)), 1)
    cell, lane = (boxes.balls @ touching.T <= reach * (1.0 + error) - norm * (1.0 - error)).nonzero().unbind(1)
    return cell, lane


def _touched(boxes: Boxes, query: Tensor, reach: Tensor, cell: Tensor, lane: Tensor) -> tuple[Tensor, Tensor]:
    """Of the pairs (cell, query) those whose box lies within the query's reach."""
    keep = []
    n = max(1, GATHERED // (2 * query.shape[1]))
    for i, j in zip(cell.split(n), lane.split(n), strict=True):
        point = query.index_select(0, j)
        gap = torch.maximum(boxes.low.index_select(0, i).sub_(point), point.sub_(boxes.high.index_select(0, i)))
        keep.append(gap.clamp_(min=0.0).square_().sum(-1) <= reach.index_select(0, j))
    kept = torch.cat(keep)
    return cell[kept], lane[kept]


def _seen(
    boxes: Boxes, query: Tensor, norm: Tensor, reach: Tensor, cell: Tensor, lane: Tensor
) -> tuple[Tensor, Tensor]:
    """Of the pairs (cell, query) those of which |x|^2 - 2 q x, errors taken off, finds some row within reach."""
    cell, lanes = _slots(cell, lane, len(query))
    looking = torch.cat((-2.0 * query, torch.ones_like(norm).unsqueeze(1)), 1)
    looking = torch.cat((looking, looking.new_zeros(1, looking.shape[1])))
    bound = torch.cat((reach - norm * (1.0 - _error(query.shape[1])), reach.new_full((1,), -float("inf"))))
    nearest = reach.new_empty(lanes.shape)
    n = max(1, PRODUCTS // (looking.shape[1] * CELL))
    for i, lane, least in zip(cell.split(n), lanes.split(n), nearest.split(n), strict=True):
        torch.amin(looking[lane] @ boxes.cells.index_select(0, i), -1, out=least)
    slot, place = (nearest <= bound[lanes]).nonzero().unbind(1)
    return cell[slot], lanes[slot, place]


def _rows_within(
    boxes: Boxes, query: Tensor, reach: Tensor, cell: Tensor, lane: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Triples (query, place in the order of the cells, squared distance) of rows within the query's reach."""
    found = []
    dim = query.shape[1]
    n = max(1, GATHERED // (CELL * dim))
    for i, j in zip(cell.split(n), lane.split(n), strict=True):
        rows = boxes.cells.index_select(0, i)
        apart = rows[:, :dim].sub_(query.index_select(0, j).unsqueeze(2)).square_().sum(1)
        apart.masked_fill_(rows[:, dim].isinf(), float("inf"))
        pair, place = (apart <= reach.index_select(0, j).unsqueeze(1)).nonzero().unbind(1)
        found.append((j[pair], i[pair] * CELL + place, apart[pair, place]))
    lane, row, squared = (torch.cat(column) for column in zip(*found, strict=True))
    return lane, row, squared


def _slots(cell: Tensor, lane: Tensor, nobody: int) -> tuple[Tensor, Tensor]:
    """Pairs cell by cell as cells [S] and the queries [S, SLOT] that look at each; `nobody` where places are left."""
    count = cell.unique_consecutive(return_counts=True)[1]
    rank = torch.arange(len(cell)) - (count.cumsum(0) - count).repeat_interleave(count)
    first = rank % SLOT == 0
    slot = first.cumsum(0) - 1
    lanes = lane.new_full((int(first.sum()), SLOT), nobody)
    lanes[slot, rank % SLOT] = lane
    return cell[first], lanes


def near_lists(states: Tensor, k: int = 16) -> Lists:
    """The k nearest states of each of N states [N, D] float32; N of them where there are fewer."""
    ready, k, n = boxes(states), min(k, len(states)), len(states)
    cells = ready.cells.transpose(1, 2)
    center = ready.balls[:, :-2]
    n_first = min(max(FIRST, -(-k // CELL) + 1), len(cells))  # that hold k rows, places left open included
    index, squared = torch.empty(n, k, dtype=torch.int32), torch.empty(n, k)
    for i in range(len(cells)):
        real = cells[i, :, -1].isfinite()
        mine, rows = cells[i, real, :-1], ready.order[i * CELL : (i + 1) * CELL][real]
        first = (center - center[i]).square().sum(-1).topk(n_first, largest=False).indices
        others = cells[first].flatten(0, 1)
        others = others[others[:, -1].isfinite(), :-1]
        apart = torch.cdist(mine, others, compute_mode="donot_use_mm_for_euclid_dist")
        numbers, distances = nearest_within(ready, mine, apart.kthvalue(k).values.square(), k)
        index[rows], squared[rows] = numbers.int(), distances
    return Lists(index, squared)

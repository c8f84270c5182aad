"""Sets of return vectors, all objectives maximized: dominance, quality measures, and the barrier that keeps floors.

A set is [n, M] policies by objectives. Measures are summed in float64 and returned as 0-dim tensors.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ctrlrl.functional.checks import in_range

_EXACT = 6  # objectives up to which the exact hypervolume of 200 points takes no seconds
_DIRECTIONS = 2**15  # of the estimated hypervolume; its standard error is then below 1 % up to nine objectives


def dominates(a: Tensor, b: Tensor) -> Tensor:
    """a >= b in every objective and a > b in one, [..., M] and [..., M] -> [...] bool. Duplicates do not dominate."""
    return (a >= b).all(-1) & (a > b).any(-1)


def non_dominated(points: Tensor) -> Tensor:
    """[n] bool: the members of [n, M] that no other one dominates; exact duplicates all stay."""
    return ~dominates(points.unsqueeze(0), points.unsqueeze(1)).any(1)


def crowding_distance(points: Tensor) -> Tensor:
    """How far the neighbors of each of [n, M] lie apart, [n]: the share of the range, summed over the objectives.

    The ends of every objective get infinity. Where all points agree in an objective it adds nothing.
    Source: Deb et al. 2002, NSGA-II, section III-B.
    """
    n = len(points)
    if n < 3:
        return torch.full((n,), math.inf, dtype=points.dtype, device=points.device)
    order = points.argsort(dim=0, stable=True)
    ranked = points.gather(0, order)
    reach = ranked[-1] - ranked[0]
    gaps = (ranked[2:] - ranked[:-2]) / torch.where(reach > 0.0, reach, 1.0)
    ends = torch.where(reach > 0.0, math.inf, 0.0).expand(1, -1)
    return torch.zeros_like(points).scatter_(0, order, torch.cat((ends, gaps, ends))).sum(1)


def hypervolume(points: Tensor, reference: Tensor) -> Tensor:
    """The volume that [n, M] dominates above reference [M]; a point below it in any objective adds nothing.

    Two objectives are swept here; three and more are pymoo's, exact, whose cost grows with n to the power M / 2.
    """
    points, reference = _above(points, reference)
    if points.shape[1] > 2:
        return _pymoo(points, reference)
    if not len(points):
        return points.new_zeros(())
    points = (points - reference)[points[:, 0].argsort(descending=True)]
    width = points[:, 0] - torch.cat((points[1:, 0], points.new_zeros(1)))
    height = points[:, 1].cummax(0).values if points.shape[1] == 2 else torch.ones_like(width)
    return (width * height).sum()


def hypervolume_estimate(points: Tensor, reference: Tensor, *, directions: int = _DIRECTIONS) -> Tensor:
    """The hypervolume from fixed random directions: for the many objectives at which the exact one takes hours.

    HV = c E_u[ max_p min_j ((p_j - z_j) / u_j)^M ], u uniform on the positive part of the unit sphere, c its volume.
    Source: Deng and Zhang 2019, IEEE TEVC 23(2), eq. 8.
    """
    points, reference = _above(points, reference)
    m = points.shape[1]
    if not len(points):
        return points.new_zeros(())
    unit = torch.randn(directions, m, generator=torch.Generator().manual_seed(0), dtype=torch.float64).abs()
    unit = (unit / unit.norm(dim=1, keepdim=True)).clamp(min=1e-300).to(points.device)
    reach = torch.zeros(directions, dtype=torch.float64, device=points.device)
    for point in points - reference:
        reach = torch.maximum(reach, (point / unit).amin(1))
    ball = math.pi ** (m / 2) / math.gamma(m / 2 + 1) / 2**m
    return ball * reach.pow(m).mean()


def expected_utility(points: Tensor, weights: Tensor) -> Tensor:
    """Mean over preferences [k, M] of the best w.G among [n, M]."""
    return (weights.double() @ points.double().T).amax(1).mean()


def sparsity(points: Tensor) -> Tensor:
    """Squared steps between neighbors of [n, M] along each objective, summed, over n - 1; 0 for a single point.

    It mixes the objectives' units and calls one point perfect: read it beside hypervolume and cardinality.
    Source: Xu et al. 2020, PGMORL, section 5.1.
    """
    if len(points) < 2:
        return torch.zeros((), dtype=torch.float64, device=points.device)
    return points.double().sort(0).values.diff(dim=0).square().sum() / (len(points) - 1)


def inverted_generational_distance(points: Tensor, front: Tensor) -> Tensor:
    """Mean over the true front [f, M] of the distance to the nearest of [n, M]."""
    apart = front.double().unsqueeze(1) - points.double().unsqueeze(0)
    return apart.norm(dim=2).amin(1).mean()


def maximum_utility_loss(points: Tensor, front: Tensor, weights: Tensor) -> Tensor:
    """The most utility that any of the preferences [k, M] loses by [n, M] in place of the true front [f, M]."""
    weights = weights.double()
    return ((weights @ front.double().T).amax(1) - (weights @ points.double().T).amax(1)).max()


def front_measures(points: Tensor, reference: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Hypervolume, expected utility (NaN of nothing), sparsity and size of [n, M]; more than six objectives: estimated.

    Dominated points and copies count in none of the four: they would divide the gaps that sparsity measures.
    weights: [k, M], the preferences that utility is the mean over.
    """
    points = points[non_dominated(points)].unique(dim=0)
    volume = hypervolume if points.shape[1] <= _EXACT else hypervolume_estimate
    return {
        "hypervolume": volume(points, reference),
        "expected_utility": expected_utility(points, weights) if len(points) else torch.tensor(math.nan).double(),
        "sparsity": sparsity(points),
        "size": torch.tensor(float(len(points)), dtype=torch.float64),
    }


def cardinality(points: Tensor) -> Tensor:
    """How many different non-dominated vectors [n, M] holds, int64."""
    return torch.tensor(len(points[non_dominated(points)].unique(dim=0)))


def simplex_grid(objectives: int, divisions: int) -> Tensor:
    """All preferences whose entries are multiples of 1 / divisions, [k, M] float64, first entry slowest.

    Made of whole numbers, so that none is lost to rounding: k = (divisions + M - 1) choose (M - 1).
    """
    counts = torch.tensor(_compositions(objectives, divisions), dtype=torch.float64)
    return counts / divisions


def rounded_simplex_grid(objectives: int, step: float) -> Tensor:
    """The grid of the released evaluation: floating steps, of which only rows that sum to exactly 1 stay.

    It loses 4 of 66 vectors at three objectives and step 0.1; for comparison with its numbers alone.
    """
    axis = torch.arange(0.0, 1.0 + step, step, dtype=torch.float64)
    rows = torch.cartesian_prod(*[axis] * objectives).view(-1, objectives)
    total = torch.zeros(len(rows), dtype=torch.float64)
    for column in rows.unbind(1):
        total = total + column
    return rows[total == 1.0]


def depth_first_grid(objectives: int, low: float, high: float, step: float) -> Tensor:
    """Preferences of C-MORL's first stage, [k, M] float64, in the order of the released code.

    All entries but the last run from `low` by `step` to `high` while their sum stays below 1; the last is what is left
    and may be less than `low`. arXiv:2410.02236, the authors' morl/sample.py.
    """
    in_range("depth_first_grid", low=0.0, high=1.0, low_end=low, high_end=high)
    slack = 1e-9  # ten steps of 0.1 make less than 1
    rows: list[list[float]] = []

    def extend(row: list[float]) -> None:
        if len(row) == objectives - 1:
            rows.append([*row, max(0.0, 1.0 - sum(row))])
            return
        i = 0
        while (value := low + i * step) <= high + slack and sum(row) + value <= 1.0 + slack:
            extend([*row, value])
            i += 1

    extend([])
    return torch.tensor(rows, dtype=torch.float64)


def return_floor(returns: Tensor, *, slack: float) -> Tensor:
    """The least return that an extension must keep: G - slack |G|, the share 1 - slack of a positive one.

    slack: 1 - beta, in (0, 1). beta G would lie above a negative G. Derived from C-MORL's eq. 3.
    """
    return returns - slack * returns.abs()


def least_gap(sharpness: float) -> float:
    """`least` of a log barrier that weighs 1 / sharpness: its line then has at least the slope 5 in the objective.

    sharpness: t of C-MORL's barrier. 0.01 up to t = 20.
    """
    return min(0.01, 1.0 / (5.0 * sharpness))


def log_barrier(gap: Tensor, *, least: float) -> Tensor:
    """log(gap), and below `least` the line that continues it: a broken constraint keeps a gradient back. Same shape.

    gap: how far a return is above its floor, in units of the return.
    Source: interior-point policy optimization, arXiv:1910.09615, eq. 6; the line is ours.
    """
    inside = gap > least
    return torch.where(inside, torch.where(inside, gap, 1.0).log(), math.log(least) + (gap - least) / least)


def ratio_barrier(log_ratio: Tensor, mean_return: Tensor, *, beta: float, clip_range: float) -> Tensor:
    """The barrier as C-MORL's code computes it, per sample and objective [b, M]: log of what is left above the floor.

    log_ratio:   [b] nats.
    mean_return: [M] of the minibatch's normalized returns; it cancels where it is positive, and where it is not there
                 is no gradient.
    Source: arXiv:2410.02236, the authors' ppo.py, `ipo_update`.
    """
    ratio = log_ratio.exp().clamp(1.0 - clip_range, 1.0 + clip_range)
    cost = ratio.unsqueeze(-1) * mean_return
    return (cost - beta * mean_return).clamp(min=1e-3).log()


def _above(points: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    points, reference = points.double(), reference.double()
    if points.ndim != 2 or points.shape[1] != len(reference):
        raise ValueError(f"hypervolume: {len(reference)} objectives in the reference, points are {tuple(points.shape)}")
    return points[(points >= reference).all(1)], reference


def _pymoo(points: Tensor, reference: Tensor) -> Tensor:
    try:
        from pymoo.indicators.hv import HV
    except ImportError:
        raise ImportError("the hypervolume of three and more objectives needs: pip install 'ctrlrl[mo]'") from None
    value = HV(ref_point=-reference.cpu().numpy())(-points.cpu().numpy()) if len(points) else 0.0
    return torch.tensor(float(value), dtype=torch.float64, device=points.device)


def _compositions(parts: int, total: int) -> list[list[int]]:
    if parts == 1:
        return [[total]]
    return [[first, *rest] for first in range(total + 1) for rest in _compositions(parts - 1, total - first)]

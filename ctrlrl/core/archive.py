"""The non-dominated policies that a run has met: their return vectors and their networks, rows of stacked tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from ctrlrl.functional.pareto import crowding_distance, non_dominated


class Archive:
    """At most `size` policies, none below the reference in any objective, none dominated, no two with equal returns.

    returns: [n, M] float64; rows: [n, ...] of every tensor that acting and training on need. chosen: [k, M], return
    vectors that `select` has given out already, of policies that may have left since.
    """

    def __init__(self, reference: Tensor, size: int):
        self.reference, self.size = reference.double(), size
        m = len(reference)
        self.returns = torch.zeros(0, m, dtype=torch.float64)
        self.rows: dict[str, Tensor] = {}
        self.chosen = torch.zeros(0, m, dtype=torch.float64)
        self.offered = torch.zeros((), dtype=torch.int64)
        self.below = torch.zeros(m, dtype=torch.int64)  # offered policies that fell short, by objective
        self.best = torch.full((m,), -torch.inf, dtype=torch.float64)

    def __len__(self) -> int:
        return len(self.returns)

    def insert(self, returns: Tensor, rows: dict[str, Tensor]) -> None:
        """Offer S policies: returns [S, M] and their rows [S, ...]. Of equal returns the older policy stays."""
        returns = returns.double().cpu()
        self.offered += len(returns)
        self.below += (returns < self.reference).sum(0)
        self.best = torch.maximum(self.best, returns.amax(0))
        every = torch.cat((self.returns, returns))
        fine = (every >= self.reference).all(1) & _first_of_equals(every)
        index = fine.nonzero().squeeze(1)
        index = index[non_dominated(every[index])]
        if len(index) > self.size:
            widest = crowding_distance(every[index]).argsort(descending=True, stable=True)[: self.size]
            index = index[widest.sort().values]
        n_old = len(self.returns)
        if len(index) == n_old and bool((index < n_old).all()):
            return  # nothing new
        self.returns = every[index]
        self.rows = {
            name: torch.cat((self.rows[name], new.detach()) if n_old else (new.detach(),))[index.to(new.device)]
            for name, new in rows.items()
        }

    def select(self, n: int) -> Tensor:
        """Indices of up to n policies with the most room around them, none selected before; they are remembered."""
        order = crowding_distance(self.returns).argsort(descending=True, stable=True)
        fresh = ~(self.returns.unsqueeze(1) == self.chosen.unsqueeze(0)).all(2).any(1)
        index = order[fresh[order]][:n]
        self.chosen = torch.cat((self.chosen, self.returns[index]))
        return index

    def best_for(self, preference: Tensor) -> int:
        """The policy to play for a preference [M]: argmax of w.G. ValueError where the archive is empty."""
        if not len(self):
            raise ValueError(self.why_empty())
        return int((self.returns @ preference.double()).argmax())

    def why_empty(self) -> str:
        """Which objective of the reference is to blame."""
        if not int(self.offered):
            return "the front holds no policy: none has been evaluated, or none reached algo.reference"
        i = int(self.below.argmax())
        place = ", ".join(f"{z:g}" for z in self.reference.tolist())
        best = self.best[i].item()
        what = (
            f"the best of {int(self.offered)} policies reached {best:.4g}"
            if best < self.reference[i]
            else f"{int(self.below[i])} of {int(self.offered)} policies fell short of it, each other one in another"
        )
        return (
            f"algo.reference=[{place}] empties the archive: objective {i} wants at least {self.reference[i]:g}, and "
            f"{what}. Lower it."
        )

    def state_dict(self) -> dict[str, Tensor]:
        """What a resume needs besides the policies themselves."""
        return {"chosen": self.chosen, "offered": self.offered, "below": self.below, "best": self.best}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.chosen, self.offered, self.below, self.best = (
            state[name].clone() for name in ("chosen", "offered", "below", "best")
        )


def _first_of_equals(points: Tensor) -> Tensor:
    """[n] bool: False for a row that an earlier one equals."""
    same = (points.unsqueeze(0) == points.unsqueeze(1)).all(2)
    return ~same.tril(-1).any(1)

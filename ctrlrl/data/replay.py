"""Rows that come while one learns: the ring of an environment's last transitions, and batches of several sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ctrlrl.data.table import Table
from ctrlrl.types import HybridBatch, Source, Transition, tree_map


class ReplayBuffer:
    """The last `capacity` transitions of an environment, a ring of packed rows."""

    def __init__(
        self,
        capacity: int,
        obs_dim: int,
        action_dim: int,
        *,
        extras: Mapping[str, int] | None = None,
        device: torch.device | str = "cpu",
        reward_dim: int = 1,
    ):
        if capacity < 1:
            raise ValueError(f"buffer_size must be at least 1, got {capacity}")
        self.table = Table(capacity, obs_dim, action_dim, extras or {}, device, reward_dim=reward_dim)
        self.capacity, self.added = capacity, 0  # rows ever added

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, data: Transition) -> None:
        """B new transitions [B, ...]; the oldest make room."""
        n = len(data.reward)
        if n > self.capacity:
            raise ValueError(f"buffer_size={self.capacity} is smaller than one step of {n} environments")
        begin = self.added % self.capacity
        first = min(n, self.capacity - begin)
        for name, column in {**data._asdict(), **data.extras}.items():
            if name in self.table.columns:
                stored = self.table[name]
                stored[begin : begin + first] = column[:first]
                stored[: n - first] = column[first:]
        self.added += n

    def fill(self, data: Transition) -> None:
        """Begin with the rows of a data set, the last ones where they are more than the capacity."""
        self.add(tree_map(lambda x: x[-self.capacity :], data))

    def sample(self, n: int) -> Transition:
        if self.added == 0:
            raise ValueError("the replay buffer is empty; collect transitions before the first update")
        index = torch.randint(len(self), (n,), device=self.table.rows.device)
        return self.table.read(torch.embedding(self.table.rows, index))  # as in Dataset.take

    def newest(self, n: int) -> Tensor:
        """The packed rows [<= n, width] that were added last, in the order in which they lie."""
        n, end = min(n, len(self)), (self.added - 1) % self.capacity + 1
        first = self.table.rows[max(0, end - n) : end]
        return first if n <= end else torch.cat((first, self.table.rows[end - n :]))

    def state_dict(self) -> dict[str, Tensor]:
        return {"rows": self.table.rows[: len(self)], "added": torch.tensor(self.added)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.added = int(state["added"])
        self.table.rows[: len(self)] = state["rows"].to(self.table.rows.device)


class Mixture:
    """Rows of several sources in fixed shares, interleaved in the order given: any slice of a batch holds the shares.

    extras that not every source has are left out.
    """

    def __init__(self, parts: Sequence[tuple[Source, float]]):
        total = sum(share for _, share in parts)
        if not parts or min(share for _, share in parts) < 0 or total <= 0:
            raise ValueError(f"a mixture needs shares that are not negative and not all 0, got {[s for _, s in parts]}")
        self.sources = [source for source, _ in parts]
        self.shares = [share / total for _, share in parts]

    def sample(self, n: int) -> Transition:
        edges = [round(n * sum(self.shares[:i])) for i in range(len(self.shares) + 1)]
        counts = [b - a for a, b in pairwise(edges)]
        drawn = [source.sample(k) for source, k in zip(self.sources, counts, strict=True) if k]
        place = torch.cat([(torch.arange(k) + 0.5) / k for k in counts if k])  # where in the batch, as a fraction
        order = torch.argsort(place, stable=True).to(drawn[0].reward.device)
        shared = set.intersection(*(set(d.extras) for d in drawn))
        alike = [d._replace(extras={name: d.extras[name] for name in shared}) for d in drawn]
        return tree_map(lambda *parts: torch.cat(parts)[order], alike[0], *alike[1:])


class Pair:
    """A batch of each of two sources, kept apart: real transitions and simulated ones."""

    def __init__(self, real: Source, sim: Source):
        self.real, self.sim = real, sim

    def sample(self, n: int) -> HybridBatch:
        """n rows in all, half of each. extras that not both have are left out."""
        real, sim = self.real.sample(n - n // 2), self.sim.sample(n // 2)
        shared = set(real.extras) & set(sim.extras)
        return HybridBatch(*(d._replace(extras={name: d.extras[name] for name in shared}) for d in (real, sim)))

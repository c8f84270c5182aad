"""The processes that train one learner together, as learners and loops see them. Here: one process, nothing exchanged.

`train/distributed.py` holds those of torchrun. Every rank calls the same methods in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from ctrlrl.types import Metrics

T = TypeVar("T")


class Ranks:
    """One process alone."""

    size = 1
    index = 0  # the first, 0, evaluates and writes the files

    def mean_(self, x: Tensor) -> Tensor:
        """In place, the mean over the ranks."""
        return x

    def first_(self, x: Tensor) -> Tensor:
        """In place, what the first rank has."""
        return x

    def stacked(self, x: Tensor) -> Tensor:
        """Every rank's x, [size, *x.shape]."""
        return x.unsqueeze(0)

    def averaged(self, metrics: Metrics) -> Metrics:
        """Each 0-dim metric as its mean over the ranks, which must all have the same ones."""
        return metrics

    def any(self, flag: bool) -> bool:
        """Whether it holds on any rank."""
        return flag

    def of_first(self, make: Callable[[], T]) -> T:
        """What `make` returns on the first rank, which alone calls it. Its ValueError or OSError reaches all."""
        return make()

    def gathered(self, value: Any) -> list[Any]:
        """Every rank's value."""
        return [value]

    def to_first(self, value: Any) -> list[Any]:
        """Every rank's value on the first rank, nothing on the others."""
        return [value]

    def leave(self) -> None:
        """Wait for the others and part."""


ALONE = Ranks()

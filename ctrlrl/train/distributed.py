"""Several processes that train one learner together, started by torchrun: gloo between CPUs, NCCL between GPUs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ctrlrl.core.ranks import ALONE, Ranks
from ctrlrl.types import Metrics

T = TypeVar("T")
PATIENCE = timedelta(hours=6)  # the others wait while the first rank evaluates


def join(*, cuda: bool) -> Ranks:
    """The ranks of this torchrun call; ALONE in a process that it did not start, or the only one that it did."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        return ALONE
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    return TorchRanks()


def part() -> None:
    """Leave the group without waiting for the others: what one of several processes does when it fails."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def agree(ranks: Ranks, settings: Mapping[str, Any]) -> None:
    """ValueError, on every rank, that names the first setting in which one differs from the first rank."""
    if ranks.size == 1:
        return
    first, *others = ranks.gathered(dict(settings))
    for index, other in enumerate(others, start=1):
        for key in first.keys() | other.keys():
            if first.get(key) != other.get(key):
                raise ValueError(
                    f"ranks disagree: {key} is {first.get(key)!r:.80} on rank 0 and {other.get(key)!r:.80} on rank "
                    f"{index}. Start every rank with the same words and the same versions."
                )


@contextmanager
def _exchange() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise RuntimeError(f"another rank ended; what it said tells why ({first})") from None


class TorchRanks(Ranks):
    """The ranks of torch.distributed's default group."""

    def __init__(self) -> None:
        self.size, self.index = dist.get_world_size(), dist.get_rank()

    def mean_(self, x: Tensor) -> Tensor:
        with _exchange():
            dist.all_reduce(x)
        return x.div_(self.size)

    def first_(self, x: Tensor) -> Tensor:
        sent = x.contiguous()
        with _exchange():
            dist.broadcast(sent, 0)
        return x.copy_(sent)

    def stacked(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.size)]
        with _exchange():
            dist.all_gather(parts, x)
        return torch.stack(parts)

    def averaged(self, metrics: Metrics) -> Metrics:
        if not metrics:
            return metrics
        device = next((value.device for value in metrics.values() if value.is_cuda), torch.device("cpu"))
        values = self.mean_(torch.stack([value.double().to(device) for value in metrics.values()]))
        return dict(zip(metrics, values.unbind(), strict=True))

    def any(self, flag: bool) -> bool:
        told = torch.tensor(int(flag))
        with _exchange():
            dist.all_reduce(told, dist.ReduceOp.MAX)
        return bool(told)

    def of_first(self, make: Callable[[], T]) -> T:
        told: list[Any] = [None, None]
        if self.index == 0:
            try:
                told[0] = make()
            except (ValueError, OSError) as error:
                told[1] = error
        with _exchange():
            dist.broadcast_object_list(told, 0)
        if told[1] is not None:
            raise told[1]
        return told[0]

    def gathered(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.size
        with _exchange():
            dist.all_gather_object(values, value)
        return values

    def to_first(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.size if self.index == 0 else []
        with _exchange():
            dist.gather_object(value, values if self.index == 0 else None, dst=0)
        return values

    def leave(self) -> None:
        with _exchange():
            dist.barrier()
        dist.destroy_process_group()

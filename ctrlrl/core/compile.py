"""Three ways to run one function: eager, torch.compile, and a CUDA graph.

All three give the same numbers, but for those drawn inside: torch.compile has random numbers of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ctrlrl.types import tree_map

Mode = Literal["eager", "compile", "graph"]


def resolve(mode: str, device: torch.device, env_steps: int, *, graph: bool = True) -> Mode:
    """What `auto` means: a graph on CUDA; on a CPU compile only when the budget repays 10 to 25 s of compilation.

    graph: whether an update can be captured; one that reads the device cannot.
    """
    if mode == "auto":
        if device.type == "cuda":
            return "graph" if graph else "eager"
        return "compile" if env_steps > 10_000_000 else "eager"
    if mode == "graph" and device.type != "cuda":
        raise ValueError(
            f"compile=graph needs a CUDA device, got device={device}. Use compile=compile or compile=eager."
        )
    if mode not in ("eager", "compile", "graph"):
        raise ValueError(f"compile must be auto, eager, compile or graph, got {mode!r}")
    return mode  # type: ignore[return-value]


def compiled(fn: Callable[..., Any], mode: Mode) -> Callable[..., Any]:
    return fn if mode == "eager" else torch.compile(fn, dynamic=False)


class Graph:
    """A CUDA graph of `fn`. Calls copy the arguments into static buffers, replay, and return the static result.

    undo: called after the warm-up runs, to put back what `fn` changed in place; capturing itself has no effect.
    generators: those besides the device's default one that `fn` draws from; they go on as without a graph.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        example: tuple[Any, ...],
        *,
        undo: Callable[[], None],
        generators: Sequence[torch.Generator] = (),
    ):
        self.inputs = tree_map(torch.clone, example)
        rng, states = torch.cuda.get_rng_state(), [g.get_state() for g in generators]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                fn(*self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        undo()
        torch.cuda.set_rng_state(rng)
        self.graph = torch.cuda.CUDAGraph()
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
            self.graph.register_generator_state(generator)
        with torch.cuda.graph(self.graph):
            self.output = fn(*self.inputs)

    def __call__(self, *args: Any) -> Any:
        tree_map(lambda static, new: static.copy_(new), self.inputs, args)
        self.graph.replay()
        return self.output


def undoing(tensors: list[Tensor]) -> Callable[[], None]:
    """A function that puts the tensors' present values back."""
    saved = [t.detach().clone() for t in tensors]

    def undo() -> None:
        for tensor, value in zip(tensors, saved, strict=True):
            tensor.detach().copy_(value)

    return undo

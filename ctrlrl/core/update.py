"""The two halves of every gradient method here: slice a batch into minibatches, and take one clipped Adam step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor, nn

from ctrlrl.core.process import wide_products
from ctrlrl.core.ranks import ALONE, Ranks
from ctrlrl.types import Metrics, Tree, tree_map

WHOLE = 2**20  # rows of a batch from which on every minibatch is gathered by itself, in blocks of rows
BLOCK = 64  # rows at most


class GradStep:
    """Backward pass, global-norm clip, one fused Adam step.

    The parameters are made views of one flat vector: clip and Adam are one kernel each, however many layers there are.
    learning_rate is a 0-dim tensor: schedules and KL rules change it without a host read or a recompilation.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        learning_rate: float,
        max_grad_norm: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
    ):
        """weight_decay: decoupled, AdamW's: every step also multiplies the parameters by 1 - rate * weight_decay."""
        self.params = list(params)
        device = self.params[0].device
        self.flat = nn.Parameter(flatten_(self.params))
        self.learning_rate = torch.tensor(learning_rate, device=device)
        self.max_grad_norm = max_grad_norm
        self.ranks: Ranks = ALONE  # whose gradients are averaged before the clip
        self.eps, self.weight_decay, self.betas = eps, weight_decay, betas
        # the moments exist from the start, so that they can be saved, loaded and captured before the first step
        self.state = {
            "step": torch.zeros((), device=device),
            "exp_avg": torch.zeros_like(self.flat),
            "exp_avg_sq": torch.zeros_like(self.flat),
        }

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """PyTorch's face of the same parameters, rate and moments. To make one takes seconds: it imports a compiler."""
        kind = torch.optim.AdamW if self.weight_decay else torch.optim.Adam
        found = kind(
            [self.flat],
            lr=self.learning_rate,
            eps=self.eps,
            weight_decay=self.weight_decay,
            betas=self.betas,
            fused=True,
            capturable=self.flat.device.type == "cuda",
        )
        found.state[self.flat] = self.state
        return found

    def __call__(self, loss: Tensor) -> None:
        """loss: 0-dim, or [S] for the stacked parameters of S seeds, none of which sees another's loss."""
        together(loss, [self])

    def gradient(self, loss: Tensor) -> Tensor:
        """The flat gradient of a 0-dim loss as `apply` takes it, so that those of micro-batches can be summed."""
        grads = torch.autograd.grad(loss, self.params, allow_unused=True, materialize_grads=True)
        return torch.cat([as_stored(g, p).reshape(-1) for g, p in zip(grads, self.params, strict=True)])

    def apply(self, grad: Tensor) -> None:
        """One step along `grad`, the flat gradient in the order of `params`."""
        if self.max_grad_norm is not None:
            grad = grad * (self.max_grad_norm / (grad.norm() + 1e-6)).clamp(max=1.0)
        self.flat.grad = grad
        beta1, beta2 = self.betas
        fused = torch._fused_adamw_ if self.weight_decay else torch._fused_adam_
        with torch.no_grad():
            self.state["step"] += 1.0
            # what torch.optim.Adam does in the end; its bookkeeping costs three networks of IQL 0.25 ms an update
            fused(
                [self.flat],
                [grad],
                [self.state["exp_avg"]],
                [self.state["exp_avg_sq"]],
                [],
                [self.state["step"]],
                lr=self.learning_rate,
                beta1=beta1,
                beta2=beta2,
                weight_decay=self.weight_decay,
                eps=self.eps,
                amsgrad=False,
                maximize=False,
            )

    def state_dict(self) -> dict[str, Tensor]:
        return {**self.state, "learning_rate": self.learning_rate}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])


def together(loss: Tensor, steps: Sequence[GradStep]) -> None:
    """One backward pass for several optimiser steps."""
    params = [p for step in steps for p in step.params]
    total = loss if loss.ndim == 0 else loss.sum()
    grads = torch.autograd.grad(total, params, allow_unused=True, materialize_grads=True)
    stored = [as_stored(g, p).reshape(-1) for g, p in zip(grads, params, strict=True)]
    for step in steps:
        n = len(step.params)
        # into the place of the last one, which the processor's cache still holds
        step.apply(step.ranks.mean_(torch.cat(stored[:n], out=step.flat.grad)))
        stored = stored[n:]


class Target:
    """A copy of the network that `step` trains, which follows it: target <- tau * online + (1 - tau) * target."""

    def __init__(self, copy: nn.Module | Iterable[nn.Parameter], step: GradStep):
        params = list(copy.parameters() if isinstance(copy, nn.Module) else copy)
        for p in params:
            p.requires_grad_(False)
        if [p.shape for p in params] != [p.shape for p in step.params]:
            raise ValueError("a target follows a gradient step over exactly the network that it copies")
        self.flat, self.online = flatten_(params), step.flat

    @torch.no_grad()
    def move(self, tau: float | Tensor) -> None:
        self.flat.lerp_(self.online, tau)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """What is computed here has gradients to the module's inputs, none to its parameters: compiled code forms both."""
    params = [p for p in module.parameters() if p.requires_grad]
    for p in params:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in params:
            p.requires_grad_(True)


def flatten_(params: Sequence[nn.Parameter]) -> Tensor:
    """Copy the parameters into one flat vector and make them views of it."""
    flat = torch.cat([as_stored(p.detach(), p).reshape(-1) for p in params])
    offset = 0
    for p in params:
        stored = flat[offset : offset + p.numel()].view(as_stored(p, p).shape)
        p.data = as_stored(stored, p)
        offset += p.numel()
    return flat


def as_stored(x: Tensor, param: nn.Parameter) -> Tensor:
    """`x` (of the parameter's shape, or back) with its axes in the order in which the parameter lies in memory."""
    return x.transpose(-1, -2) if param.ndim > 1 and param.stride(-2) < param.stride(-1) else x


def run_epochs(
    batch: Tree,
    step: Callable[[Tree], Metrics | None],
    *,
    n_epochs: int,
    n_minibatches: int,
    after_epoch: Callable[[Tree], Tree] | None = None,
    report: Callable[[Metrics], None] | None = None,
) -> tuple[Metrics, int]:
    """Call `step` on every minibatch of `batch`, reshuffled each epoch; return the mean metrics and the steps taken.

    batch: any NamedTuple of tensors of one length N on axis 0. Minibatches differ in size by at most one row; from
           WHOLE rows on, by at most one block of neighbouring rows, which then stay together (`block_length`).
    step:  returns the minibatch's metrics, or None to end the update before its gradient step (a KL limit).
    after_epoch: gives the batch of the next epoch.
    report: called with the mean metrics so far at the end of every epoch.
    """
    leaves: list[Tensor] = []
    tree_map(leaves.append, batch)
    n, device = leaves[0].shape[0], leaves[0].device
    block = block_length(n, n_minibatches) if n >= WHOLE else 1
    edges = [n // block * i // n_minibatches for i in range(n_minibatches + 1)]
    slices = [slice(a, b) for a, b in pairwise(edges) if b > a]
    totals: Metrics = {}
    n_steps, stopped = 0, False
    for epoch in range(n_epochs):
        if epoch and after_epoch is not None:
            batch = after_epoch(batch)
        order = torch.randperm(n // block, device=device)
        for minibatch in _gathered(batch, order, block, slices) if n >= WHOLE else _views(batch, order, slices):
            with wide_products():
                metrics = step(minibatch)
            stopped = metrics is None
            if metrics is None:
                break
            # summed in place: a list of small tensors would pin the heap between the activations of every step
            for name, value in metrics.items():
                totals[name] = totals[name].add_(value) if name in totals else value.clone()
            n_steps += 1
        if stopped:
            break
        if report is not None and n_steps:
            report({name: total / n_steps for name, total in totals.items()})
    return {name: total / n_steps for name, total in totals.items()}, n_steps


def block_length(n: int, n_minibatches: int) -> int:
    """Rows that stay together in a shuffle of n rows: a power of two that divides n, at most BLOCK.

    A minibatch holds at least 16 blocks. In a flat [T, B] rollout a block is neighbouring environments at one time.
    """
    block = 1
    while block < BLOCK and n % (2 * block) == 0 and n >= 16 * 2 * block * n_minibatches:
        block *= 2
    return block


def _views(batch: Tree, order: Tensor, slices: Sequence[slice]) -> Iterator[Tree]:
    """One gather a field and epoch; the minibatches are then views."""
    shuffled = tree_map(lambda x: x.index_select(0, order), batch)
    for rows in slices:
        yield tree_map(lambda x, rows=rows: x[rows], shuffled)


def _gathered(batch: Tree, order: Tensor, block: int, slices: Sequence[slice]) -> Iterator[Tree]:
    """One gather a field and minibatch, of whole blocks: no second copy of the batch, no index of its length."""
    blocks = tree_map(lambda x: x.unflatten(0, (-1, block)), batch)
    for chosen in slices:
        yield tree_map(lambda x, rows=order[chosen]: x.index_select(0, rows).flatten(0, 1), blocks)

"""The one loop over time: a first-order linear recurrence, run backwards along axis 0."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 64  # up to here a plain loop; above, two levels, so 4096 steps cost about 3 * 64 kernels instead of 4096


def append_axes(x: Tensor, ndim: int) -> Tensor:
    """A view of `x` with size-1 axes appended until it has `ndim` axes: [T, B] -> [T, B, 1] against [T, B, K]."""
    return x if x.ndim >= ndim else x.reshape(x.shape + (1,) * (ndim - x.ndim))


def linear_recurrence(decay: Tensor, x: Tensor) -> Tensor:
    """y[t] = x[t] + decay[t] * y[t+1] along axis 0, with y[T] = 0.

    decay, x: [T, ...]; trailing axes broadcast against each other, missing trailing axes count as 1.
    Returns [T, ...] of the broadcast shape. Differentiable in both.
    """
    if decay.ndim == 0 or x.ndim == 0 or decay.shape[0] != x.shape[0] or x.shape[0] == 0:
        got = f"decay {tuple(decay.shape)}, x {tuple(x.shape)}"
        raise ValueError(f"linear_recurrence: both need the same time axis 0 of length >= 1, got {got}.")
    ndim = max(decay.ndim, x.ndim)
    decay, x = append_axes(decay, ndim), append_axes(x, ndim)
    return _loop(decay, x) if x.shape[0] <= CHUNK else _two_levels(decay, x)


def _loop(decay: Tensor, x: Tensor) -> Tensor:
    # One kernel a step and one stack: cheaper than writing rows in place, and the same code runs under autograd.
    decays, rows = decay.unbind(0), x.unbind(0)
    y = torch.broadcast_tensors(rows[-1], decays[-1])[0]
    out = [y]
    for t in range(len(rows) - 2, -1, -1):
        y = torch.addcmul(rows[t], decays[t], y)
        out.append(y)
    out.reverse()
    return torch.stack(out)


def _two_levels(decay: Tensor, x: Tensor) -> Tensor:
    """All chunks in step, then a recurrence over the chunks' first elements, then that carry spread over each chunk."""
    steps = x.shape[0]
    length = 1  # the square root balances the levels while it is below CHUNK; counted, because isqrt does not trace
    while length < CHUNK and length * length < steps:
        length += 1
    n_chunks = -(-steps // length)
    # [n, L, ...] -> [L, n, ...]: the loop inside a chunk walks axis 0
    decay, x = (_chunked(a, n_chunks, length) for a in (decay, x))
    local = _loop(decay, x)  # y as if every chunk were followed by zeros
    reach = [decay[-1]]  # product of the decays from here to the end of the chunk
    for d in decay.unbind(0)[-2::-1]:
        reach.append(d * reach[-1])
    weight = torch.stack(reach[::-1])
    first = linear_recurrence(weight[0], local[0])  # y at the first step of each chunk; recursive above 64 * 64
    carry = torch.cat([first[1:], torch.zeros_like(first[:1])])
    y = torch.addcmul(local, weight, carry)
    return y.transpose(0, 1).reshape(n_chunks * length, *y.shape[2:])[:steps]


def _chunked(a: Tensor, n_chunks: int, length: int) -> Tensor:
    missing = n_chunks * length - a.shape[0]
    if missing:  # zeros after the end change nothing before it
        a = torch.cat([a, a.new_zeros(missing, *a.shape[1:])])
    return a.reshape(n_chunks, length, *a.shape[1:]).transpose(0, 1)

"""Random numbers of a lane and an episode, by counting: lane 3 gets the same noise with 4 lanes or 400.

SplitMix64 (Steele, Lea and Flood, 2014) used as a hash: seed, lane, episode and column are mixed in one by one.
Integer arithmetic wraps modulo 2^64 on every device, so CPU and GPU agree on the bits, and nothing is read by the host.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_UNIFORM_STREAM, _NORMAL_STREAM = 1, 2  # uniform() and normal() of one lane and episode are independent


def _signed(x: int) -> int:
    """The int64 with the bits of x modulo 2^64."""
    x &= (1 << 64) - 1
    return x - (1 << 64) if x >> 63 else x


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_M1, _M2 = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _shift(x: Tensor, k: int) -> Tensor:
    """Logical right shift: torch's is arithmetic on int64."""
    return (x >> k) & ((1 << (64 - k)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = x + _GOLDEN
    x = (x ^ _shift(x, 30)) * _M1
    x = (x ^ _shift(x, 27)) * _M2
    return x ^ _shift(x, 31)


def _mix_int(x: int) -> int:
    mask = (1 << 64) - 1
    x = (x + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def _bits(seed: int, stream: int, lane: Tensor, episode: Tensor, count: int) -> Tensor:
    """[n, count] int64 of 64 random bits each."""
    start = _signed(_mix_int(_mix_int(seed & ((1 << 64) - 1)) + stream))
    key = _mix(_mix(lane ^ start) + episode)
    column = torch.arange(count, dtype=torch.int64, device=lane.device)
    return _mix(_mix(key).unsqueeze(1) + column)


def uniform(seed: int, lane: Tensor, episode: Tensor, count: int) -> Tensor:
    """[n, count] float64 in [0, 1) for lane [n] int64 and episode [n] int64."""
    return _shift(_bits(seed, _UNIFORM_STREAM, lane, episode, count), 11).to(torch.float64) * 2.0**-53


def stream(key: Tensor, tick: Tensor, count: int) -> Tensor:
    """[count, n] float64 in [0, 1) for key [n] int64 and tick [n] int64: the noise of a step, lanes last.

    For a simulator whose steps are random: its state holds a key, drawn at a reset, and counts its steps.
    """
    column = torch.arange(count, dtype=torch.int64, device=key.device).unsqueeze(1)
    return _shift(_mix(_mix(_mix(key) + tick) + column), 11).to(torch.float64) * 2.0**-53


def normal(seed: int, lane: Tensor, episode: Tensor, count: int) -> Tensor:
    """[n, count] float64, standard normal by Box and Muller, for lane [n] int64 and episode [n] int64."""
    half = (count + 1) // 2
    bits = _shift(_bits(seed, _NORMAL_STREAM, lane, episode, 2 * half), 11).to(torch.float64) * 2.0**-53
    radius = torch.sqrt(-2.0 * torch.log1p(-bits[:, :half]))  # 1 - u is in (0, 1]: the logarithm is finite
    angle = (2.0 * math.pi) * bits[:, half:]
    return torch.cat((radius * torch.cos(angle), radius * torch.sin(angle)), dim=1)[:, :count]

"""Settings of the process that decide the speed of small tensor work on a CPU."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

ZEN_5 = 26  # the "cpu family" of its processors in /proc/cpuinfo
_DENORMAL = 5e-324  # compares as 0 where denormal numbers count as 0
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h


@functools.cache
def keep_memory() -> bool:
    """Let glibc keep freed blocks of megabytes instead of handing them back at once.

    A minibatch's activations are such blocks: without this every step pays thousands of page faults, which made the
    update of a 64x64 network at 2048 rows 1.8x slower. Returns whether the C library took it (glibc only).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    wanted = ((_M_MMAP_THRESHOLD, 32 * 2**20), (_M_TRIM_THRESHOLD, 2**30), (_M_TOP_PAD, 64 * 2**20))
    taken = [mallopt(option, value) == 1 for option, value in wanted]  # all three, whatever the first one says
    return all(taken)


def set_threads(threads: int | None, widest_layer: int, device: torch.device) -> None:
    """torch's CPU threads; None: one for networks narrower than 256, whose kernels are too short to share out."""
    if threads is not None:
        torch.set_num_threads(threads)
    elif device.type == "cpu" and widest_layer < 256:
        torch.set_num_threads(1)


@contextmanager
def wide_products() -> Iterator[None]:
    """float32 matrix products by oneDNN where that is faster: AMD's processors from Zen 5 on, by a factor of two.

    MKL, which PyTorch takes, leaves half of their 512-bit units idle. PyTorch's only word for oneDNN allows bfloat16;
    oneDNN forms bfloat16 products on processors with AMX alone, which these are not: the products stay float32's.
    """
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    if not _wide_amd() or (before := matmul.fp32_precision) != "none":  # a choice of the user's own
        yield
        return
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


@functools.cache
def _wide_amd() -> bool:
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    except OSError:
        return False
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags, family = facts.get("flags", "").split(), facts.get("cpu family", "0")
    new = facts.get("vendor_id") == "AuthenticAMD" and family.isdecimal() and int(family) >= ZEN_5
    return new and "avx512f" in flags and not any(flag.startswith("amx") for flag in flags)


@contextmanager
def flushed() -> Iterator[None]:
    """Numbers too small for float32's full precision, below 1.2e-38, are 0 for this thread's products.

    The gradients of a log-sum-exp's least actions are such numbers, and slow to a processor: without this the 21,000th
    update of CQL took 3.2 times as long. The simulators keep theirs.
    """
    if _DENORMAL == 0.0:
        yield
        return
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)

"""float32 matrix products whose rounding is float32's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def whole_products(device: torch.device) -> Iterator[None]:
    """None of bfloat16's or TF32's, whatever the user allows elsewhere: proofs by margins of rounding count on it."""
    backends: Any = torch.backends
    matmul = backends.cuda.matmul if device.type == "cuda" else backends.mkldnn.matmul
    before = matmul.fp32_precision
    if before in ("none", "ieee"):
        yield
        return
    matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before

"""The error messages of this floor: where, what came, what was wanted, what to do."""

from __future__ import annotations

from torch import Tensor


def same_shape(where: str, **tensors: Tensor) -> None:
    """Raise ValueError unless all tensors have one shape."""
    shapes = [t.shape for t in tensors.values()]
    if any(s != shapes[0] for s in shapes):
        got = ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items())
        hint = " A value head returns [..., 1]; use .squeeze(-1)." if any(s[-1:] == (1,) for s in shapes) else ""
        raise ValueError(f"{where}: shapes must match, got {got}.{hint}")


def in_range(where: str, *, low: float, high: float, open_ends: bool = False, **values: float) -> None:
    """Raise ValueError unless each value lies in [low, high], or in (low, high) with `open_ends`."""
    for name, value in values.items():
        if isinstance(value, str):
            raise ValueError(f"{where}.{name} must be a number, got {value!r}")
        inside = low < value < high if open_ends else low <= value <= high
        if not inside:
            left, right = ("(", ")") if open_ends else ("[", "]")
            raise ValueError(f"{where}.{name} must lie in {left}{low:g}, {high:g}{right}, got {value}")

"""ctrlrl: reinforcement learning for classic control, robots and offline data on one fast actor-critic core.

Names are lazy: `import ctrlrl` imports neither torch nor Gymnasium.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_NAMES = {
    "PPO": "ctrlrl.api",
    "BPO": "ctrlrl.api",
    "load": "ctrlrl.api",
    "evaluate_policy": "ctrlrl.api",
    "make_env": "ctrlrl.api",
}
__all__ = ["BPO", "PPO", "__version__", "evaluate_policy", "load", "make_env"]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'ctrlrl' has no attribute {name!r}")
    return getattr(import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])

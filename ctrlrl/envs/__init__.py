"""Environments. `check_env` is lazy: importing this package does not import torch."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["check_env"]


def __getattr__(name: str) -> Any:
    if name == "check_env":
        return import_module("ctrlrl.envs.check").check_env
    raise AttributeError(f"module 'ctrlrl.envs' has no attribute {name!r}")

"""What a run says of where it comes from: versions, commit, device, data, and a hash of what decides its numbers."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ctrlrl.config import TrainConfig
from ctrlrl.data.episodes import Facts


def facts(cfg: TrainConfig, device: torch.device, data: Facts | None = None) -> dict[str, Any]:
    """What result.json and state.json say of a run besides its results."""
    return {
        "algo": cfg.algo.name,
        "env": cfg.env.id if cfg.env.name == "gym" else cfg.env.name,
        "data": None if data is None else data.data_id or data.path,
        "seed": cfg.seed,
        "n_envs": cfg.n_envs,
        "device": str(device),
        "machine": machine(device),
        "dtype": cfg.dtype,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "data_checksum": None if data is None else data.checksum,
        "config_hash": config_hash(cfg),
        "commit": commit(),
    }


def config_hash(cfg: TrainConfig) -> str:
    """Of what determines a run's numbers: not of its folder, its logging or its seed."""
    keys = ("algo", "env", "data", "n_envs", "total_steps", "gradient_steps", "device", "dtype", "eval")
    values = {k: v for k, v in asdict(cfg).items() if k in keys}
    values["env"] = {k: v for k, v in values["env"].items() if k not in ("threads", "timeout", "contact_room")}
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:12]


def settings_by_name(cfg: TrainConfig) -> dict[str, Any]:
    """Every setting of a run under its dotted name: "algo.gamma"."""
    return _flat(asdict(cfg))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("ctrlrl", "torch", "numpy", "gymnasium", "mujoco", "mujoco-warp", "warp-lang"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found | {"torch": str(torch.__version__)}  # its metadata may leave out the build, "+cu130"


def machine(device: torch.device | None = None) -> str:
    """The processor, its logical cores, and the GPU in use: no speed means much without them."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    processor = found[1].strip() if found else platform.processor() or platform.machine()
    gpu = [torch.cuda.get_device_name(device)] if device is not None and device.type == "cuda" else []
    return ", ".join([processor, f"{os.cpu_count()} cores", *gpu])


def commit() -> str | None:
    """The source tree's git commit, if it is a checkout."""
    try:
        here = Path(__file__).parent
        out = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return out.stdout.strip()

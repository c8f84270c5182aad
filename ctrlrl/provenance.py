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

from ctrlrl.config import EnvConfig, TrainConfig
from ctrlrl.data.episodes import Facts


def facts(cfg: TrainConfig, device: torch.device, data: Facts | None = None) -> dict[str, Any]:
    """What result.json and state.json say of a run besides its results."""
    return {
        "algo": cfg.algo.name,
        "env": cfg.env.id if cfg.env.name == "gym" else cfg.env.name,
        "data": None if data is None else data.data_id or data.path,
        "best_fraction": None if data is None else cfg.data.best_fraction,
        "seed": cfg.seed,
        "n_envs": cfg.n_envs,
        "device": str(device),
        "machine": machine(device),
        "dtype": cfg.dtype,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "data_checksum": None if data is None else data.checksum,
        "config_hash": config_hash(cfg, None if data is None else data.checksum),
        "commit": commit(),
    }


def config_hash(cfg: TrainConfig, data_checksum: str | None = None) -> str:
    """Of what determines a run's numbers: not of its folder, its logging or its seed.

    data_checksum: of a data set's content, which then counts in place of where its file lies.
    """
    keys = ("algo", "env", "data", "n_envs", "total_steps", "gradient_steps", "device", "dtype", "eval")
    values = {k: v for k, v in asdict(cfg).items() if k in keys}
    values["env"] = _deciding(cfg.env)
    if data_checksum is not None:
        values["data"] = {**values["data"], "path": None, "checksum": data_checksum}
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:12]


def changed_env(before: EnvConfig, now: EnvConfig) -> str | None:
    """A setting, as it is typed, by which an environment gives other numbers than before; None where none does."""
    was, asked = _deciding(before), _deciding(now)
    return next(
        (f"env.{k}={asked.get(k)}" for k in sorted(was.keys() | asked.keys()) if was.get(k) != asked.get(k)), None
    )


def _deciding(env: EnvConfig) -> dict[str, Any]:
    return {k: v for k, v in asdict(env).items() if k not in ("threads", "timeout", "contact_room")}


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

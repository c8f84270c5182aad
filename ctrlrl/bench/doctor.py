"""`ctrlrl doctor`: versions, devices, threads, rendering, known-bad pairs, and one timing of each simulator."""

from __future__ import annotations

import os
import platform
import time
from importlib import metadata

import torch

from ctrlrl.bench.ours import random_actions
from ctrlrl.config import EnvConfig
from ctrlrl.core.process import keep_memory
from ctrlrl.provenance import machine
from ctrlrl.registry import ROBOTS, SIMULATORS
from ctrlrl.tasks import make_env

PACKAGES = (
    "ctrlrl torch numpy gymnasium mujoco mujoco-warp warp-lang hydra-core safetensors matplotlib imageio "
    "stable-baselines3 rsl-rl-lib tensorboard"
).split()
SIM_ENVS, ROBOT_ENVS, SECONDS = 4096, 64, 0.3


def report() -> str:
    """The whole report; takes about ten seconds."""
    lines = ["versions"]
    found = {name: _version(name) for name in PACKAGES}
    rows = {"python": platform.python_version()} | found
    lines += [f"  {name:<20}{version or '–'}" for name, version in rows.items()]
    lines += ["", "devices", *_devices()]
    lines += ["", "rendering", f"  {_rendering(found['mujoco'])}"]
    lines += ["", "notes", *(_notes(found) or ["  nothing known to be bad"])]
    lines += ["", f"simulators, random actions, {SIM_ENVS} lanes (robots {ROBOT_ENVS}), eager"]
    for name in SIMULATORS:
        lines.append(f"  {name:<26}{_speed(name, SIM_ENVS)}")
    if found["mujoco"] is not None:
        lines += [f"  {name:<26}{_speed(name, ROBOT_ENVS)}" for name in ROBOTS if not name.endswith("-v4")]
    return "\n".join(lines)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> list[str]:
    lines = [
        f"  cpu     {machine()}, {torch.get_num_threads()} torch threads, "
        f"OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', 'unset')}",
        f"  malloc  {'keeps freed memory' if keep_memory() else 'not glibc: left as it is'}",
    ]
    for i in range(torch.cuda.device_count()):
        lines.append(f"  cuda:{i}  {torch.cuda.get_device_name(i)}")
    return lines


def _rendering(mujoco: str | None) -> str:
    if mujoco is None:
        return "MuJoCo is not installed: pip install 'ctrlrl[mujoco]'"
    try:
        env = make_env(EnvConfig(name="inverted_pendulum"), 1, seed=0)
        env.reset(0)
        shape = env.render(0).shape  # type: ignore[attr-defined]
    except Exception as error:  # drivers fail in many ways; the report must still be printed
        return f"no picture: {str(error).splitlines()[0]}"
    return f"MuJoCo draws {shape[1]}x{shape[0]} with MUJOCO_GL={os.environ.get('MUJOCO_GL', 'unset')}"


def _notes(found: dict[str, str | None]) -> list[str]:
    notes = []
    if os.environ.get("OMP_WAIT_POLICY", "").upper() != "PASSIVE" and torch.get_num_threads() > 1:
        notes.append("  several spinning OpenMP threads: export OMP_WAIT_POLICY=PASSIVE before Python starts")
    if found["matplotlib"] is None or found["imageio"] is None:
        notes.append("  no report page or video without pip install 'ctrlrl[report]'")
    if found["rsl-rl-lib"] and _version("torchrl"):
        notes.append("  rsl-rl-lib and torchrl want different tensordict versions: keep them in separate environments")
    load = os.getloadavg()[0]
    if load > 0.5 * (os.cpu_count() or 1):
        notes.append(f"  load {load:.1f}: the timings below share the machine with other work")
    return notes


def _speed(name: str, n_envs: int) -> str:
    env = make_env(EnvConfig(name=name), n_envs, seed=0)
    env.reset(0)
    actions = random_actions(env, 4)
    env.step(actions[0])
    begin, steps = time.perf_counter(), 0
    while time.perf_counter() - begin < SECONDS:
        env.step(actions[steps % 4])
        steps += 1
    rate = steps * n_envs / (time.perf_counter() - begin)
    env.close()
    return f"{rate:>14,.0f} steps/s"

"""Checkpoints: tensors as safetensors, plain values as JSON, no pickle. Written beside the old one, then swapped.

model.safetensors      networks and normalisers: all that acting needs
optimizer.safetensors  optimiser, environment, random generators: all that going on needs
state.json             format version, config, counters, library versions
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor

FORMAT = 1
FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


class Checkpoint(NamedTuple):
    model: dict[str, Tensor]
    training: dict[str, Tensor]
    state: dict[str, Any]


def _encode(checkpoint: Checkpoint) -> dict[str, bytes]:
    def packed(tensors: dict[str, Tensor]) -> bytes:
        return save({k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()})

    model, training = packed(checkpoint.model), packed(checkpoint.training)
    state = {"format": FORMAT, **checkpoint.state}
    state["checksum"] = _checksum(model, training, state)
    return dict(zip(FILES, (model, training, json.dumps(state).encode()), strict=True))


def _checksum(model: bytes, training: bytes, state: dict[str, Any]) -> str:
    """Of all three files: a flipped byte in a weight would otherwise load without a word."""
    digest = hashlib.sha256(model)
    digest.update(training)
    digest.update(json.dumps(state).encode())
    return digest.hexdigest()


def _decode(files: dict[str, bytes], where: str) -> Checkpoint:
    try:
        state = json.loads(files["state.json"])
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            found = state.get("format") if isinstance(state, dict) else None
            raise ValueError(f"{where}: state.json has format {found}, this version reads {FORMAT}.")
        model, training = files["model.safetensors"], files["optimizer.safetensors"]
        if state.pop("checksum", None) != _checksum(model, training, state):
            raise ValueError("its checksum does not match")
        return Checkpoint(load(model), load(training), state)
    except ValueError as error:
        if str(error).startswith(where):
            raise
        raise ValueError(
            f"{where}: damaged checkpoint ({error}). Evaluate another (checkpoint=best) or copy it here to resume."
        ) from None
    except Exception as error:  # safetensors raises an exception class of its own
        raise ValueError(
            f"{where}: damaged checkpoint ({error}). Evaluate another (checkpoint=best) or copy it here to resume."
        ) from None


def _write_flushed(path: Path, data: bytes) -> None:
    try:
        with open(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:  # a full disk does not say which file it was
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_atomic(path: Path, data: bytes) -> None:
    """Replace the file at `path` in one step: a reader sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        _write_flushed(temporary, data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_folder(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint folder. If anything fails, even the power, `folder` or its `.old` neighbour stays loadable."""
    fresh, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    try:
        for name, data in _encode(checkpoint).items():
            _write_flushed(fresh / name, data)
    except OSError:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(folder, old)
    os.rename(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def read_folder(folder: Path) -> Checkpoint:
    """Read a checkpoint folder; ValueError names what is missing or damaged."""
    source = folder if folder.exists() else folder.with_name(f".{folder.name}.old")
    try:
        files = {name: (source / name).read_bytes() for name in FILES}
    except OSError as error:
        raise ValueError(f"{folder}: no checkpoint there ({error.strerror}: {error.filename}).") from None
    return _decode(files, str(folder))


def write_zip(target: str | os.PathLike[str] | BinaryIO, checkpoint: Checkpoint) -> None:
    """The same three files in one .zip; the suffix is added when missing, parents are made, as SB3's save does."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in _encode(checkpoint).items():
            archive.writestr(name, data)
    if not isinstance(target, (str, os.PathLike)):
        target.write(buffer.getvalue())
        return
    path = Path(target)
    path = path if path.suffix == ".zip" else path.with_name(path.name + ".zip")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue())


def read_zip(source: str | os.PathLike[str] | BinaryIO) -> Checkpoint:
    where = str(source)
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        source = path if path.exists() else path.with_name(path.name + ".zip")
        if not source.exists():
            raise ValueError(f"{where}: no such file, with or without .zip.")
    try:
        with zipfile.ZipFile(source) as archive:
            files = {name: archive.read(name) for name in FILES}
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise ValueError(f"{where}: not a ctrlrl model ({error}).") from None
    return _decode(files, where)


def random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"rng/cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["rng/cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["rng/cpu"])
    if device.type == "cuda" and "rng/cuda" in state:
        torch.cuda.set_rng_state(state["rng/cuda"], device)

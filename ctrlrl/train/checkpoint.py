"""Checkpoints: tensors as safetensors, plain values as JSON, no pickle. Written beside the old one, then swapped.

model.safetensors      networks and normalisers: all that acting needs
optimizer.safetensors  optimiser, environment, random generators, last evaluation: all that going on needs
state.json             format version, counters, the environment's spec, library versions, checksum of all three

docs/checkpoints.md says what is guaranteed and how what comes from strangers is read.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import stat
import struct
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from ctrlrl.disk import present, read_plain, remove, replace_folder, write_atomic, write_flushed
from ctrlrl.types import EnvSpec

FORMAT = 1
FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
STATE_LIMIT = 2**24  # bytes of state.json
HEADER_LIMIT = 10**8  # bytes, as safetensors itself has it
_LONGEST = 2**20  # numbers in an observation or action that a checkpoint may ask for
_MEND = "Use another: of a run, evaluate checkpoint=best, or copy it here to resume."


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
    return dict(zip(FILES, (model, training, _text(state)), strict=True))


def _checksum(model: bytes, training: bytes, state: dict[str, Any]) -> str:
    """Of all three files: a flipped byte in a weight would otherwise load without a word."""
    digest = hashlib.sha256(model)
    digest.update(training)
    digest.update(_text(state))
    return digest.hexdigest()


def _text(state: dict[str, Any]) -> bytes:
    return json.dumps(state, default=np.generic.item).encode()  # a user's NumPy number is no reason to lose a model


def _decode(files: dict[str, bytes], where: str) -> Checkpoint:
    try:
        state = _parsed(files["state.json"], "state.json")
        found = state.get("format")
        if found == FORMAT:
            return _verified(files["model.safetensors"], files["optimizer.safetensors"], state)
    except Exception as error:  # safetensors raises an exception class of its own
        raise ValueError(f"{where}: damaged checkpoint ({_line(error)}). {_MEND}") from None
    mend = "Upgrade ctrlrl." if isinstance(found, int) and found > FORMAT else "Use the ctrlrl that wrote it."
    raise ValueError(f"{where}: state.json has format {found!r:.40}, this version reads {FORMAT}. {mend}")


def _verified(model: bytes, training: bytes, state: dict[str, Any]) -> Checkpoint:
    if state.pop("checksum", None) != _checksum(model, training, state):
        raise ValueError("its checksum does not match")
    return Checkpoint(_tensors(model, "model.safetensors"), _tensors(training, "optimizer.safetensors"), state)


def _tensors(data: bytes, name: str) -> dict[str, Tensor]:
    found = load(data)  # checks every length before it allocates
    _parsed(data[8 : 8 + struct.unpack("<Q", data[:8])[0]], name)
    return found


def _declared(file: BinaryIO) -> int:
    """How many bytes a safetensors file has by its own header."""
    (length,) = struct.unpack("<Q", file.read(8))
    if length > HEADER_LIMIT:
        raise ValueError(f"its header has {length} bytes, more than the {HEADER_LIMIT} it may have")
    header = _parsed(file.read(length), "its header")
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return 8 + length + max(ends, default=0)


def _parsed(data: bytes, name: str) -> dict[str, Any]:
    """A JSON object in which no name stands twice: which of the two holds is every reader's own guess."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError(f"{name}: a name stands twice")
        return found

    found = json.loads(data, object_pairs_hook=unique)
    if not isinstance(found, dict):
        raise ValueError(f"{name}: wanted a JSON object, got {type(found).__name__}")
    return found


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def write_folder(folder: Path, checkpoint: Checkpoint, more: Callable[[Path], None] | None = None) -> None:
    """Write a checkpoint folder. If anything fails, even the power, `folder` or its `.old` neighbour stays loadable.

    more: writes further files of the same moment beside the three.
    """

    def fill(fresh: Path) -> None:
        for name, data in _encode(checkpoint).items():
            write_flushed(fresh / name, data)
        if more is not None:
            more(fresh)

    replace_folder(folder, fill)


def exists(folder: Path) -> bool:
    """Whether there is a complete checkpoint: the folder itself, or what a crash in the middle of a swap left of it."""
    return present(folder).exists()


def read_folder(folder: Path) -> Checkpoint:
    """Read a checkpoint folder; ValueError names what is missing or damaged. A run may be writing it meanwhile."""
    while True:
        before = _identity(folder)
        try:
            return _read(folder)
        except ValueError:
            if _identity(folder) == before:
                raise  # nobody replaced it under our eyes


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _read(folder: Path) -> Checkpoint:
    source = present(folder)
    try:
        files = {name: read_plain(source / name, at_most=_declared) for name in FILES[:2]}
        files["state.json"] = read_plain(source / "state.json", at_most=STATE_LIMIT)
    except OSError as error:
        raise ValueError(f"{folder}: no checkpoint there ({error.strerror}: {error.filename}).") from None
    except Exception as error:  # MemoryError for the rest of a file that is as long as it says
        raise ValueError(f"{folder}: damaged checkpoint ({_line(error)}). {_MEND}") from None
    return _decode(files, str(folder))


def remove_folder(folder: Path) -> None:
    """Take a checkpoint away in one step, so that no part of it is ever taken for a checkpoint."""
    gone = folder.with_name(".gone")
    remove(gone)
    os.rename(folder, gone)
    remove(gone)


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
            _check_members(archive)
            files = {name: archive.read(name) for name in FILES}
    except Exception as error:  # zipfile raises half a dozen classes at a damaged archive
        raise ValueError(f"{where}: not a ctrlrl model ({_line(error)}).") from None
    return _decode(files, where)


def _check_members(archive: zipfile.ZipFile) -> None:
    """Exactly the three files, plain and stored as they are: then no more is read than the archive is long."""
    members = archive.infolist()
    if "_stable_baselines3_version" in archive.namelist():
        raise ValueError("it is a model of Stable-Baselines3, which from_sb3(path) reads")
    if sorted(m.filename for m in members) != sorted(FILES):
        raise ValueError(f"wanted the members {', '.join(FILES)}, got {sorted(m.filename for m in members)[:4]}")
    end = archive.start_dir or 0  # where the list of members begins
    for member in members:
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise ValueError(f"{member.filename} is not a plain file")
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise ValueError(f"{member.filename} is compressed; a saved model is stored as it is")
        if member.header_offset + member.file_size > end:
            raise ValueError(f"{member.filename} is said to be longer than the archive")
        if member.filename == "state.json" and member.file_size > STATE_LIMIT:
            raise ValueError(f"state.json has {member.file_size} bytes, more than the {STATE_LIMIT} it may have")


def number(state: dict[str, Any], name: str, *, integer: bool = False) -> Any:
    """The finite number or count `name` of a state.json; ValueError for anything else."""
    value: Any = state.get(name)
    kinds = (int,) if integer else (int, float)
    fine = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
    if not fine or (integer and value < 0):
        raise ValueError(f"state.json: {name} is {value!r:.40}, wanted {'a count' if integer else 'a number'}")
    return value


def table(state: dict[str, Any], name: str) -> dict[str, Any]:
    """The object `name` of a state.json, empty where there is none; ValueError for anything else."""
    value = state.get(name, {})
    if not isinstance(value, dict):
        raise ValueError(f"state.json: {name} is {value!r:.40}, wanted an object")
    return value


def fit(saved: dict[str, Tensor], present: dict[str, Tensor]) -> None:
    """ValueError where a tensor of `present` is not in `saved` with its shape and dtype; `saved` may hold more."""
    for name, tensor in present.items():
        if name not in saved:
            raise ValueError(f"{name} is missing")
        got = saved[name]
        if got.shape != tensor.shape or got.dtype != tensor.dtype:
            raise ValueError(
                f"{name} is {got.dtype} {tuple(got.shape)}, wanted {tensor.dtype} {tuple(tensor.shape)}".replace(
                    "torch.", ""
                )
            )


def spec_values(spec: EnvSpec) -> dict[str, Any]:
    """What a checkpoint keeps of the environment's spec, as JSON gives it back: what its policy can act on."""
    values = {name: value for name, value in spec._asdict().items() if name not in ("device", "extras", "objectives")}
    return json.loads(json.dumps(values))


def same_spec(state: dict[str, Any], spec: EnvSpec, where: str, *, but: Collection[str]) -> None:
    """ValueError that names the first difference. but: fields that may differ, e.g. n_envs."""
    saved = state.get("spec")
    if saved is None:
        return  # written before checkpoints held it
    for name, value in spec_values(spec).items():
        was = saved.get(name) if isinstance(saved, dict) else None
        if was != value and name not in but:
            raise ValueError(
                f"{where} was trained on an environment with {name}={was!r:.80}, this one has {name}={value!r:.80}."
            )


def saved_spec(state: dict[str, Any], where: str, device: torch.device) -> EnvSpec:
    """Of the task that a run without an environment learned: vectors seen and done, as long as the checkpoint says."""
    spec = table(state, "spec")
    obs_dim, action_dim = (number(spec, name, integer=True) for name in ("obs_dim", "action_dim"))
    if not (1 <= obs_dim <= _LONGEST and 1 <= action_dim <= _LONGEST):
        raise ValueError(
            f"{where}/state.json: obs_dim and action_dim must lie in 1 ... {_LONGEST}, got {obs_dim} and {action_dim}"
        )
    return EnvSpec(obs_dim, action_dim, 0, 1, n_envs=1, episode_length=0, device=device)


def random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"rng/cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["rng/cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["rng/cpu"])
    if device.type == "cuda" and "rng/cuda" in state:
        torch.cuda.set_rng_state(state["rng/cuda"], device)

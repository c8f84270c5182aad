"""Arrays that take long to compute, kept in files: named by what they were computed from, checked when read."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray[Any, Any]]


def fingerprint(*parts: Any) -> str:
    """sha256, hex, of arrays (their type, shape and bytes) and of plain values."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype} {part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()


def cached(folder: Path | None, name: str, key: str, make: Callable[[], Arrays]) -> Arrays:
    """The arrays of `folder/name-key.npz`, or those that `make` returns, which are then written there.

    folder: None keeps nothing. A file that is damaged is written anew. Warns where the folder cannot be written.
    """
    if folder is None:
        return make()
    path = folder / f"{name}-{key[:16]}.npz"
    found = _read(path, key)
    if found is not None:
        return found
    arrays = make()
    try:
        _write(path, key, arrays)
    except OSError as error:
        warnings.warn(f"{folder}: cannot keep {name} here ({error.strerror}); every run computes it anew", stacklevel=2)
    return arrays


def _read(path: Path, key: str) -> Arrays | None:
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception:  # zipfile, zlib and NumPy each have their own
        return None
    seal = str(arrays.pop("seal", ""))
    return arrays if seal == _seal(key, arrays) else None


def _write(path: Path, key: str, arrays: Arrays) -> None:
    there = next(folder for folder in path.parents if folder.exists())
    if not there.stat().st_mode & 0o222:  # root could, but whoever took the right away meant it
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}.part")  # with the rights of any new file
    try:
        with open(temporary, "xb") as file:
            np.savez(file, seal=np.array(_seal(key, arrays)), **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _seal(key: str, arrays: Arrays) -> str:
    return fingerprint(key, *(part for name in sorted(arrays) for part in (name, arrays[name])))

"""Files that survive a crash and a hostile neighbour: flushed, swapped in one step, and opened only as plain files."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

# a link would lead out of the folder, a pipe would never answer; neither flag exists on Windows
_PLAIN = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError from here says which file it was; a full disk does not."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def strict_json(x: Any, *, indent: int | None = None) -> str:
    """As every reader takes it: what is not finite is null."""

    def plain(x: Any) -> Any:
        if isinstance(x, dict):
            return {k: plain(v) for k, v in x.items()}
        if isinstance(x, (list, tuple)):
            return [plain(v) for v in x]
        return None if isinstance(x, float) and not math.isfinite(x) else x

    return json.dumps(plain(x), indent=indent, allow_nan=False)


def write_flushed(path: Path, data: bytes) -> None:
    """Write a new file, down to the disk; whatever stands there, a link as well, is removed and not written through."""
    with naming(path):
        path.unlink(missing_ok=True)
        with open(path, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def write_atomic(path: Path, data: bytes) -> None:
    """Replace the file at `path` in one step: a reader sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write_flushed(temporary, data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_named(path: Path, data: bytes) -> None:
    """Write a file that the user names: links are followed, pipes and devices written to, files replaced as above."""
    path = path.resolve()
    if path.exists() and not path.is_file():
        path.write_bytes(data)
    else:
        write_atomic(path, data)


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to the disk: without this the power can take a rename back."""
    if os.name == "nt":
        return  # opens no folders
    with naming(folder):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_plain(path: Path, *, at_most: int | Callable[[BinaryIO], int] | None = None) -> bytes:
    """The content of a plain file of `at_most` bytes; ValueError for a link, a pipe, a device or a larger one.

    at_most: a function finds it in the file's own beginning.
    """
    try:
        handle = os.open(path, os.O_RDONLY | _PLAIN)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError(f"{path.name} is a link, wanted a plain file") from None
        raise
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path.name} is not a plain file")
        with open(handle, "rb", closefd=False) as file:
            most = at_most(file) if callable(at_most) else at_most
            if most is not None and status.st_size > most:
                raise ValueError(f"{path.name} has {status.st_size} bytes, more than the {most} it may have")
            file.seek(0)
            return file.read(status.st_size)
    finally:
        os.close(handle)


def replace_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Put a folder in place whose files `fill` writes, flushed, into a fresh one.

    If anything fails, even the power, `present(folder)` is still the old one, whole.
    """
    fresh, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove(fresh)
    fresh.mkdir()
    try:
        fill(fresh)
        sync_folder(fresh)
    except OSError:
        remove(fresh)
        raise
    if os.path.lexists(folder):
        remove(old)
        os.rename(folder, old)
    os.rename(fresh, folder)
    sync_folder(folder.parent)  # before the old one goes
    remove(old)


def present(folder: Path) -> Path:
    """The folder itself, or what a crash in the middle of a swap left of it."""
    old = folder.with_name(f".{folder.name}.old")
    return old if not folder.exists() and old.exists() else folder


def remove(path: Path) -> None:
    """Remove a file, a link (not what it points to) or a folder, where there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

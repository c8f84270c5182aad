"""Fetching a data set whole or not at all, and what is said when it cannot be had."""

from __future__ import annotations

import contextlib
import difflib
import os
import secrets
import shutil
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from http.client import HTTPException
from pathlib import Path

_SILENCE = 30.0  # s without a byte


def unknown_id(data_id: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(data_id, names, n=3, cutoff=0.4) or names[:3]
    return f"data.id={data_id} is unknown; did you mean {', '.join(near)}?"


def not_here(key: str, wanted: str, folder: Path, reason: object) -> ValueError:
    """key: what the user typed. wanted: the file or folder that must lie in `folder`."""
    why = " ".join(str(reason).split())[:200] or type(reason).__name__
    return ValueError(f"{key}: {wanted} is not in {folder} and cannot be fetched ({why}).\nPut it there by hand.")


@contextlib.contextmanager
def room(folder: Path) -> Iterator[None]:
    """With `folder` there; what had to be made for it goes again where nothing came into it."""
    new = [part for part in (folder, *folder.parents) if not part.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for part in new:
            with contextlib.suppress(OSError):  # not empty
                part.rmdir()


def download(address: str, target: Path, check: Callable[[Path], None], *, key: str) -> Path:
    """`target` with what lies at `address`: complete and looked at by `check`, or an error and nothing on the disk."""
    partial: Path | None = None
    try:
        with urllib.request.urlopen(address, timeout=_SILENCE) as answer:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.stem}-{secrets.token_hex(4)}{target.suffix}")
            with open(partial, "xb") as file:
                shutil.copyfileobj(answer, file, 1 << 20)
                file.flush()
                os.fsync(file.fileno())
            expected, got = answer.headers.get("Content-Length"), partial.stat().st_size
            if expected is not None and int(expected) != got:
                raise OSError(f"{got} of {expected} bytes arrived")
        check(partial)
        partial.replace(target)
    except (OSError, ValueError, HTTPException) as error:
        raise not_here(key, target.name, target.parent, error) from None
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)
    return target

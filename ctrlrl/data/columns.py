"""Named columns of one file, NPZ or HDF5, floats read straight into float32. Pickles are refused, broken files named.

Every error is a DataError: a ValueError of one or two lines that names the file, the key and the mend.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ctrlrl.data.episodes import Array

_HDF5, _ZIP = b"\x89HDF\r\n\x1a\n", (b"PK\x03\x04", b"PK\x05\x06")
_DEFLATE = 1100  # no byte of a deflated file stands for more than 1032 bytes of data


class DataError(ValueError):
    """A file that cannot be used as it is."""


class NotNumbersError(DataError):
    """A column of objects or of compound values."""


@dataclass(frozen=True)
class Columns:
    """What a file holds, by name; the groups of a name are joined with "/"."""

    path: Path
    names: tuple[str, ...]
    fetch: Callable[[str], Array]

    def read(self, key: str) -> Array:
        """One column as stored, floats as float32."""
        if key not in self.names:
            raise DataError(f"{self.path}: no {key!r} among its columns ({listed(self.names)})")
        with named(f"{self.path}: {key!r}"):
            array = self.fetch(key)
        if array.dtype.kind not in "fbiuU":
            raise NotNumbersError(f"{self.path}: {key!r} holds {array.dtype}; store numbers, flags or text")
        return single(array) if array.dtype.kind == "f" else array

    def text(self, key: str) -> str | None:
        """A single string; None where the file has none of that name."""
        if key not in self.names:
            return None
        value = self.read(key)
        if value.shape != () or value.dtype.kind != "U":
            raise DataError(f"{self.path}: {key!r} must be one string, got {value.dtype} of shape {value.shape}")
        return str(value)


def listed(names: tuple[str, ...]) -> str:
    return (", ".join(sorted(names)[:12]) + (", ..." if len(names) > 12 else "")) or "none"


def single(array: Array) -> Array:
    """float32; what is too large for it becomes infinite, for `check` to find."""
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


@contextmanager
def named(where: str) -> Iterator[None]:
    """Whatever a reader throws at a broken or hostile file, as one DataError."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib, NumPy and HDF5 each have their own ways to fail
        reason = " ".join(str(error).split()) or type(error).__name__
        if "allow_pickle" in reason:
            raise NotNumbersError(f"{where} holds pickled objects, which are never read: store plain arrays") from None
        raise DataError(
            f"{where} cannot be read, truncated or damaged: fetch or write it again. ({reason[:200]})"
        ) from None


def plausible(where: str, path: Path, claimed: int) -> None:
    """Refuse a header that claims more than the file can hold, before memory is asked for it."""
    if claimed > 2**20 and claimed > _DEFLATE * (held := path.stat().st_size):
        raise DataError(f"{where} claims {claimed / 1e9:.3g} GB in a file of {held} bytes: damaged, or not data")


@contextmanager
def opened(path: Path) -> Iterator[Columns]:
    """The columns of an NPZ or HDF5 file, told apart by their first bytes."""
    if is_hdf5(path):
        with hdf5(path) as file:
            names: list[str] = []
            with named(f"{path}"):
                file.visititems(lambda name, item: names.append(name) if hasattr(item, "dtype") else None)
            yield Columns(path, tuple(names), lambda key: read_hdf5(f"{path}: {key!r}", path, file[key].id))
    elif _head(path)[:4] in _ZIP:
        with path.open("rb") as file:  # np.load would leave a broken one open
            with named(f"{path}"):
                npz = np.load(file, allow_pickle=False)

            def fetch(key: str) -> Array:
                plausible(f"{path}: {key!r}", path, npz.zip.getinfo(f"{key}.npy").file_size)
                return np.asarray(npz[key])

            with npz:
                yield Columns(path, tuple(npz.files), fetch)
    else:
        raise DataError(f"{path} is neither HDF5 nor NPZ, nor a Minari folder (pickles are never read)")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)


def is_hdf5(path: Path) -> bool:
    return _head(path) == _HDF5


@contextmanager
def hdf5(path: Path) -> Iterator[Any]:
    """An open h5py.File."""
    try:
        import h5py
    except ModuleNotFoundError:
        raise DataError(f"{path} is an HDF5 file, which needs h5py: pip install 'ctrlrl[data]'") from None
    with named(f"{path}"):
        file = h5py.File(path, "r")
    with file:
        yield file


def read_hdf5(where: str, path: Path, dataset: Any) -> Array:
    """An h5py.h5d.DatasetID whole, floats as float32, by low-level calls: a Minari set may hold 100,000 datasets."""
    from h5py import Dataset, check_string_dtype, h5d, h5s

    layout, space, dtype = dataset.get_create_plist(), dataset.get_space(), dataset.dtype
    if layout.get_layout() == h5d.VIRTUAL or layout.get_external_count():
        raise DataError(f"{where} points at another file: copy its data into this one")
    if space.get_simple_extent_type() == h5s.NULL or (dtype.kind in "OS" and check_string_dtype(dtype) is None):
        raise NotNumbersError(f"{where} holds {dtype}; store numbers, flags or text")
    shape = space.get_simple_extent_dims()
    plausible(where, path, math.prod(shape) * dtype.itemsize)
    if dtype.kind in "OS":
        return np.asarray(Dataset(dataset).asstr()[()], dtype=str)
    out = np.empty(shape, np.float32 if dtype.kind == "f" else dtype)
    if out.size:
        dataset.read(h5s.ALL, h5s.ALL, out)
    return out


def sha256(path: Path) -> str:
    """Of the file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# columns with a meaning ----------------------------------------------------------------------------------------------


def observations(columns: Columns, key: str = "observations") -> Array:
    return as_obs(columns.read(key), f"{columns.path}: {key!r}")


def actions(columns: Columns) -> Array:
    return as_action(columns.read("actions"), f"{columns.path}: 'actions'")


def scalars(columns: Columns, key: str) -> Array:
    """[N] float32 from [N] or [N, 1]."""
    return single(_one_a_row(columns, key))


def flags(columns: Columns, key: str) -> Array:
    """[N] bool from [N] or [N, 1] of bool or numbers."""
    return as_flags(_one_a_row(columns, key), f"{columns.path}: {key!r}")


def as_flags(array: Array, where: str) -> Array:
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise DataError(f"{where} holds NaN: write 0 or 1")
    return array != 0


def _one_a_row(columns: Columns, key: str) -> Array:
    array = columns.read(key)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or array.dtype.kind not in "fbiu":
        raise DataError(f"{columns.path}: {key!r} must be [N] numbers, got {array.dtype} of shape {array.shape}")
    return array


def as_obs(array: Array, where: str) -> Array:
    """[N, O] float32, or [N, ...] uint8 as images are stored."""
    if array.dtype == np.uint8 and array.ndim > 2:
        return array
    if array.dtype.kind not in "fbiu" or array.ndim not in (1, 2) or 0 in array.shape[1:]:
        raise DataError(f"{where} must be [N, O] numbers or uint8 images, got {array.dtype} of shape {array.shape}")
    return single(array if array.ndim == 2 else array[:, None])


def as_action(array: Array, where: str) -> Array:
    """[N, A] float32, or [N] int64 of one discrete choice."""
    if array.dtype.kind in "iu" and (array.ndim == 1 or array.shape[1:] == (1,)):
        return array.reshape(-1).astype(np.int64)
    if array.dtype.kind != "f" or array.ndim not in (1, 2) or 0 in array.shape[1:]:
        wanted = "[N, A] floats, or [N] integers of one discrete choice"
        raise DataError(f"{where} must be {wanted}, got {array.dtype} of shape {array.shape}")
    return single(array if array.ndim == 2 else array[:, None])


def same_length(columns: Columns, **arrays: Array) -> int:
    """N, where every column has that many rows."""
    n = len(arrays["observations"])
    for name, array in arrays.items():
        if len(array) != n:
            raise DataError(
                f"{columns.path}: {name!r} has {len(array)} rows, 'observations' has {n}: give every step one"
            )
    if n < 2:
        raise DataError(f"{columns.path} holds {n} row{'s' * (n != 1)}: a data set needs at least two")
    return n


def further(columns: Columns, n: int, known: set[str]) -> dict[str, Array]:
    """Every other column of n rows of numbers or flags; policy weights and other metadata are left in the file."""
    found = {}
    for key in sorted(set(columns.names) - known):
        if key.startswith(("metadata/", "episode_", "init_")):
            continue
        try:
            array = columns.read(key)
        except NotNumbersError:
            continue
        if array.ndim and len(array) == n and array.dtype.kind in "fbiu":
            found[key] = array
    return found

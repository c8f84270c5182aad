"""Reads a pickle as data: what it would import and call is written down as a name, never done, so no file can run code.

NumPy arrays and torch tensors are rebuilt from their bytes by the few functions below; all else stays a description.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
import zipfile
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]
MAX_BYTES = 2**30  # of one member of an archive, unpacked
MAX_PICKLE = 2**26  # bytes
MAX_STEPS = 10**6  # instructions of one pickle; every one of them may become an object
MAX_KEY = 2**31  # numbers from here on can be chosen to share one hash, and a dict of such is quadratic
MAX_AXES = 8  # of a tensor
CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
STORAGES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
}


class Global(str):
    """The dotted name of something the pickle would import."""

    __slots__ = ()


@dataclass(eq=False)
class Made:
    """What the pickle would make: by which callable ("" where that is itself made), of what, with which contents."""

    kind: str
    args: tuple[Any, ...]
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    listed: list[Any] = field(default_factory=list)

    def attribute(self, name: str) -> Any:
        """KeyError where the object has none of that name."""
        if not isinstance(self.state, dict):
            raise KeyError(name)
        return self.state[name]


@dataclass(eq=False)
class Persistent:
    """A reference to something outside the pickle."""

    value: Any


def read_pickle(data: bytes, where: str) -> Any:
    """The pickled value: plain Python values as they are, sets as lists, all else as Global, Made and Persistent."""
    if len(data) > MAX_PICKLE:
        raise ValueError(f"{where}: a pickle of {len(data):,} bytes, more than any description needs")
    machine = _Machine()
    try:
        for steps, (op, arg, _) in enumerate(pickletools.genops(data)):
            if op.name == "STOP":
                return machine.stack.pop()
            if steps >= MAX_STEPS:
                raise ValueError(f"more than {MAX_STEPS:,} instructions")
            machine.do(op.name, arg)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: not a pickle that can be read as data ({error})") from None
    raise ValueError(f"{where}: the pickle ends too early")


class _Machine:
    """The pickle machine without its two powers, importing and calling."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def do(self, name: str, arg: Any) -> None:
        stack = self.stack
        if name in VALUES:
            stack.append(arg)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in ("PROTO", "FRAME"):
            pass
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            place = len(self.memo) if name == "MEMOIZE" else arg
            if not 0 <= place < MAX_KEY:
                raise ValueError("a place in the memo beyond 2^31")
            self.memo[place] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[arg])
        elif name in ("POP", "POP_MARK", "DUP"):
            self._shuffle(name)
        elif name in ("GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "BUILD", "BINPERSID"):
            self._describe(name, arg)
        else:
            self._collect(name)

    def _shuffle(self, name: str) -> None:
        if name == "POP_MARK":
            self._since_mark()
        elif name == "DUP":
            self.stack.append(self.stack[-1])
        else:
            self.stack.pop()

    def _describe(self, name: str, arg: Any) -> None:
        stack = self.stack
        if name == "GLOBAL":
            stack.append(Global(arg.replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            named = isinstance(module, str) and isinstance(attribute, str)
            stack.append(Global(f"{module}.{attribute}" if named else ""))
        elif name == "BUILD":
            state = stack.pop()
            if not isinstance(stack[-1], Made):
                raise ValueError("a state for something that is no object")
            stack[-1].state = state
        elif name == "BINPERSID":
            stack.append(Persistent(stack.pop()))
        else:
            keywords = stack.pop() if name == "NEWOBJ_EX" else None
            args, made_by = stack.pop(), stack.pop()
            if not isinstance(args, tuple):
                raise TypeError("arguments that are no tuple")
            kind = str(made_by) if isinstance(made_by, Global) else ""
            stack.append(Made(kind, args if keywords is None else (args, keywords)))

    def _collect(self, name: str) -> None:
        stack = self.stack
        if name in ("EMPTY_LIST", "EMPTY_SET"):
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            n = int(name[-1])
            stack[-n:] = [tuple(stack[-n:])]
        elif name in ("TUPLE", "LIST", "FROZENSET"):
            values = self._since_mark()
            stack.append(tuple(values) if name == "TUPLE" else values)
        elif name == "DICT":
            stack.append(_pairs(self._since_mark()))
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            values = [stack.pop()] if name == "APPEND" else self._since_mark()
            target = stack[-1]
            (target.listed if isinstance(target, Made) else target).extend(values)
        elif name in ("SETITEM", "SETITEMS"):
            values = self._since_mark() if name == "SETITEMS" else [stack.pop(), stack.pop()][::-1]
            target = stack[-1]
            (target.items if isinstance(target, Made) else target).update(_pairs(values))
        else:
            raise ValueError(f"opcode {name}")

    def _since_mark(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values


def _pairs(values: list[Any]) -> dict[Any, Any]:
    """Keys and values in turn. Keys are plain: hashing a tuple of tuples can take for ever, or the whole stack."""
    for key in values[::2]:
        if not isinstance(key, (str, int, float, bytes, type(None))):
            raise TypeError(f"a key that is a {type(key).__name__}")
        if isinstance(key, (int, float)) and not -MAX_KEY < key < MAX_KEY:
            raise ValueError("a key beyond 2^31")
    return dict(zip(values[::2], values[1::2], strict=True))


def mapping(value: Any) -> dict[Any, Any]:
    """A dict or OrderedDict; TypeError for anything else."""
    if isinstance(value, dict):
        return value
    if isinstance(value, Made) and value.kind == "collections.OrderedDict":
        return value.items
    raise TypeError("not a dict")


def dtype_of(value: Any) -> np.dtype[Any]:
    """A pickled NumPy dtype of plain numbers."""
    if isinstance(value, Global) and value.startswith("numpy."):
        return np.dtype(_checked(value.removeprefix("numpy.")))
    if not (isinstance(value, Made) and value.kind == "numpy.dtype"):
        raise TypeError("not a dtype")
    found = np.dtype(_checked(value.args[0]))
    order = value.state[1] if isinstance(value.state, tuple) else "="
    return found.newbyteorder(">") if order == ">" else found


def _checked(name: Any) -> str:
    if not (isinstance(name, str) and re.fullmatch(r"[biuf]\d{1,2}|bool|u?int\d+|float\d+", name)):
        raise TypeError("not a dtype of numbers")
    return name


def array_of(value: Any) -> Array:
    """A pickled NumPy array or scalar, or a plain number, as a new array; TypeError for anything else."""
    if isinstance(value, (bool, int, float)):
        return np.array(value)
    if not isinstance(value, Made):
        raise TypeError("not an array")
    module, _, function = value.kind.rpartition(".")
    if not module.startswith("numpy."):
        raise TypeError("not an array")
    if function == "scalar":
        return np.frombuffer(value.args[1], dtype_of(value.args[0]))[0].copy()
    if function == "_frombuffer":
        buffer, dtype, shape, order = value.args[:4]
    elif function == "_reconstruct":
        _, shape, dtype, fortran, buffer = value.state
        order = "F" if fortran else "C"
    else:
        raise TypeError("not an array")
    return np.frombuffer(buffer, dtype_of(dtype)).reshape(shape, order=order).copy()


class TorchFile:
    """A file of `torch.save`: `content` is its structure, `tensor` rebuilds one of the tensors in it."""

    def __init__(self, data: bytes, where: str):
        self.where = where
        try:
            self.archive = zipfile.ZipFile(io.BytesIO(data))
            names = [n for n in self.archive.namelist() if n.endswith("data.pkl")]
            self.root = names[0].removesuffix("data.pkl")
        except (zipfile.BadZipFile, IndexError):
            raise ValueError(f"{where}: not a file of torch.save in its zip format") from None
        order = f"{self.root}byteorder"
        if order in self.archive.namelist() and read_member(self.archive, order, where) != b"little":
            raise ValueError(f"{where}: tensors of a big-endian machine are not read")
        self.content = read_pickle(read_member(self.archive, names[0], where), where)
        self._left = MAX_BYTES  # that its tensors may still take: many may name one storage

    def tensor(self, value: Any) -> Tensor:
        """A new tensor on the CPU; TypeError where `value` describes none."""
        if not (isinstance(value, Made) and value.kind == "torch._utils._rebuild_tensor_v2"):
            raise TypeError("not a tensor")
        storage, offset, size, stride = value.args[:4]
        _, kind, key, _, _ = storage.value
        if not isinstance(kind, Global) or kind not in STORAGES or not isinstance(key, str):
            raise TypeError(f"tensors of {kind if isinstance(kind, Global) else 'no storage'} are not read")
        data = read_member(self.archive, f"{self.root}data/{key}", self.where, most=self._left)
        self._left -= len(data)
        flat = torch.frombuffer(bytearray(data), dtype=STORAGES[kind])
        small = len(size) == len(stride) <= MAX_AXES and all(
            type(n) is int and 0 <= n <= len(flat) for n in (offset, *size, *stride)
        )
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if small else len(flat)
        if last >= len(flat) or math.prod(size) > len(flat):
            raise ValueError(f"{self.where}: a tensor reaches beyond its storage")
        return flat.as_strided(size, stride, offset).clone(memory_format=torch.contiguous_format)


def read_member(archive: zipfile.ZipFile, name: str, where: str, *, most: int | None = None) -> bytes:
    """One member of an archive, by name and into memory: at most `most` bytes, whatever the archive declares."""
    most = MAX_BYTES if most is None else most
    try:
        info = archive.getinfo(name)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack without a bound
            raise NotImplementedError("its compression is not deflate")
        if info.file_size > most:
            raise OverflowError(f"it unpacks to {info.file_size:,} bytes, more than any policy needs")
        with archive.open(info) as file:
            return file.read(info.file_size)
    except (
        KeyError,
        EOFError,
        OSError,
        ValueError,
        OverflowError,
        zipfile.BadZipFile,
        RuntimeError,
        zlib.error,
    ) as error:
        raise ValueError(f"{where}: {name} cannot be read ({error})") from None

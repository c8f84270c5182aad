"""A replay buffer on the disk: chunks of rows as safetensors and one JSON, no pickle. One chunk at a time in memory.

buffer.json            format, rows ever added, capacity, columns, rows a chunk, checksum of every chunk
rows_00000.safetensors and on
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from ctrlrl.data.replay import ReplayBuffer
from ctrlrl.disk import present, read_plain, replace_folder, write_flushed

FORMAT = 1
CHUNK_BYTES = 2**26
_JSON_LIMIT = 2**22  # bytes of buffer.json


def save_buffer(buffer: ReplayBuffer, folder: Path, *, chunk_bytes: int = CHUNK_BYTES) -> None:
    """Write the buffer as `folder`, in place of an older one once it is complete; ValueError where other files are."""
    if folder.exists() and (others := _others(folder)):
        raise ValueError(f"{folder} holds {others[0]}, which is no replay buffer's: name a folder of its own")
    replace_folder(folder, lambda fresh: write_buffer(buffer, fresh, chunk_bytes=chunk_bytes))


def write_buffer(buffer: ReplayBuffer, folder: Path, *, chunk_bytes: int = CHUNK_BYTES) -> None:
    """Write the buffer's files into a new folder, beside others."""
    rows = buffer.table.rows[: len(buffer)]
    per_chunk = max(1, chunk_bytes // (rows.shape[1] * rows.element_size()))
    sums = []
    for i, chunk in enumerate(rows.split(per_chunk) if len(rows) else ()):
        data = save({"rows": chunk.cpu().contiguous()})
        sums.append(hashlib.sha256(data).hexdigest())
        write_flushed(folder / _name(i), data)
    facts = {**_facts(buffer), "per_chunk": per_chunk, "sums": sums}
    write_flushed(folder / "buffer.json", json.dumps(facts).encode())


def has_buffer(folder: Path) -> bool:
    return (present(folder) / "buffer.json").exists()


def load_buffer(buffer: ReplayBuffer, folder: Path) -> None:
    """Fill a buffer of the same capacity and columns; ValueError names what is missing, damaged or different."""
    source = present(folder)
    try:
        found = json.loads(read_plain(source / "buffer.json", at_most=_JSON_LIMIT))
        if not isinstance(found, dict):
            raise ValueError("buffer.json is no object")
        for name, value in _facts(buffer).items():
            if name != "added" and found.get(name) != value:
                mend = ": give buffer_size the same" if name == "capacity" else ""
                raise ValueError(f"it has {name}={found.get(name)!r:.80}, this buffer has {value!r:.80}{mend}")
        added, per_chunk, sums = found["added"], found["per_chunk"], found["sums"]
        if type(added) is not int or added < 0 or type(per_chunk) is not int or per_chunk < 1:
            raise ValueError("its counts are not counts")
        count = min(added, buffer.capacity)
        if len(sums) != -(-count // per_chunk):
            raise ValueError(f"{count} rows do not fill {len(sums)} chunks of {per_chunk}")
        chunks = [(source / _name(i), s, i * per_chunk, min((i + 1) * per_chunk, count)) for i, s in enumerate(sums)]
        for chunk in chunks:
            _chunk(buffer, *chunk)  # all are whole before the first row of the buffer goes
        for chunk in chunks:
            buffer.table.rows[chunk[2] : chunk[3]] = _chunk(buffer, *chunk)
    except OSError as error:
        raise ValueError(f"{folder}: no replay buffer there ({error.strerror}: {error.filename})") from None
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder}: damaged replay buffer ({type(error).__name__}: {error})") from None
    except ValueError as error:
        raise ValueError(f"{folder}: not a replay buffer for this run ({error})") from None
    buffer.added = added


def _others(folder: Path) -> list[str]:
    """Names that a replay buffer's folder has not; the folder's own where it is a file."""
    if not folder.is_dir():
        return ["a file"]
    own = re.compile(r"buffer\.json|rows_\d{5,}\.safetensors")
    return sorted(p.name for p in folder.iterdir() if not own.fullmatch(p.name))


def _chunk(buffer: ReplayBuffer, path: Path, wanted: str, begin: int, end: int) -> Tensor:
    """The rows [end - begin, columns] of one file."""
    data = read_plain(path, at_most=(end - begin) * buffer.table.rows.shape[1] * 4 + 2**16)
    if hashlib.sha256(data).hexdigest() != wanted:
        raise ValueError(f"the checksum of {path.name} does not match")
    rows = load(data)["rows"]
    if rows.shape != buffer.table.rows[begin:end].shape:
        raise ValueError(f"{path.name} has shape {tuple(rows.shape)}")
    return rows.to(buffer.table.rows.device)


def _facts(buffer: ReplayBuffer) -> dict[str, Any]:
    table = buffer.table
    columns = {k: [v.start, v.stop] if isinstance(v, slice) else v for k, v in table.columns.items()}
    return {"format": FORMAT, "added": buffer.added, "capacity": buffer.capacity, "columns": columns}


def _name(i: int) -> str:
    return f"rows_{i:05d}.safetensors"

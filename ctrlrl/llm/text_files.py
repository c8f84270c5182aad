"""Files of texts: NPZ as bytes and offsets, and JSON lines."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch

from ctrlrl.llm.recorded import Labelled, labelled

LABELLED = ("question", "solution")


def text_columns(path: str | Path, *names: str) -> list[list[str]]:
    """Columns of text in a JSON-lines file, or in an NPZ file.

    There a column is `<name>_utf8`, bytes one after another, cut at `<name>_offsets`.
    """
    if Path(path).suffix == ".jsonl":
        rows = _lines(path)
        if missing := [name for name in names if not all(isinstance(row.get(name), str) for row in rows)]:
            raise ValueError(f"{path}: some line has no text {', '.join(missing)}")
        return [[row[name] for row in rows] for name in names]
    with _opened(path) as file:
        missing = [key for name in names for key in (f"{name}_utf8", f"{name}_offsets") if key not in file.files]
        if missing:
            raise ValueError(f"{path}: no {', '.join(missing)}; the file holds {', '.join(file.files)}")
        columns = []
        for name in names:
            raw, edges = file[f"{name}_utf8"].tobytes(), file[f"{name}_offsets"].tolist()
            if edges[0] != 0 or edges[-1] != len(raw) or any(a > b for a, b in itertools.pairwise(edges)):
                raise ValueError(f"{path}: {name}_offsets must rise from 0 to the {len(raw)} bytes of {name}_utf8")
            columns.append([raw[a:b].decode() for a, b in itertools.pairwise(edges)])
    return columns


def _opened(path: str | Path) -> Any:
    import numpy as np

    try:
        found = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, BadZipFile):
        found = None
    if not hasattr(found, "files"):
        raise ValueError(f"{path}: not an NPZ file; JSON lines end in .jsonl")
    return found


def _lines(path: str | Path) -> list[dict[str, Any]]:
    rows = []
    for i, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), start=1):  # a text may hold U+2028
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            raise ValueError(f"{path}: line {i} is no JSON") from None
        if not isinstance(rows[-1], dict) or rows[-1].keys() != rows[0].keys():
            raise ValueError(f"{path}: line {i} has other keys than the first one, {', '.join(rows[0])}")
    if not rows:
        raise ValueError(f"{path}: the file is empty")
    return rows


def load_labelled(path: str | Path) -> Labelled:
    """JSON lines as `recorded.labelled` takes rows, or solutions with a label each: 1 where one is correct, else 0.

    The latter as the released samples of GSM8K in an NPZ file: the texts `question` and `solution`,
    `solution_question_index` and `solution_is_correct`.
    """
    if Path(path).suffix == ".jsonl":
        return labelled(_lines(path))
    import numpy as np

    questions, solutions = text_columns(path, *LABELLED)
    with _opened(path) as file:
        for key in ("solution_question_index", "solution_is_correct"):
            if key not in file.files or file[key].shape != (len(solutions),):
                raise ValueError(f"{path}: wanted {key} with one entry for each of the {len(solutions)} solutions")
        prompt = torch.from_numpy(file["solution_question_index"].astype(np.int64))
        reward = torch.from_numpy(file["solution_is_correct"].astype(np.float32))
    if len(prompt) and not (int(prompt.min()) >= 0 and int(prompt.max()) < len(questions)):
        raise ValueError(f"{path}: solution_question_index must name one of the {len(questions)} questions")
    return Labelled(questions, solutions, prompt, reward)

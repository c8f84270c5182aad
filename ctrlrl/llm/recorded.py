"""Recorded responses that somebody judged: read from a file, made into tokens, and paired."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import torch
from torch import Tensor

LABELLED = ("question", "solution")


class Labelled(NamedTuple):
    """M prompts and N responses to them."""

    prompts: list[Any]  # M texts or chats
    responses: list[str]  # N
    prompt: Tensor  # [N] int64, which prompt a response answers
    reward: Tensor  # [N] float32


class Recorded(NamedTuple):
    """N judged responses as tokens; any rows of it are one too."""

    prompt_ids: Tensor  # [N, P], padded on the left
    prompt_mask: Tensor  # [N, P] bool, False on that padding
    ids: Tensor  # [N, L], padded on the right
    mask: Tensor  # [N, L] bool, the end-of-sequence token included
    reward: Tensor  # [N]
    group: Tensor  # [N] int64, which prompt, in 0 ... N - 1

    def rows(self, index: Tensor) -> Recorded:
        """Some rows, their groups numbered from 0."""
        kept = Recorded(*(x[index] for x in self))
        return kept._replace(group=torch.unique(kept.group, return_inverse=True)[1])


def labelled(dataset: Any) -> Labelled:
    """Of the path of a file (`load_labelled`), or of rows with prompt, response and reward, or prompt, chosen and
    rejected; as a list of dicts, a dict of columns or a `datasets.Dataset`."""
    if isinstance(dataset, (str, PathLike)):
        return load_labelled(Path(dataset))
    columns = columns_of(dataset)
    paired = {"prompt", "chosen", "rejected"} <= columns.keys()
    wanted = ("chosen", "rejected") if paired else ("response", "reward")
    missing = [name for name in ("prompt", *wanted) if name not in columns]
    if missing:
        raise ValueError(
            f"dataset: no column {', '.join(missing)}; recorded responses have prompt, response and reward, or prompt, "
            f"chosen and rejected. Here are {', '.join(columns) or 'none'}"
        )
    asked, own = list(columns["prompt"]), [list(columns[name]) for name in wanted]
    for name, column in zip(wanted, own, strict=True):
        if len(column) != len(asked):
            raise ValueError(f"dataset: column {name} has {len(column)} values for {len(asked)} prompts")
    if paired:
        asked, own = 2 * asked, [own[0] + own[1], [1.0] * len(asked) + [0.0] * len(asked)]
    reward = torch.tensor([float(r) for r in own[1]])
    if not bool(torch.isfinite(reward).all()):
        raise ValueError(f"dataset: the reward of row {int((~torch.isfinite(reward)).nonzero()[0])} is not finite")
    places: dict[str, int] = {}
    number = torch.tensor([places.setdefault(repr(text), len(places)) for text in asked], dtype=torch.int64)
    first = {int(i): text for i, text in zip(number.flip(0), reversed(asked), strict=True)}
    return Labelled([first[i] for i in range(len(places))], own[0], number, reward)


def is_recorded(dataset: Any) -> bool:
    """Whether a data set has responses beside its prompts."""
    if isinstance(dataset, (str, PathLike)):
        return True
    names = columns_of(dataset).keys()
    return "prompt" in names and bool({"response", "chosen"} & names)


def columns_of(dataset: Any) -> dict[str, Any]:
    """Of a dict of columns, a list of dicts, a `datasets.Dataset`, or a list of prompts."""
    if hasattr(dataset, "column_names"):
        return {name: dataset[name][:] for name in dataset.column_names}
    if isinstance(dataset, Mapping):
        return dict(dataset)
    rows = list(dataset)
    if rows and isinstance(rows[0], Mapping):
        return {name: [row[name] for row in rows] for name in rows[0]}
    return {"prompt": rows}


def text_columns(path: str | Path, *names: str) -> list[list[str]]:
    """Columns of text in an NPZ file: `<name>_utf8`, bytes one after another, cut at `<name>_offsets`."""
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
        raise ValueError(f"{path}: not an NPZ file")
    return found


def load_labelled(path: str | Path) -> Labelled:
    """Solutions with a label each, as in the released samples of GSM8K: the reward is 1 where one is correct, else 0.

    The file holds the texts `question` and `solution`, `solution_question_index` and `solution_is_correct`.
    """
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


def encode_labelled(
    data: Labelled,
    encode: Callable[[str], Sequence[int]],
    *,
    eos: int,
    pad: int,
    longest: int,
    encode_prompt: Callable[[Any], Sequence[int]] | None = None,
) -> tuple[Recorded, int]:
    """Tokens of all responses that fit in `longest` tokens with their prompt, and how many do not.

    encode: a text to its ids, without special tokens; encode_prompt: a prompt to its ids, None = alike. An
    end-of-sequence token is added to every response.
    """
    prompts = [list((encode_prompt or encode)(text)) for text in data.prompts]
    rows = [
        (prompts[g], [*encode(text), eos], i)
        for i, (g, text) in enumerate(zip(data.prompt.tolist(), data.responses, strict=True))
    ]
    fit = [row for row in rows if row[0] and len(row[0]) + len(row[1]) <= longest]
    if not fit:
        raise ValueError(f"no prompt with its response fits in {longest} tokens; raise longest")
    index = torch.tensor([i for _, _, i in fit])
    before, after = max(len(p) for p, _, _ in fit), max(len(r) for _, r, _ in fit)
    prompt_ids = torch.tensor([[pad] * (before - len(p)) + p for p, _, _ in fit])
    ids = torch.tensor([r + [pad] * (after - len(r)) for _, r, _ in fit])
    lengths = torch.tensor([[len(p), len(r)] for p, r, _ in fit])
    recorded = Recorded(
        prompt_ids,
        torch.arange(before) >= before - lengths[:, :1],
        ids,
        torch.arange(after) < lengths[:, 1:],
        data.reward[index],
        torch.unique(data.prompt[index], return_inverse=True)[1],
    )
    return recorded, len(rows) - len(fit)


def pairs(reward: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (chosen [K], rejected [K]) of all pairs of responses to one prompt of which the first has more reward."""
    better = (group.unsqueeze(1) == group) & (reward.unsqueeze(1) > reward)
    chosen, rejected = better.nonzero(as_tuple=True)
    return chosen, rejected

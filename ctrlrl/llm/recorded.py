"""Recorded responses that somebody judged: taken from rows, made into tokens, and paired."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


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
    """Of rows with prompt, response and reward, or with prompt, chosen and rejected.

    dataset: a list of dicts, a dict of columns or a `datasets.Dataset`.
    """
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
    for name in ("prompt", *(name for name in wanted if name != "reward")):
        wrong = (i for i, text in enumerate(columns[name]) if text is None or isinstance(text, int | float))
        if (row := next(wrong, None)) is not None:
            raise ValueError(f"dataset: the {name} of row {row} is {columns[name][row]!r}, wanted a text or a chat")
    if paired:
        asked, own = 2 * asked, [own[0] + own[1], [1.0] * len(asked) + [0.0] * len(asked)]
    reward = torch.tensor([_number(r, i) for i, r in enumerate(own[1])])
    if not bool(torch.isfinite(reward).all()):
        raise ValueError(f"dataset: the reward of row {int((~torch.isfinite(reward)).nonzero()[0])} is not finite")
    places: dict[str, int] = {}
    number = torch.tensor([places.setdefault(repr(text), len(places)) for text in asked], dtype=torch.int64)
    first = {int(i): text for i, text in zip(number.flip(0), reversed(asked), strict=True)}
    return Labelled([first[i] for i in range(len(places))], own[0], number, reward)


def _number(value: Any, row: int) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"dataset: the reward of row {row} is {value!r:.40}, wanted a number") from None


def is_recorded(dataset: Any) -> bool:
    """Whether a data set has responses beside its prompts."""
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
        for i, row in enumerate(rows):
            if not isinstance(row, Mapping) or (missing := rows[0].keys() - row.keys()):
                what = f"lacks {', '.join(sorted(missing))}" if isinstance(row, Mapping) else "is no dict"
                raise ValueError(f"dataset: row {i} {what}, which the first row has")
        return {name: [row[name] for row in rows] for name in rows[0]}
    return {"prompt": rows}


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
        if not any(prompts):
            raise ValueError("dataset: every prompt is empty")
        raise ValueError(f"dataset: no prompt with its response fits in {longest} tokens; raise env.context")
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

"""Prompts as token ids, padded on the left, with the columns that reward functions take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ctrlrl.llm.recorded import columns_of


class Prompts:
    """prompts: texts, or lists of chat messages. columns: one value a prompt each."""

    def __init__(
        self,
        prompts: Sequence[Any],
        columns: Mapping[str, Sequence[Any]],
        tokenizer: Any,
        *,
        pad: int,
        longest: int | None = None,
        device: torch.device | str = "cpu",
    ):
        """longest: tokens that a prompt may have; ValueError names the first one that has more."""
        if not len(prompts):
            raise ValueError("dataset: there is no prompt in it")
        for name, column in columns.items():
            if len(column) != len(prompts):
                raise ValueError(f"dataset: column {name} has {len(column)} values for {len(prompts)} prompts")
        self.prompts, self.columns = list(prompts), {name: list(column) for name, column in columns.items()}
        tokens = encode(tokenizer, self.prompts)
        for i, row in enumerate(tokens):
            if not row:
                raise ValueError(f"dataset: prompt {i} is empty; a model needs a token to begin with")
            if longest is not None and len(row) > longest:
                raise ValueError(
                    f"dataset: prompt {i} has {len(row)} tokens, and with max_tokens for the response the model's "
                    f"context has room for {longest}. Shorten or drop it."
                )
        self.lengths = torch.tensor([len(row) for row in tokens])
        width = int(self.lengths.max())
        self.ids = torch.tensor([[pad] * (width - len(row)) + row for row in tokens], device=device)

    @classmethod
    def of(cls, dataset: Any, tokenizer: Any, **options: Any) -> Prompts:
        """Of a list of prompts, a list of dicts with `prompt`, a dict of columns, or a `datasets.Dataset`."""
        dataset = columns_of(dataset)
        if "prompt" not in dataset:
            raise ValueError(f"dataset: wanted a column `prompt`, got {', '.join(dataset) or 'none'}")
        columns = {name: column for name, column in dataset.items() if name != "prompt"}
        return cls(dataset["prompt"], columns, tokenizer, **options)

    def __len__(self) -> int:
        return len(self.prompts)

    def rows(self, index: Sequence[int]) -> tuple[list[Any], dict[str, list[Any]]]:
        """Prompts and columns of some rows, in this order."""
        return [self.prompts[i] for i in index], {k: [column[i] for i in index] for k, column in self.columns.items()}

    def tokens(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """[N, P] ids of some rows, cut to the longest of them, and which places hold a prompt; None where all do."""
        lengths = self.lengths[index]
        width = int(lengths.max())
        ids = self.ids[index.to(self.ids.device), self.ids.shape[1] - width :]
        if bool((lengths == width).all()):
            return ids, None
        places = torch.arange(width, device=ids.device)
        return ids, places >= (width - lengths.to(ids.device)).unsqueeze(1)


def encode(tokenizer: Any, prompts: Sequence[Any]) -> list[list[int]]:
    """Texts as the tokenizer has them, its special tokens included; chats by its template."""
    if all(isinstance(prompt, str) for prompt in prompts) and callable(tokenizer):
        return [list(row) for row in tokenizer(list(prompts))["input_ids"]]
    return [_encoded(tokenizer, prompt) for prompt in prompts]


def _encoded(tokenizer: Any, prompt: Any) -> list[int]:
    if isinstance(prompt, str):
        return list(tokenizer.encode(prompt))
    found = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True)
    return list(found["input_ids"] if isinstance(found, Mapping) else found)


def decode(tokenizer: Any, ids: Tensor, lengths: Tensor, prompts: Sequence[Any]) -> tuple[list[Any], list[list[int]]]:
    """Right-padded responses [N, T] as what mirrors their prompts, and as lists of ids. Special tokens are left out."""
    rows = [row[:n] for row, n in zip(ids.tolist(), lengths.tolist(), strict=True)]
    if hasattr(tokenizer, "batch_decode"):
        backend: Any = getattr(tokenizer, "_tokenizer", None)  # one call into Rust; batch_decode makes one a row
        many = backend.decode_batch if hasattr(backend, "decode_batch") else tokenizer.batch_decode
        texts = many(rows, skip_special_tokens=True)
    else:
        texts = [tokenizer.decode(row) for row in rows]
    chat = [not isinstance(prompt, str) for prompt in prompts]
    return [[{"role": "assistant", "content": t}] if talk else t for t, talk in zip(texts, chat, strict=True)], rows

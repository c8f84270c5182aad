"""Responses of several turns: the model writes, an answer from outside is appended, and it writes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ctrlrl.llm.generate import Engine, sample
from ctrlrl.llm.language_model import LanguageModel

Reply = Callable[[Sequence[str]], Sequence[str | None]]  # texts so far to what comes next; None: that one is done


def several_turns(
    model: LanguageModel, tokenizer: Any, reply: Reply, *, max_turns: int, eos: int | None, pad: int
) -> Engine:
    """An engine for `TokenLearner` whose responses hold the answers of `reply`, which do not count.

    A turn ends with the end of sequence; the last one at max_turns, where `reply` has no answer, or at the limit of the
    response's tokens, which answers take part in.
    """

    def engine(
        *, prompt_ids: Tensor, prompt_mask: Tensor | None, n: int, max_new_tokens: int, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        keep = torch.ones_like(prompt_ids, dtype=torch.bool) if prompt_mask is None else prompt_mask
        prompts = [row[ok].tolist() for row, ok in zip(prompt_ids, keep, strict=True) for _ in range(n)]
        written: list[list[tuple[int, float, bool]]] = [[] for _ in prompts]  # token, log-prob, whether its own
        active = list(range(len(prompts)))
        for turn in range(max_turns):
            contexts = [prompts[i] + [token for token, _, _ in written[i]] for i in active]
            ids, mask = _padded(contexts, pad, prompt_ids.device)
            room = [max_new_tokens - len(written[i]) for i in active]
            found = sample(model, ids, mask, n=1, max_new_tokens=max(room), eos=eos, pad=pad, temperature=temperature)
            assert found.log_prob is not None
            rows = zip(found.ids.tolist(), found.log_prob.tolist(), found.lengths.tolist(), strict=True)
            for i, limit, (tokens, log_probs, length) in zip(active, room, rows, strict=True):
                size = min(length, limit)
                written[i] += zip(tokens[:size], log_probs[:size], [True] * size, strict=True)
            open_ = [i for i in active if len(written[i]) < max_new_tokens and written[i][-1][0] == eos]
            if turn == max_turns - 1 or not open_:
                break
            texts = [tokenizer.decode([token for token, _, _ in written[i]], skip_special_tokens=True) for i in open_]
            active = []
            for i, answer in zip(open_, reply(texts), strict=True):
                if answer is None:
                    continue
                tokens = tokenizer(answer, add_special_tokens=False)["input_ids"]
                if len(written[i]) + len(tokens) < max_new_tokens:
                    written[i] += [(token, 0.0, False) for token in tokens]
                    active.append(i)
            if not active:
                break
        columns = [[[x[k] for x in row] for row in written] for k in range(3)]
        width, device = max(map(len, written)), prompt_ids.device
        ids, log_prob, own = (
            torch.tensor([row + [fill] * (width - len(row)) for row in column], device=device)
            for column, fill in zip(columns, (pad, 0.0, False), strict=True)
        )
        return ids, log_prob, own

    return engine


def _padded(rows: list[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
    if all(len(row) == width for row in rows):
        return ids, None
    lengths = torch.tensor([len(row) for row in rows], device=device).unsqueeze(1)
    return ids, torch.arange(width, device=device) >= width - lengths

"""Sampled responses: a loop of its own with a key-value cache, or an engine elsewhere that gives ids and log-probs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctrlrl.llm.language_model import LanguageModel

LOOK = 16  # tokens between two looks at whether all responses have ended, on devices where looking waits


class Responses(NamedTuple):
    """N responses of up to T tokens, padded on the right."""

    ids: Tensor  # [N, T] int64
    mask: Tensor  # [N, T] bool: what the model wrote, its first end of sequence included; tool output does not count
    log_prob: Tensor | None  # [N, T] nats, of whoever sampled them, at its temperature; None: not told
    ended: Tensor  # [N] bool: False where the length limit cut a response

    @property
    def lengths(self) -> Tensor:
        """[N] tokens up to the last that counts."""
        places = torch.arange(1, self.mask.shape[1] + 1, device=self.mask.device)
        return (self.mask * places).amax(1)


Engine = Callable[..., Any]  # (prompt_ids, prompt_mask, n, max_new_tokens, temperature) -> ids [, log_prob [, mask]]


@torch.no_grad()
def sample(
    model: LanguageModel,
    prompt_ids: Tensor,
    prompt_mask: Tensor | None,
    *,
    n: int,
    max_new_tokens: int,
    eos: int | None,
    pad: int,
    temperature: float = 1.0,
) -> Responses:
    """`n` responses to each of the prompts [P, L], neighbours in the result; temperature 0 takes the likeliest token.

    prompt_mask: [P, L] bool, False on left padding; None where there is none.
    """
    rows, device = prompt_ids.shape[0] * n, prompt_ids.device
    ids = torch.full((rows, max_new_tokens), pad, dtype=torch.int64, device=device)
    log_prob = torch.zeros(rows, max_new_tokens, device=device)
    mask = torch.zeros(rows, max_new_tokens, dtype=torch.bool, device=device)
    running = torch.ones(rows, dtype=torch.bool, device=device)
    attended = None
    if prompt_mask is not None:
        whole = prompt_mask.new_ones(rows, prompt_mask.shape[1] + max_new_tokens)
        whole[:, : prompt_mask.shape[1]] = prompt_mask.repeat_interleave(n, 0)
        attended = whole
    states, cache = model.begin(prompt_ids, prompt_mask, n)
    for t in range(max_new_tokens):
        token, told = _drawn(model.head(states).float(), temperature)
        ids[:, t] = token if eos is None else torch.where(running, token, pad)
        log_prob[:, t], mask[:, t] = told, running
        if eos is not None:
            running = running & (token != eos)
            looked = device.type == "cpu" or (t + 1) % LOOK == 0
            if looked and not bool(running.any()):
                break
        if t + 1 < max_new_tokens:
            states, cache = model.extend(
                ids[:, t], cache, None if attended is None else attended[:, : prompt_ids.shape[1] + t + 1]
            )
    ended = torch.zeros_like(running) if eos is None else ~running
    return Responses(ids, mask, log_prob.where(mask, 0.0), ended)


def _drawn(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """[N, V] to tokens [N] and their log-probs at this temperature."""
    if temperature == 0.0:
        token = logits.argmax(-1)
        return token, torch.zeros_like(token, dtype=logits.dtype)
    log_probs = torch.log_softmax(logits if temperature == 1.0 else logits / temperature, -1)
    # the largest of p / e with e exponential is a draw from p, without multinomial's checks
    token = (log_probs - torch.empty_like(log_probs).exponential_().log_()).argmax(-1)
    return token, log_probs.gather(-1, token.unsqueeze(-1)).squeeze(-1)


def sampled_elsewhere(
    engine: Engine,
    prompt_ids: Tensor,
    prompt_mask: Tensor | None,
    *,
    n: int,
    max_new_tokens: int,
    eos: int | None,
    pad: int,
    temperature: float = 1.0,
) -> Responses:
    """What an engine answers, brought into the form of `sample` and checked.

    engine: called with prompt_ids, prompt_mask, n, max_new_tokens and temperature; returns ids [P * n, T] padded on the
    right, or these with log-probs [P * n, T], or both with the mask [P * n, T] of what the model wrote itself. Without
    a mask everything up to the first `eos` counts.
    """
    told = engine(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        n=n,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
    )
    ids, log_prob, mask = (*told, None, None)[:3] if isinstance(told, tuple) else (told, None, None)
    rows = prompt_ids.shape[0] * n
    if ids.ndim != 2 or ids.shape[0] != rows or ids.shape[1] > max_new_tokens:
        raise ValueError(
            f"engine: wanted ids of shape ({rows}, at most {max_new_tokens}), got {tuple(ids.shape)}: `n` responses to "
            "each prompt, neighbours"
        )
    ids = ids.to(prompt_ids.device)
    if ids.shape[1] == 0:  # nobody said anything: one column that does not count
        ids, log_prob, mask = ids.new_full((rows, 1), pad), None, ids.new_zeros(rows, 1)
    if eos is None:
        first = torch.full((rows,), ids.shape[1], device=ids.device)
    else:
        first = torch.where(ids == eos, torch.arange(ids.shape[1], device=ids.device), ids.shape[1]).amin(1)
    if mask is None:
        # from the first end of sequence, never from ids != pad: the two may be one token
        mask = torch.arange(ids.shape[1], device=ids.device) <= first.unsqueeze(1)
    mask = mask.to(ids.device, torch.bool)
    for name, tensor in (("log_prob", log_prob), ("mask", mask)):
        if tensor is not None and tensor.shape != ids.shape:
            raise ValueError(f"engine: {name} has shape {tuple(tensor.shape)}, its ids {tuple(ids.shape)}")
    if log_prob is not None:
        log_prob = log_prob.to(ids.device, torch.float32).where(mask, 0.0)
        if not bool(torch.isfinite(log_prob).all()):
            raise ValueError("engine: a log_prob of a token that counts is not finite")
    last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    ended = (last & (ids == eos)).any(1) if eos is not None else torch.zeros_like(first, dtype=torch.bool)
    return Responses(ids, mask, log_prob, ended)

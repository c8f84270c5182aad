"""Judged responses on their way from the loop to the learner: joined, selected, and cut into what a step reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ctrlrl.functional.group import equal_rewards
from ctrlrl.llm.generate import Responses
from ctrlrl.types import tree_map


class Rollout(NamedTuple):
    """N responses, G neighbours to each of N / G prompts."""

    prompt: Tensor  # [N] which of the data set's prompts
    prompt_ids: Tensor  # [N / G, P], padded on the left
    prompt_mask: Tensor | None  # [N / G, P] bool, False on that padding; None where there is none
    ids: Tensor  # [N, L], padded on the right
    mask: Tensor  # [N, L] bool, what the model wrote
    log_prob: Tensor | None  # [N, L] of another engine that sampled
    ended: Tensor  # [N] bool, False where the length limit cut it
    rewards: Tensor  # [N, K], NaN where a reward function does not apply
    reward: Tensor  # [N] their weighted sum
    greedy_reward: Tensor | None  # [N] of the greedy response to the same prompt
    group: Tensor  # [N] which prompt of this batch
    window: Tensor | None = None  # [N, L] bool, the tokens that the policy learns from; None: those of the mask
    advantage: Tensor | None = None  # [N], where it is known before the learner sees the batch
    target: Tensor | None = None  # [N], the second signal of such an advantage

    @classmethod
    def of(
        cls,
        prompt: Tensor,
        prompt_ids: Tensor,
        prompt_mask: Tensor | None,
        responses: Responses,
        rewards: Tensor,
        weights: Tensor,
        *,
        greedy_reward: Tensor | None = None,
        own_log_prob: bool = True,
    ) -> Rollout:
        """Of the prompts [P], each with as many responses. own_log_prob: they are those of the policy itself."""
        n, device = responses.ids.shape[0] // len(prompt), responses.ids.device

        def each(x: Tensor) -> Tensor:
            return x.repeat_interleave(n, 0)

        return cls(
            each(prompt.to(device)),
            prompt_ids,
            prompt_mask,
            responses.ids,
            responses.mask,
            None if own_log_prob else responses.log_prob,
            responses.ended,
            rewards,
            (rewards.nan_to_num(0.0) * weights).sum(1),
            None if greedy_reward is None else each(greedy_reward),
            each(torch.arange(len(prompt), device=device)),
        )

    def where(self, rows: Tensor) -> Rollout:
        """Some of the rows, whole groups; reads the device."""
        n = len(rows) // len(self.prompt_ids)
        prompts = rows[::n]
        kept: dict[str, Any] = {
            name: None if x is None else x[prompts if name.startswith("prompt_") else rows]
            for name, x in self._asdict().items()
        }
        made = Rollout(**kept)
        return made._replace(group=torch.arange(len(made.prompt_ids), device=rows.device).repeat_interleave(n))

    def telling(self) -> Tensor:
        """[N] bool: rows whose group's rewards are not all equal."""
        return ~equal_rewards(self.reward, self.group)


def joined(parts: Sequence[Rollout]) -> Rollout:
    """Several batches as one."""
    if len(parts) == 1:
        return parts[0]
    offset, numbered = 0, []
    for part in same_width(parts):
        numbered.append(part._replace(group=part.group + offset))
        offset += len(part.prompt_ids)
    return tree_map(lambda *rows: torch.cat(rows), numbered[0], *numbered[1:])


def same_width(parts: Sequence[Rollout]) -> list[Rollout]:
    """Batches with prompts and responses padded to the longest of all."""
    before = max(part.prompt_ids.shape[1] for part in parts)
    after = max(part.ids.shape[1] for part in parts)
    masked = any(part.prompt_mask is not None or part.prompt_ids.shape[1] < before for part in parts)
    aligned = []
    for part in parts:
        left, right = before - part.prompt_ids.shape[1], after - part.ids.shape[1]
        mask = part.prompt_mask
        if masked:
            mask = torch.ones_like(part.prompt_ids, dtype=torch.bool) if mask is None else mask
            mask = pad(mask, (left, 0))
        aligned.append(
            part._replace(
                prompt_ids=pad(part.prompt_ids, (left, 0)),
                prompt_mask=mask,
                ids=pad(part.ids, (0, right)),
                mask=pad(part.mask, (0, right)),
                log_prob=None if part.log_prob is None else pad(part.log_prob, (0, right)),
            )
        )
    return aligned


def apart(batch: Rollout) -> Rollout:
    """Every response with its own copy of the prompt, so that rows can change places."""
    n = len(batch.ids) // len(batch.prompt_ids)
    mask = batch.prompt_mask
    return batch._replace(
        prompt_ids=batch.prompt_ids.repeat_interleave(n, 0),
        prompt_mask=None if mask is None else mask.repeat_interleave(n, 0),
    )


class Rows(NamedTuple):
    """What one optimiser step reads: P prompts and C responses to each; None where the method does not need it."""

    prompt_ids: Tensor  # [P, ...]
    prompt_mask: Tensor | None
    ids: Tensor  # [P, C, ...], as all below
    mask: Tensor
    advantage: Tensor
    target: Tensor | None = None
    returns: Tensor | None = None
    value_old: Tensor | None = None
    value_mask: Tensor | None = None
    log_prob_old: Tensor | None = None
    log_prob_ref: Tensor | None = None
    weight: Tensor | None = None  # of tokens that another engine sampled


def bunched(rows: Rows, limit: int) -> Rows:
    """Of N responses [N, ...] to P prompts: [P, C, ...], the unit of minibatches.

    C: the largest equal part of a prompt's responses that is at most `limit`; its prompt is then repeated.
    """
    group = len(rows.ids) // len(rows.prompt_ids)
    size = next(c for c in range(min(group, max(limit, 1)), 0, -1) if group % c == 0)
    made = {
        name: x.repeat_interleave(group // size, 0) if name.startswith("prompt_") else x.unflatten(0, (-1, size))
        for name, x in rows._asdict().items()
        if x is not None
    }
    return rows._replace(**made)


def parts(rows: Rows, n: int | None) -> Iterator[Rows]:
    """About n responses of bunched rows at a time, again as [N, ...]; None: all of them."""
    size = len(rows.prompt_ids) if n is None else max(n // rows.ids.shape[1], 1)
    for begin in range(0, len(rows.prompt_ids), size):
        flat = {
            name: x[begin : begin + size] if name.startswith("prompt_") else x[begin : begin + size].flatten(0, 1)
            for name, x in rows._asdict().items()
            if x is not None
        }
        yield rows._replace(**flat)


def trimmed(batch: Rollout) -> Rollout:
    """Without the columns behind the longest response; reads the device."""
    longest = max(int(batch.mask.any(0).nonzero().amax()) + 1, 1) if bool(batch.mask.any()) else 1
    names = ("ids", "mask", "log_prob", "window")
    columns = {name: x[:, :longest] for name in names if (x := getattr(batch, name)) is not None}
    return batch._replace(**columns)

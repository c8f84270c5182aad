"""Rewards of texts: functions `(prompts, completions, **columns) -> list[float | None]`, and some of them."""

from __future__ import annotations

import asyncio
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

RewardFn = Callable[..., Any]
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


class Rewards:
    """One or several reward functions, called as TRL calls them."""

    def __init__(self, fns: RewardFn | Sequence[RewardFn]):
        self.fns = [fns] if callable(fns) else list(fns)
        if not self.fns:
            raise ValueError("reward_fns: give at least one function (prompts, completions, **columns) -> list[float]")
        self.names = [getattr(fn, "__name__", type(fn).__name__) for fn in self.fns]
        self._taken = [_parameters(fn) for fn in self.fns]

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        columns: Mapping[str, Sequence[Any]],
        completion_ids: Sequence[list[int]] | None = None,
    ) -> Tensor:
        """[N, K] float32, NaN where a function does not apply."""
        offered = {**columns, "completion_ids": completion_ids}
        found = []
        for fn, name, taken in zip(self.fns, self.names, self._taken, strict=True):
            chosen = offered if taken is None else {k: v for k, v in offered.items() if k in taken}
            given = fn(prompts=prompts, completions=completions, **chosen)
            if inspect.isawaitable(given):
                given = asyncio.run(_awaited(given))
            found.append(_checked(given, name, len(completions)))
        rewards = torch.tensor(found, dtype=torch.float32).T.contiguous()
        without = rewards.isnan().all(1)
        if bool(without.any()):
            at = int(without.nonzero()[0])
            raise ValueError(f"no reward function applies to completion {at}: {', '.join(self.names)} gave None")
        return rewards


async def _awaited(promise: Any) -> Any:
    return await promise


def _parameters(fn: RewardFn) -> set[str] | None:
    """The keywords that a function takes; None where it takes any."""
    parameters = inspect.signature(fn).parameters.values()
    return None if any(p.kind is p.VAR_KEYWORD for p in parameters) else {p.name for p in parameters}


def _checked(given: Any, name: str, n: int) -> list[float]:
    if isinstance(given, Tensor):
        given = given.tolist()
    if not isinstance(given, Sequence) or len(given) != n:
        got = f"{len(given)} rewards" if isinstance(given, Sequence) else type(given).__name__
        raise ValueError(f"reward function {name}: gave {got} for {n} completions; return a list of one number each")
    try:
        values = [math.nan if r is None else float(r) for r in given]
    except (TypeError, ValueError):
        raise ValueError(f"reward function {name}: gave something else than numbers, {given[0]!r:.40} first") from None
    for i, (value, r) in enumerate(zip(values, given, strict=True)):
        if r is not None and not math.isfinite(value):
            raise ValueError(
                f"reward function {name}: gave {value} for completion {i}; return a finite number, or None where it "
                "does not apply"
            )
    return values


def said(completion: Any) -> str:
    """The text of a completion, which mirrors its prompt: a string, or a list of chat messages."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def number_in(text: str) -> float | None:
    """What stands behind the last `####`, as GSM8K marks its answers, else the last number of the text."""
    found: list[str] = _NUMBER.findall(text.rpartition("####")[2])
    return float(found[-1].replace(",", "")) if found else None


def exact_number(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float]:
    """1 where the completion's number equals that of the column `answer`, else 0."""
    pairs = zip(map(said, completions), answer, strict=True)
    return [float((number := number_in(text)) is not None and number == number_in(right)) for text, right in pairs]


def correct_characters(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float]:
    """The share of places at which the completion has the character of the column `answer`."""
    pairs = zip(map(said, completions), answer, strict=True)
    return [sum(map(str.__eq__, text, right)) / max(len(text), len(right), 1) for text, right in pairs]


def exact_text(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float]:
    """1 where the completion is the column `answer`, else 0."""
    return [float(said(text) == right) for text, right in zip(completions, answer, strict=True)]


def matches(pattern: str, reward: float = 1.0) -> RewardFn:
    """A function that gives `reward` where the regular expression is found in the completion, else 0."""
    wanted = re.compile(pattern)

    def matched(completions: Sequence[Any], **_: Any) -> list[float]:
        return [reward if wanted.search(said(text)) else 0.0 for text in completions]

    return matched

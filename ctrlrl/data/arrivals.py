"""Steps of an environment on their way into a replay buffer, until what a learner reads of their future is known.

Of every row: the sum of up to n rewards and what lies behind them; the action that followed; the return to the end.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ctrlrl.functional.returns import n_step_sums
from ctrlrl.functional.scan import linear_recurrence
from ctrlrl.types import Transition, tree_map


class Seen(NamedTuple):
    """One step of B environments [B, ...], or T of them, time-major."""

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor  # that the action led to, before any reset
    terminated: Tensor  # bool
    truncated: Tensor  # bool
    counts: Tensor | None = None  # bool; False marks a lane whose step was only a reset


class Arrivals(Protocol):
    def add(self, step: Seen) -> Transition | None: ...  # the rows [N, ...] that are known now
    def clear(self) -> None: ...  # the episodes under way will not go on
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


def arrivals(needs: Iterable[str], *, n_steps: int, gamma: float, failure: float | None = None) -> Arrivals | None:
    """What a learner of these needs and n_steps asks for; None where every step is a row at once.

    failure: the reward of a step that achieved nothing, where episodes of these alone count as failing for ever.
    """
    needs = set(needs)
    if "return_to_go" in needs:
        return WholeEpisodes(n_steps=n_steps, gamma=gamma, next_action="next_action" in needs, failure=failure)
    if n_steps > 1 or "next_action" in needs:
        return Window(n_steps=n_steps, gamma=gamma, next_action="next_action" in needs)
    return None


class Window:
    """A row leaves n_steps - 1 steps after its own, or n_steps where it needs the action that followed."""

    def __init__(self, *, n_steps: int, gamma: float, next_action: bool):
        self.n_steps, self.gamma, self.next_action = n_steps, gamma, next_action
        self.length = n_steps + next_action
        self.steps: list[Seen] = []

    def add(self, step: Seen) -> Transition | None:
        self.steps = [*self.steps[-(self.length - 1) :], tree_map(torch.clone, step)]
        if len(self.steps) < self.length:
            return None
        seen = _stacked(self.steps)
        rows, keep = looked_ahead(seen, n_steps=self.n_steps, gamma=self.gamma, next_action=self.next_action)
        first: Transition = tree_map(lambda x: x[0], rows)
        return first if keep is None else tree_map(lambda x: x[keep[0]], first)

    def clear(self) -> None:
        self.steps = []

    def state_dict(self) -> dict[str, Tensor]:
        return _columns(self.steps)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.steps = _unstacked(state)


class WholeEpisodes:
    """Rows leave when their episode is over; the host reads which lanes' are at every step."""

    def __init__(self, *, n_steps: int, gamma: float, next_action: bool, failure: float | None):
        self.n_steps, self.gamma, self.next_action, self.failure = n_steps, gamma, next_action, failure
        self.steps: list[Seen] = []
        self.begins: list[int] = []  # of every lane, the step at which its episode began

    def add(self, step: Seen) -> Transition | None:
        self.steps.append(tree_map(torch.clone, step))
        self.begins = self.begins or [0] * len(step.reward)
        over = (step.terminated | step.truncated).nonzero().flatten().tolist()
        parts = []
        for lane in over:
            seen = _stacked([_lane(passed, lane) for passed in self.steps[self.begins[lane] :]])
            parts.append(self._episode(seen))
            self.begins[lane] = len(self.steps)
        gone = min(self.begins)
        self.steps, self.begins = self.steps[gone:], [begin - gone for begin in self.begins]
        return tree_map(lambda *x: torch.cat(x), parts[0], *parts[1:]) if parts else None

    def _episode(self, seen: Seen) -> Transition:
        if seen.counts is not None:
            seen = tree_map(lambda x, there=seen.counts[:, 0]: x[there], seen)
        rows, keep = looked_ahead(seen, n_steps=self.n_steps, gamma=self.gamma, next_action=self.next_action)
        total = linear_recurrence(torch.full_like(seen.reward, self.gamma), seen.reward)
        if self.failure is not None and self.gamma < 1.0:
            failed = (seen.reward == self.failure).all() & ~seen.terminated[-1]
            total = torch.where(failed, self.failure / (1.0 - self.gamma), total)
        rows.extras["return_to_go"] = total
        return tree_map(lambda x: x.flatten(0, 1) if keep is None else x[keep], rows)

    def clear(self) -> None:
        self.steps, self.begins = [], []

    def state_dict(self) -> dict[str, Tensor]:
        return {**_columns(self.steps), "begins": torch.tensor(self.begins)} if self.steps else {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.begins = [int(x) for x in state.get("begins", ())]
        self.steps = _unstacked(state)


def looked_ahead(seen: Seen, *, n_steps: int, gamma: float, next_action: bool) -> tuple[Transition, Tensor | None]:
    """Rows [T, B, ...] of T steps, and which of them are rows at all [T, B]; None: all.

    A row spans up to n_steps of its episode: fewer rewards, and the state they led to, where that ends or T does. With
    n_steps > 1 extras["discount"] is gamma to the number of steps. A row whose next action nobody took is none, but
    where the episode terminated, which asks for no next action.
    """
    stop = seen.terminated | seen.truncated
    reward, length = n_step_sums(seen.reward, stop, gamma=gamma, n=n_steps)
    last = torch.arange(len(stop), device=stop.device).view(-1, *[1] * (stop.ndim - 1)) + length - 1
    terminated, keep = seen.terminated.gather(0, last), seen.counts
    extras: dict[str, Tensor] = {}
    if n_steps > 1:
        extras["discount"] = gamma ** length.to(reward.dtype)
    if next_action:
        following = (last + 1).clamp(max=len(stop) - 1)
        extras["next_action"] = _at(seen.action, following)
        followed = terminated | ~stop.gather(0, last) & (last + 1 < len(stop))
        keep = followed if keep is None else keep & followed
    return Transition(seen.obs, seen.action, reward, _at(seen.next_obs, last), terminated, extras), keep


def _lane(step: Seen, lane: int) -> Seen:
    """[1, ...]."""
    return tree_map(lambda x: x[lane : lane + 1], step)


def _at(x: Tensor, time: Tensor) -> Tensor:
    """x [T, B, D] at time [T, B]."""
    return x.gather(0, time.unsqueeze(-1).expand(*time.shape, x.shape[-1]))


def _stacked(steps: list[Seen]) -> Seen:
    stacked: Seen = tree_map(lambda *x: torch.stack(x), steps[0], *steps[1:])
    return stacked


def _columns(steps: list[Seen]) -> dict[str, Tensor]:
    return {name: x for name, x in _stacked(steps)._asdict().items() if x is not None} if steps else {}


def _unstacked(state: dict[str, Tensor]) -> list[Seen]:
    if "reward" not in state:
        return []
    columns = {name: state[name].unbind(0) for name in Seen._fields if name in state}
    return [Seen(**dict(zip(columns, parts, strict=True))) for parts in zip(*columns.values(), strict=True)]

"""A chunk policy that is told where to go, and how strongly to want it: classifier-free guidance, arXiv:2207.12598."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ctrlrl.functional.composition import guided
from ctrlrl.policies.diffusion import ChunkPolicy, Predict
from ctrlrl.types import EnvSpec


class Goals(NamedTuple):
    """What a goal is: some numbers of an observation as they shall become."""

    columns: list[int]  # the numbers of an observation that make a goal
    asked: list[int]  # those in which an observation tells the task's own goal, in the same order; [] = it tells none
    n: int  # states that a goal consists of, one after another
    given: list[float]  # one goal for all episodes, in the place of the task's; [] = none


def goals_of(spec: EnvSpec, *, columns: list[int], asked: list[int], n: int, given: list[float]) -> Goals:
    """Of a task. ValueError where two numbers clash.

    Without `columns` its achieved_goal, or whole observations; without `asked` its desired_goal, or nothing.
    """
    parts: dict[str, list[int]] = {}
    at = 0
    for part in spec.obs_parts:
        parts[part.name] = list(range(at, at + math.prod(part.shape)))
        at += math.prod(part.shape)
    asked = asked or parts.get("desired_goal", [])
    columns = columns or parts.get("achieved_goal") or list(range(spec.obs_dim))
    for what, numbers in (("goal_columns", columns), ("asked_columns", asked)):
        if not all(0 <= c < spec.obs_dim for c in numbers):
            raise ValueError(f"algo.{what}={numbers}: an observation has the numbers 0 ... {spec.obs_dim - 1}")
    for what, size in (("what is asked for", len(asked)), ("algo.goal", len(given))):
        if size not in (0, len(columns)):
            raise ValueError(f"{what} has {size} numbers, algo.goal_columns={columns} {len(columns)}")
    return Goals(columns, asked, n, given)


class GoalPolicy(ChunkPolicy):
    """p(chunk | last observations, goal). BESO, arXiv:2304.02532.

    Goals and observations reach the network as states of one form [O + 1]: normalised numbers, 0 in the columns that
    do not count, and at the end 1 for a goal. No goal is a goal of zeros; the last number tells it from a goal in the
    middle of all ranges, which the authors do not. The columns in which the task asks are hidden from the
    observations: they still tell the old goal where training puts another one in its place.

    guidance: 0 is the goal-free policy, 1 the conditional one, more than 1 wants the goal more. Without a goal, given
    or asked for, the goal-free policy acts.
    """

    is_goal: Tensor
    is_state: Tensor
    given: Tensor | None

    def __init__(self, obs_dim: int, *sizes: Any, goals: Goals, guidance: float, **options: Any):
        super().__init__(obs_dim, *sizes, **options)
        self.goals, self.guidance = goals, guidance
        self.n_asked = 2 if (goals.given or goals.asked) and guidance not in (0.0, 1.0) else 1
        is_goal, is_state, given = torch.zeros(obs_dim), torch.ones(obs_dim), torch.zeros(obs_dim)
        is_goal[goals.columns], is_state[goals.asked] = 1.0, 0.0
        if goals.given:
            given[goals.columns] = torch.tensor(goals.given, dtype=given.dtype)
        self.register_buffer("is_goal", is_goal, persistent=False)
        self.register_buffer("is_state", is_state, persistent=False)
        self.register_buffer("given", given if goals.given else None, persistent=False)

    def as_goals(self, obs: Tensor) -> Tensor:
        """Raw observations [n, G, O] as goals [n, G, O + 1]."""
        return F.pad(self.obs_normalizer(obs) * self.is_goal, (0, 1), value=1.0)

    def condition(self, obs: Tensor, goals: Tensor | None = None) -> Tensor:
        """Raw observations [n, n_obs, O] under goals [n, G, O + 1], None = no goal -> [n, (G + n_obs) * (O + 1)]."""
        states = F.pad(self.obs_normalizer(obs) * self.is_state, (0, 1))
        if goals is None:
            goals = torch.zeros_like(states[:, :1]).expand(-1, self.goals.n, -1)
        return torch.cat((goals, states), 1).flatten(1)

    def goal_of(self, obs: Tensor) -> Tensor | None:
        """The goal [n, G, O + 1] under raw observations [n, n_obs, O]; None where there is none."""
        present = obs[:, -1]
        if self.given is not None:
            present = self.given.expand_as(present)
        elif self.goals.asked:
            present = present.clone()
            present[:, self.goals.columns] = obs[:, -1, self.goals.asked]
        else:
            return None
        return self.as_goals(present.unsqueeze(1)).expand(-1, self.goals.n, -1)

    def predictor(self, obs: Tensor, head: Any = None) -> Predict:
        """The network's answers mix as the denoised data do: both are one affine map of them at one x and sigma."""
        said = self.head if head is None else head

        def under(goals: Tensor | None) -> Predict:
            context = said.context(self.condition(obs, goals))
            return lambda x, level: said.at(x, level, context).float()

        goals = self.goal_of(obs)
        return under(None) if goals is None else guided(under(None), [under(goals)], [self.guidance])

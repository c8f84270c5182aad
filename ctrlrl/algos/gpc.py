"""GPC: policies composed at test time, with weights found by search over roll-outs. arXiv:2510.01068."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctrlrl.core.learner import Learner
from ctrlrl.core.off_policy import Nets, OffPolicyLearner
from ctrlrl.policies.composable import MODES, Parent
from ctrlrl.policies.composed import ComposedPolicy
from ctrlrl.policies.diffusion import ChunkPolicy, DiffusionProcess, FlowProcess
from ctrlrl.types import PolicyOutput

TENTHS = [round(0.1 * i, 1) for i in range(11)]


@dataclass
class GPCConfig:
    mode: str = "convex"  # convex | product | or | and
    weight: Any = None  # of the first of two, or a list of all; "search"; null = equal, in products 1 each
    exact: bool = False  # and: along the probability flow, unbiased, instead of the ancestral sampler
    n_action_steps: int | None = None  # actions executed of a plan; null = the fewest of a parent
    grid: list[float] = field(default_factory=lambda: list(TENTHS))  # weights that a search tries for the first ones
    episodes: int = 50  # roll-outs of each of them
    seed: int = 50_000  # of these roll-outs, which are the same for all weights

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"compose.mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if self.episodes < 1:
            raise ValueError(f"compose.episodes must be at least 1, got {self.episodes}")
        if self.n_action_steps is not None and self.n_action_steps < 1:
            raise ValueError(f"compose.n_action_steps must be at least 1, got {self.n_action_steps}")
        if not self.grid or not all(math.isfinite(w) for w in self.grid):
            raise ValueError(f"compose.grid must hold numbers, got {self.grid}")
        if self.mode != "product" and not all(0.0 <= w <= 1.0 for w in self.grid):
            raise ValueError(f"compose.grid: weights of compose.mode={self.mode} lie in [0, 1], got {self.grid}")
        if self.searches and self.mode == "and":
            raise ValueError("compose.mode=and finds its own weights in every step; leave compose.weight=search out")

    @property
    def searches(self) -> bool:
        return bool(self.weight == "search")

    def weights(self, n: int) -> list[float]:
        """The n weights that were given."""
        given = self.weight
        if given is None:
            return [1.0 if self.mode == "product" else 1.0 / n] * n
        numbers = given if isinstance(given, (list, tuple)) else [given]
        if not all(isinstance(w, (int, float)) and math.isfinite(w) for w in numbers):
            raise ValueError(f"compose.weight must be a number, a list of numbers or search, got {given!r}")
        weights = [float(w) for w in numbers]
        if len(weights) == 1 and n == 2 and self.mode != "product":
            weights = [weights[0], 1.0 - weights[0]]
        if len(weights) != n:
            raise ValueError(f"compose.weight: {n} policies need {n} weights, got {len(weights)}")
        return weights

    def tried(self, n: int) -> list[list[float]]:
        """All weights of n policies that a search tries: grid values for all but the last, which is the rest to 1.

        In products, whose weights are free, one value of the grid for all of them; 0 would be the base alone.
        """
        found = [[w] * n for w in self.grid if w != 0.0] if self.mode == "product" else self._shares(n)
        if not found:
            rule = "0 is the base alone" if self.mode == "product" else f"no {n - 1} of its weights add up to 1 or less"
            raise ValueError(f"compose.grid={self.grid} leaves a search of {n} policies nothing to try: {rule}")
        return found

    def _shares(self, n: int) -> list[list[float]]:
        found = []
        for first in itertools.product(self.grid, repeat=n - 1):
            rest = 1.0 - math.fsum(first)
            if rest > -1e-9:
                found.append([*first, abs(round(rest, 9))])
        return found


class Score(NamedTuple):
    success: float | None  # share of the roll-outs; None where the environment does not tell
    return_mean: float

    def better(self) -> tuple[float, float]:
        """What is compared: success first, then returns."""
        return (0.0 if self.success is None else self.success, self.return_mean)


def best(scores: Sequence[Score]) -> int:
    """Algorithm 1's argmax; among equals the middle one, which is the farthest from what fails."""
    top = max(score.better() for score in scores)
    equal = [i for i, score in enumerate(scores) if score.better() == top]
    return equal[len(equal) // 2]


class GPCLearner(Learner):
    """Acts as its parents do together; there is nothing to learn."""

    loop = "none"
    config = GPCConfig

    def __init__(self, cfg: GPCConfig, parents: Sequence[tuple[str, Learner]], base: tuple[str, Learner] | None = None):
        """parents: learners of chunk policies under the names that messages have for them."""
        self.cfg, self.opt = cfg, {}
        self.parents, self.base = [_parent(*named) for named in parents], None if base is None else _parent(*base)
        self.learners = [learner for _, learner in parents]
        self.first: Any = parents[0][1]
        if len(parents) < 2:
            raise ValueError(f"compose needs at least 2 policies, got {len(parents)}")
        self.weigh(self.cfg.tried(len(parents))[0] if cfg.searches else self.cfg.weights(len(parents)))

    def weigh(self, weights: Sequence[float]) -> None:
        """Compose the parents under these weights from now on."""
        cfg = self.cfg
        self.weights = list(weights)
        policy = ComposedPolicy(
            self.parents, weights, mode=cfg.mode, base=self.base, exact=cfg.exact, n_actions=cfg.n_action_steps
        )
        self.nets = Nets(policy=policy.to(self.device)).eval()

    @property
    def device(self) -> torch.device:
        return self.first.device

    @property
    def stochastic_eval(self) -> bool:
        return self.first.stochastic_eval

    @torch.no_grad()
    def act_in_episode(
        self, obs: Tensor, memory: Any = None, begins: Tensor | None = None, *, deterministic: bool = False
    ) -> tuple[PolicyOutput, Any]:
        policy: Any = self.nets.policy
        with self.first.precision():
            return policy.act_in_episode(obs, memory, begins, deterministic=deterministic)

    def act(self, obs: Tensor, *, deterministic: bool = False) -> PolicyOutput:
        return self.act_in_episode(obs, deterministic=deterministic)[0]


def _parent(name: str, learner: Learner) -> Parent:
    policy = learner.nets.policy if isinstance(learner, OffPolicyLearner) else None
    algo = getattr(learner.cfg, "name", "gpc")
    if not isinstance(policy, ChunkPolicy):
        raise ValueError(f"compose: {name} is of algo={algo}, which is no policy of chunks; diffusion and flow are")
    if not isinstance(policy.process, (DiffusionProcess, FlowProcess)):
        raise ValueError(
            f"compose: {name} is of algo={algo}, whose path from noise does not compose; use diffusion or flow"
        )
    return Parent(name, policy)

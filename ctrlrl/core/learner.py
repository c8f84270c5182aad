"""What every algorithm is: networks, optimiser steps, and `update(batch)`.

A learner never sees an environment. A loop reads what the learner declares (`loop`, `needs`) and never its name.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ctrlrl.core.ranks import ALONE, Ranks
from ctrlrl.core.update import GradStep
from ctrlrl.types import Metrics, PolicyOutput, Transition


class Learner:
    loop: ClassVar[str]  # "on_policy", "population", "off_policy", "hybrid", "tokens"
    needs: ClassVar[frozenset[str]] = frozenset()  # extras it reads: "next_action", "post_obs", ...
    config: ClassVar[type]  # the dataclass that holds the defaults
    lanes: ClassVar[tuple[str, ...]] = ()  # how names in `training_state` begin of what is one rank's environments' own
    continuous_only: ClassVar[bool] = False  # discrete actions are refused before anything is built
    multi_objective: ClassVar[bool] = False  # learns from reward vectors, and from nothing else

    cfg: Any
    nets: nn.Module
    opt: dict[str, GradStep]
    ranks: Ranks = ALONE

    @property
    def device(self) -> torch.device:
        return next(iter(self.opt.values())).flat.device

    @property
    def stochastic_eval(self) -> bool:
        """Whether evaluation samples its actions, as the authors of some flow policies do."""
        return getattr(self.cfg, "stochastic_eval", False)

    def act(self, obs: Tensor, *, deterministic: bool = False) -> PolicyOutput:
        """Raw observations [B, O] to actions; observation normalisation happens inside."""
        raise NotImplementedError

    def act_in_episode(
        self, obs: Tensor, memory: Any = None, begins: Tensor | None = None, *, deterministic: bool = False
    ) -> tuple[PolicyOutput, Any]:
        """As `act`, and what to remember until the next step; by default nothing is.

        memory: what the step before gave; None: all environments begin an episode. begins: [B] bool, those that do
        although there is a memory; None: no one does.
        """
        return self.act(obs, deterministic=deterministic), memory

    def prefit(self, data: Transition) -> None:
        """See the whole data set once before the first update; by default nothing."""

    def update(self, batch: Any) -> Metrics:
        """Learn from one batch; returns 0-dim tensors on the device."""
        raise NotImplementedError

    def set_ranks(self, ranks: Ranks) -> None:
        """Learn together with other processes from now on, beginning with the first one's networks."""
        self.ranks = ranks
        for step in self.opt.values():
            step.ranks = ranks
        for tensor in self.nets.state_dict().values():
            ranks.first_(tensor)
        for module in self.nets.modules():
            if hasattr(module, "gather"):
                module.gather = ranks.stacked  # type: ignore[assignment]

    def set_progress(self, done: float) -> None:
        """Tell schedules which fraction of the run's steps is done, in [0, 1]; by default nothing."""

    def set_compile(self, mode: str) -> None:
        """Choose eager, compile or graph before the first update; by default everything stays eager."""

    def set_dtype(self, dtype: str) -> None:
        """float32 or bfloat16 products before the first update."""
        if dtype != "float32":
            raise ValueError(f"dtype={dtype}: {type(self).__name__} runs in float32 only. Use dtype=float32.")

    def model_state(self) -> dict[str, Tensor]:
        """Everything that acting needs: networks and normalisers."""
        return dict(self.nets.state_dict())

    def load_model_state(self, state: dict[str, Tensor]) -> None:
        self.nets.load_state_dict(state)

    def training_state(self) -> dict[str, Tensor]:
        """What only going on with training needs."""
        return {f"{name}/{key}": t for name, opt in self.opt.items() for key, t in opt.state_dict().items()}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        for name, opt in self.opt.items():
            opt.load_state_dict({key: state[f"{name}/{key}"] for key in opt.state_dict()})

    def resume(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved training state under the present configuration."""
        self.load_training_state(state)

"""What learners around a cloned base share: its beginning, its lessons, and the average of it that acts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ctrlrl.core.off_policy import OffPolicyLearner
from ctrlrl.functional.masked import batch_mean
from ctrlrl.types import Transition


class BaseLearner(OffPolicyLearner):
    """nets.base is the trained head of nets.policy.base, whose own follows it; both under "base" in opt and targets."""

    normalized = False  # the base has its own normalisers
    stackable = False

    cloned = False  # whether the base comes from a run

    @property
    def compile_units(self) -> tuple[str, ...]:
        return ("base_loss",)

    def prefit(self, data: Transition) -> None:
        """The base sees observations in the data's units; a base from a run keeps its own."""
        if not (self.cloned or self.n_updates):
            self.nets.policy.base.obs_normalizer.fit(data.obs)

    def begin_with(self, model: dict[str, Tensor]) -> None:
        """Take over the weights of a run that cloned actions; all other networks stay fresh."""
        nets: Any = self.nets
        for part, prefix in ((nets.policy.base, "policy."), (nets.base, "online.")):
            part.load_state_dict({k.removeprefix(prefix): v for k, v in model.items() if k.startswith(prefix)})
        self.cloned = True

    def training_state(self) -> dict[str, Tensor]:
        return {**super().training_state(), "cloned": torch.tensor(self.cloned)}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        super().load_training_state(state)
        self.cloned = bool(state["cloned"])

    def teach_base(self, obs: Tensor, action: Tensor) -> Tensor:
        """One supervised step towards the actions [N, A]; its loss, 0-dim."""
        base = self.nets.policy.base
        chunk, condition = base.action_normalizer(action).unsqueeze(1), base.condition(obs.unsqueeze(1))
        noise, uniform = self.random.randn_like(chunk), self.random.rand_like(chunk[:, 0, 0])
        x, level, told = base.process.lesson(chunk, noise, uniform)
        loss = self.base_loss(x, level, told, condition)
        self.opt["base"](loss)
        self.targets["base"].move(self.cfg.base_tau)
        return loss

    def base_loss(self, x: Tensor, level: Tensor, target: Tensor, condition: Tensor) -> Tensor:
        """Squared error, summed over the action, of what the trained base says of noisy actions [N, 1, A]."""
        with self.precision():
            said = self.nets.base(x, level, condition).float()
        return batch_mean((said - target).square().flatten(1).sum(1))

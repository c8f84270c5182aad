"""BC: the policy that repeats the data's actions, and its best-x% form through data.best_fraction.

The baseline of every offline table; the settings are those of CORL's any_percent_bc.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ctrlrl.core.off_policy import Nets, OffPolicyLearner, detached
from ctrlrl.core.update import GradStep
from ctrlrl.functional.checks import in_range
from ctrlrl.functional.masked import batch_mean
from ctrlrl.nn.normalize import DataNormalizer
from ctrlrl.policies.deterministic import DeterministicPolicy
from ctrlrl.types import EnvSpec, Metrics, Transition


@dataclass
class BCConfig:
    name: str = "bc"
    learning_rate: float = 3e-4
    batch_size: int = 256
    hidden: list[int] = field(default_factory=lambda: [256, 256])
    normalize_obs: bool = True

    def __post_init__(self) -> None:
        in_range("BCConfig", low=0.0, high=float("inf"), open_ends=True, learning_rate=self.learning_rate)
        if self.batch_size < 1:
            raise ValueError(f"BCConfig.batch_size must be at least 1, got {self.batch_size}")


class BCLearner(OffPolicyLearner):
    config = BCConfig
    clones = True

    def __init__(self, cfg: BCConfig, spec: EnvSpec):
        policy = DeterministicPolicy(spec.obs_dim, spec.action_dim, cfg.hidden)
        super().__init__(cfg, Nets(normalizer=DataNormalizer(spec.obs_dim), policy=policy).to(spec.device))

    def optimizers(self) -> dict[str, GradStep]:
        return {"policy": GradStep(self.nets.policy.parameters(), learning_rate=self.cfg.learning_rate)}

    def held_out(self, batch: Transition, *, deterministic: bool) -> Metrics:
        """The error is the loss."""
        found = super().held_out(batch, deterministic=deterministic)
        return found | {"loss": found["action_error"]}

    def step(self, batch: Transition, phase: int) -> Metrics:
        with self.precision():
            action = self.nets.policy(batch.obs)
        loss = batch_mean((action - batch.action).square().mean(-1))
        self.opt["policy"](loss)
        return detached(loss_policy=loss)

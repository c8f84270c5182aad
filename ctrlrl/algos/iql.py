"""IQL: values by expectile regression, so no action outside the data is ever queried. arXiv:2110.06169."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ctrlrl.core.off_policy import Nets, OnlineConfig, detached, with_average
from ctrlrl.core.phases import PhasedLearner
from ctrlrl.core.update import GradStep, Target, together
from ctrlrl.functional.checks import in_range
from ctrlrl.functional.learning_rate import cosine
from ctrlrl.functional.masked import batch_mean
from ctrlrl.functional.regression import expectile, squared_distance, td_target
from ctrlrl.functional.weights import awr_weight
from ctrlrl.nn.critics import QCritic, ValueCritic
from ctrlrl.nn.mlp import orthogonal_everywhere, torch_default
from ctrlrl.nn.normalize import DataNormalizer
from ctrlrl.policies.deterministic import DeterministicPolicy
from ctrlrl.policies.gaussian import BoundedGaussianPolicy
from ctrlrl.types import EnvSpec, HybridBatch, Metrics, Transition


@dataclass
class IQLConfig(OnlineConfig):
    name: str = "iql"
    learning_rate: float = 3e-4
    policy_lr_schedule: str = "cosine"  # of the policy alone, to 0 over the run on data; or "constant"
    # in the environment: "constant", a rate of its own, or "cosine" = CORL: the same cosine goes on, up from 0 again
    policy_lr_online: str | float = "constant"
    batch_size: int = 256
    gamma: float = 0.99
    tau: float = 0.005
    policy_tau: float | None = None  # the policy that acts is an average that follows the trained one; null: that one
    expectile: float = 0.7  # 0.5 = mean, towards 1 = maximum over the data's actions
    inverse_temperature: float = 3.0  # weight exp(beta * advantage)
    max_weight: float = 100.0
    hidden: list[int] = field(default_factory=lambda: [256, 256])
    policy_dropout: float = 0.0
    deterministic_policy: bool = False  # weighted squared error instead of a density (CORL on hopper-medium)
    joint: bool = False  # one backward pass; policy and critic then see the value before its step (CORL)
    init: str = "orthogonal"  # of every layer, as the authors; "torch" = CORL's
    log_std_min: float = -5.0
    normalize_obs: bool = False
    buffer_size: int = 2_000_000  # online, the data set's rows begin the buffer; both are the authors'
    offline_share: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("IQLConfig", low=0.0, high=1.0, open_ends=True, expectile=self.expectile)
        if not 0.0 <= self.policy_dropout < 1.0:
            raise ValueError(f"IQLConfig.policy_dropout must lie in [0, 1), got {self.policy_dropout}")
        in_range("IQLConfig", low=0.0, high=1.0, gamma=self.gamma, tau=self.tau)
        if self.policy_tau is not None:
            in_range("IQLConfig", low=0.0, high=1.0, policy_tau=self.policy_tau)
        in_range("IQLConfig", low=0.0, high=float("inf"), inverse_temperature=self.inverse_temperature)
        positive = {"learning_rate": self.learning_rate, "max_weight": self.max_weight}
        in_range("IQLConfig", low=0.0, high=float("inf"), open_ends=True, **positive)
        if self.batch_size < 1:
            raise ValueError(f"IQLConfig.batch_size must be at least 1, got {self.batch_size}")
        rates, starts = ("cosine", "constant"), ("orthogonal", "torch")
        words = {"policy_lr_schedule": rates, "policy_lr_online": rates, "init": starts}
        if not isinstance(self.policy_lr_online, str):
            in_range("IQLConfig", low=0.0, high=float("inf"), policy_lr_online=self.policy_lr_online)
            del words["policy_lr_online"]
        for name, allowed in words.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"IQLConfig.{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if (self.policy_lr_schedule, self.policy_lr_online) == ("constant", "cosine"):
            raise ValueError("IQLConfig.policy_lr_online=cosine goes on with policy_lr_schedule=cosine, not constant")


class IQLLearner(PhasedLearner):
    config = IQLConfig
    online = True

    def __init__(self, cfg: IQLConfig, spec: EnvSpec):
        init = orthogonal_everywhere if cfg.init == "orthogonal" else torch_default
        sizes: Any = (spec.obs_dim, spec.action_dim, cfg.hidden)
        critic = QCritic(*sizes, init=init)
        if cfg.deterministic_policy:
            policy: Any = DeterministicPolicy(*sizes, init=init, dropout=cfg.policy_dropout)
        else:
            bounds = (cfg.log_std_min, 2.0)
            policy = BoundedGaussianPolicy(*sizes, log_std_bounds=bounds, init=init, dropout=cfg.policy_dropout)
        nets = Nets(
            normalizer=DataNormalizer(spec.obs_dim),
            policy=policy,
            critic=critic,
            target=copy.deepcopy(critic),
            value=ValueCritic(spec.obs_dim, cfg.hidden, activation="relu", init=init),
        )
        super().__init__(cfg, with_average(nets, cfg.policy_tau).to(spec.device))

    @property
    def compile_units(self) -> tuple[str, ...]:
        return ("losses",) if self.cfg.joint else ()

    def optimizers(self) -> dict[str, GradStep]:
        lr, nets = self.cfg.learning_rate, self.nets
        trained = {"value": nets.value, "policy": self.trained_policy, "critic": nets.critic}
        return {name: GradStep(net.parameters(), learning_rate=lr) for name, net in trained.items()}

    def followers(self) -> dict[str, Target]:
        return {"critic": Target(self.nets.target, self.opt["critic"])}

    def set_progress(self, done: float) -> None:
        super().set_progress(done)
        self._set_policy_rate(cosine(done) if self.cfg.policy_lr_schedule == "cosine" else 1.0)

    def begin_online(self) -> None:
        if self.cfg.policy_lr_online == "constant":
            self._set_policy_rate(1.0)

    def update(self, batch: Transition | HybridBatch) -> Metrics:
        rate = self.cfg.policy_lr_online
        if rate != "constant" and self.fine_tunes:
            share = cosine(self.n_updates / self.offline_updates) if rate == "cosine" else rate / self.cfg.learning_rate
            self._set_policy_rate(share)
        return super().update(batch)

    def _set_policy_rate(self, share: float) -> None:
        self.opt["policy"].learning_rate.fill_(self.cfg.learning_rate * share)

    def step(self, batch: Transition, phase: int) -> Metrics:
        if self.cfg.joint:
            losses = self.losses(batch)
            together(sum(losses.values()), list(self.opt.values()))  # type: ignore[arg-type]
        else:
            losses = self._in_sequence(batch)
        self.targets["critic"].move(self.cfg.tau)
        return detached(**losses)

    def _in_sequence(self, batch: Transition) -> dict[str, Tensor]:
        """The authors' order: V, then policy and Q with the new V."""
        nets, cfg = self.nets, self.cfg
        with torch.no_grad(), self.precision():
            q = nets.target(batch.obs, batch.action).amin(0)
        with self.precision():
            value = nets.value(batch.obs)
        value_loss = batch_mean(expectile(q - value, tau=cfg.expectile))
        self.opt["value"](value_loss)
        with torch.no_grad(), self.precision():
            advantage, next_value = q - nets.value(batch.obs), nets.value(batch.next_obs)
        policy_loss = self._policy_loss(batch, advantage)
        self.opt["policy"](policy_loss)
        critic_loss = self._critic_loss(batch, next_value)
        self.opt["critic"](critic_loss)
        return {"loss_value": value_loss, "loss_policy": policy_loss, "loss_critic": critic_loss}

    def losses(self, batch: Transition) -> dict[str, Tensor]:
        """All three with one and the same V, before its step."""
        nets = self.nets
        with torch.no_grad(), self.precision():
            q = nets.target(batch.obs, batch.action).amin(0)
            next_value = nets.value(batch.next_obs)
        with self.precision():
            advantage = q - nets.value(batch.obs)
        return {
            "loss_value": batch_mean(expectile(advantage, tau=self.cfg.expectile)),
            "loss_policy": self._policy_loss(batch, advantage.detach()),
            "loss_critic": self._critic_loss(batch, next_value),
        }

    def _policy_loss(self, batch: Transition, advantage: Tensor) -> Tensor:
        cfg, policy = self.cfg, self.trained_policy
        weight = awr_weight(advantage, inverse_temperature=cfg.inverse_temperature, max_weight=cfg.max_weight)
        with self.precision():
            if cfg.deterministic_policy:
                cloning = squared_distance(policy(batch.obs), batch.action)
            else:
                cloning = -policy.log_prob(batch.obs, batch.action)
        return batch_mean(weight * cloning)

    def _critic_loss(self, batch: Transition, next_value: Tensor) -> Tensor:
        target = td_target(batch.reward, batch.terminated, next_value, gamma=self.discount(batch))
        with self.precision():
            q = self.nets.critic(batch.obs, batch.action)
        return batch_mean((q - target).square()).sum(0)

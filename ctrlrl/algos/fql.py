"""FQL: a flow clones the data; a one-step policy distills it and climbs Q, without its steps. arXiv:2502.02538."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ctrlrl.core.off_policy import Nets, OffPolicyLearner, OnlineConfig, detached
from ctrlrl.core.update import GradStep, Target
from ctrlrl.functional.checks import in_range
from ctrlrl.functional.masked import batch_mean
from ctrlrl.functional.paths import sample_path
from ctrlrl.functional.regression import td_target
from ctrlrl.functional.samplers import euler, uniform_times
from ctrlrl.functional.weights import q_scale
from ctrlrl.nn.critics import QCritic
from ctrlrl.nn.mlp import xavier_uniform
from ctrlrl.nn.normalize import DataNormalizer
from ctrlrl.nn.velocity import VelocityField
from ctrlrl.policies.one_step_flow import OneStepFlowPolicy
from ctrlrl.types import EnvSpec, Metrics, Transition


@dataclass
class FQLConfig(OnlineConfig):
    name: str = "fql"
    learning_rate: float = 3e-4
    batch_size: int = 256
    gamma: float = 0.99
    tau: float = 0.005
    alpha: float = 10.0  # weight of the distillation against the value; to be tuned for every task
    normalize_q: bool = False  # divide the value by its mean size: alpha then fits any reward scale, try 0.03 ... 10
    target_q: str = "mean"  # of the two critics; or "min"
    flow_steps: int = 10  # Euler steps of the flow that is distilled
    hidden: list[int] = field(default_factory=lambda: [512, 512, 512, 512])
    normalize_obs: bool = False
    stochastic_eval: bool = True  # evaluation draws fresh noise for every action, as the authors'; false: z = 0
    buffer_size: int = 2_000_000  # online, the data set's rows begin the buffer, as in the authors' main.py
    offline_share: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("FQLConfig", low=0.0, high=1.0, gamma=self.gamma, tau=self.tau)
        in_range("FQLConfig", low=0.0, high=float("inf"), alpha=self.alpha)
        in_range("FQLConfig", low=0.0, high=float("inf"), open_ends=True, learning_rate=self.learning_rate)
        if self.flow_steps < 1 or self.batch_size < 1:
            raise ValueError("FQLConfig.flow_steps and batch_size must be at least 1")
        if self.target_q not in ("mean", "min"):
            raise ValueError(f"FQLConfig.target_q must be mean or min, got {self.target_q!r}")


class FQLLearner(OffPolicyLearner):
    config = FQLConfig
    online = True

    def __init__(self, cfg: FQLConfig, spec: EnvSpec):
        sizes: Any = (spec.obs_dim, spec.action_dim, cfg.hidden)
        critic = QCritic(*sizes, activation="gelu", init=xavier_uniform, norm="after")
        nets = Nets(
            normalizer=DataNormalizer(spec.obs_dim),
            policy=OneStepFlowPolicy(*sizes, init=xavier_uniform),
            flow=VelocityField(*sizes, init=xavier_uniform),
            critic=critic,
            target=copy.deepcopy(critic),
        )
        super().__init__(cfg, nets.to(spec.device))

    def optimizers(self) -> dict[str, GradStep]:
        """Adam acts on every number alone, so three of one rate are the authors' one over the sum of the losses."""
        lr, nets = self.cfg.learning_rate, self.nets
        names = ("policy", "critic", "flow")
        return {name: GradStep(getattr(nets, name).parameters(), learning_rate=lr) for name in names}

    def followers(self) -> dict[str, Target]:
        return {"critic": Target(self.nets.target, self.opt["critic"])}

    def step(self, batch: Transition, phase: int) -> Metrics:
        """Every loss reads the networks as they were before the update: all of them first, then the steps."""
        critic_loss, q = self._critic_loss(batch)
        flow_loss = self._flow_loss(batch)
        distillation, q_policy = self._policy_terms(batch)
        scale = q_scale(q_policy) if self.cfg.normalize_q else 1.0
        policy_loss = self.cfg.alpha * distillation - batch_mean(scale * q_policy)
        self.targets["critic"].move(self.cfg.tau)  # towards the critic as it was, as the authors' code
        self.opt["policy"](policy_loss)
        self.opt["critic"](critic_loss)
        self.opt["flow"](flow_loss)
        return detached(
            loss_critic=critic_loss,
            loss_flow=flow_loss,
            loss_distillation=distillation,
            loss_policy=policy_loss,
            value_q=batch_mean(q).mean(0),
            value_q_policy=batch_mean(q_policy),
        )

    def _critic_loss(self, batch: Transition) -> tuple[Tensor, Tensor]:
        nets, cfg = self.nets, self.cfg
        with torch.no_grad(), self.precision():
            noise = self.random.randn_like(batch.action)
            action = nets.policy(batch.next_obs, noise).clamp(-1.0, 1.0)
            next_q = nets.target(batch.next_obs, action)
        next_q = next_q.mean(0) if cfg.target_q == "mean" else next_q.amin(0)
        target = td_target(batch.reward, batch.terminated, next_q, gamma=self.discount(batch))
        with self.precision():
            q = nets.critic(batch.obs, batch.action)
        return batch_mean((q - target).square()).mean(0), q

    def _flow_loss(self, batch: Transition) -> Tensor:
        noise = self.random.randn_like(batch.action)
        t = self.random.rand_like(batch.action[..., :1])
        point, velocity = sample_path(batch.action, noise, t)
        with self.precision():
            predicted = self.nets.flow(batch.obs, point, t)
        return batch_mean((predicted - velocity).square().mean(-1))

    def _policy_terms(self, batch: Transition) -> tuple[Tensor, Tensor]:
        """Squared distance, 0-dim, between the policy and the flow from the same noise, and Q at the policy [N]."""
        nets, times = self.nets, uniform_times(self.cfg.flow_steps)
        noise = self.random.randn_like(batch.action)
        with torch.no_grad(), self.precision():
            end = euler(lambda x, t: nets.flow(batch.obs, x, t), noise, times).clamp(-1.0, 1.0)
        with self.precision():
            action = nets.policy(batch.obs, noise)
            q = nets.critic(batch.obs, action.clamp(-1.0, 1.0)).mean(0)
        return batch_mean((action - end).square().mean(-1)), q

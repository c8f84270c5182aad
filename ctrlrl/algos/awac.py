"""AWAC: TD learning with the policy's own actions; the policy clones the data's by exp(advantage). arXiv:2006.09359.

The settings are those of CORL's awac.py: clipped exponential weights, where the paper's first version normalised them.
"""

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
from ctrlrl.functional.regression import td_target
from ctrlrl.functional.weights import awr_weight
from ctrlrl.nn.critics import QCritic
from ctrlrl.nn.normalize import DataNormalizer
from ctrlrl.policies.gaussian import BoundedGaussianPolicy
from ctrlrl.types import EnvSpec, Metrics, Transition


@dataclass
class AWACConfig(OnlineConfig):
    name: str = "awac"
    learning_rate: float = 3e-4
    batch_size: int = 256
    gamma: float = 0.99
    tau: float = 0.005
    temperature: float = 0.3333  # lambda of the weight exp(advantage / lambda); 0.1 on AntMaze, Adroit and Maze2D
    max_weight: float = 100.0
    hidden: list[int] = field(default_factory=lambda: [256, 256, 256])
    normalize_obs: bool = True
    buffer_size: int = 2_000_000  # online, the data set's rows begin the buffer, as in CORL's finetune/awac.py
    offline_share: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        positive = {"learning_rate": self.learning_rate, "temperature": self.temperature, "max_weight": self.max_weight}
        in_range("AWACConfig", low=0.0, high=float("inf"), open_ends=True, **positive)
        in_range("AWACConfig", low=0.0, high=1.0, gamma=self.gamma, tau=self.tau)
        if self.batch_size < 1:
            raise ValueError(f"AWACConfig.batch_size must be at least 1, got {self.batch_size}")


class AWACLearner(OffPolicyLearner):
    config = AWACConfig
    online = True

    def __init__(self, cfg: AWACConfig, spec: EnvSpec):
        sizes: Any = (spec.obs_dim, spec.action_dim, cfg.hidden)
        critic = QCritic(*sizes)
        nets = Nets(
            normalizer=DataNormalizer(spec.obs_dim),
            policy=BoundedGaussianPolicy(*sizes, log_std_bounds=(-20.0, 2.0), squash_mean=False),
            critic=critic,
            target=copy.deepcopy(critic),
        )
        super().__init__(cfg, nets.to(spec.device))

    def optimizers(self) -> dict[str, GradStep]:
        lr, nets = self.cfg.learning_rate, self.nets
        return {name: GradStep(getattr(nets, name).parameters(), learning_rate=lr) for name in ("policy", "critic")}

    def followers(self) -> dict[str, Target]:
        return {"critic": Target(self.nets.target, self.opt["critic"])}

    def step(self, batch: Transition, phase: int) -> Metrics:
        nets, cfg = self.nets, self.cfg
        with torch.no_grad(), self.precision():
            next_q = nets.target(batch.next_obs, self._sample(batch.next_obs)).amin(0)
        target = td_target(batch.reward, batch.terminated, next_q, gamma=self.discount(batch))
        with self.precision():
            q = nets.critic(batch.obs, batch.action)
        critic_loss = batch_mean((q - target).square()).sum(0)
        self.opt["critic"](critic_loss)

        with torch.no_grad(), self.precision():
            value = nets.critic(batch.obs, self._sample(batch.obs)).amin(0)
            advantage = nets.critic(batch.obs, batch.action).amin(0) - value
        weight = awr_weight(advantage, inverse_temperature=1.0 / cfg.temperature, max_weight=cfg.max_weight)
        with self.precision():
            log_prob = nets.policy.log_prob(batch.obs, batch.action)
        policy_loss = -batch_mean(weight * log_prob)
        self.opt["policy"](policy_loss)
        self.targets["critic"].move(cfg.tau)
        return detached(
            loss_critic=critic_loss,
            loss_policy=policy_loss,
            value_q=batch_mean(q[0]),
            policy_weight=batch_mean(weight),
        )

    def _sample(self, obs: Tensor) -> Tensor:
        """One action of the policy [..., A], cut to the box as the environment would."""
        mean, log_std = self.nets.policy(obs)
        return (mean + log_std.exp() * self.random.randn_like(mean)).clamp(-1.0, 1.0)

"""ReBRAC: TD3 that pays for leaving the data's actions in the policy's loss and in the target. arXiv:2305.09836."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ctrlrl.core.off_policy import Nets, OffPolicyLearner, OnlineConfig, detached
from ctrlrl.core.update import GradStep, Target
from ctrlrl.functional.checks import in_range
from ctrlrl.functional.distributions import smoothed_action
from ctrlrl.functional.masked import batch_mean
from ctrlrl.functional.regression import squared_distance, td_target
from ctrlrl.functional.weights import q_scale
from ctrlrl.nn.critics import QCritic
from ctrlrl.nn.mlp import Init
from ctrlrl.nn.normalize import DataNormalizer
from ctrlrl.policies.deterministic import DeterministicPolicy
from ctrlrl.types import EnvSpec, Metrics, Transition


@dataclass
class ReBRACConfig(OnlineConfig):
    name: str = "rebrac"
    learning_rate: float = 1e-3
    critic_learning_rate: float | None = None  # null = learning_rate
    batch_size: int = 1024
    gamma: float = 0.99
    tau: float = 0.005
    actor_bc_coef: float = 0.01  # both are tuned per data set: experiment=rebrac/hopper_medium_replay, ...
    critic_bc_coef: float = 0.01
    policy_delay: int = 2  # critic updates a policy update; targets move with the policy
    target_noise: float = 0.2
    target_noise_clip: float = 0.5
    hidden: list[int] = field(default_factory=lambda: [256, 256, 256])
    normalize_obs: bool = False
    action_noise: float = 0.1  # TD3's; offline none is added

    def __post_init__(self) -> None:
        super().__post_init__()
        rates = {"learning_rate": self.learning_rate, "critic_learning_rate": self.critic_rate}
        in_range("ReBRACConfig", low=0.0, high=float("inf"), open_ends=True, **rates)
        in_range("ReBRACConfig", low=0.0, high=1.0, gamma=self.gamma, tau=self.tau)
        for name in ("actor_bc_coef", "critic_bc_coef", "target_noise", "target_noise_clip"):
            in_range("ReBRACConfig", low=0.0, high=float("inf"), **{name: getattr(self, name)})
        if self.policy_delay < 1 or self.batch_size < 1:
            raise ValueError("ReBRACConfig.policy_delay and batch_size must be at least 1")

    @property
    def critic_rate(self) -> float:
        return self.learning_rate if self.critic_learning_rate is None else self.critic_learning_rate


class ReBRACLearner(OffPolicyLearner):
    config = ReBRACConfig
    online = True
    needs = frozenset({"next_action"})

    def __init__(self, cfg: ReBRACConfig, spec: EnvSpec):
        sizes: Any = (spec.obs_dim, spec.action_dim, cfg.hidden)
        policy = DeterministicPolicy(*sizes, init=small_last(1e-3))
        critic = QCritic(*sizes, init=small_last(3e-3), norm="after")
        nets = Nets(
            normalizer=DataNormalizer(spec.obs_dim),
            policy=policy,
            critic=critic,
            target_policy=copy.deepcopy(policy),
            target_critic=copy.deepcopy(critic),
        )
        super().__init__(cfg, nets.to(spec.device))

    def optimizers(self) -> dict[str, GradStep]:
        rates = {"policy": self.cfg.learning_rate, "critic": self.cfg.critic_rate}
        return {name: GradStep(getattr(self.nets, name).parameters(), learning_rate=lr) for name, lr in rates.items()}

    def followers(self) -> dict[str, Target]:
        names = ("policy", "critic")
        return {name: Target(getattr(self.nets, f"target_{name}"), self.opt[name]) for name in names}

    @property
    def period(self) -> int:
        return self.cfg.policy_delay

    def step(self, batch: Transition, phase: int) -> Metrics:
        """The authors' order: the critic; in phase 0, so in the very first update, then policy and targets too."""
        nets, cfg = self.nets, self.cfg
        with torch.no_grad(), self.precision():
            noise = self.random.randn_like(batch.action)
            action = nets.target_policy(batch.next_obs)
            action = smoothed_action(action, noise, std=cfg.target_noise, clip=cfg.target_noise_clip)
            next_q = nets.target_critic(batch.next_obs, action).amin(0)
        penalty = squared_distance(action, batch.extras["next_action"])
        target = td_target(
            batch.reward, batch.terminated, next_q - cfg.critic_bc_coef * penalty, gamma=self.discount(batch)
        )
        with self.precision():
            q = nets.critic(batch.obs, batch.action)
        critic_loss = batch_mean((q - target).square()).sum(0)
        self.opt["critic"](critic_loss)
        metrics = detached(loss_critic=critic_loss, value_q=batch_mean(q[0]), value_penalty=batch_mean(penalty))
        if phase > 0:
            return metrics

        with self.precision():
            action = nets.policy(batch.obs)
            q = nets.critic(batch.obs, action).amin(0)
        cloning = batch_mean(squared_distance(action, batch.action))
        policy_loss = cfg.actor_bc_coef * cloning - batch_mean(q_scale(q) * q)
        self.targets["policy"].move(cfg.tau)  # towards the policy before its step, as the authors' code has it
        self.opt["policy"](policy_loss)
        self.targets["critic"].move(cfg.tau)
        return metrics | detached(loss_policy=policy_loss, loss_cloning=cloning)


def small_last(bound: float) -> Init:
    """Hidden weights U(+-1/sqrt(n_in)), hidden biases 0.1, the last layer U(+-bound): EDAC's, as the authors use it."""

    def init(layer: nn.Linear, last: bool) -> None:
        if last:
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.uniform_(layer.bias, -bound, bound)
        else:
            nn.init.constant_(layer.bias, 0.1)  # torch has drawn the weights just so

    return init

"""TD3+BC: TD3 on a data set, its policy loss plus a squared distance to the data's actions. arXiv:2106.06860."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch

from ctrlrl.core.off_policy import Nets, OffPolicyLearner, detached
from ctrlrl.core.update import GradStep, Target
from ctrlrl.functional.checks import in_range
from ctrlrl.functional.distributions import smoothed_action
from ctrlrl.functional.masked import batch_mean
from ctrlrl.functional.regression import td_target
from ctrlrl.functional.weights import q_scale
from ctrlrl.nn.critics import QCritic
from ctrlrl.nn.normalize import DataNormalizer
from ctrlrl.policies.deterministic import DeterministicPolicy
from ctrlrl.types import EnvSpec, Metrics, Transition


@dataclass
class TD3BCConfig:
    name: str = "td3bc"
    learning_rate: float = 3e-4
    batch_size: int = 256
    gamma: float = 0.99
    tau: float = 0.005
    alpha: float = 2.5  # weight of the normalised value against the cloning term; 0 = cloning alone
    policy_delay: int = 2  # critic updates a policy update; targets move with the policy
    target_noise: float = 0.2
    target_noise_clip: float = 0.5
    hidden: list[int] = field(default_factory=lambda: [256, 256])
    normalize_obs: bool = True

    def __post_init__(self) -> None:
        in_range("TD3BCConfig", low=0.0, high=1.0, gamma=self.gamma, tau=self.tau)
        in_range("TD3BCConfig", low=0.0, high=float("inf"), open_ends=True, learning_rate=self.learning_rate)
        for name in ("alpha", "target_noise", "target_noise_clip"):
            in_range("TD3BCConfig", low=0.0, high=float("inf"), **{name: getattr(self, name)})
        if self.policy_delay < 1 or self.batch_size < 1:
            raise ValueError("TD3BCConfig.policy_delay and batch_size must be at least 1")


class TD3BCLearner(OffPolicyLearner):
    config = TD3BCConfig

    def __init__(self, cfg: TD3BCConfig, spec: EnvSpec):
        sizes: Any = (spec.obs_dim, spec.action_dim, cfg.hidden)
        policy, critic = DeterministicPolicy(*sizes), QCritic(*sizes)
        nets = Nets(
            normalizer=DataNormalizer(spec.obs_dim),
            policy=policy,
            critic=critic,
            target_policy=copy.deepcopy(policy),
            target_critic=copy.deepcopy(critic),
        )
        super().__init__(cfg, nets.to(spec.device))

    def optimizers(self) -> dict[str, GradStep]:
        lr, nets = self.cfg.learning_rate, self.nets
        return {name: GradStep(getattr(nets, name).parameters(), learning_rate=lr) for name in ("policy", "critic")}

    def followers(self) -> dict[str, Target]:
        names = ("policy", "critic")
        return {name: Target(getattr(self.nets, f"target_{name}"), self.opt[name]) for name in names}

    @property
    def period(self) -> int:
        return self.cfg.policy_delay

    def step(self, batch: Transition, phase: int) -> Metrics:
        nets, cfg = self.nets, self.cfg
        with torch.no_grad(), self.precision():
            noise = self.random.randn_like(batch.action)
            action = nets.target_policy(batch.next_obs)
            action = smoothed_action(action, noise, std=cfg.target_noise, clip=cfg.target_noise_clip)
            next_q = nets.target_critic(batch.next_obs, action).amin(0)
        target = td_target(batch.reward, batch.terminated, next_q, gamma=cfg.gamma)
        with self.precision():
            q = nets.critic(batch.obs, batch.action)
        critic_loss = batch_mean((q - target).square()).sum(0)
        self.opt["critic"](critic_loss)
        metrics = detached(loss_critic=critic_loss, value_q=batch_mean(q[0]))
        if phase < self.period - 1:
            return metrics

        with self.precision():
            action = nets.policy(batch.obs)
            q = nets.critic.first(batch.obs, action)
        cloning = batch_mean((action - batch.action).square().mean(-1))
        policy_loss = batch_mean(-q_scale(q, alpha=cfg.alpha) * q) + cloning
        self.opt["policy"](policy_loss)
        for follower in self.targets.values():
            follower.move(cfg.tau)
        return metrics | detached(loss_policy=policy_loss, loss_cloning=cloning)

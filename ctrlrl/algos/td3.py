"""TD3: the smaller of two critics at a smoothed target action, and a delayed deterministic policy. arXiv:1802.09477.

The order of an update and the defaults are Stable-Baselines3's, but for the paper's exploration noise.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ctrlrl.core.off_policy import Nets, OffPolicyLearner, OnlineConfig, detached
from ctrlrl.core.update import GradStep, Target
from ctrlrl.functional.checks import in_range
from ctrlrl.functional.distributions import smoothed_action
from ctrlrl.functional.masked import batch_mean
from ctrlrl.functional.regression import td_target
from ctrlrl.nn.critics import QCritic
from ctrlrl.nn.normalize import Identity
from ctrlrl.policies.deterministic import DeterministicPolicy
from ctrlrl.types import EnvSpec, Metrics, Transition


@dataclass
class TD3Config(OnlineConfig):
    name: str = "td3"
    learning_rate: float = 1e-3
    batch_size: int = 256
    gamma: float = 0.99
    tau: float = 0.005
    action_noise: float = 0.1
    policy_delay: int = 2  # critic updates a policy update; targets move with the policy
    target_policy_noise: float = 0.2
    target_noise_clip: float = 0.5
    n_critics: int = 2
    hidden: list[int] = field(default_factory=lambda: [400, 300])
    critic_hidden: list[int] | None = None  # null = hidden
    activation: str = "relu"

    def __post_init__(self) -> None:
        super().__post_init__()
        where, inf = type(self).__name__, float("inf")
        if self.learning_rate != 0.0:  # of a model that only acts
            in_range(where, low=0.0, high=inf, open_ends=True, learning_rate=self.learning_rate)
        in_range(where, low=0.0, high=1.0, gamma=self.gamma, tau=self.tau)
        in_range(where, low=0.0, high=inf, target_policy_noise=self.target_policy_noise)
        in_range(where, low=0.0, high=inf, target_noise_clip=self.target_noise_clip)
        for name in ("batch_size", "n_critics", "policy_delay"):
            if getattr(self, name) < 1:
                raise ValueError(f"{where}.{name} must be at least 1, got {getattr(self, name)}")


class TD3Learner(OffPolicyLearner):
    config = TD3Config
    normalized = False
    stackable = False  # runs with an environment are one seed each
    offline = False
    online = True

    def __init__(self, cfg: TD3Config, spec: EnvSpec):
        sizes = (spec.obs_dim, spec.action_dim)
        policy = DeterministicPolicy(*sizes, cfg.hidden, activation=cfg.activation)
        hidden = cfg.hidden if cfg.critic_hidden is None else cfg.critic_hidden
        critic = QCritic(*sizes, hidden, n=cfg.n_critics, activation=cfg.activation)
        nets = Nets(
            normalizer=Identity(),
            policy=policy,
            critic=critic,
            target_policy=copy.deepcopy(policy),
            target_critic=copy.deepcopy(critic),
        )
        super().__init__(cfg, nets.to(spec.device))

    def optimizers(self) -> dict[str, GradStep]:
        lr, nets = self.cfg.learning_rate, self.nets
        return {name: GradStep(getattr(nets, name).parameters(), learning_rate=lr) for name in ("critic", "policy")}

    def followers(self) -> dict[str, Target]:
        names = ("policy", "critic")
        return {name: Target(getattr(self.nets, f"target_{name}"), self.opt[name]) for name in names}

    @property
    def period(self) -> int:
        return self.cfg.policy_delay

    def step(self, batch: Transition, phase: int) -> Metrics:
        nets, cfg = self.nets, self.cfg
        target = self.target(batch)
        with self.precision():
            q = nets.critic(batch.obs, batch.action)
        critic_loss = batch_mean((q - target).square()).sum(0)
        self.opt["critic"](critic_loss)
        metrics = detached(loss_critic=critic_loss, value_q=batch_mean(q[0]))
        if phase < self.period - 1:
            return metrics

        with self.precision():
            q = nets.critic.first(batch.obs, nets.policy(batch.obs))
        policy_loss = -batch_mean(q)
        self.opt["policy"](policy_loss)
        for follower in self.targets.values():
            follower.move(cfg.tau)
        return metrics | detached(loss_policy=policy_loss)

    @torch.no_grad()
    def target(self, batch: Transition) -> Tensor:
        """[N], return units: the smaller target critic at the target policy's action and a little noise."""
        nets, cfg = self.nets, self.cfg
        with self.precision():
            noise = self.random.randn_like(batch.action)
            action = nets.target_policy(batch.next_obs)
            action = smoothed_action(action, noise, std=cfg.target_policy_noise, clip=cfg.target_noise_clip)
            next_q = nets.target_critic(batch.next_obs, action).amin(0)
        return td_target(batch.reward, batch.terminated, next_q, gamma=self.discount(batch))

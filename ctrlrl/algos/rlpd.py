"""RLPD: online SAC whose batches are half a data set, with many normalised critics. arXiv:2302.02948.

A policy update comes after `policy_delay` critic updates; the target takes the least of a few critics drawn anew.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ctrlrl.core.off_policy import Nets, OffPolicyLearner, OnlineConfig, detached
from ctrlrl.core.update import GradStep, Target
from ctrlrl.functional.checks import in_range
from ctrlrl.functional.distributions import tanh_gaussian_sample
from ctrlrl.functional.entropy import entropy_policy_loss, temperature_loss
from ctrlrl.functional.masked import batch_mean
from ctrlrl.functional.regression import td_target
from ctrlrl.nn.ensembles import QEnsemble
from ctrlrl.nn.mlp import xavier_uniform
from ctrlrl.nn.normalize import Identity
from ctrlrl.nn.scalar import Scalar
from ctrlrl.policies.squashed import SquashedGaussianPolicy
from ctrlrl.types import EnvSpec, Metrics, Transition


@dataclass
class RLPDConfig(OnlineConfig):
    name: str = "rlpd"
    learning_rate: float = 3e-4  # of policy, critics and temperature
    batch_size: int = 256
    gamma: float = 0.99
    tau: float = 0.005
    learning_starts: int = 5000
    utd: float = 20.0
    policy_delay: int = 20  # critic updates a policy update
    n_critics: int = 10
    n_min: int = 2  # critics, drawn for every update, whose least value is the target; 1 on AntMaze
    layer_norm: bool = True  # in the critics, before every activation
    backup_entropy: bool = True  # the target holds the next action's entropy; false on AntMaze and Adroit
    initial_temperature: float = 1.0
    target_entropy: str | float = "auto"  # nats; "auto" = minus half the action's size
    hidden: list[int] = field(default_factory=lambda: [256, 256])  # three layers on AntMaze and Adroit

    def __post_init__(self) -> None:
        super().__post_init__()
        where, inf = type(self).__name__, float("inf")
        positive = {"learning_rate": self.learning_rate, "initial_temperature": self.initial_temperature}
        in_range(where, low=0.0, high=inf, open_ends=True, **positive)
        in_range(where, low=0.0, high=1.0, gamma=self.gamma, tau=self.tau)
        for name in ("batch_size", "policy_delay", "n_critics"):
            if getattr(self, name) < 1:
                raise ValueError(f"{where}.{name} must be at least 1, got {getattr(self, name)}")
        if not 1 <= self.n_min <= self.n_critics:
            raise ValueError(f"{where}.n_min must lie in 1 ... n_critics={self.n_critics}, got {self.n_min}")
        if self.target_entropy != "auto" and not isinstance(self.target_entropy, (int, float)):
            raise ValueError(f"{where}.target_entropy must be auto or a number, got {self.target_entropy!r}")


class RLPDLearner(OffPolicyLearner):
    config = RLPDConfig
    normalized = False
    stackable = False  # runs with an environment are one seed each
    offline = False
    online = True

    def __init__(self, cfg: RLPDConfig, spec: EnvSpec):
        sizes = (spec.obs_dim, spec.action_dim, cfg.hidden)
        norm = "before" if cfg.layer_norm else "none"
        critic = QEnsemble(*sizes, n=cfg.n_critics, init=xavier_uniform, norm=norm)
        nets = Nets(
            normalizer=Identity(),
            policy=SquashedGaussianPolicy(*sizes, init=xavier_uniform),
            critic=critic,
            target=copy.deepcopy(critic),
            log_temperature=Scalar(math.log(cfg.initial_temperature)),
        )
        half = -0.5 * spec.action_dim
        self.target_entropy = half if cfg.target_entropy == "auto" else float(cfg.target_entropy)
        super().__init__(cfg, nets.to(spec.device))

    def optimizers(self) -> dict[str, GradStep]:
        lr, nets = self.cfg.learning_rate, self.nets
        names = ("critic", "policy", "log_temperature")
        return {name: GradStep(getattr(nets, name).parameters(), learning_rate=lr) for name in names}

    def followers(self) -> dict[str, Target]:
        return {"critic": Target(self.nets.target, self.opt["critic"])}

    @property
    def period(self) -> int:
        return self.cfg.policy_delay

    def step(self, batch: Transition, phase: int) -> Metrics:
        nets, cfg = self.nets, self.cfg
        temperature = nets.log_temperature().detach().exp()
        target = self.target(batch, temperature)
        with self.precision():
            q = nets.critic(batch.obs, batch.action)
        critic_loss = batch_mean((q - target).square()).mean(0)
        self.opt["critic"](critic_loss)
        self.targets["critic"].move(cfg.tau)
        metrics = detached(loss_critic=critic_loss, value_q=batch_mean(q).mean(0))
        if phase < self.period - 1:
            return metrics

        with self.precision():
            mean, log_std = nets.policy(batch.obs)
        action, log_prob = tanh_gaussian_sample(mean, log_std, self.random.randn_like(mean))
        with self.precision():
            q_policy = nets.critic(batch.obs, action).mean(0)
        policy_loss = batch_mean(entropy_policy_loss(q_policy, log_prob, temperature))
        self.opt["policy"](policy_loss)
        gap = temperature_loss(nets.log_temperature().exp(), log_prob, target_entropy=self.target_entropy)
        self.opt["log_temperature"](batch_mean(gap))
        return metrics | detached(
            loss_policy=policy_loss, policy_entropy=-batch_mean(log_prob), policy_temperature=temperature
        )

    @torch.no_grad()
    def target(self, batch: Transition, temperature: Tensor) -> Tensor:
        """[N], return units: the least of `n_min` target critics at a fresh next action, with its entropy's worth."""
        nets, cfg = self.nets, self.cfg
        with self.precision():
            mean, log_std = nets.policy(batch.next_obs)
            action, log_prob = tanh_gaussian_sample(mean, log_std, self.random.randn_like(mean))
            members = self.random.rand_like(mean.new_empty(cfg.n_critics)).argsort()[: cfg.n_min]
            next_q = nets.target.of(members, batch.next_obs, action).amin(0)
        soft = next_q - temperature * log_prob if cfg.backup_entropy else next_q
        return td_target(batch.reward, batch.terminated, soft, gamma=self.discount(batch))

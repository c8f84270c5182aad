"""CQL: SAC whose critics are pushed down where the policy goes and up at the data's actions. arXiv:2006.04779.

And Cal-QL, which stops pushing at the return that the data reached: the same update but for one maximum, hence the same
file. arXiv:2303.05479.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ctrlrl.core.off_policy import Nets, OnlineConfig, detached, with_average
from ctrlrl.core.phases import PhasedLearner
from ctrlrl.core.update import GradStep, Target
from ctrlrl.functional.checks import in_range
from ctrlrl.functional.conservative import calibrated, conservative_gap, uniform_log_density
from ctrlrl.functional.distributions import tanh_gaussian_sample
from ctrlrl.functional.entropy import entropy_policy_loss, temperature_loss
from ctrlrl.functional.masked import batch_mean
from ctrlrl.functional.regression import td_target
from ctrlrl.nn.critics import QCritic
from ctrlrl.nn.mlp import orthogonal_small_last, torch_small_last
from ctrlrl.nn.normalize import DataNormalizer
from ctrlrl.nn.scalar import Scalar
from ctrlrl.policies.squashed import SquashedGaussianPolicy
from ctrlrl.types import EnvSpec, HybridBatch, Metrics, Transition

MAX_WEIGHT = 1e6  # of the Lagrange multiplier, as in the authors' code


@dataclass
class CQLConfig(OnlineConfig):
    name: str = "cql"
    learning_rate: float = 3e-5  # of the policy and of its entropy temperature
    policy_lr_online: float | None = None  # of the policy in the environment after updates on data; null: the same
    critic_learning_rate: float = 3e-4  # and of the Lagrange multiplier
    batch_size: int = 256
    gamma: float = 0.99
    tau: float = 0.005
    policy_tau: float | None = None  # the policy that acts is an average that follows the trained one; null: that one
    conservative_coef: float = 10.0  # weight of the penalty against the squared TD error
    n_samples: int = 10  # actions a state from each of: the box, the policy there, the policy at the next state
    softmax_temperature: float = 1.0  # of the soft maximum over them; towards 0 the maximum
    target_gap: float | None = None  # the penalty's weight is learned so that the gap becomes this; null = fixed weight
    gap_min: float | None = None  # the gap is clipped into these bounds
    gap_max: float | None = None
    max_target_backup: bool = False  # target from the best of n_samples next actions instead of a single one
    hidden: list[int] = field(default_factory=lambda: [256, 256, 256])
    critic_hidden: list[int] | None = None  # null = hidden
    policy_init: str = "torch"  # of its hidden layers, as CORL; "orthogonal" = the authors'
    normalize_obs: bool = True
    buffer_size: int = 2_000_000  # online, the data set's rows begin the buffer, as in CORL's finetune/cql.py
    offline_share: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        where, inf = type(self).__name__, float("inf")
        rates = {"learning_rate": self.learning_rate, "critic_learning_rate": self.critic_learning_rate}
        in_range(where, low=0.0, high=inf, open_ends=True, softmax_temperature=self.softmax_temperature, **rates)
        in_range(where, low=0.0, high=1.0, gamma=self.gamma, tau=self.tau)
        if self.policy_tau is not None:
            in_range(where, low=0.0, high=1.0, policy_tau=self.policy_tau)
        in_range(where, low=0.0, high=inf, conservative_coef=self.conservative_coef)
        if self.policy_lr_online is not None:
            in_range(where, low=0.0, high=inf, policy_lr_online=self.policy_lr_online)
        if self.n_samples < 1 or self.batch_size < 1:
            raise ValueError(f"{where}.n_samples and batch_size must be at least 1")
        if self.gap_min is not None and self.gap_max is not None and self.gap_min > self.gap_max:
            raise ValueError(f"{where}.gap_min must not exceed gap_max, got {self.gap_min} and {self.gap_max}")
        if self.policy_init not in ("torch", "orthogonal"):
            raise ValueError(f"{where}.policy_init must be torch or orthogonal, got {self.policy_init!r}")


class CQLLearner(PhasedLearner):
    config = CQLConfig
    online = True

    def __init__(self, cfg: CQLConfig, spec: EnvSpec):
        obs_dim, action_dim = spec.obs_dim, spec.action_dim
        policy_init = torch_small_last if cfg.policy_init == "torch" else orthogonal_small_last
        critic = QCritic(obs_dim, action_dim, cfg.critic_hidden or cfg.hidden, init=orthogonal_small_last)
        nets = Nets(
            normalizer=DataNormalizer(obs_dim),
            policy=SquashedGaussianPolicy(obs_dim, action_dim, cfg.hidden, affine_log_std=True, init=policy_init),
            critic=critic,
            target=copy.deepcopy(critic),
            log_temperature=Scalar(0.0),
        )
        if cfg.target_gap is not None:
            nets.add_module("log_weight", Scalar(1.0))
        self.target_entropy = -float(action_dim)
        super().__init__(cfg, with_average(nets, cfg.policy_tau).to(spec.device))

    def optimizers(self) -> dict[str, GradStep]:
        cfg = self.cfg
        rates = {
            "log_temperature": cfg.learning_rate,
            "policy": cfg.learning_rate,
            "critic": cfg.critic_learning_rate,
        }
        if cfg.target_gap is not None:
            rates["log_weight"] = cfg.critic_learning_rate
        trained = {name: self.trained_policy if name == "policy" else getattr(self.nets, name) for name in rates}
        return {name: GradStep(net.parameters(), learning_rate=rates[name]) for name, net in trained.items()}

    def update(self, batch: Transition | HybridBatch) -> Metrics:
        rate = self.cfg.policy_lr_online
        self.opt["policy"].learning_rate.fill_(rate if rate is not None and self.fine_tunes else self.cfg.learning_rate)
        return super().update(batch)

    def followers(self) -> dict[str, Target]:
        return {"critic": Target(self.nets.target, self.opt["critic"])}

    def step(self, batch: Transition, phase: int) -> Metrics:
        """Every loss reads the networks as they were before the update: all of them first, then the steps."""
        nets, cfg = self.nets, self.cfg
        with self.precision():
            mean, log_std = self.trained_policy(batch.obs)
            action, log_prob = tanh_gaussian_sample(mean, log_std, self.random.randn_like(mean))
            q_policy = nets.critic(batch.obs, action).amin(0)
        log_temperature = nets.log_temperature()
        temperature = log_temperature.detach().exp()
        entropy_gap = temperature_loss(log_temperature, log_prob, target_entropy=self.target_entropy)
        losses = {
            "log_temperature": batch_mean(entropy_gap),
            "policy": batch_mean(entropy_policy_loss(q_policy, log_prob, temperature)),
        }
        error, gap, q = self._critic_terms(batch, mean.detach(), log_std.detach())
        penalty = cfg.conservative_coef * gap
        if cfg.target_gap is not None:
            weight = nets.log_weight().exp().clamp(max=MAX_WEIGHT)
            penalty = penalty - cfg.conservative_coef * cfg.target_gap
            losses["log_weight"] = -0.5 * batch_mean(weight * penalty.detach()).sum(0)
            penalty = weight.detach() * penalty
        losses["critic"] = batch_mean(error.square() + penalty).sum(0)
        for name, loss in losses.items():
            self.opt[name](loss)
        self.targets["critic"].move(cfg.tau)
        return detached(
            loss_critic=batch_mean(error.square()).sum(0),
            loss_policy=losses["policy"],
            value_gap=batch_mean(gap).mean(0),
            value_q=batch_mean(q[0, ..., -1, :]),
            value_q_policy=batch_mean(q_policy),
            value_q_random=batch_mean(q[0, ..., : cfg.n_samples, :]).mean(-1),
            policy_entropy=-batch_mean(log_prob),
            policy_temperature=batch_mean(temperature.expand_as(log_prob)),
        )

    def _critic_terms(self, batch: Transition, mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """TD error and conservative gap, [K, ..., N] each, and Q at all M actions asked, [K, ..., M, N]."""
        nets, cfg, n = self.nets, self.cfg, self.cfg.n_samples
        with torch.no_grad(), self.precision():
            next_mean, next_log_std = self.trained_policy(batch.next_obs)
            action, _ = self._samples(next_mean, next_log_std, n if cfg.max_target_backup else 1)
            next_q = q_of_many(nets.target, batch.next_obs, action).amin(0).amax(-2)
            # the policy's actions at the next state are asked at this state too, under the density they were drawn from
            after, log_after = self._samples(next_mean, next_log_std, n)
            here, log_here = self._samples(mean, log_std, n)
            uniform = 2.0 * self.random.rand_like(here) - 1.0
            log_uniform = torch.full_like(log_here, uniform_log_density(here.shape[-1]))
        target = td_target(batch.reward, batch.terminated, next_q, gamma=self.discount(batch))
        actions = torch.cat((uniform, after, here, batch.action.unsqueeze(-3)), -3)
        with self.precision():
            q = q_of_many(nets.critic, batch.obs, actions)
        gap = conservative_gap(
            self.bounded(q[..., :-1, :], batch),
            torch.cat((log_uniform, log_after, log_here), -2),
            q[..., -1, :],
            temperature=cfg.softmax_temperature,
            low=cfg.gap_min,
            high=cfg.gap_max,
        )
        return q[..., -1, :] - target, gap, q.detach()

    def bounded(self, q_sampled: Tensor, batch: Transition) -> Tensor:
        """What the penalty sees of Q at uniform, next and present actions, [K, ..., 3M, N] in this order."""
        return q_sampled

    def _samples(self, mean: Tensor, log_std: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """n actions a state [..., n, N, A] and their log-densities [..., n, N]."""
        shape = (*mean.shape[:-2], n, *mean.shape[-2:])
        return tanh_gaussian_sample(
            mean.unsqueeze(-3), log_std.unsqueeze(-3), self.random.randn_like(mean.new_empty(shape))
        )


@dataclass
class CalQLConfig(CQLConfig):
    name: str = "calql"
    learning_rate: float = 1e-4
    conservative_coef: float = 5.0
    max_target_backup: bool = True
    hidden: list[int] = field(default_factory=lambda: [256, 256])
    policy_init: str = "orthogonal"
    normalize_obs: bool = False
    offline_share: float | None = 0.5


class CalQLLearner(CQLLearner):
    config = CalQLConfig
    needs = frozenset({"return_to_go"})

    def bounded(self, q_sampled: Tensor, batch: Transition) -> Tensor:
        """The policy's actions alone: a uniform action has no claim to the data's return."""
        uniform, policy = q_sampled.tensor_split([self.cfg.n_samples], -2)
        return torch.cat((uniform, calibrated(policy, batch.extras["return_to_go"])), -2)


def q_of_many(critic: nn.Module, obs: Tensor, action: Tensor) -> Tensor:
    """K action values [K, ..., M, N] of M actions a state: obs [..., N, O], action [..., M, N, A]."""
    wide = obs.unsqueeze(-3).expand(*action.shape[:-1], obs.shape[-1])
    return critic(wide.flatten(-3, -2), action.flatten(-3, -2)).unflatten(-1, action.shape[-3:-1])

"""EXPO: a base policy cloned from replayed actions, small edits that climb Q, and the best of both in every decision.

The best of several base and edited actions is what acts and what the target values; no gradient passes through the
base's sampler. The rest is RLPD's. arXiv:2507.07986.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ctrlrl.core.base_learner import BaseLearner
from ctrlrl.core.off_policy import Nets, OnlineConfig, detached
from ctrlrl.core.update import GradStep, Target
from ctrlrl.functional.checks import in_range
from ctrlrl.functional.distributions import tanh_gaussian_sample
from ctrlrl.functional.edits import edited, edited_log_prob, picked
from ctrlrl.functional.entropy import entropy_policy_loss, temperature_loss
from ctrlrl.functional.learning_rate import warmup_cosine
from ctrlrl.functional.masked import batch_mean
from ctrlrl.functional.regression import td_target
from ctrlrl.nn.ensembles import QEnsemble
from ctrlrl.nn.mlp import xavier_uniform
from ctrlrl.nn.normalize import Identity
from ctrlrl.nn.scalar import Scalar
from ctrlrl.policies.cloned import BaseConfig, base_policy
from ctrlrl.policies.edited import EditedPolicy
from ctrlrl.policies.squashed import SquashedGaussianPolicy
from ctrlrl.types import EnvSpec, HybridBatch, Metrics, Transition


@dataclass
class EXPOConfig(BaseConfig, OnlineConfig):
    name: str = "expo"
    weight_decay: float = 1e-4  # of the base
    decay_steps: int | None = 3_000_000  # base updates over which the rates of base and edit fall to 0; null: never
    n_samples: int = 8  # actions of the base in every decision
    n_edits: int = 8  # of them that are edited besides
    edit_scale: float = 0.05  # largest edit; 0.7 on Adroit pen
    choice_temperature: float = 0.0  # 0 = the best action; else drawn by softmax(Q / temperature)
    act_multiple: int = 1  # times the candidates of both kinds where it acts; cheap, unlike in the target
    act_by_mean: bool = False  # true: where it acts, the mean of all critics says which is best
    redraw_members: bool = False  # true = the authors' code: the target values by other critics than it chose with
    adjust_target_entropy: bool = True  # false = the authors' code: see docs/algorithms/expo.md before small scales
    learning_rate: float = 3e-4
    batch_size: int = 256
    gamma: float = 0.99
    tau: float = 0.005
    learning_starts: int = 5000
    utd: float = 20.0
    policy_delay: int = 20  # critic updates an update of base, edit and temperature
    n_critics: int = 10
    n_min: int = 2  # critics, drawn for every decision, whose least value counts; 1 on AntMaze
    layer_norm: bool = True  # in the critics, before every activation
    initial_temperature: float = 1.0
    target_entropy: str | float = "auto"  # of an edit before it is scaled, nats; "auto" = minus half the action's size
    hidden: list[int] = field(default_factory=lambda: [256, 256, 256])  # of critics and edit
    stochastic_eval: bool = True  # evaluation draws its candidates, as the authors; false: none, from noise 0

    def __post_init__(self) -> None:
        super().__post_init__()
        where, inf = type(self).__name__, float("inf")
        self.check_base(self.hidden)
        for name in ("batch_size", "policy_delay", "n_critics", "n_samples", "act_multiple"):
            if getattr(self, name) < 1:
                raise ValueError(f"{where}.{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.n_edits <= self.n_samples:
            raise ValueError(f"{where}.n_edits must lie in 0 ... n_samples={self.n_samples}, got {self.n_edits}")
        if not 1 <= self.n_min <= self.n_critics:
            raise ValueError(f"{where}.n_min must lie in 1 ... n_critics={self.n_critics}, got {self.n_min}")
        positive = {"learning_rate": self.learning_rate, "initial_temperature": self.initial_temperature}
        in_range(where, low=0.0, high=inf, open_ends=True, edit_scale=self.edit_scale, **positive)
        in_range(where, low=0.0, high=inf, choice_temperature=self.choice_temperature, weight_decay=self.weight_decay)
        in_range(where, low=0.0, high=1.0, gamma=self.gamma, tau=self.tau)
        if self.decay_steps is not None and self.decay_steps < 1:
            raise ValueError(f"{where}.decay_steps must be at least 1 or null, got {self.decay_steps}")
        if self.target_entropy != "auto" and not isinstance(self.target_entropy, (int, float)):
            raise ValueError(f"{where}.target_entropy must be auto or a number, got {self.target_entropy!r}")


class EXPOLearner(BaseLearner):
    config = EXPOConfig
    offline = False
    online = True

    def __init__(self, cfg: EXPOConfig, spec: EnvSpec):
        sizes = (spec.obs_dim, spec.action_dim)
        base = base_policy(cfg, *sizes)
        norm = "before" if cfg.layer_norm else "none"
        critic = QEnsemble(*sizes, cfg.hidden, n=cfg.n_critics, init=xavier_uniform, norm=norm)
        edit = SquashedGaussianPolicy(sum(sizes), spec.action_dim, cfg.hidden, init=xavier_uniform)
        policy = EditedPolicy(
            base,
            edit,
            copy.deepcopy(critic),
            n_samples=cfg.n_samples,
            n_edits=cfg.n_edits,
            n_min=cfg.n_min,
            scale=cfg.edit_scale,
            temperature=cfg.choice_temperature,
            act_multiple=cfg.act_multiple,
            act_by_mean=cfg.act_by_mean,
        )
        nets = Nets(
            normalizer=Identity(),
            policy=policy,
            base=copy.deepcopy(base.head),
            critic=critic,
            log_temperature=Scalar(math.log(cfg.initial_temperature)),
        )
        half = -0.5 * spec.action_dim
        entropy = half if cfg.target_entropy == "auto" else float(cfg.target_entropy)
        shift = spec.action_dim * math.log(cfg.edit_scale) if cfg.adjust_target_entropy else 0.0
        self.target_entropy = entropy + shift  # of the edited action
        super().__init__(cfg, nets.to(spec.device))

    def optimizers(self) -> dict[str, GradStep]:
        lr, nets = self.cfg.learning_rate, self.nets
        return {
            "critic": GradStep(nets.critic.parameters(), learning_rate=lr),
            "base": GradStep(nets.base.parameters(), learning_rate=lr, weight_decay=self.cfg.weight_decay),
            "edit": GradStep(nets.policy.edit.parameters(), learning_rate=lr),
            "log_temperature": GradStep(nets.log_temperature.parameters(), learning_rate=lr),
        }

    def followers(self) -> dict[str, Target]:
        policy = self.nets.policy
        return {
            "critic": Target(policy.critic, self.opt["critic"]),
            "base": Target(policy.base.head, self.opt["base"]),
        }

    @property
    def period(self) -> int:
        return self.cfg.policy_delay

    def update(self, batch: Transition | HybridBatch) -> Metrics:
        if self.cfg.decay_steps is not None:
            share = warmup_cosine(self.n_updates // self.period, warmup=0, total=self.cfg.decay_steps)
            for name in ("base", "edit"):
                self.opt[name].learning_rate.copy_(self.opt["critic"].learning_rate * share)
        return super().update(batch)

    def step(self, batch: Transition, phase: int) -> Metrics:
        nets, cfg = self.nets, self.cfg
        target = self.target(batch)
        with self.precision():
            q = nets.critic(batch.obs, batch.action)
        critic_loss = batch_mean((q - target).square()).mean(0)
        self.opt["critic"](critic_loss)
        self.targets["critic"].move(cfg.tau)
        metrics = detached(loss_critic=critic_loss, value_q=batch_mean(q).mean(0), value_target=batch_mean(target))
        if phase < self.period - 1:
            return metrics

        base_loss = self.teach_base(batch.obs, batch.action)
        metrics |= detached(loss_base=base_loss)
        return metrics | self._edit_step(batch) if cfg.n_edits else metrics

    def _edit_step(self, batch: Transition) -> Metrics:
        """The edit climbs Q from the batch's own actions; its entropy is that of the action it edits."""
        nets, cfg = self.nets, self.cfg
        temperature = nets.log_temperature().detach().exp()
        with self.precision():
            mean, log_std = nets.policy.edit(torch.cat((batch.obs, batch.action), -1))
        edit, log_prob = tanh_gaussian_sample(mean, log_std, self.random.randn_like(mean))
        log_prob = edited_log_prob(log_prob, scale=cfg.edit_scale, action_dim=mean.shape[-1])
        action = edited(batch.action, edit, scale=cfg.edit_scale).clamp(-1.0, 1.0)
        with self.precision():
            q = nets.critic(batch.obs, action).mean(0)
        edit_loss = batch_mean(entropy_policy_loss(q, log_prob, temperature))
        self.opt["edit"](edit_loss)
        gap = temperature_loss(nets.log_temperature().exp(), log_prob, target_entropy=self.target_entropy)
        self.opt["log_temperature"](batch_mean(gap))
        return detached(
            loss_edit=edit_loss,
            value_q_edited=batch_mean(q),
            policy_entropy=-batch_mean(log_prob),
            policy_temperature=temperature,
        )

    @torch.no_grad()
    def target(self, batch: Transition) -> Tensor:
        """[N], return units: the value of the action that is chosen next, of the trained base and the edit."""
        policy, obs = self.nets.policy, batch.next_obs
        with self.precision():
            action = policy.candidates(obs, head=self.nets.base)
            value = policy.values(obs, action, policy.members())
            index = policy.choice(value)
            if self.cfg.redraw_members:
                next_q = policy.values(obs, picked(action, index).unsqueeze(0), policy.members())[0]
            else:
                next_q = picked(value, index)
        return td_target(batch.reward, batch.terminated, next_q, gamma=self.discount(batch))

"""EXPO: a base policy cloned from replayed actions, small edits that climb Q, and the best of both in every decision.

The best of several base and edited actions is what acts and what the target values; no gradient passes through the
base's sampler. The rest is RLPD's. arXiv:2507.07986.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from ctrlrl.core.off_policy import Nets, OffPolicyLearner, OnlineConfig, detached
from ctrlrl.core.update import GradStep, Target
from ctrlrl.functional.checks import in_range
from ctrlrl.functional.distributions import tanh_gaussian_sample
from ctrlrl.functional.edits import edited, edited_log_prob, picked
from ctrlrl.functional.entropy import entropy_policy_loss, temperature_loss
from ctrlrl.functional.learning_rate import warmup_cosine
from ctrlrl.functional.masked import batch_mean
from ctrlrl.functional.regression import td_target
from ctrlrl.nn.ensembles import QEnsemble
from ctrlrl.nn.heads import MLPHead, ResidualHead
from ctrlrl.nn.mlp import xavier_uniform
from ctrlrl.nn.normalize import Identity
from ctrlrl.nn.scalar import Scalar
from ctrlrl.policies.diffusion import ChunkPolicy, DiffusionProcess, FlowProcess
from ctrlrl.policies.edited import EditedPolicy
from ctrlrl.policies.squashed import SquashedGaussianPolicy
from ctrlrl.types import EnvSpec, HybridBatch, Metrics, Transition, Window

CHOICES = {
    "base_kind": ("diffusion", "flow"),
    "base_head": ("mlp", "residual"),
    "base_schedule": ("cosine", "vp"),
    "base_prediction": ("noise", "data", "v"),
    "base_sampler": ("ddim", "ddpm", "euler", "midpoint"),
    "base_spacing": ("leading", "trailing"),
}


@dataclass
class EXPOConfig(OnlineConfig):
    name: str = "expo"
    base: str | None = None  # run folder of algo=diffusion or algo=flow to begin with; the base_... are then its own
    base_kind: str = "diffusion"  # diffusion | flow
    base_head: str = "residual"  # mlp | residual
    base_hidden: list[int] | None = None  # null = hidden
    base_embed_dim: int = 16  # of the level, mlp
    base_n_levels: int = 10
    base_schedule: str = "vp"  # cosine | vp
    base_prediction: str = "noise"  # noise | data | v
    base_sampler: str = "ddpm"  # ddim | ddpm; of a flow euler | midpoint
    base_spacing: str = "leading"
    base_sampling_steps: int = 10
    base_tau: float = 0.001  # how far the acting base follows the trained one in an update
    weight_decay: float = 1e-4  # of the base
    decay_steps: int | None = 3_000_000  # base updates over which the rates of base and edit fall to 0; null: never
    n_samples: int = 8  # actions of the base in every decision
    n_edits: int = 8  # of them that are edited besides
    edit_scale: float = 0.05  # largest edit; 0.7 on Adroit pen
    choice_temperature: float = 0.0  # 0 = the best action; else drawn by softmax(Q / temperature)
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
    stochastic_eval: bool = True  # evaluation draws its candidates, as the authors; false: the same noise for all

    def __post_init__(self) -> None:
        super().__post_init__()
        where, inf = type(self).__name__, float("inf")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{where}.{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if (self.base_kind == "flow") != (self.base_sampler in ("euler", "midpoint")):
            fitting = "euler or midpoint" if self.base_kind == "flow" else "ddim or ddpm"
            raise ValueError(
                f"{where}.base_sampler of base_kind={self.base_kind} must be {fitting}, got {self.base_sampler!r}"
            )
        for name in ("batch_size", "policy_delay", "n_critics", "n_samples", "base_n_levels", "base_sampling_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{where}.{name} must be at least 1, got {getattr(self, name)}")
        widths = self.hidden if self.base_hidden is None else self.base_hidden
        if self.base_head == "residual" and len(set(widths)) != 1:
            raise ValueError(f"{where}.base_hidden: the blocks of base_head=residual have one width, got {widths}")
        if not 0 <= self.n_edits <= self.n_samples:
            raise ValueError(f"{where}.n_edits must lie in 0 ... n_samples={self.n_samples}, got {self.n_edits}")
        if not 1 <= self.n_min <= self.n_critics:
            raise ValueError(f"{where}.n_min must lie in 1 ... n_critics={self.n_critics}, got {self.n_min}")
        positive = {"learning_rate": self.learning_rate, "initial_temperature": self.initial_temperature}
        in_range(where, low=0.0, high=inf, open_ends=True, edit_scale=self.edit_scale, **positive)
        in_range(where, low=0.0, high=inf, choice_temperature=self.choice_temperature, weight_decay=self.weight_decay)
        in_range(where, low=0.0, high=1.0, gamma=self.gamma, tau=self.tau, base_tau=self.base_tau)
        if self.decay_steps is not None and self.decay_steps < 1:
            raise ValueError(f"{where}.decay_steps must be at least 1 or null, got {self.decay_steps}")
        if self.target_entropy != "auto" and not isinstance(self.target_entropy, (int, float)):
            raise ValueError(f"{where}.target_entropy must be auto or a number, got {self.target_entropy!r}")

    @classmethod
    def base_settings(cls, base: Any, where: str) -> dict[str, Any]:
        """The settings that the config of a pretrained base decides; ValueError for one that cannot be a base.

        where: what names it to the user.
        """
        if base.name not in CHOICES["base_kind"]:
            raise ValueError(f"{where} is a run of algo={base.name}; a base is one of algo=diffusion or algo=flow")
        form = {f"algo.{name}": getattr(base, name) for name in ("horizon", "n_obs_steps", "n_action_steps")}
        if set(form.values()) != {1}:
            said = " ".join(f"{name}={value}" for name, value in form.items())
            raise ValueError(
                f"{where} has {said}; a base says one action under one observation. Train it with "
                + " ".join(f"{name}=1" for name in form)
            )
        if base.switches:
            raise ValueError(f"{where} has algo.switches={base.switches}, which edits would leave half open")
        own = {f.name for f in fields(cls)}
        shared = {f"base_{f.name}": getattr(base, f.name) for f in fields(base)}
        return {"base_kind": base.name} | {name: value for name, value in shared.items() if name in own}


class EXPOLearner(OffPolicyLearner):
    config = EXPOConfig
    normalized = False
    stackable = False  # runs with an environment are one seed each
    offline = False
    online = True

    def __init__(self, cfg: EXPOConfig, spec: EnvSpec):
        sizes = (spec.obs_dim, spec.action_dim)
        base = ChunkPolicy(*sizes, _head(cfg, *sizes), _process(cfg), Window(1, 1, 1))
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
        self.cloned = False  # whether the base comes from a run
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

    @property
    def compile_units(self) -> tuple[str, ...]:
        return ("base_loss",)

    def prefit(self, data: Transition) -> None:
        """The base sees observations in the data's units; a base from a run keeps its own."""
        if not (self.cloned or self.n_updates):
            self.nets.policy.base.obs_normalizer.fit(data.obs)

    def begin_with(self, model: dict[str, Tensor]) -> None:
        """Take over the weights of a run that cloned actions; critics and edit stay fresh."""
        nets = self.nets
        for part, prefix in ((nets.policy.base, "policy."), (nets.base, "online.")):
            part.load_state_dict({k.removeprefix(prefix): v for k, v in model.items() if k.startswith(prefix)})
        self.cloned = True

    def update(self, batch: Transition | HybridBatch) -> Metrics:
        if self.cfg.decay_steps is not None:
            share = warmup_cosine(self.n_updates // self.period, warmup=0, total=self.cfg.decay_steps)
            for name in ("base", "edit"):
                self.opt[name].learning_rate.fill_(self.cfg.learning_rate * share)
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

        base = nets.policy.base
        chunk, condition = base.action_normalizer(batch.action).unsqueeze(1), base.condition(batch.obs.unsqueeze(1))
        noise, uniform = self.random.randn_like(chunk), self.random.rand_like(chunk[:, 0, 0])
        x, level, told = base.process.lesson(chunk, noise, uniform)
        base_loss = self.base_loss(x, level, told, condition)
        self.opt["base"](base_loss)
        self.targets["base"].move(cfg.base_tau)
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

    def base_loss(self, x: Tensor, level: Tensor, target: Tensor, condition: Tensor) -> Tensor:
        """Squared error, summed over the action, of what the trained base says of noisy actions [N, 1, A]."""
        with self.precision():
            said = self.nets.base(x, level, condition).float()
        return batch_mean((said - target).square().flatten(1).sum(1))

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


def _process(cfg: EXPOConfig) -> nn.Module:
    if cfg.base_kind == "flow":
        return FlowProcess(cfg.base_sampler, cfg.base_sampling_steps, ())
    return DiffusionProcess(
        cfg.base_n_levels,
        cfg.base_prediction,
        cfg.base_sampler,
        cfg.base_sampling_steps,
        cfg.base_spacing,
        schedule=cfg.base_schedule,
    )


def _head(cfg: EXPOConfig, obs_dim: int, action_dim: int) -> nn.Module:
    hidden = cfg.hidden if cfg.base_hidden is None else cfg.base_hidden
    if cfg.base_head == "residual":
        return ResidualHead(1, action_dim, obs_dim, width=hidden[0], n_blocks=len(hidden), dropout=0.0)
    code = "times" if cfg.base_kind == "flow" else "steps"
    return MLPHead(1, action_dim, obs_dim, hidden=hidden, embed_dim=cfg.base_embed_dim, code=code)

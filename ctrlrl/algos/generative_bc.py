"""Behaviour cloning of action chunks by a diffusion (arXiv:2303.04137), a flow (arXiv:2210.02747), or a score network
with goals (BESO, arXiv:2304.02532).

They differ in the path from noise to data and in the condition. Evaluation and checkpoints use an exponential moving
average of the weights; sampler and number of steps may be changed after training.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ctrlrl.core.off_policy import Nets, OffPolicyLearner, detached
from ctrlrl.core.update import GradStep, Target, together
from ctrlrl.functional.averaging import ema_decay
from ctrlrl.functional.checks import in_range
from ctrlrl.functional.learning_rate import warmup_cosine
from ctrlrl.functional.masked import batch_mean
from ctrlrl.nn.heads import MLPHead, ResidualHead
from ctrlrl.nn.normalize import Identity
from ctrlrl.nn.transformer import GPTHead, TransformerHead, without_decay
from ctrlrl.nn.unet1d import UNet1D
from ctrlrl.policies.diffusion import ChunkPolicy, DiffusionProcess, FlowProcess
from ctrlrl.policies.edm import LEVEL_LISTS, SAMPLERS, EDMProcess
from ctrlrl.policies.goals import GoalPolicy, goals_of
from ctrlrl.types import EnvSpec, FutureGoals, HybridBatch, Metrics, PolicyOutput, Transition, Window

HEADS = ("mlp", "residual", "unet", "transformer")
Makes = Callable[..., ChunkPolicy]


@dataclass
class ChunkConfig:
    """What all have; words and numbers are those of Diffusion Policy's code where it has them."""

    heads: ClassVar[tuple[str, ...]] = HEADS
    horizon: int = 16  # actions predicted together
    n_obs_steps: int = 2  # observations seen; the first action predicted belongs to the oldest
    n_action_steps: int = 8  # actions executed, from the present one on, before the next prediction
    obs_columns: list[int] | None = None  # numbers of an observation that the policy sees; null = all, [] = none
    action_range: str = "data"  # what becomes [-1, 1]: the data's range, or "box", one for all data sets (to compose)
    head: str = "mlp"  # mlp | residual | unet | transformer
    # widths of the layers, of the U-Net's resolutions, of the blocks (one width) of residual and transformer
    hidden: list[int] = field(default_factory=lambda: [512, 512, 512])
    embed_dim: int = 16  # of the level, mlp and unet
    n_heads: int = 4  # transformer
    dropout: float = 0.0  # residual and transformer
    learning_rate: float = 3e-4
    warmup_steps: int = 500  # updates over which the learning rate rises; it then falls in half a cosine
    weight_decay: float = 1e-6
    betas: list[float] = field(default_factory=lambda: [0.95, 0.999])
    batch_size: int = 256
    ema_power: float = 0.75
    ema_max: float = 0.9999
    sampling_steps: int = 10
    switches: list[int] = field(default_factory=list)  # numbers of the action that are open or shut: [3] for a gripper
    switch_guess: float = 1.0  # where a warm start's guess has them, of their range's +-1
    stochastic_eval: bool = True  # fresh noise for every plan, as the authors; false: always the same noise

    def __post_init__(self) -> None:
        where = type(self).__name__
        for name in ("horizon", "n_obs_steps", "n_action_steps", "batch_size", "sampling_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{where}.{name} must be at least 1, got {getattr(self, name)}")
        if self.warmup_steps < 0:
            raise ValueError(f"{where}.warmup_steps must be at least 0, got {self.warmup_steps}")
        executed = self.n_obs_steps - 1 + self.n_action_steps
        if self.horizon < executed:
            raise ValueError(
                f"{where}.horizon={self.horizon} is shorter than the {executed} rows up to the last executed action "
                "(n_obs_steps - 1 + n_action_steps). Raise horizon, or lower n_action_steps."
            )
        columns = self.obs_columns
        if columns is not None and (len(set(columns)) < len(columns) or min(columns, default=0) < 0):
            raise ValueError(f"{where}.obs_columns must be different numbers from 0 on, got {columns}")
        if columns == [] and self.head == "transformer":
            raise ValueError(f"{where}.head=transformer needs something to see, and obs_columns is []; use head=mlp")
        if self.action_range not in ("data", "box"):
            raise ValueError(f"{where}.action_range must be data or box, got {self.action_range!r}")
        if self.head not in self.heads:
            raise ValueError(f"{where}.head must be one of {', '.join(self.heads)}, got {self.head!r}")
        in_range(where, low=0.0, high=float("inf"), open_ends=True, learning_rate=self.learning_rate)
        in_range(where, low=0.0, high=float("inf"), weight_decay=self.weight_decay, ema_power=self.ema_power)
        in_range(where, low=0.0, high=1.0, ema_max=self.ema_max, dropout=self.dropout)
        in_range(where, low=0.0, high=1.0, switch_guess=self.switch_guess)
        if self.head in ("residual", "transformer", "gpt") and len(set(self.hidden)) != 1:
            raise ValueError(f"{where}.hidden: the blocks of head={self.head} have one width, got {self.hidden}")
        if len(self.betas) != 2 or not all(0.0 <= b < 1.0 for b in self.betas):
            raise ValueError(f"{where}.betas must be two numbers in [0, 1), got {self.betas}")

    def check_warm(self, warm: list[Any]) -> None:
        if warm and self.n_action_steps != 1:
            raise ValueError(
                f"{type(self).__name__}.warm_start makes a plan at every step: n_action_steps must be 1, got "
                f"{self.n_action_steps}"
            )

    @property
    def window(self) -> Window:
        return Window(self.n_obs_steps, self.horizon, self.n_action_steps)


@dataclass
class DiffusionConfig(ChunkConfig):
    name: str = "diffusion"
    n_levels: int = 100
    schedule: str = "cosine"  # cosine | vp, for few levels
    prediction: str = "data"  # noise, as the authors | data, which an MLP learns far sooner | v
    sampler: str = "ddim"  # ddim | ddpm, which takes every level
    spacing: str = "leading"  # of ddim's levels; trailing begins at the noisiest
    warm_start: list[int] = field(default_factory=list)  # levels of real-time iteration, e.g. [2, 1, 0]; [] = none

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (
            ("schedule", ("cosine", "vp")),
            ("prediction", ("noise", "data", "v")),
            ("sampler", ("ddim", "ddpm")),
            ("spacing", ("leading", "trailing")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"DiffusionConfig.{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        if self.n_levels < self.sampling_steps:
            raise ValueError(
                f"DiffusionConfig.sampling_steps={self.sampling_steps} is more than n_levels={self.n_levels}"
            )
        falling = sorted(set(self.warm_start), reverse=True)
        if falling != self.warm_start or not all(0 <= k < self.n_levels for k in falling):
            raise ValueError(
                f"DiffusionConfig.warm_start must fall within 0 ... {self.n_levels - 1}, got {self.warm_start}"
            )
        self.check_warm(self.warm_start)


@dataclass
class FlowConfig(ChunkConfig):
    name: str = "flow"
    sampler: str = "euler"  # euler | midpoint, which asks the network twice a step
    warm_start: list[float] = field(default_factory=list)  # times of real-time iteration, e.g. [0.9, 0.95]; [] = none

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampler not in ("euler", "midpoint"):
            raise ValueError(f"FlowConfig.sampler must be euler or midpoint, got {self.sampler!r}")
        rising = sorted(set(self.warm_start))
        if rising != self.warm_start or not all(0.0 <= t < 1.0 for t in rising):
            raise ValueError(f"FlowConfig.warm_start must rise within [0, 1), got {self.warm_start}")
        self.check_warm(self.warm_start)


@dataclass
class BESOConfig(ChunkConfig):
    """The authors' setting for Block Push but for the number of attention heads, 12 there, and the batch, 1024."""

    heads: ClassVar[tuple[str, ...]] = ("gpt", "mlp")

    name: str = "beso"
    horizon: int = 5  # of these actions the last one is the present one
    n_obs_steps: int = 5
    n_action_steps: int = 1
    head: str = "gpt"  # gpt | mlp
    hidden: list[int] = field(default_factory=lambda: [240, 240, 240, 240])
    dropout: float = 0.05
    attention_dropout: float = 0.05
    learning_rate: float = 1e-4
    warmup_steps: int = 0
    weight_decay: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    ema_max: float = 0.999
    sampling_steps: int = 3
    n_goals: int = 1  # states that a goal consists of, one after another
    goal_from: str = "future"  # of the episode: a random place behind the window, or its "end"
    # numbers of an observation that make a goal; [] = the task's achieved_goal where it has one, else all
    goal_columns: list[int] = field(default_factory=list)
    # those in which an observation tells the goal asked for, in the same order; [] = the task's desired_goal, if any
    asked_columns: list[int] = field(default_factory=list)
    goal: list[float] = field(default_factory=list)  # to evaluate with, in goal_columns; [] = the one asked for
    goal_dropout: float = 0.1  # share of the windows whose goal is hidden: they teach the goal-free policy
    guidance: float = 1.0  # 0 goal-free, 1 conditional, more: goes for the goal more than the data do
    sampler: str = "ddim"  # ddim | euler, the same | heun, which asks the network twice a step | ancestral
    levels: str = "linear"  # karras | exponential | linear
    sigma_min: float = 0.05
    sigma_max: float = 1.0
    data_std: float = 0.5
    clip_steps: bool = False  # keep samples in the data's range after every step, not the last alone
    warm_start: list[float] = field(default_factory=list)  # deviations of real-time iteration, e.g. [0.1]; [] = none

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (
            ("sampler", SAMPLERS),
            ("levels", tuple(LEVEL_LISTS)),
            ("goal_from", ("future", "end")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"BESOConfig.{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.head == "gpt" and self.horizon != self.n_obs_steps:
            raise ValueError(
                f"BESOConfig.head=gpt has an action for every observation: horizon={self.horizon} and "
                f"n_obs_steps={self.n_obs_steps} must be equal"
            )
        if self.obs_columns is not None:
            raise ValueError(
                f"BESOConfig.obs_columns={self.obs_columns}: goals are states, all of them seen; leave it null"
            )
        if self.n_goals < 1:
            raise ValueError(f"BESOConfig.n_goals must be at least 1, got {self.n_goals}")
        for name in ("goal_dropout", "attention_dropout"):
            in_range("BESOConfig", low=0.0, high=1.0, **{name: getattr(self, name)})
        in_range("BESOConfig", low=0.0, high=float("inf"), guidance=self.guidance)
        in_range("BESOConfig", low=0.0, high=float("inf"), open_ends=True, sigma_min=self.sigma_min)
        in_range("BESOConfig", low=0.0, high=float("inf"), open_ends=True, data_std=self.data_std)
        if not self.sigma_min < self.sigma_max < float("inf"):
            raise ValueError(f"BESOConfig.sigma_max={self.sigma_max} must be above sigma_min={self.sigma_min}")
        if self.guidance != 1.0 and self.goal_dropout == 0.0:
            raise ValueError(
                f"BESOConfig.guidance={self.guidance} is guidance without the null condition: goal_dropout=0.0 teaches "
                "no goal-free policy. Train with goal_dropout=0.1, or keep guidance=1."
            )
        if sorted(set(self.warm_start), reverse=True) != self.warm_start or not all(s > 0.0 for s in self.warm_start):
            raise ValueError(f"BESOConfig.warm_start must fall and stay above 0, got {self.warm_start}")
        self.check_warm(self.warm_start)

    @property
    def goals(self) -> FutureGoals:
        return FutureGoals(self.n_goals, self.goal_from == "end")


class GenerativeBCLearner(OffPolicyLearner):
    normalized = False
    stackable = False  # convolutions and embeddings are not stacked

    code: ClassVar[str]  # what the levels are, as the heads' embedding has it

    cfg: Any

    def __init__(self, cfg: Any, spec: EnvSpec):
        self.cfg = cfg
        columns = cfg.obs_columns
        if columns and max(columns) >= spec.obs_dim:
            raise ValueError(
                f"algo.obs_columns has {max(columns)}; observations have {spec.obs_dim} numbers, from 0 on"
            )
        head = self._head(spec)
        policy = self._policy(spec)(
            spec.obs_dim,
            spec.action_dim,
            head,
            self._process(),
            cfg.window,
            columns=columns,
            switches=cfg.switches,
            switch_guess=cfg.switch_guess,
        )
        nets = Nets(normalizer=Identity(), policy=policy, online=copy.deepcopy(head)).to(spec.device)
        self.follow = torch.zeros((), device=spec.device)  # how far the average moves in this update
        super().__init__(cfg, nets)

    def _policy(self, spec: EnvSpec) -> Makes:
        """The policy's class, or a function that stands for it."""
        return ChunkPolicy

    def _process(self) -> nn.Module:
        raise NotImplementedError

    def _head(self, spec: EnvSpec) -> nn.Module:
        cfg = self.cfg
        n_seen = spec.obs_dim if cfg.obs_columns is None else len(cfg.obs_columns)
        sizes = (cfg.horizon, spec.action_dim, cfg.n_obs_steps * n_seen)
        if cfg.head == "unet":
            return UNet1D(*sizes, widths=cfg.hidden, embed_dim=cfg.embed_dim, code=self.code)
        if cfg.head == "transformer":
            return TransformerHead(
                *sizes,
                n_obs_steps=cfg.n_obs_steps,
                width=cfg.hidden[0],
                n_layers=len(cfg.hidden),
                n_heads=cfg.n_heads,
                dropout=cfg.dropout,
                code=self.code,
            )
        if cfg.head == "residual":
            return ResidualHead(*sizes, width=cfg.hidden[0], n_blocks=len(cfg.hidden), dropout=cfg.dropout)
        return MLPHead(*sizes, hidden=cfg.hidden, embed_dim=cfg.embed_dim, code=self.code)

    @property
    def compile_units(self) -> tuple[str, ...]:
        return ("loss",)

    def optimizers(self) -> dict[str, GradStep]:
        cfg = self.cfg
        settings = {"learning_rate": cfg.learning_rate, "betas": tuple(cfg.betas)}
        decayed, spared = _groups(self.nets.online)
        decay = GradStep(decayed, weight_decay=cfg.weight_decay, **settings)
        return {"policy": decay, "spared": GradStep(spared, **settings)}

    def followers(self) -> dict[str, Target]:
        groups = zip(self.opt, _groups(self.nets.policy.head), strict=True)
        return {name: Target(copies, self.opt[name]) for name, copies in groups}

    def prefit(self, data: Transition) -> None:
        """Once something is learned, the weights are in the normalisers' units: new data must fit into them."""
        policy = self.nets.policy
        if not self.n_updates:
            policy.obs_normalizer.fit(policy.seen(data.obs))
        if self.n_updates or self.cfg.action_range == "box":
            policy.action_normalizer.refuse_outside(data.action, "the data set's actions")
        else:
            policy.action_normalizer.fit(data.action)

    def set_progress(self, done: float) -> None:
        total = self.n_updates / done if done else float("inf")
        share = warmup_cosine(self.n_updates, warmup=self.cfg.warmup_steps, total=total)
        for step in self.opt.values():
            step.learning_rate.fill_(self.cfg.learning_rate * share)

    def update(self, batch: Transition | HybridBatch) -> Metrics:
        step = torch.tensor(float(self.n_updates), dtype=torch.float64)  # the host's own count: nothing is read
        kept = ema_decay(step, power=self.cfg.ema_power, highest=self.cfg.ema_max)
        self.follow.fill_(1.0 - float(kept))
        return super().update(batch)

    def step(self, batch: Transition, phase: int) -> Metrics:
        policy = self.nets.policy
        chunk, condition = policy.action_normalizer(batch.action), self.condition(batch)
        noise, uniform = self.random.randn_like(chunk), self.random.rand_like(chunk[:, 0, 0])
        x, level, target = policy.process.lesson(chunk, noise, uniform)
        loss = self.loss(x, level, target, condition)
        together(loss, list(self.opt.values()))
        for average in self.targets.values():
            average.move(self.follow)
        return detached(loss_policy=loss)

    def condition(self, batch: Transition) -> Tensor:
        """What the network is told of every window, [N, C]."""
        return self.nets.policy.condition(batch.obs)

    def loss(self, x: Tensor, level: Tensor, target: Tensor, condition: Tensor) -> Tensor:
        """Mean squared error of what the trained weights say of noisy chunks [N, H, A]."""
        with self.precision():
            said = self.nets.online(x, level, condition).float()
        return batch_mean((said - target).square().flatten(1).mean(1))

    @torch.no_grad()
    def act_in_episode(
        self, obs: Tensor, memory: Any = None, begins: Tensor | None = None, *, deterministic: bool = False
    ) -> tuple[PolicyOutput, Any]:
        policy = self.nets.policy
        if policy.training:
            policy.eval()
        with self.precision():
            return policy.act_in_episode(obs, memory, begins, deterministic=deterministic)

    @torch.no_grad()
    def held_out(self, batch: Transition, *, deterministic: bool) -> Metrics:
        """Of windows; the action is the present one, the first of a chunk that is executed. Weights are the average."""
        policy, now = self.nets.policy, self.cfg.n_obs_steps - 1
        policy.eval()
        with self.precision():
            action = policy.executed(policy.sample(batch.obs, deterministic=deterministic)[:, now])
            chunk = policy.action_normalizer(batch.action)
            noise, uniform = torch.randn_like(chunk), torch.rand_like(chunk[:, 0, 0])
            x, level, target = policy.process.lesson(chunk, noise, uniform)
            said = policy.head(x, level, self.condition(batch)).float()
        error = action - batch.action[:, now]
        return {"action_error": error.square().mean(-1), "loss": (said - target).square().flatten(1).mean(1)}


class DiffusionLearner(GenerativeBCLearner):
    config = DiffusionConfig
    code = "steps"

    def _process(self) -> nn.Module:
        cfg = self.cfg
        return DiffusionProcess(
            cfg.n_levels, cfg.prediction, cfg.sampler, cfg.sampling_steps, cfg.spacing, cfg.warm_start, cfg.schedule
        )


class FlowLearner(GenerativeBCLearner):
    config = FlowConfig
    code = "times"

    def _process(self) -> nn.Module:
        return FlowProcess(self.cfg.sampler, self.cfg.sampling_steps, self.cfg.warm_start)


class BESOLearner(GenerativeBCLearner):
    """Goal-conditioned, by a score network. Reuss et al. 2023, arXiv:2304.02532."""

    config = BESOConfig
    code = "sigmas"

    def _policy(self, spec: EnvSpec) -> Makes:
        cfg = self.cfg
        goals = goals_of(spec, columns=cfg.goal_columns, asked=cfg.asked_columns, n=cfg.n_goals, given=cfg.goal)
        if not goals.asked and not goals.given and cfg.goal_dropout == 0.0:
            raise ValueError(
                "the task asks for no goal and algo.goal is empty, and goal_dropout=0.0 teaches no goal-free policy. "
                f"Give algo.goal=[...] of {len(goals.columns)} numbers, or algo.goal_dropout=0.1."
            )
        return partial(GoalPolicy, goals=goals, guidance=cfg.guidance)

    def _process(self) -> nn.Module:
        cfg = self.cfg
        return EDMProcess(
            cfg.sampler,
            cfg.sampling_steps,
            cfg.levels,
            cfg.sigma_min,
            cfg.sigma_max,
            cfg.data_std,
            warm=cfg.warm_start,
            clip_steps=cfg.clip_steps,
        )

    def _head(self, spec: EnvSpec) -> nn.Module:
        cfg = self.cfg
        sizes = (cfg.horizon, spec.action_dim, (cfg.n_goals + cfg.n_obs_steps) * (spec.obs_dim + 1))
        if cfg.head == "mlp":
            return MLPHead(*sizes, hidden=cfg.hidden, embed_dim=cfg.embed_dim, code=self.code)
        return GPTHead(
            *sizes,
            n_goals=cfg.n_goals,
            width=cfg.hidden[0],
            n_layers=len(cfg.hidden),
            n_heads=cfg.n_heads,
            attention_dropout=cfg.attention_dropout,
            dropout=cfg.dropout,
        )

    def condition(self, batch: Transition) -> Tensor:
        policy = self.nets.policy
        goals = policy.as_goals(batch.extras["goal"])
        kept = self.random.rand_like(goals[:, :1, :1]) >= self.cfg.goal_dropout
        return policy.condition(batch.obs, goals * kept)


def _groups(head: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters with weight decay and those without."""
    spared = set(without_decay(head))
    named = list(head.named_parameters())
    return [p for name, p in named if name not in spared], [p for name, p in named if name in spared]

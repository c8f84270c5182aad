"""BESO: goal-conditioned cloning by a score network that is asked few times. Reuss et al. 2023, arXiv:2304.02532."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from ctrlrl.core.chunk_learner import ChunkConfig, ChunkLearner
from ctrlrl.functional.checks import in_range
from ctrlrl.nn.heads import MLPHead
from ctrlrl.nn.normalize import Identity
from ctrlrl.nn.transformer import GPTHead, without_decay
from ctrlrl.policies.edm import LEVEL_LISTS, SAMPLERS, EDMProcess
from ctrlrl.policies.goals import GoalPolicy, goals_of
from ctrlrl.types import EnvSpec, FutureGoals, Transition


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
        falling = sorted(set(self.warm_start), reverse=True)
        if falling != self.warm_start or not all(0.0 < s <= self.sigma_max for s in falling):
            raise ValueError(
                f"BESOConfig.warm_start must fall within (0, sigma_max={self.sigma_max:g}], got {self.warm_start}"
            )
        self.check_warm(self.warm_start)

    @property
    def goals(self) -> FutureGoals:
        return FutureGoals(self.n_goals, self.goal_from == "end")


class BESOLearner(ChunkLearner):
    config = BESOConfig

    def __init__(self, cfg: BESOConfig, spec: EnvSpec):
        goals = goals_of(spec, columns=cfg.goal_columns, asked=cfg.asked_columns, n=cfg.n_goals, given=cfg.goal)
        if not goals.asked and not goals.given and cfg.goal_dropout == 0.0:
            raise ValueError(
                "the task asks for no goal and algo.goal is empty, and goal_dropout=0.0 teaches no goal-free policy. "
                f"Give algo.goal=[...] of {len(goals.columns)} numbers, or algo.goal_dropout=0.1."
            )
        process = EDMProcess(
            cfg.sampler,
            cfg.sampling_steps,
            cfg.levels,
            cfg.sigma_min,
            cfg.sigma_max,
            cfg.data_std,
            warm=cfg.warm_start,
            clip_steps=cfg.clip_steps,
        )
        head = self._head(cfg, spec)
        policy = GoalPolicy(
            spec.obs_dim,
            spec.action_dim,
            head,
            process,
            cfg.window,
            switches=cfg.switches,
            switch_guess=cfg.switch_guess,
            goals=goals,
            guidance=cfg.guidance,
        )
        super().__init__(cfg, policy, normalizer=Identity(), spared=without_decay(head), device=spec.device)

    def _head(self, cfg: BESOConfig, spec: EnvSpec) -> nn.Module:
        sizes = (cfg.horizon, spec.action_dim, (cfg.n_goals + cfg.n_obs_steps) * (spec.obs_dim + 1))
        if cfg.head == "mlp":
            return MLPHead(*sizes, hidden=cfg.hidden, embed_dim=cfg.embed_dim, code="sigmas")
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

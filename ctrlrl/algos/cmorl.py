"""C-MORL: a set of policies along the Pareto front, in two stages. Liu et al. 2024, arXiv:2410.02236.

Stage one trains a policy for every preference on a grid (that alone is scalarized PPO). Stage two picks the archived
policies with the most room around them and pushes each one along every objective in turn, held above floors in the
other ones by a log barrier. Every policy evaluated on the way is offered to the archive, which keeps the front.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ctrlrl.core.actor_critic import Batch
from ctrlrl.core.front import FrontLearner
from ctrlrl.core.members import Members
from ctrlrl.core.on_policy_config import ActorCriticConfig
from ctrlrl.core.random import Randomness
from ctrlrl.functional.checks import in_range
from ctrlrl.functional.masked import batch_mean
from ctrlrl.functional.pareto import (
    depth_first_grid,
    least_gap,
    log_barrier,
    ratio_barrier,
    return_floor,
)
from ctrlrl.functional.surrogate import bpo, ppo_clip
from ctrlrl.nn.critics import VectorCritic
from ctrlrl.nn.normalize import RewardScaler
from ctrlrl.nn.stacked import stack
from ctrlrl.policies.standard import standard_normalizer, standard_policy
from ctrlrl.types import EnvSpec, Metrics, Rollout


@dataclass
class ScalarizedPPOConfig(ActorCriticConfig):
    """Defaults: the authors' PPO. n_envs is the number of environments of EACH policy, 8 in their runs."""

    name: str = "scalarized_ppo"
    lr_schedule: str = "linear"
    n_steps: int = 512
    gamma: float = 0.995
    vf_coef: float = 0.25  # of the mean over objectives of the squared error; the authors' 0.5 halves the error besides
    normalize_advantage: str = "batch"
    normalize_obs: bool = True
    normalize_reward: bool = True  # by each objective's own deviation; preferences weigh advantages in raw units
    surrogate: str = "ppo"  # "bpo": the bounded ratio, its median taken to be the value
    clip_range: float = 0.2
    clip_range_vf: float | None = 0.2
    temperature: float = 1e-3  # of surrogate=bpo, in units of the standardized advantage
    reference: list[float] = field(default_factory=list)  # the worst return that counts, an entry an objective
    weight_low: float = 0.0  # the grid of preferences: low, high and step of all entries but the last
    weight_high: float = 1.0
    weight_step: float = 0.5
    archive_size: int = 200
    eval_every: int = 10  # updates of stage one between two evaluations of its policies
    eval_episodes: int = 10  # of one policy, whose mean return the archive keeps
    eval_gamma: float = 0.99  # discount of the returns that are compared; training has its own
    eval_max_steps: int = 500  # of an episode that count
    eval_divisions: int | None = None  # grid of the expected utility; null = 100, 10, 2 for two, three, more objectives

    def __post_init__(self) -> None:
        super().__post_init__()
        where = type(self).__name__
        in_range(where, low=0.0, high=1.0, open_ends=True, clip_range=self.clip_range)
        in_range(where, low=0.0, high=1.0, weight_low=self.weight_low, weight_high=self.weight_high)
        in_range(where, low=0.0, high=1.0, eval_gamma=self.eval_gamma)
        in_range(where, low=0.0, high=float("inf"), temperature=self.temperature)
        if not 0.0 < self.weight_step <= 1.0:
            raise ValueError(f"{where}.weight_step must lie in (0, 1], got {self.weight_step}")
        if self.clip_range_vf is not None and not self.clip_range_vf > 0.0:
            raise ValueError(f"{where}.clip_range_vf must be above 0 or null, got {self.clip_range_vf}")
        if self.surrogate not in ("ppo", "bpo"):
            raise ValueError(f"{where}.surrogate must be ppo or bpo, got {self.surrogate!r}")
        for name in ("archive_size", "eval_every", "eval_episodes", "eval_max_steps", "eval_divisions"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{where}.{name} must be at least 1, got {value}")
        for name in ("desired_kl", "target_kl"):
            if getattr(self, name) is not None:
                raise ValueError(f"{where}.{name}: policies trained together share one schedule; use null")
        if self.weight_decay or self.features_extractor != "flatten":
            raise ValueError(f"{where}: weight_decay and features_extractor=cnn are not for policies trained together")


@dataclass
class CMORLConfig(ScalarizedPPOConfig):
    name: str = "cmorl"
    init_steps: int | None = None  # environment steps of stage one; null = two thirds of all
    ipo: str = "paper"  # "released": the barrier, floors and order of the authors' code
    beta: float = 0.9  # share of its other returns that an extended policy must keep
    barrier_sharpness: float = 20.0  # t: the barrier weighs 1 / t
    n_extended: int = 5  # policies selected a round
    extension_updates: int = 20  # of each (policy, objective) in a round
    extension_learning_rate: float | None = None  # constant, after a schedule for stage one alone; null: one for both

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("CMORLConfig", low=0.0, high=1.0, open_ends=True, beta=self.beta)
        in_range("CMORLConfig", low=0.0, high=float("inf"), open_ends=True, barrier_sharpness=self.barrier_sharpness)
        if self.extension_learning_rate is not None:
            in_range("CMORLConfig", low=0.0, high=float("inf"), extension_learning_rate=self.extension_learning_rate)
        if self.ipo not in ("paper", "released"):
            raise ValueError(f"CMORLConfig.ipo must be paper or released, got {self.ipo!r}")
        for name in ("init_steps", "n_extended", "extension_updates"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"CMORLConfig.{name} must be at least 1, got {value}")


class Team(Members):
    """Policies of one round: each climbs its own weighted sum, in stage two behind its own floors.

    achieved, floor, scale: [S, M] returns by the last evaluation, what they must not fall below, and their unit.
    others: [S, M], 1 for objectives with a floor. horizon: [S, 1], discounted steps of an episode.
    share: [S, 1] in (0, 1], how much of an update a member takes.
    """

    extends = False  # whether this is stage two

    def __init__(self, cfg: Any, nets: nn.ModuleDict, weight: Tensor):
        super().__init__(cfg, nets, weight)
        self.achieved, self.floor = torch.zeros_like(weight), torch.zeros_like(weight)
        self.scale, self.others = torch.ones_like(weight), torch.zeros_like(weight)
        self.horizon = torch.ones_like(weight[:, :1])
        self.share = torch.ones_like(self.horizon)
        self.objective = torch.zeros(len(weight), dtype=torch.int64, device=weight.device)
        self._before: list[Tensor] = []

    def climb(self, weight: Tensor) -> None:
        """Stage one: preferences [S, M]."""
        self.weight.copy_(weight)
        self.others.zero_()
        self.extends = False

    def extend(self, objective: Tensor, returns: Tensor) -> None:
        """Stage two: member s raises objective[s] from a policy with returns [S, M], which it keeps in the others."""
        returns = returns.to(self.weight)
        self.objective.copy_(objective)
        self.weight.copy_(nn.functional.one_hot(objective, returns.shape[1]).to(self.weight))
        self.others.copy_(1.0 - self.weight)
        self.achieved.copy_(returns)
        self.floor.copy_(return_floor(returns, slack=1.0 - self.cfg.beta))
        self.scale.copy_(returns.abs().clamp(min=1e-8))
        self.share.fill_(1.0)
        self.extends = True

    @property
    def _acting(self) -> list[Tensor]:
        """[S, ...] each, all that decides what the members do."""
        return [*self.policy.state_dict().values(), *self.normalizer.state_dict().values()]

    def update(self, rollout: Rollout) -> Metrics:
        ends = (rollout.terminated | rollout.truncated).unflatten(1, (self.size, -1))
        length = ends[:, 0].numel() / ends.sum((0, 2)).clamp(min=1)
        gamma = self.cfg.eval_gamma
        steps = length.clamp(max=self.cfg.eval_max_steps)
        self.horizon.copy_((steps if gamma == 1.0 else (1.0 - gamma**steps) / (1.0 - gamma)).unsqueeze(1))
        if not (self.extends and self.cfg.ipo == "paper"):
            return super().update(rollout)
        self._before = [x.clone() for x in self._acting]
        metrics = super().update(rollout)
        for x, old in zip(self.policy.state_dict().values(), self._before, strict=False):
            x.copy_(torch.lerp(old, x, _beside(self.share, x)))
        return metrics | {"policy/step_share": self.share.mean()}

    def judge(self, returns: Tensor) -> None:
        """The line search of interior-point methods: who has left its floors goes back, and takes half a step next.

        After a step that stays inside the next one is of twice the share. Critics stay: they learned of the policies
        that are gone back to. returns: [S, M] of the present policies.
        """
        returns = returns.to(self.achieved)
        if self._before:
            outside = (self.others.bool() & ~(returns >= self.floor)).any(1, keepdim=True)  # NaN is outside
            for x, old in zip(self._acting, self._before, strict=True):
                x.copy_(torch.where(_beside(outside, x), old, x))
            self.share.copy_(torch.where(outside, 0.5 * self.share, (2.0 * self.share).clamp(max=1.0)))
            returns = torch.where(outside, self.achieved, returns)
            self._before = []
        self.achieved.copy_(returns)

    def policy_loss(self, log_ratio: Tensor, batch: Batch, value: Tensor) -> Tensor:
        cfg = self.cfg
        if cfg.surrogate == "ppo":
            each = ppo_clip(log_ratio, batch.advantage, clip_range=cfg.clip_range)
        else:
            each = bpo(
                log_ratio, batch.advantage, batch.advantage, clip_range=cfg.clip_range, temperature=cfg.temperature
            )
        loss = batch_mean(each)
        if not self.extends:
            return loss
        barrier = self._floors(log_ratio, batch) if cfg.ipo == "paper" else self._released(log_ratio, batch)
        return loss - barrier / cfg.barrier_sharpness

    def _floors(self, log_ratio: Tensor, batch: Batch) -> Tensor:
        """log of what is left above each other objective's floor, [S]; eq. 3 as a barrier, in the returns' own units.

        A step's gain is the horizon times the mean of (rho - 1) A: the mean of A alone is 0 up to noise.
        """
        cfg = self.cfg
        ratio = log_ratio.exp().clamp(1.0 - cfg.clip_range, 1.0 + cfg.clip_range)
        gain = ((ratio - 1.0).unsqueeze(-1) * batch.extras["advantages"]).mean(1)
        gap = (self.achieved + self.horizon * gain - self.floor) / self.scale
        return (self.others * log_barrier(gap, least=least_gap(cfg.barrier_sharpness))).sum(1)

    def _released(self, log_ratio: Tensor, batch: Batch) -> Tensor:
        """The authors' code, [S]: floors drift with the policy, and a row is dropped where a column was meant."""
        cfg, rows = self.cfg, log_ratio.shape[1]
        mean_return = batch.target.mean(1, keepdim=True)
        barrier = ratio_barrier(log_ratio, mean_return, beta=cfg.beta, clip_range=cfg.clip_range).mean(2)
        kept = torch.arange(rows, device=log_ratio.device) != self.objective.unsqueeze(1)
        return (barrier * kept).sum(1) / max(rows - 1, 1)


def _beside(x: Tensor, wide: Tensor) -> Tensor:
    """[S, 1] with as many axes as [S, ...] has."""
    return x.view(-1, *[1] * (wide.ndim - 1))


class ScalarizedPPOLearner(FrontLearner):
    """One round: a policy for every preference of the grid."""

    config: ClassVar[type] = ScalarizedPPOConfig
    team_state = ("weight", "others", "achieved", "floor", "scale", "horizon", "share", "objective")

    def __init__(self, cfg: ScalarizedPPOConfig, spec: EnvSpec):
        if spec.nvec:
            raise ValueError(f"algo={cfg.name}: several discrete actions at once are not taken; use one, or a Box")
        super().__init__(cfg, spec)
        self.grid = depth_first_grid(spec.reward_dim, cfg.weight_low, cfg.weight_high, cfg.weight_step)
        if not len(self.grid):
            raise ValueError(
                f"algo.weight_low={cfg.weight_low:g}, algo.weight_high={cfg.weight_high:g}: no preference over "
                f"{spec.reward_dim} objectives has all entries but the last between the two. Lower weight_low."
            )
        self._fresh = [self._nets() for _ in self.grid]

    def _nets(self) -> nn.ModuleDict:
        cfg, spec = self.cfg, self.spec
        kwargs: dict[str, Any] = {"activation": cfg.activation, "orthogonal": cfg.orthogonal_init}
        hidden = cfg.hidden if cfg.vf_hidden is None else cfg.vf_hidden
        nets = {
            "policy": standard_policy(spec, spec.obs_dim, cfg.hidden, log_std_init=cfg.log_std_init, **kwargs),
            "critic": VectorCritic(spec.obs_dim, hidden, spec.reward_dim, **kwargs),
            "normalizer": standard_normalizer(spec, normalize=cfg.normalize_obs),
            "reward_scaler": RewardScaler(spec.reward_dim),
        }
        return nn.ModuleDict(nets).to(spec.device)

    def make_team(self, size: int) -> Team:
        nets = [self._fresh[i % len(self._fresh)] for i in range(size)]
        weight = torch.zeros(size, self.n_objectives, device=self.device)
        return Team(self.cfg, stack(nets, Randomness().bernoulli_like), weight)

    def plan(self, total_steps: int, n_envs: int) -> list[int]:
        rows = self.cfg.n_steps * n_envs
        updates = total_steps // len(self.grid) // rows
        if updates < 1:
            raise ValueError(
                f"total_steps: {total_steps:,} steps of stage one give none of {len(self.grid)} policies the {rows:,} "
                "of an update (n_envs x algo.n_steps). Raise total_steps, or lower n_envs or algo.n_steps."
            )
        return [updates]

    def begin(self, round_: int) -> int:
        team = self.use(len(self.grid))
        team.climb(self.grid.to(team.weight))
        return team.size


class CMORLLearner(ScalarizedPPOLearner):
    """And then rounds of extensions: of each selected policy along each objective, side by side.

    `released`: one objective after the other, each from where the one before has ended, with its optimizer.
    """

    config = CMORLConfig

    def plan(self, total_steps: int, n_envs: int) -> list[int]:
        cfg = self.cfg
        first = 2 * total_steps // 3 if cfg.init_steps is None else cfg.init_steps
        if first > total_steps:
            raise ValueError(
                f"algo.init_steps={first} is more than total_steps={total_steps}: lower the first or raise the second"
            )
        updates = (total_steps - first) // cfg.n_extended // (cfg.n_steps * n_envs) // self.n_objectives
        full, rest = divmod(updates, cfg.extension_updates)
        lengths = [cfg.extension_updates] * full + [rest] * (rest > 0)
        if not lengths and first < total_steps:
            raise ValueError(
                f"total_steps={total_steps}: {total_steps - first:,} steps of stage two are less than one update of "
                f"{cfg.n_extended} policies along {self.n_objectives} objectives. Raise total_steps, or give all of "
                "them to algo.init_steps."
            )
        one_by_one = self.n_objectives if cfg.ipo == "released" else 1
        return [*super().plan(first, n_envs), *(n for n in lengths for _ in range(one_by_one))]

    @property
    def evaluation_due(self) -> bool:
        return self.n_begun > 1 or super().evaluation_due

    def set_progress(self, done: float) -> None:
        rate = self.cfg.extension_learning_rate
        if rate is None:
            super().set_progress(done)
        elif self.team.extends:
            self.team.opt.learning_rate.fill_(rate)
        else:
            super().set_progress(self.n_updates / self.rounds[0])

    def kept(self, team: Team) -> dict[str, Tensor]:
        kept = super().kept(team)
        if self.cfg.ipo == "released":
            kept |= {f"adam/{name}": x for name, x in team.opt.state_dict().items()}
        return kept

    def begin(self, round_: int) -> int:
        if round_ == 0:
            return super().begin(round_)
        m, released = self.n_objectives, self.cfg.ipo == "released"
        objective = (round_ - 1) % m
        if released and objective:  # the chain goes on
            self.team.extend(torch.full((self.team.size,), objective), self.team.achieved)
            self.team.forget_episodes()
            return self.team.size
        if not len(self.archive):
            raise ValueError(self.archive.why_empty())
        index = self.archive.select(self.cfg.n_extended)
        if not len(index):
            return 0
        objectives = torch.zeros(len(index), dtype=torch.int64) if released else torch.arange(m).repeat(len(index))
        chosen = index if released else index.repeat_interleave(m)
        team = self.use(len(chosen), {name: x[chosen.to(x.device)] for name, x in self.archive.rows.items()})
        team.extend(objectives, self.archive.returns[chosen])
        return team.size

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        super().load_training_state(state)
        if self.team is not None:
            self.team.extends = self.n_begun > 1

"""PA-RL: any policy that can be cloned learns the actions that its values find best, by supervised learning.

Its critics are Cal-QL's, with those actions in place of a policy's. No gradient passes through the base's sampler.
arXiv:2412.06685.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ctrlrl.core.base_learner import BaseLearner
from ctrlrl.core.off_policy import Nets, OnlineConfig, detached
from ctrlrl.core.update import GradStep, Target
from ctrlrl.functional.checks import in_range
from ctrlrl.functional.conservative import calibrated, conservative_gap
from ctrlrl.functional.edits import picked
from ctrlrl.functional.masked import batch_mean
from ctrlrl.functional.regression import td_target
from ctrlrl.nn.ensembles import QEnsemble
from ctrlrl.nn.mlp import orthogonal_small_last
from ctrlrl.nn.normalize import Identity
from ctrlrl.policies.cloned import BaseConfig, base_policy
from ctrlrl.policies.optimized import OptimizedPolicy, choice
from ctrlrl.types import EnvSpec, HybridBatch, Metrics, Transition


@dataclass
class PARLConfig(BaseConfig, OnlineConfig):
    name: str = "parl"
    base_hidden: list[int] | None = field(default_factory=lambda: [256, 256, 256])
    base_n_levels: int = 5
    base_schedule: str = "cosine"
    base_tau: float = 0.002
    n_samples: int = 32  # actions of the base in every decision
    n_kept: int = 10  # of them, the best by value, that climb it
    n_climbs: int = 10  # gradient steps on each
    climb_size: float = 3e-4  # of a step, times the gradient; below 0: down
    climb_least: bool = False  # true = the steps climb the least of the critics instead of their mean
    choice_temperature: float = 0.0  # of acting: 0 = the best action; else drawn by softmax(Q / temperature)
    distill_temperature: float = 1.0  # the same, of the actions that the base learns
    distill_data: bool = True  # the data's action, climbed, takes the place of the last one kept
    clone_updates: int | None = None  # before it learns better actions the base clones the data's; null: all offline
    clone_learning_rate: float = 3e-4  # of a base from scratch; one from a run does not clone again
    learning_rate: float = 5e-5  # of the base
    critic_learning_rate: float = 3e-4
    batch_size: int = 256
    gamma: float = 0.99
    tau: float = 0.005
    conservative_coef: float = 0.005
    n_uniform: int = 10  # random actions a state in the penalty, where every other action counts as often
    n_critics: int = 10
    n_min: int = 2  # critics, drawn for every update, of the penalty, and whose least value is the target
    layer_norm: bool = True  # in the critics, before every activation
    hidden: list[int] = field(default_factory=lambda: [256, 256, 256, 256])  # of the critics
    stochastic_eval: bool = True  # evaluation draws its candidates, as the authors; false: from noise 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_base(self.hidden)
        where, inf = type(self).__name__, float("inf")
        for name in ("batch_size", "n_critics", "n_samples", "n_uniform"):
            if getattr(self, name) < 1:
                raise ValueError(f"{where}.{name} must be at least 1, got {getattr(self, name)}")
        for name, most in (("n_kept", "n_samples"), ("n_min", "n_critics")):
            if not 1 <= getattr(self, name) <= getattr(self, most):
                raise ValueError(
                    f"{where}.{name} must lie in 1 ... {most}={getattr(self, most)}, got {getattr(self, name)}"
                )
        for name in ("n_climbs", "clone_updates"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{where}.{name} must be at least 0, got {getattr(self, name)}")
        rates = {"learning_rate": self.learning_rate, "critic_learning_rate": self.critic_learning_rate}
        in_range(where, low=0.0, high=inf, open_ends=True, clone_learning_rate=self.clone_learning_rate, **rates)
        temperatures = {name: getattr(self, name) for name in ("choice_temperature", "distill_temperature")}
        in_range(where, low=0.0, high=inf, conservative_coef=self.conservative_coef, **temperatures)
        in_range(where, low=0.0, high=1.0, gamma=self.gamma, tau=self.tau)


class PARLLearner(BaseLearner):
    config = PARLConfig
    online = True
    needs = frozenset({"return_to_go"})

    def __init__(self, cfg: PARLConfig, spec: EnvSpec):
        sizes = (spec.obs_dim, spec.action_dim)
        norm = "before" if cfg.layer_norm else "none"
        critic = QEnsemble(*sizes, cfg.hidden, n=cfg.n_critics, init=orthogonal_small_last, norm=norm)
        base = base_policy(cfg, *sizes)
        policy = OptimizedPolicy(
            base,
            critic,
            n_samples=cfg.n_samples,
            n_kept=cfg.n_kept,
            n_climbs=cfg.n_climbs,
            climb_size=cfg.climb_size,
            climb_least=cfg.climb_least,
            temperature=cfg.choice_temperature,
        )
        nets = Nets(normalizer=Identity(), policy=policy, base=copy.deepcopy(base.head), target=copy.deepcopy(critic))
        self.begun = False  # whether the steps of an environment are there
        self.lesson = ""  # what the base learns now: "clone", "none" or "distill"
        super().__init__(cfg, nets.to(spec.device))

    def optimizers(self) -> dict[str, GradStep]:
        nets, cfg = self.nets, self.cfg
        return {
            "critic": GradStep(nets.policy.critic.parameters(), learning_rate=cfg.critic_learning_rate),
            "base": GradStep(nets.base.parameters(), learning_rate=cfg.learning_rate),
        }

    def followers(self) -> dict[str, Target]:
        nets = self.nets
        return {
            "critic": Target(nets.target, self.opt["critic"]),
            "base": Target(nets.policy.base.head, self.opt["base"]),
        }

    def begin_online(self) -> None:
        self.begun = True

    def update(self, batch: Transition | HybridBatch) -> Metrics:
        cfg = self.cfg
        better = self.begun or (cfg.clone_updates is not None and self.n_updates >= cfg.clone_updates)
        lesson = "distill" if better else "none" if self.cloned else "clone"
        if lesson != self.lesson:
            self.lesson = lesson
            self.opt["base"].learning_rate.fill_(cfg.clone_learning_rate if lesson == "clone" else cfg.learning_rate)
            self._graphs.clear()
        return super().update(batch)

    def step(self, batch: Transition, phase: int) -> Metrics:
        """Candidates and their values are those before the update, in the critics' part and in the base's."""
        nets, cfg = self.nets, self.cfg
        with torch.no_grad(), self.precision():
            kept, value = nets.policy.candidates(batch.obs)
            after = nets.policy.best(batch.next_obs)
            better = self.better(batch, kept, value) if self.lesson == "distill" else batch.action
        metrics = self._critic_step(batch, picked(kept, value.argmax(0)), after)
        self.targets["critic"].move(cfg.tau)
        metrics |= detached(value_q_policy=batch_mean(value.amax(0)))
        if self.lesson == "none":
            return metrics
        return metrics | detached(loss_base=self.teach_base(batch.obs, better))

    def better(self, batch: Transition, kept: Tensor, value: Tensor) -> Tensor:
        """What the base learns [N, A], of candidates [C, N, A] of these values [C, N], the best start first."""
        if self.cfg.distill_data:
            data, worth = self.nets.policy.climb(batch.obs, batch.action.unsqueeze(0))
            kept, value = torch.cat((kept[:-1], data)), torch.cat((value[:-1], worth))
        return picked(kept, choice(value, self.cfg.distill_temperature))

    def _critic_step(self, batch: Transition, here: Tensor, after: Tensor) -> Metrics:
        """here, after: the policy's actions [N, A] at this state and at the next."""
        nets, cfg, n = self.nets, self.cfg, self.cfg.n_uniform
        target = self.target(batch, after)
        uniform = 2.0 * self.random.rand_like(here.expand(n, *here.shape)) - 1.0
        # the next state's action is asked at this state too
        actions = torch.cat((uniform, torch.stack((after, here, batch.action))))
        with self.precision():
            wide = batch.obs.expand(len(actions), *batch.obs.shape)
            q = nets.policy.critic(wide.flatten(0, 1), actions.flatten(0, 1)).unflatten(-1, actions.shape[:2])
        error = batch_mean((q[:, -1] - target).square()).mean(0)
        some = q.index_select(0, self.members())
        random, policy, data = some.tensor_split([n, n + 2], 1)
        seen = torch.cat((random, calibrated(policy, batch.extras["return_to_go"]), data), 1)
        gap = conservative_gap(seen, self.log_density(q), data[:, 0])
        self.opt["critic"](error + cfg.conservative_coef * batch_mean(gap).mean(0))
        return detached(
            loss_critic=error,
            value_gap=batch_mean(gap).mean(0),
            value_q=batch_mean(q[:, -1]).mean(0),
            value_target=batch_mean(target),
        )

    def log_density(self, like: Tensor) -> Tensor:
        """[M, 1] for the penalty's M actions, so that its soft maximum is that of the mean over 3 n + 1 of them.

        Each of the policy's two actions stands for n equal ones, of n random ones and the data's each for itself.
        """
        n = self.cfg.n_uniform
        count = torch.full((n + 3, 1), 1.0, dtype=like.dtype, device=like.device)
        count[n : n + 2] = float(n)
        return ((3.0 * n + 1.0) / count).log()

    def members(self) -> Tensor:
        """Numbers [n_min] int64 of critics, drawn without replacement."""
        place = next(self.nets.target.parameters())
        return self.random.rand_like(place.new_empty(self.cfg.n_critics)).argsort()[: self.cfg.n_min]

    @torch.no_grad()
    def target(self, batch: Transition, after: Tensor) -> Tensor:
        """[N], return units: the least of n_min target critics at the next action [N, A]."""
        with self.precision():
            next_q = self.nets.target.of(self.members(), batch.next_obs, after).amin(0)
        return td_target(batch.reward, batch.terminated, next_q, gamma=self.discount(batch))

    def training_state(self) -> dict[str, Tensor]:
        return {**super().training_state(), "begun": torch.tensor(self.begun)}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        super().load_training_state(state)
        self.begun, self.lesson = bool(state["begun"]), ""

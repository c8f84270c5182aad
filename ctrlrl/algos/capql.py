"""CAPQL: one policy for all preferences. Lu, Herman and Yu, ICLR 2023, openreview TjEzIsyEsQ6.

Actor and critics see the preference; the critics tell the return of every objective. Each objective's reward is
augmented by the same concave term, alpha times the policy's entropy: so every point of the front is the only optimum of
some preference, and weighted sums reach all of it. That makes it SAC with a fixed temperature and vectors for returns.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ctrlrl.core.front import DIVISIONS, checked_preference, reference_of
from ctrlrl.core.off_policy import Nets, OffPolicyLearner, OnlineConfig, detached
from ctrlrl.core.update import GradStep, Target
from ctrlrl.functional.checks import in_range
from ctrlrl.functional.distributions import tanh_gaussian_sample
from ctrlrl.functional.entropy import entropy_policy_loss
from ctrlrl.functional.masked import batch_mean
from ctrlrl.functional.pareto import simplex_grid
from ctrlrl.functional.preferences import cone_preferences, positive_preferences, widest_cone
from ctrlrl.functional.regression import td_target
from ctrlrl.nn.critics import QCritic
from ctrlrl.nn.normalize import Identity
from ctrlrl.policies.squashed import SquashedGaussianPolicy
from ctrlrl.types import EnvSpec, HybridBatch, Metrics, PolicyOutput, Transition


@dataclass
class CAPQLConfig(OnlineConfig):
    name: str = "capql"
    learning_rate: float = 3e-4  # of policy and critics
    batch_size: int = 256
    learning_starts: int = 10_000
    gamma: float = 0.99
    tau: float = 0.005
    alpha: float = 0.2  # weight of the concave term, in the rewards' unit a nat
    preference_angle: float | None = None  # degrees: preferences of the training stay so near to equal shares; 22.5 =
    # the authors' default; null = all preferences
    n_critics: int = 2
    target_update_interval: int = 1
    hidden: list[int] = field(default_factory=lambda: [256, 256])
    activation: str = "relu"
    reference: list[float] = field(default_factory=list)  # the worst return that counts, an entry an objective
    eval_gamma: float = 0.99  # discount of the returns that are compared; training has its own
    eval_max_steps: int = 500  # of an episode that count
    eval_divisions: int | None = None  # grid of preferences that are judged; null = 100, 10, 2 for M = 2, 3, more

    def __post_init__(self) -> None:
        super().__post_init__()
        where, inf = type(self).__name__, float("inf")
        in_range(where, low=0.0, high=inf, open_ends=True, learning_rate=self.learning_rate)
        in_range(where, low=0.0, high=inf, alpha=self.alpha)
        in_range(where, low=0.0, high=1.0, gamma=self.gamma, tau=self.tau, eval_gamma=self.eval_gamma)
        for name in ("batch_size", "n_critics", "target_update_interval", "eval_max_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{where}.{name} must be at least 1, got {getattr(self, name)}")
        if self.preference_angle is not None:
            in_range(where, low=0.0, high=45.0, preference_angle=self.preference_angle)
        if self.n_steps != 1:
            raise ValueError(f"{where}.n_steps must be 1: a row belongs to the preference of its own step")


class CAPQLLearner(OffPolicyLearner):
    """preferences: [n, M], those whose policies are judged together as a front. reference: [M]."""

    config = CAPQLConfig
    normalized = False
    stackable = False  # runs with an environment are one seed each
    offline = False
    online = True
    multi_objective = True
    kept = ("preference",)

    def __init__(self, cfg: CAPQLConfig, spec: EnvSpec):
        self.reference = reference_of(cfg.reference, spec)
        self.n_objectives = m = spec.reward_dim
        degrees = math.degrees(widest_cone(m))
        if (cfg.preference_angle or 0.0) > degrees:
            raise ValueError(
                f"algo.preference_angle must be at most {degrees:.1f} for {m} objectives, got {cfg.preference_angle}"
            )
        self.preferences = simplex_grid(m, cfg.eval_divisions or DIVISIONS.get(m, 2))
        sizes = (spec.obs_dim + m, spec.action_dim)
        critic = QCritic(*sizes, cfg.hidden, n=cfg.n_critics, activation=cfg.activation, width=m)
        nets = Nets(
            normalizer=Identity(),
            policy=SquashedGaussianPolicy(*sizes, cfg.hidden, activation=cfg.activation),
            critic=critic,
            target=copy.deepcopy(critic),
        )
        self._preferred: Tensor | None = None
        super().__init__(cfg, nets.to(spec.device))

    def optimizers(self) -> dict[str, GradStep]:
        lr, nets = self.cfg.learning_rate, self.nets
        return {name: GradStep(getattr(nets, name).parameters(), learning_rate=lr) for name in ("critic", "policy")}

    def followers(self) -> dict[str, Target]:
        return {"critic": Target(self.nets.target, self.opt["critic"])}

    @property
    def period(self) -> int:
        return self.cfg.target_update_interval

    def update(self, batch: Transition | HybridBatch) -> Metrics:
        self._preferred = None  # who goes on learning tries all preferences again
        return super().update(batch)

    def step(self, batch: Transition, phase: int) -> Metrics:
        """Critics, then the policy with the new critics, each for the preference of the row's own step."""
        nets, cfg, weight = self.nets, self.cfg, batch.extras["preference"]
        seen = torch.cat((batch.obs, weight), -1)
        target = self.target(batch, weight)
        with self.precision():
            q = nets.critic(seen, batch.action)
        critic_loss = batch_mean((q - target).square().mean(-1)).sum(0)
        self.opt["critic"](critic_loss)

        action, log_prob = self.sampled(seen)
        with self.precision():
            worth = (nets.critic(seen, action).amin(0) * weight).sum(-1)
        policy_loss = batch_mean(entropy_policy_loss(worth, log_prob, cfg.alpha))
        self.opt["policy"](policy_loss)
        if phase == 0:
            self.targets["critic"].move(cfg.tau)
        return detached(
            loss_critic=critic_loss,
            loss_policy=policy_loss,
            value_q=batch_mean(worth),
            policy_entropy=-batch_mean(log_prob),
        )

    def sampled(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """An action of the policy a row [N, A] and its log-density [N]."""
        with self.precision():
            mean, log_std = self.nets.policy(seen)
        return tanh_gaussian_sample(mean, log_std, self.random.randn_like(mean))

    @torch.no_grad()
    def target(self, batch: Transition, weight: Tensor) -> Tensor:
        """[N, M], return units: of every objective the smaller target critic, and the concave term in each."""
        seen = torch.cat((batch.next_obs, weight), -1)
        action, log_prob = self.sampled(seen)
        with self.precision():
            next_q = self.nets.target(seen, action).amin(0)
        augmented = next_q - self.cfg.alpha * log_prob.unsqueeze(-1)
        return td_target(batch.reward, batch.terminated, augmented, gamma=self.cfg.gamma)

    # acting ----------------------------------------------------------------------------------------------------------

    def drawn(self, n: int) -> Tensor:
        """Preferences [n, M] to try, as the training asks for them."""
        normal, angle = torch.randn(n, self.n_objectives, device=self.device), self.cfg.preference_angle
        if angle is None:
            return positive_preferences(normal)
        return cone_preferences(normal, torch.rand(n, device=self.device), angle=math.radians(angle))

    def prefer(self, preference: Any) -> None:
        """Act from now on for a preference [M], until learning goes on."""
        self._preferred = checked_preference(preference, self.n_objectives).float().to(self.device)

    @torch.no_grad()
    def act(self, obs: Tensor, *, deterministic: bool = False) -> PolicyOutput:
        """For the preference told last; where none was, for equal shares."""
        shares = torch.full((self.n_objectives,), 1.0 / self.n_objectives, device=obs.device)
        weight = (shares if self._preferred is None else self._preferred).expand(len(obs), -1)
        return self.act_for(obs, weight, deterministic=deterministic)

    def explore(self, obs: Tensor) -> PolicyOutput:
        """For a fresh preference a row, whatever was told."""
        return self.act_for(obs, self.drawn(len(obs)))

    @torch.no_grad()
    def act_for(self, obs: Tensor, weight: Tensor, *, deterministic: bool = False) -> PolicyOutput:
        """weight: preferences [B, M], a row each."""
        out = super().act(torch.cat((obs, weight), -1), deterministic=deterministic)
        return out._replace(extras={"preference": weight})

    @property
    def n_policies(self) -> int:
        return len(self.preferences)

    def policies(self, index: Tensor) -> Preferring:
        """The policies of some of `preferences`, side by side."""
        return Preferring(self, self.preferences[index].float().to(self.device))


class Preferring:
    """One learner as S policies, one a preference [S, M], each for its own block of lanes."""

    def __init__(self, learner: CAPQLLearner, preferences: Tensor):
        self.learner, self.preferences, self.size = learner, preferences, len(preferences)

    def act(self, obs: Tensor, *, deterministic: bool = False) -> PolicyOutput:
        weight = self.preferences.repeat_interleave(len(obs) // self.size, 0)
        return self.learner.act_for(obs, weight, deterministic=deterministic)

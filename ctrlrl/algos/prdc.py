"""PRDC: TD3 whose policy is pulled to the data's action nearest to (s, pi(s)), of any state. arXiv:2306.06569."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ctrlrl.core.cached import Arrays, cached, fingerprint
from ctrlrl.core.off_policy import Nets, OffPolicyLearner, detached
from ctrlrl.core.update import GradStep, Target
from ctrlrl.functional.boxes import Boxes, boxes, near_lists, nearest_within
from ctrlrl.functional.checks import in_range
from ctrlrl.functional.distributions import smoothed_action
from ctrlrl.functional.masked import batch_mean
from ctrlrl.functional.neighbors import Keys, Lists, Match, k_nearest, keys, look_up
from ctrlrl.functional.regression import td_target
from ctrlrl.functional.weights import q_scale
from ctrlrl.nn.critics import QCritic
from ctrlrl.nn.normalize import DataNormalizer
from ctrlrl.policies.deterministic import DeterministicPolicy
from ctrlrl.types import EnvSpec, Metrics, Transition


@dataclass
class PRDCConfig:
    name: str = "prdc"
    learning_rate: float = 3e-4
    batch_size: int = 256
    gamma: float = 0.99
    tau: float = 0.005
    alpha: float = 2.5  # weight of the normalised value against the constraint; 40 on halfcheetah
    beta: float = 2.0  # weight of the state in the distance; large = the action of the nearest state
    list_length: int = 16  # nearest states kept for every state, on a CPU; no result depends on it
    policy_delay: int = 2  # critic updates a policy update; targets move with the policy
    target_noise: float = 0.2
    target_noise_clip: float = 0.5
    hidden: list[int] = field(default_factory=lambda: [256, 256])
    normalize_obs: bool = True

    def __post_init__(self) -> None:
        in_range("PRDCConfig", low=0.0, high=float("inf"), open_ends=True, learning_rate=self.learning_rate)
        in_range("PRDCConfig", low=0.0, high=1.0, gamma=self.gamma, tau=self.tau)
        weights = {"alpha": self.alpha, "beta": self.beta}
        noise = {"target_noise": self.target_noise, "target_noise_clip": self.target_noise_clip}
        in_range("PRDCConfig", low=0.0, high=float("inf"), open_ends=False, **weights, **noise)
        if min(self.policy_delay, self.batch_size, self.list_length) < 1:
            raise ValueError("PRDCConfig.policy_delay, batch_size and list_length must be at least 1")


class PRDCLearner(OffPolicyLearner):
    config = PRDCConfig

    def __init__(self, cfg: PRDCConfig, spec: EnvSpec):
        sizes: Any = (spec.obs_dim, spec.action_dim, cfg.hidden)
        policy, critic = DeterministicPolicy(*sizes), QCritic(*sizes)
        nets = Nets(
            normalizer=DataNormalizer(spec.obs_dim),
            policy=policy,
            critic=critic,
            target_policy=copy.deepcopy(policy),
            target_critic=copy.deepcopy(critic),
        )
        super().__init__(cfg, nets.to(spec.device))

    def optimizers(self) -> dict[str, GradStep]:
        lr, nets = self.cfg.learning_rate, self.nets
        return {name: GradStep(getattr(nets, name).parameters(), learning_rate=lr) for name in ("policy", "critic")}

    def followers(self) -> dict[str, Target]:
        names = ("policy", "critic")
        return {name: Target(getattr(self.nets, f"target_{name}"), self.opt[name]) for name in names}

    @property
    def period(self) -> int:
        return self.cfg.policy_delay

    def prefit(self, data: Transition) -> None:
        """Keep the pairs (beta s, a), s normalised."""
        super().prefit(data)
        for made in ("_keys", "_boxes", "_lists"):
            self.__dict__.pop(made, None)  # of other data
        self._states, self._actions = self.nets.normalizer(data.obs), data.action
        self._pairs = torch.cat((self.cfg.beta * self._states, data.action), -1)

    @cached_property
    def _keys(self) -> Keys:
        return keys(self._pairs)

    @cached_property
    def _boxes(self) -> Boxes:
        return boxes(self._pairs)

    @cached_property
    def _lists(self) -> Lists:
        """The table of near states: at the first search, so that of stacked seeds one alone makes it."""

        def make() -> Arrays:
            lists = near_lists(self._states, self.cfg.list_length)
            return {name: column.numpy() for name, column in lists._asdict().items()}

        key = fingerprint(self._states.numpy(), self.cfg.list_length)
        arrays = cached(self.cache, "neighbors", key, make)
        return Lists(**{name: torch.from_numpy(column) for name, column in arrays.items()})

    @torch.no_grad()
    def neighbor(self, row: Tensor, action: Tensor) -> Match:
        """The data-set row nearest to (state of `row` [...], action [..., A]).

        `proven` says where it was had without a second search. On a CPU the result is exact; on a GPU, where nothing
        may be read, a row that is not proven is nearest up to the rounding of float32 products.
        """
        if row.device.type == "cpu":
            return self._by_table(row, action)
        return self._by_products(row, action)

    def _by_table(self, row: Tensor, action: Tensor) -> Match:
        match = look_up(self._lists, row, action, self._actions, beta=self.cfg.beta)
        missed = ~match.proven
        query = self._query(row[missed], action[missed])
        index, squared = nearest_within(self._boxes, query, match.squared[missed])
        match.row[missed], match.squared[missed] = index.squeeze(1), squared.squeeze(1)
        return match

    def _by_products(self, row: Tensor, action: Tensor) -> Match:
        found = k_nearest(self._query(row, action).flatten(0, -2), self._keys, 1)
        return Match(*(column.view(row.shape) for column in (found.row, found.squared, found.proven)))

    def _query(self, row: Tensor, action: Tensor) -> Tensor:
        return torch.cat((self._pairs[row, : -action.shape[-1]], action), -1)

    def step(self, batch: Transition, phase: int) -> Metrics:
        nets, cfg = self.nets, self.cfg
        with torch.no_grad(), self.precision():
            noise = self.random.randn_like(batch.action)
            action = nets.target_policy(batch.next_obs)
            action = smoothed_action(action, noise, std=cfg.target_noise, clip=cfg.target_noise_clip)
            next_q = nets.target_critic(batch.next_obs, action).amin(0)
        target = td_target(batch.reward, batch.terminated, next_q, gamma=cfg.gamma)
        with self.precision():
            q = nets.critic(batch.obs, batch.action)
        critic_loss = batch_mean((q - target).square()).sum(0)
        self.opt["critic"](critic_loss)
        metrics = detached(loss_critic=critic_loss, value_q=batch_mean(q[0]))
        if phase < self.period - 1:
            return metrics

        with self.precision():
            action = nets.policy(batch.obs)
            q = nets.critic.first(batch.obs, action)
        match = self.neighbor(batch.extras["index"], action)
        constraint = batch_mean((action - self._actions[match.row]).square().mean(-1))
        policy_loss = batch_mean(-q_scale(q, alpha=cfg.alpha) * q) + constraint
        self.opt["policy"](policy_loss)
        for follower in self.targets.values():
            follower.move(cfg.tau)
        share = batch_mean(match.proven.float())
        return metrics | detached(loss_policy=policy_loss, loss_constraint=constraint, policy_certified=share)

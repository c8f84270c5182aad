"""FPO: PPO for a flow whose density is stood for by its flow-matching error. McAllister et al. 2025, arXiv:2507.21053.

The error on stored draws of noise and time is a bound on -log pi(a|s) up to a constant; the ratio is the exponential
of how much it fell since the rollout. No density is computed anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ctrlrl.core.actor_critic import ActorCriticLearner, Batch
from ctrlrl.core.on_policy_config import ActorCriticConfig
from ctrlrl.functional.checks import in_range
from ctrlrl.functional.distributions import approx_kl
from ctrlrl.functional.surrogate import ppo_clip
from ctrlrl.nn.critics import ValueCritic
from ctrlrl.nn.mlp import lecun_uniform
from ctrlrl.nn.normalize import RewardScaler
from ctrlrl.policies.flow import MatchedFlowPolicy
from ctrlrl.policies.standard import standard_features, standard_normalizer
from ctrlrl.types import EnvSpec, Metrics, Rollout

PAIR_BOUND = 3.0  # of the log-ratio of one pair, which unlike the mean over pairs has outliers


@dataclass
class FPOConfig(ActorCriticConfig):
    """Defaults: the authors' MuJoCo Playground setting; rollouts and minibatches are the library's."""

    name: str = "fpo"
    n_epochs: int = 16
    gamma: float = 0.995
    vf_coef: float = 0.25
    max_grad_norm: float | None = None
    adam_eps: float = 1e-8
    normalize_obs: bool = True
    hidden: list[int] = field(default_factory=lambda: [32, 32, 32, 32])
    vf_hidden: list[int] | None = field(default_factory=lambda: [256, 256, 256, 256, 256])
    activation: str = "silu"
    orthogonal_init: bool = False  # false: LeCun uniform
    clip_range: float = 0.05
    flow_steps: int = 10  # Euler steps
    n_pairs: int = 8  # draws of noise and time stored with every action
    per_pair: bool = False  # one ratio a pair, its logarithm within +-3, instead of the exponential of the mean
    n_frequencies: int = 4  # of the time's embedding: cos(2^k t), sin(2^k t)
    velocity_scale: float = 0.25  # of the network's output
    squash: bool = True  # the action is tanh of the flow's end
    recompute_returns: bool = True  # new values and advantages after every epoch (the authors: in every minibatch)
    learn_truncated_values: bool = False  # a truncated step's value has a target too: its bootstrap is known here
    stochastic_eval: bool = True  # evaluation draws fresh noise, as the authors'; false: the action of noise 0

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("FPOConfig", low=0.0, high=1.0, open_ends=True, clip_range=self.clip_range)
        in_range("FPOConfig", low=0.0, high=float("inf"), open_ends=True, velocity_scale=self.velocity_scale)
        for name in ("flow_steps", "n_pairs", "n_frequencies"):
            if getattr(self, name) < 1:
                raise ValueError(f"FPOConfig.{name} must be at least 1, got {getattr(self, name)}")
        if self.ent_coef:
            raise ValueError(f"FPOConfig.ent_coef must be 0, got {self.ent_coef}: a flow's entropy is not known")


class FPOLearner(ActorCriticLearner):
    config = FPOConfig
    cfg: FPOConfig
    continuous_only = True

    def __init__(self, cfg: FPOConfig, spec: EnvSpec, *, own_features: Callable[[], nn.Module] | None = None):
        features, critic_features = standard_features(spec, own=own_features, **cfg.feature_settings())
        init: dict[str, Any] = {} if cfg.orthogonal_init else {"init": lecun_uniform}
        policy = MatchedFlowPolicy(
            features.dim,
            spec.action_dim,
            cfg.hidden,
            activation=cfg.activation,
            n_frequencies=cfg.n_frequencies,
            scale=cfg.velocity_scale,
            flow_steps=cfg.flow_steps,
            n_pairs=cfg.n_pairs,
            squash=cfg.squash,
            **init,
        )
        hidden = cfg.hidden if cfg.vf_hidden is None else cfg.vf_hidden
        critic = ValueCritic(features.dim, hidden, activation=cfg.activation, **init)
        super().__init__(
            cfg,
            features=features,
            critic_features=critic_features,
            policy=policy.to(spec.device),
            critic=critic.to(spec.device),
            normalizer=standard_normalizer(spec, normalize=cfg.normalize_obs),
            reward_scaler=RewardScaler().to(spec.device),
        )

    def update(self, rollout: Rollout) -> Metrics:
        return super().update(rollout._replace(extras={**rollout.extras, "truncated": rollout.truncated}))

    def log_ratio(self, batch: Batch) -> tuple[Any, ...]:
        """[N] each, or with `per_pair` [N, n_pairs]; no entropy."""
        policy, old = self.policy, batch.extras
        context = policy.velocity.context(batch.obs)
        error = policy.matching_error(context, old["end"], old["noise"], old["step"])
        if self.cfg.per_pair:
            log_ratio = (old["error"] - error).clamp(-PAIR_BOUND, PAIR_BOUND)
        else:
            log_ratio = -error.mean(-1) - batch.log_prob
        return log_ratio, None, approx_kl(log_ratio.detach())

    def surrogate(self, log_ratio: Tensor, batch: Batch, value: Tensor) -> Tensor:
        advantage = batch.advantage
        if self.cfg.per_pair:
            advantage = advantage.unsqueeze(-1).expand_as(log_ratio)
        return ppo_clip(log_ratio, advantage, clip_range=self.cfg.clip_range)

    def value_loss(self, value: Tensor, batch: Batch) -> Tensor:
        loss = super().value_loss(value, batch)
        return loss if self.cfg.learn_truncated_values else torch.where(batch.extras["truncated"], 0.0, loss)

    @torch.no_grad()
    def after_epoch(self, rollout: Rollout, batch: Batch) -> Batch:
        if not self.cfg.recompute_returns:
            return batch
        advantage, target = (self.rows(rollout, x) for x in self.advantages(self.revalued(rollout)))
        if self.cfg.normalize_advantage == "batch":
            advantage = self._standardized(advantage)
        return batch._replace(advantage=advantage, target=target)

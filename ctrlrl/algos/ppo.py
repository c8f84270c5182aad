"""PPO: the clipped surrogate. Schulman et al. 2017, arXiv:1707.06347; settings of SB3, CleanRL and rsl_rl."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ctrlrl.core.actor_critic import ActorCriticLearner, Batch
from ctrlrl.core.on_policy_config import ActorCriticConfig
from ctrlrl.functional.checks import in_range
from ctrlrl.functional.regression import clipped_value
from ctrlrl.functional.surrogate import ppo_clip
from ctrlrl.nn.critics import ValueCritic
from ctrlrl.nn.normalize import RewardScaler
from ctrlrl.policies.standard import standard_features, standard_normalizer, standard_policy
from ctrlrl.types import EnvSpec


@dataclass
class PPOConfig(ActorCriticConfig):
    name: str = "ppo"
    clip_range: float = 0.2  # half-width of the interval around ratio 1
    clip_range_high: float | None = None  # upper half-width where it differs (asymmetric clip)
    clip_range_vf: float | None = None  # clips the value's change, in units of the scaled return; null = off
    value_clip_max: bool = True  # max of clipped and unclipped error (rsl_rl, CleanRL); false: clipped alone (SB3)

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("PPOConfig", low=0.0, high=1.0, open_ends=True, clip_range=self.clip_range)
        if self.clip_range_vf is not None and not self.clip_range_vf > 0.0:
            raise ValueError(f"PPOConfig.clip_range_vf must be above 0 or null, got {self.clip_range_vf}")
        if self.clip_range_high is not None:
            in_range("PPOConfig", low=0.0, high=float("inf"), open_ends=True, clip_range_high=self.clip_range_high)


class PPOLearner(ActorCriticLearner):
    config = PPOConfig
    cfg: PPOConfig

    def __init__(self, cfg: PPOConfig, spec: EnvSpec, *, own_features: Callable[[], nn.Module] | None = None):
        features, critic_features = standard_features(spec, own=own_features, **cfg.feature_settings())
        kwargs: dict[str, Any] = {"activation": cfg.activation, "orthogonal": cfg.orthogonal_init}
        policy = standard_policy(spec, features.dim, cfg.hidden, log_std_init=cfg.log_std_init, **kwargs)
        critic = ValueCritic(features.dim, cfg.hidden if cfg.vf_hidden is None else cfg.vf_hidden, **kwargs)
        super().__init__(
            cfg,
            features=features,
            critic_features=critic_features,
            policy=policy.to(spec.device),
            critic=critic.to(spec.device),
            normalizer=standard_normalizer(spec, normalize=cfg.normalize_obs),
            reward_scaler=RewardScaler().to(spec.device),
        )

    def surrogate(self, log_ratio: Tensor, batch: Batch, value: Tensor) -> Tensor:
        cfg = self.cfg
        return ppo_clip(log_ratio, batch.advantage, clip_range=cfg.clip_range, clip_range_high=cfg.clip_range_high)

    def value_loss(self, value: Tensor, batch: Batch) -> Tensor:
        cfg = self.cfg
        if cfg.clip_range_vf is None:
            return super().value_loss(value, batch)
        return clipped_value(
            value, batch.value, batch.target, clip_range=cfg.clip_range_vf, take_max=cfg.value_clip_max
        )

"""BPO: regress the probability ratio on its bounded optimum. Ao et al. 2026, arXiv:2604.18578, Algorithm 1.

Two advantages: the side and size of the target ratio come from R - mu(s), a soft median; the weight from R - V(s), the
mean. R is the GAE return, used as a sample of Q. There is no ratio clip: the slope beyond the target pulls back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ctrlrl.core.actor_critic import ActorCriticLearner, Batch
from ctrlrl.core.on_policy_config import ActorCriticConfig
from ctrlrl.functional.checks import in_range
from ctrlrl.functional.regression import soft_median_loss, soft_quantile_loss
from ctrlrl.functional.surrogate import bpo
from ctrlrl.nn.critics import ValueCritic, ValueMedianCritic
from ctrlrl.nn.normalize import RewardScaler
from ctrlrl.policies.standard import standard_features, standard_normalizer, standard_policy
from ctrlrl.types import EnvSpec, Rollout

LEAST = 1e-6  # half-width of the ratio's bounds


@dataclass
class BPOConfig(ActorCriticConfig):
    """Defaults: the authors' SB3 variant, but for its layers of hidden=[256, 256].

    Theirs of rsl_rl: median_shared=false, logit_clip=10, temperature=0.01.
    """

    name: str = "bpo"
    n_steps: int = 2048
    normalize_advantage: str = "none"  # the weight |R - V| keeps its scale, as in the authors' code
    max_grad_norm: float | None = 1.0
    activation: str = "relu"
    clip_range: float = 0.3  # the ratio's bound: 1 - clip_range .. 1 + clip_range
    clip_range_high: float | None = None  # upper half-width where it differs; mu is then a quantile
    temperature: float = 1e-3  # lambda, in units of the (scaled) return; 0 = hard sides
    median: str = "learned"  # "value": mu = V, the mean (the paper's ablation)
    median_coef: float = 0.5  # c_u
    median_temperature: float | None = (
        1.0  # of mu's own loss: 1 in the authors' code; null = `temperature`, as in the paper
    )
    median_shared: bool = True  # mu's layers stand on the value network's latent; false: a network of its own
    logit_clip: float | None = None  # bound on |R - mu| / temperature
    weight: str = "online"  # |R - V| with the present V; "batch": |advantage| of the rollout
    recompute_returns: bool = False  # new values and returns after every epoch (rsl_rl variant)

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("BPOConfig", low=0.0, high=1.0, open_ends=True, clip_range=self.clip_range)
        if self.clip_range_high is not None:
            in_range("BPOConfig", low=0.0, high=float("inf"), open_ends=True, clip_range_high=self.clip_range_high)
        in_range("BPOConfig", low=0.0, high=float("inf"), temperature=self.temperature)
        if self.median == "learned" and not (self.hidden if self.vf_hidden is None else self.vf_hidden):
            raise ValueError("BPOConfig.hidden needs at least one layer for median=learned; or use median=value")
        for name, allowed in (("median", ("learned", "value")), ("weight", ("online", "batch"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"BPOConfig.{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("vf_coef", "median_temperature", "logit_clip"):
            value = getattr(self, name)
            if value is not None and value <= 0.0:
                raise ValueError(f"BPOConfig.{name} must be above 0, got {value}")
        in_range("BPOConfig", low=0.0, high=float("inf"), median_coef=self.median_coef)
        if self.weight == "online" and self.normalize_advantage != "none":
            raise ValueError(
                f"BPOConfig.normalize_advantage={self.normalize_advantage}: weight=online takes |R - V| as it is; "
                "leave it none, or use weight=batch"
            )
        if self.median_temperature is None and self.temperature == 0.0:
            raise ValueError(
                "BPOConfig.median_temperature=null takes temperature, which is 0 here; give it a number > 0"
            )


class BPOLearner(ActorCriticLearner):
    config = BPOConfig
    cfg: BPOConfig

    def __init__(self, cfg: BPOConfig, spec: EnvSpec, *, own_features: Callable[[], nn.Module] | None = None):
        features, critic_features = standard_features(spec, own=own_features, **cfg.feature_settings())
        kwargs: dict[str, Any] = {"activation": cfg.activation, "orthogonal": cfg.orthogonal_init}
        policy = standard_policy(spec, features.dim, cfg.hidden, log_std_init=cfg.log_std_init, **kwargs)
        hidden = cfg.hidden if cfg.vf_hidden is None else cfg.vf_hidden
        critic: ValueCritic | ValueMedianCritic
        if cfg.median == "learned":
            critic = ValueMedianCritic(features.dim, hidden, cfg.hidden, shared=cfg.median_shared, **kwargs)
        else:
            critic = ValueCritic(features.dim, hidden, **kwargs)
        super().__init__(
            cfg,
            features=features,
            critic_features=critic_features,
            policy=policy.to(spec.device),
            critic=critic.to(spec.device),
            normalizer=standard_normalizer(spec, normalize=cfg.normalize_obs),
            reward_scaler=RewardScaler().to(spec.device),
        )

    def _heads(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """V and mu of the critic's output."""
        if self.cfg.median == "learned":
            return value[..., 0], value[..., 1]
        return value, value

    def _value(self, features: Tensor) -> Tensor:
        return self._heads(self.critic(features))[0]

    @property
    def _clip_range(self) -> float:
        """A schedule may end at 0, where neither the logarithm of a bound nor a quantile is defined."""
        return max(self.cfg.clip_range, LEAST)

    def surrogate(self, log_ratio: Tensor, batch: Batch, value: Tensor) -> Tensor:
        cfg = self.cfg
        mean, median = self._heads(value)
        weight = batch.target - mean if cfg.weight == "online" else batch.advantage
        return bpo(
            log_ratio,
            weight,
            batch.target - median,
            clip_range=self._clip_range,
            clip_range_high=cfg.clip_range_high,
            temperature=cfg.temperature,
            logit_clip=cfg.logit_clip,
        )

    def value_loss(self, value: Tensor, batch: Batch) -> Tensor:
        cfg = self.cfg
        mean, median = self._heads(value)
        loss = super().value_loss(mean, batch)
        if cfg.median == "value":
            return loss
        temperature = cfg.temperature if cfg.median_temperature is None else cfg.median_temperature
        error = batch.target - median
        if cfg.clip_range_high is None or cfg.clip_range_high == cfg.clip_range:
            median_loss = soft_median_loss(error, temperature=temperature)
        else:
            tau = self._clip_range / (self._clip_range + cfg.clip_range_high)
            median_loss = soft_quantile_loss(error, tau=tau, temperature=temperature)
        return loss + cfg.median_coef / cfg.vf_coef * median_loss  # the core multiplies the whole by vf_coef

    @torch.no_grad()
    def after_epoch(self, rollout: Rollout, batch: Batch) -> Batch:
        """With `recompute_returns`: GAE again with the present critic; the advantages stay those of the rollout."""
        if not self.cfg.recompute_returns:
            return batch
        _, target = self.advantages(self.revalued(rollout))
        return batch._replace(target=self.rows(rollout, target))

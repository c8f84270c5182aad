"""Multi-timescale PPO: a critic with K discounts, and three ways to an advantage. Sun 2026, arXiv:2604.13517.

Target Decoupling: the actor sees the advantage of its own discount alone, the other heads only train the critic. The
two routings, which mix the advantages of all heads, are the paper's negative results.
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
from ctrlrl.functional.masked import masked_mean, masked_std
from ctrlrl.functional.regression import clipped_value
from ctrlrl.functional.returns import gae
from ctrlrl.functional.routing import error_weights, follows_largest, heads_loss, routed_advantage, weight_entropy
from ctrlrl.functional.surrogate import ppo_clip
from ctrlrl.nn.critics import ValueHeads
from ctrlrl.nn.mlp import mlp
from ctrlrl.nn.normalize import RewardScaler
from ctrlrl.policies.standard import standard_features, standard_normalizer, standard_policy
from ctrlrl.types import EnvSpec, Metrics, Rollout


@dataclass
class MTPPOConfig(ActorCriticConfig):
    name: str = "mtppo"
    gamma: float = 0.999  # the policy's discount: that of the last head, the long one
    aux_gammas: list[float] = field(default_factory=lambda: [0.5, 0.9, 0.99])  # of the other heads
    routing: str = "decoupled"  # "attention": a trained router mixes the heads; "error": softmax of -|V - R|
    aux_coef: float = 1.0  # weight of each auxiliary head's loss beside the long head's
    mean_over_heads: bool = False  # divide the sum of the heads' losses by K
    router_hidden: list[int] = field(default_factory=lambda: [64])
    error_temperature: float = 10.0  # of error routing, units of the (scaled) return
    clip_range: float = 0.2
    clip_range_vf: float | None = None  # as in PPO, for every head
    value_clip_max: bool = True  # max of clipped and unclipped error (rsl_rl, CleanRL); false: clipped alone (SB3)

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("MTPPOConfig", low=0.0, high=1.0, open_ends=True, clip_range=self.clip_range)
        in_range("MTPPOConfig", low=0.0, high=float("inf"), aux_coef=self.aux_coef)
        for name in ("clip_range_vf", "error_temperature"):
            value = getattr(self, name)
            if value is not None and value <= 0.0:
                raise ValueError(f"MTPPOConfig.{name} must be above 0, got {value}")
        if self.routing not in ("decoupled", "attention", "error"):
            raise ValueError(f"MTPPOConfig.routing must be decoupled, attention or error, got {self.routing!r}")
        if not self.aux_gammas:
            raise ValueError("MTPPOConfig.aux_gammas must hold at least one discount; algo=ppo has none")
        if len({*self.aux_gammas, self.gamma}) <= len(self.aux_gammas):
            raise ValueError(
                f"MTPPOConfig.aux_gammas must differ from each other and from gamma={self.gamma}, got {self.aux_gammas}"
            )
        for gamma in self.aux_gammas:
            in_range("MTPPOConfig", low=0.0, high=1.0, aux_gammas=gamma)
        if self.routing == "attention" and self.normalize_advantage == "batch":
            raise ValueError(
                "MTPPOConfig.normalize_advantage=batch comes before a router has mixed the heads; use minibatch or none"
            )

    @property
    def one_process(self) -> str:
        """Why several processes cannot train it together; empty where they can."""
        mixes = "algo.routing=attention mixes advantages before they are standardised"
        return mixes if self.routing == "attention" else ""


class MTPPOLearner(ActorCriticLearner):
    config = MTPPOConfig
    cfg: MTPPOConfig

    def __init__(self, cfg: MTPPOConfig, spec: EnvSpec, *, own_features: Callable[[], nn.Module] | None = None):
        features, critic_features = standard_features(spec, own=own_features, **cfg.feature_settings())
        kwargs: dict[str, Any] = {"activation": cfg.activation, "orthogonal": cfg.orthogonal_init}
        policy = standard_policy(spec, features.dim, cfg.hidden, log_std_init=cfg.log_std_init, **kwargs)
        hidden, n_heads = cfg.hidden if cfg.vf_hidden is None else cfg.vf_hidden, len(cfg.aux_gammas) + 1
        critic = ValueHeads(features.dim, hidden, n_heads, **kwargs)
        self.router: Any = None
        if cfg.routing == "attention":
            self.router = mlp((features.dim, *cfg.router_hidden, n_heads), output_gain=0.01, **kwargs).to(spec.device)
        super().__init__(
            cfg,
            features=features,
            critic_features=critic_features,
            policy=policy.to(spec.device),
            critic=critic.to(spec.device),
            normalizer=standard_normalizer(spec, normalize=cfg.normalize_obs),
            reward_scaler=RewardScaler().to(spec.device),
            **({} if self.router is None else {"router": self.router}),
        )
        self.gammas = torch.tensor([*cfg.aux_gammas, cfg.gamma], device=spec.device)  # [K]
        self._found: Metrics = {}  # of the rollout's advantages

    def actor_value(self, value: Tensor) -> Tensor:
        return value[..., -1]

    def advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Targets [T, B, K]; advantages [T, B], but of all heads [T, B, K] where a router is trained to mix them."""
        cfg, mask = self.cfg, rollout.extras.get("mask")
        advantage, target = gae(
            rollout.reward.unsqueeze(-1),
            rollout.value,
            rollout.next_value,
            rollout.terminated,
            rollout.truncated,
            gamma=self.gammas,
            gae_lambda=cfg.gae_lambda,
        )
        self._found = {"value/advantage_variance": masked_std(advantage[..., -1], mask).square()}
        if self.router is not None:
            return advantage, target
        if cfg.routing == "decoupled":
            return advantage[..., -1], target
        weight = error_weights(rollout.value, target, temperature=cfg.error_temperature)
        self._found |= self._diagnostics(weight, advantage, mask)
        return routed_advantage(weight, advantage), target

    def update(self, rollout: Rollout) -> Metrics:
        metrics = super().update(rollout)
        return metrics | self._found

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """A router's gradient flows through the mixed and then standardised advantage, as in the authors' code."""
        if self.router is None:
            return super().loss(batch)
        with self._precision():
            weight = self.router(self.features(batch.obs)).float().softmax(-1)
        total, metrics = super().loss(batch._replace(advantage=routed_advantage(weight, batch.advantage)))
        return total, metrics | self._diagnostics(weight.detach(), batch.advantage)

    def _diagnostics(self, weight: Tensor, advantage: Tensor, mask: Tensor | None = None) -> Metrics:
        metrics = {
            "policy/hack_rate": masked_mean(follows_largest(weight, advantage).float(), mask),
            "policy/router_entropy": masked_mean(weight_entropy(weight), mask),
        }
        for gamma, share in zip((*self.cfg.aux_gammas, self.cfg.gamma), weight.unbind(-1), strict=True):
            metrics[f"policy/weight_{gamma:g}"] = masked_mean(share, mask)
        return metrics

    def surrogate(self, log_ratio: Tensor, batch: Batch, value: Tensor) -> Tensor:
        return ppo_clip(log_ratio, batch.advantage, clip_range=self.cfg.clip_range)

    def value_loss(self, value: Tensor, batch: Batch) -> Tensor:
        cfg = self.cfg
        if cfg.clip_range_vf is None:
            loss = super().value_loss(value, batch)
        else:
            loss = clipped_value(
                value, batch.value, batch.target, clip_range=cfg.clip_range_vf, take_max=cfg.value_clip_max
            )
        total = heads_loss(loss, aux_coef=cfg.aux_coef)
        return total / loss.shape[-1] if cfg.mean_over_heads else total

    def set_hyper(self, name: str, value: float | None) -> None:
        super().set_hyper(name, value)
        if name == "gamma":
            self.gammas[-1:].fill_(self.cfg.gamma)

"""PolicyFlow: PPO for a continuous normalising flow, whose ratio is told by how far its velocity has moved.

Yang et al. 2026, arXiv:2602.01156, Algorithm 1. The action is the end of a flow plus Gaussian noise. Instead of
integrating the flow anew, the update asks the velocity at one point of the path from noise to the stored end, and takes
its change since the rollout for the shift of the end: the ratio is then that of two Gaussians.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ctrlrl.core.actor_critic import ActorCriticLearner, Batch
from ctrlrl.core.on_policy_config import ActorCriticConfig
from ctrlrl.functional.checks import in_range
from ctrlrl.functional.distributions import gaussian_entropy, gaussian_kl
from ctrlrl.functional.paths import END_TIMES, PATHS, brownian_residual, path_point, velocity_log_ratio
from ctrlrl.functional.regression import clipped_value
from ctrlrl.functional.surrogate import ppo_clip
from ctrlrl.nn.critics import ValueCritic
from ctrlrl.nn.mlp import xavier_normal
from ctrlrl.nn.normalize import RewardScaler
from ctrlrl.nn.velocity import FourierVelocity
from ctrlrl.policies.flow import NoisyFlowPolicy
from ctrlrl.policies.standard import standard_normalizer, vector_features
from ctrlrl.types import EnvSpec, Metrics, Rollout


@dataclass
class PolicyFlowConfig(ActorCriticConfig):
    """Defaults: what the authors' tasks share, and their Anymal-D; rollouts are the library's."""

    name: str = "policyflow"
    learning_rate: float = 1e-3  # where the KL rule starts
    n_minibatches: int = 4
    n_epochs: int = 5
    ent_coef: float = 0.0025  # w_g; the entropy is that of the noise, the flow's is not known
    vf_coef: float = 1.0
    max_grad_norm: float | None = 1.0
    adam_eps: float = 1e-8
    weight_decay: float = 1e-5
    normalize_advantage: str = "batch"
    desired_kl: float | None = 0.01
    desired_kl_rule: str = "epoch"
    hidden: list[int] = field(default_factory=lambda: [128, 128, 128])
    activation: str = "elu"
    orthogonal_init: bool = False  # false: Xavier normal, last layer times output_gain
    output_gain: float = 0.01  # 0: the paper's zeroed last layer
    clip_range: float = 0.2
    clip_range_vf: float | None = 0.2  # clips the value's change, in units of the scaled return; null = off
    brownian_coef: float = 0.0025  # w_b, of the mean over action dimensions; it widens the flow, too much blows it up
    path: str = "straight"  # or "interpolant", "trigonometric"
    flow_steps: int = 10  # midpoint rule, two evaluations a step
    times: str = "grid"  # of the ratio: one of the 2 flow_steps + 1 times of the integration; or "uniform"
    embed_dim: int = 64  # of state and time, a multiple of 8
    action_scale: float = 1.0  # half the width of the box in which z, flow and noise live; the action is divided by it
    degenerate: bool = False  # z = 0: a Gaussian policy, without the Brownian term
    stochastic_eval: bool = True  # evaluation samples z and the noise, as the authors'; false: both are 0

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("PolicyFlowConfig", low=0.0, high=1.0, open_ends=True, clip_range=self.clip_range)
        in_range("PolicyFlowConfig", low=0.0, high=float("inf"), brownian_coef=self.brownian_coef)
        in_range("PolicyFlowConfig", low=0.0, high=float("inf"), output_gain=self.output_gain)
        if self.clip_range_vf is not None and not self.clip_range_vf > 0.0:
            raise ValueError(f"PolicyFlowConfig.clip_range_vf must be above 0 or null, got {self.clip_range_vf}")
        for name, allowed in (("path", PATHS), ("times", ("grid", "uniform"))):
            if getattr(self, name) not in allowed:
                given = getattr(self, name)
                raise ValueError(f"PolicyFlowConfig.{name} must be one of {', '.join(allowed)}, got {given!r}")
        in_range("PolicyFlowConfig", low=0.0, high=float("inf"), open_ends=True, action_scale=self.action_scale)
        if self.flow_steps < 1:
            raise ValueError(f"PolicyFlowConfig.flow_steps must be at least 1, got {self.flow_steps}")
        if self.embed_dim < 8 or self.embed_dim % 8:
            raise ValueError(f"PolicyFlowConfig.embed_dim must be a multiple of 8, got {self.embed_dim}")


class PolicyFlowLearner(ActorCriticLearner):
    config = PolicyFlowConfig
    cfg: PolicyFlowConfig
    continuous_only = True

    def __init__(self, cfg: PolicyFlowConfig, spec: EnvSpec, *, own_features: Callable[[], nn.Module] | None = None):
        features = vector_features(spec, algo=cfg.name, extractor=cfg.features_extractor, own=own_features)
        init: dict[str, Any] = {"output_gain": cfg.output_gain}
        critic_init: dict[str, Any] = {}
        if not cfg.orthogonal_init:
            init, critic_init = ({"init": xavier_normal(gain)} for gain in (cfg.output_gain, 0.01))
        policy = NoisyFlowPolicy(
            spec.obs_dim,
            spec.action_dim,
            cfg.hidden,
            activation=cfg.activation,
            embed_dim=cfg.embed_dim,
            path=cfg.path,
            flow_steps=cfg.flow_steps,
            log_std_init=cfg.log_std_init,
            degenerate=cfg.degenerate,
            scale=cfg.action_scale,
            **init,
        )
        hidden = cfg.hidden if cfg.vf_hidden is None else cfg.vf_hidden
        critic = ValueCritic(spec.obs_dim, hidden, activation=cfg.activation, **critic_init)
        super().__init__(
            cfg,
            features=features,
            policy=policy.to(spec.device),
            critic=critic.to(spec.device),
            normalizer=standard_normalizer(spec, normalize=cfg.normalize_obs),
            reward_scaler=RewardScaler().to(spec.device),
        )
        # the velocity that acted, its embedding of the state included; no part of the state: every update copies it
        self.acted = copy.deepcopy(policy.velocity).requires_grad_(False)

    def update(self, rollout: Rollout) -> Metrics:
        self.acted.load_state_dict(self.policy.velocity.state_dict())
        return super().update(rollout)

    def _draw_times(self, n: int) -> tuple[Tensor, Callable[[FourierVelocity, Tensor, Tensor], Tensor]]:
        """One time a sample [n], and what a network says then at states [n, O] and points [n, A]."""
        grid = self.policy.grid
        if self.cfg.times == "uniform":
            t = END_TIMES[self.cfg.path] * torch.rand(n, device=grid.device)
            return t, lambda net, obs, x: net.at(net.context(obs) + net.time(t), x)
        place = torch.randint(len(grid), (n,), device=grid.device)
        return grid[place], lambda net, obs, x: net.on_grid(obs, x, grid, place)

    def log_ratio(self, batch: Batch) -> tuple[Any, ...]:
        cfg, old = self.cfg, batch.extras
        t, velocity_of = self._draw_times(len(batch.obs))
        time = t.unsqueeze(-1)
        point = path_point(cfg.path, old["mean"], old["z"], time)
        velocity = velocity_of(self.policy.velocity, batch.obs, point)
        with torch.no_grad():
            before = velocity_of(self.acted, batch.obs, point)
        change, log_std = velocity - before, self.policy.bounded_log_std()
        log_ratio = velocity_log_ratio(old["noise"], change, log_std, old["log_std"])
        kl = gaussian_kl(torch.zeros_like(change), old["log_std"], change.detach(), log_std.detach())
        entropy = gaussian_entropy(log_std).expand_as(log_ratio)
        if cfg.degenerate or not cfg.brownian_coef:
            return log_ratio, entropy, kl
        residual = brownian_residual(cfg.path, point, time, velocity, before)
        return log_ratio, entropy, kl, cfg.brownian_coef * residual.square().mean(-1)

    def surrogate(self, log_ratio: Tensor, batch: Batch, value: Tensor) -> Tensor:
        return ppo_clip(log_ratio, batch.advantage, clip_range=self.cfg.clip_range)

    def value_loss(self, value: Tensor, batch: Batch) -> Tensor:
        """The clipped prediction's error alone: where the change is clipped there is no gradient."""
        if self.cfg.clip_range_vf is None:
            return super().value_loss(value, batch)
        return clipped_value(value, batch.value, batch.target, clip_range=self.cfg.clip_range_vf, take_max=False)

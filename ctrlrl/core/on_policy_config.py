"""What all on-policy algorithms share of their configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Self

from ctrlrl.functional.checks import in_range

ACTIVATIONS = ("relu", "silu", "elu", "tanh", "gelu", "mish")


@dataclass
class ActorCriticConfig:
    """Defaults are Stable-Baselines3's."""

    name: str = ""
    learning_rate: float = 3e-4
    lr_schedule: str = "constant"  # or "linear": to 0 over the run's environment steps
    lr_exponent: float = 0.0  # a run's rate is learning_rate * (n_envs / lr_base_envs) ** lr_exponent
    lr_base_envs: int = 64
    n_steps: int = 2048  # rollout length per environment
    n_minibatches: int = 32
    minibatch_size: int | None = None  # rows of a minibatch: their number then grows with n_envs; null = n_minibatches
    n_epochs: int = 10
    gamma: float = 0.99
    gae_lambda: float = 0.95
    ent_coef: float = 0.0
    vf_coef: float = 0.5
    max_grad_norm: float | None = 0.5  # null = no limit
    adam_eps: float = 1e-5
    weight_decay: float = 0.0  # decoupled, as in AdamW
    bootstrap_truncated: bool = True  # false: a time limit counts as a termination (CleanRL)
    normalize_advantage: str = "minibatch"  # "batch": once over the whole rollout (rsl_rl); "none"
    normalize_obs: bool = False
    normalize_reward: bool = False
    target_kl: float | None = None  # ends an update at 1.5 x this KL; reads the device once a minibatch
    desired_kl: float | None = None  # adapts the learning rate to this KL, no host read
    desired_kl_rule: str = "minibatch"  # before every step, rate 1e-5 ... 1e-2 (rsl_rl); "epoch": after every epoch, by
    # the mean KL of the update so far, 1e-6 ... 1e-2 (skrl)
    hidden: list[int] = field(default_factory=lambda: [64, 64])
    vf_hidden: list[int] | None = None  # critic; None = as the actor
    activation: str = "tanh"
    orthogonal_init: bool = True
    log_std_init: float = 0.0
    features_extractor: str = "flatten"  # "cnn": a NatureCNN on every image of the observation
    features_dim: int = 512  # its output
    share_features_extractor: bool = True  # one for actor and critic, which both train it
    normalize_images: bool = True  # divide by 255

    def __post_init__(self) -> None:
        where = type(self).__name__
        in_range(where, low=0.0, high=1.0, gamma=self.gamma, gae_lambda=self.gae_lambda)
        in_range(where, low=0.0, high=float("inf"), learning_rate=self.learning_rate, vf_coef=self.vf_coef)
        norm = 0.0 if self.max_grad_norm is None else self.max_grad_norm
        in_range(where, low=0.0, high=float("inf"), max_grad_norm=norm, adam_eps=self.adam_eps)
        in_range(where, low=0.0, high=float("inf"), weight_decay=self.weight_decay)
        in_range(where, low=-1.0, high=1.0, lr_exponent=self.lr_exponent)
        for name in ("learning_rate", "adam_eps", "ent_coef", "log_std_init"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{where}.{name} must be a finite number, got {getattr(self, name)}")
        for name in ("hidden", "vf_hidden"):
            if any(width < 1 for width in getattr(self, name) or ()):
                raise ValueError(f"{where}.{name} must hold layer widths of at least 1, got {getattr(self, name)}")
        for name in ("n_steps", "n_minibatches", "n_epochs", "features_dim", "lr_base_envs", "minibatch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{where}.{name} must be at least 1, got {value}")
        for name, allowed in (
            ("lr_schedule", ("constant", "linear")),
            ("normalize_advantage", ("minibatch", "batch", "none")),
            ("activation", ACTIVATIONS),
            ("desired_kl_rule", ("minibatch", "epoch")),
            ("features_extractor", ("flatten", "cnn")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{where}.{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("target_kl", "desired_kl"):
            value = getattr(self, name)
            if value is not None and value <= 0.0:
                raise ValueError(f"{where}.{name} must be positive or null, got {value}")
        if self.desired_kl is not None and self.lr_schedule != "constant":
            raise ValueError(
                f"{where}.lr_schedule={self.lr_schedule} and desired_kl={self.desired_kl} both set the learning rate: "
                "use lr_schedule=constant, or desired_kl=null"
            )

    def minibatches(self, rows: int) -> int:
        """Their number in an epoch over `rows`; the nearest to rows / minibatch_size where that is not whole."""
        return self.n_minibatches if self.minibatch_size is None else max(1, round(rows / self.minibatch_size))

    def check_envs(self, n_envs: int) -> None:
        """ValueError where the rollout of so many environments cannot be divided as asked."""
        rows = n_envs * self.n_steps
        least, name = self.n_minibatches, "n_minibatches"
        if self.minibatch_size is not None:
            least, name = self.minibatch_size, "minibatch_size"
        rollout = f"the {rows} rows of a rollout (n_envs={n_envs} x algo.n_steps={self.n_steps})"
        if rows < least:
            raise ValueError(f"algo.{name}={least} is more than {rollout}. Lower it, or raise n_envs.")
        if self.normalize_advantage == "minibatch" and rows < 2 * self.minibatches(rows):
            raise ValueError(
                f"algo.{name}={least} makes minibatches of one row out of {rollout}, whose normalised advantage is 0. "
                f"{'Lower it, or raise n_envs' if name == 'n_minibatches' else 'Raise it'}."
            )

    def for_envs(self, n_envs: int) -> Self:
        """The settings of a run with so many environments: the learning rate scaled by their number."""
        rate = self.learning_rate * (n_envs / self.lr_base_envs) ** self.lr_exponent
        return replace(self, learning_rate=rate, lr_exponent=0.0)

    def feature_settings(self) -> dict[str, Any]:
        """What policies.standard.standard_features takes of these fields."""
        return {
            "extractor": self.features_extractor,
            "image_dim": self.features_dim,
            "normalize_images": self.normalize_images,
            "orthogonal": self.orthogonal_init,
            "shared": self.share_features_extractor,
        }

"""A method for tokens as a point in a product: advantage x ratio x surrogate x aggregation x KL x entropy x data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ctrlrl.functional.checks import in_range
from ctrlrl.functional.kl import KINDS
from ctrlrl.llm.estimators import ADVANTAGES, OF_CRITIC, OF_GROUPS, OF_TOKENS
from ctrlrl.llm.objectives import AGGREGATIONS, OF_RESPONSES, RATIOS, SURROGATES, WITH_TARGET

INF = float("inf")


@dataclass
class TokenConfig:
    """Defaults: GRPO as most run it, with the token mean of DAPO's paper. A preset changes a few of them."""

    source: ClassVar[str] = ""  # the paper
    experimental: ClassVar[str] = ""  # what of it nobody could check; shown to the user

    name: str = "grpo"
    # advantage
    advantage: str = "group_z"
    advantage_eps: float = 1e-4
    whiten: str = "none"  # then: "tokens" over all counting tokens, "responses" over all responses
    group_size: int = 8  # responses to a prompt
    single: str = "refuse"  # a prompt with one response where the estimator compares: "raw" takes its reward (verl)
    reward_weights: list[float] | None = None  # of several rewards; null = 1 each
    gamma: float = 1.0
    gae_lambda: float = 1.0
    n_virtual: int = 1  # virtual_max: rewards of reward_max added to a group
    reward_max: float = 1.0
    # ratio
    ratio: str = "token"
    holder_p: float = 2.0  # the mean's exponent at the start of a run
    holder_p_end: float | None = None  # and at its end; null = the same
    # surrogate
    surrogate: str = "clip"
    clip_range: float = 0.2
    clip_range_high: float | None = None  # above ratio 1, where it differs
    dual_clip: float | None = None  # the loss of A < 0 stops growing at this ratio
    target_temperature: float = 1e-4  # bounded: how far from the median the target reaches its bound
    variance_coef: float = 0.04  # ratio_var: the multiplier at the start
    variance_bound: float = 0.0  # the E (ratio - 1)^2 that it holds
    variance_rate: float = 0.0  # of its ascent; 0 keeps it
    gate_positive: float = 1.0  # sapo
    gate_negative: float = 1.05
    bounds_low: list[float] = field(default_factory=lambda: [0.6, 0.9])  # clip_bounds: from, to
    bounds_high: list[float] = field(default_factory=lambda: [1.2, 3.0])
    bounds_step: float = 0.05
    bounds_target: float = 1.0  # good over bad weight; a share of 0.5 of both is 1.0 here
    elastic_advantage: float = 0.5  # clip_elastic
    elastic_variance: float = 0.5
    # aggregation
    aggregation: str = "token_mean"
    max_tokens: int = 256  # longest response; const divides by it
    # KL to a reference
    kl: str = "none"  # "reward" or "loss"
    kl_kind: str = "k3"
    kl_coef: float = 0.0
    kl_off_policy: bool = False  # in the loss: times the ratio; then the gradient is that of the reverse KL (TRL)
    # entropy control
    ent_coef: float = 0.0
    ent_target: float | None = None  # nats; moves ent_coef by ent_delta, and off while entropy is above it
    ent_delta: float = 0.005
    ent_coef_max: float = 1.0
    entropy_share: float = 1.0  # of the tokens, those of highest entropy, which alone are trained
    covariance: str = "none"  # "clip": some tokens of high covariance are left out; "kl": the highest pay |log-ratio|
    covariance_share: float = 2e-4
    covariance_range: list[float] = field(default_factory=lambda: [1.0, 5.0])
    covariance_coef: float = 1.0
    positive_share: float = 0.0  # of the prompts, asked again to hold the entropy at ent_target (`resampling`)
    positive_temperatures: list[float] = field(default_factory=lambda: [0.8, 1.2])  # to lower, to raise it
    positive_threshold: float = 0.05  # advantage above which such a response is good
    positive_rows: int = 60  # of the batch that good ones replace at most
    # data rules
    dynamic_sampling: bool = False  # prompts whose rewards are all equal are replaced by others
    drop_solved: bool = False  # groups whose rewards all are reward_max are left out
    overlong: str = "none"  # "mask": truncated responses are left out; "soft": a reward falling with length
    overlong_buffer: int | None = None  # tokens before max_tokens from which it falls; null = a fifth of them
    off_policy_limit: float | None = None  # bad responses that became less likely by this mean, nats, are left out
    generator_limit: float = 2.0  # bound on the weight of tokens of another engine
    # critic
    vf_coef: float = 0.5
    clip_range_vf: float | None = None
    median_coef: float = 0.5  # value_median: the second head's loss
    median_temperature: float = 1.0
    # steps
    n_epochs: int = 1
    n_minibatches: int = 1
    micro_batch_size: int | None = None  # responses of one forward and backward pass; null = all of a minibatch
    learning_rate: float = 1e-6
    lr_schedule: str = "constant"  # or "linear": to 0 over the run
    value_learning_rate: float | None = None  # null = ten times learning_rate
    max_grad_norm: float | None = 1.0
    weight_decay: float = 0.0
    gradient_checkpointing: bool = False
    # generation
    temperature: float = 1.0  # of sampling, and of every log-probability
    max_rounds: int = 4  # dynamic_sampling: batches sampled for one update at most

    def __post_init__(self) -> None:
        where = f"{type(self).__name__} ({self.name})"
        for name, allowed in (
            ("advantage", tuple(ADVANTAGES)),
            ("whiten", ("none", "tokens", "responses")),
            ("single", ("refuse", "raw")),
            ("ratio", tuple(RATIOS)),
            ("surrogate", tuple(SURROGATES)),
            ("aggregation", tuple(AGGREGATIONS)),
            ("kl", ("none", "reward", "loss")),
            ("kl_kind", KINDS),
            ("covariance", ("none", "clip", "kl")),
            ("overlong", ("none", "mask", "soft")),
            ("lr_schedule", ("constant", "linear")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{where}.{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        self._check_numbers(where)
        self._check_pairs(where)

    def _check_numbers(self, where: str) -> None:
        in_range(where, low=0.0, high=1.0, gamma=self.gamma, gae_lambda=self.gae_lambda)
        in_range(where, low=0.0, high=1.0, entropy_share=self.entropy_share, covariance_share=self.covariance_share)
        in_range(where, low=0.0, high=1.0, positive_share=self.positive_share)
        for name in ("clip_range", "clip_range_high", "clip_range_vf", "ent_target", "off_policy_limit"):
            if (value := getattr(self, name)) is not None and not value > 0.0:
                raise ValueError(f"{where}.{name} must be above 0, got {value}")
        for name in ("advantage_eps", "target_temperature", "variance_coef", "variance_bound", "variance_rate"):
            in_range(where, low=0.0, high=INF, **{name: getattr(self, name)})
        for name in ("kl_coef", "ent_coef", "ent_delta", "vf_coef", "median_coef", "covariance_coef"):
            in_range(where, low=0.0, high=INF, **{name: getattr(self, name)})
        for name in ("group_size", "n_virtual", "max_tokens", "n_epochs", "n_minibatches", "max_rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{where}.{name} must be at least 1, got {getattr(self, name)}")
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise ValueError(f"{where}.micro_batch_size must be at least 1 or null, got {self.micro_batch_size}")
        for name in ("learning_rate", "weight_decay"):
            in_range(where, low=0.0, high=INF, **{name: getattr(self, name)})
        if not self.temperature > 0.0:
            raise ValueError(f"{where}.temperature must be above 0, got {self.temperature}")
        for name in ("bounds_low", "bounds_high", "covariance_range", "positive_temperatures"):
            pair = getattr(self, name)
            if len(pair) != 2 or pair[0] > pair[1]:
                raise ValueError(f"{where}.{name} must be two numbers, from and to, got {pair}")

    def _check_pairs(self, where: str) -> None:
        if self.needs_groups and self.group_size < 2 and self.single == "refuse":
            raise ValueError(
                f"{where}.group_size=1, but advantage={self.advantage} compares the responses to a prompt. "
                "Use group_size >= 2, or single=raw, which takes the reward as it is."
            )
        if self.single == "raw" and self.advantage not in ("group_z", "group_center", "rloo"):
            raise ValueError(f"{where}: single=raw takes advantage=group_z, group_center or rloo, got {self.advantage}")
        if self.advantage == "median_mad" and self.group_size % 2 == 0:
            raise ValueError(f"{where}.group_size must be odd for advantage=median_mad, got {self.group_size}")
        if self.ratio in OF_RESPONSES and self.advantage in OF_TOKENS:
            raise ValueError(
                f"{where}: ratio={self.ratio} is one a response, advantage={self.advantage} one a token. "
                "Use ratio=token or ratio=sequence_token."
            )
        makers = WITH_TARGET.get(self.surrogate)
        if makers is not None and self.advantage not in makers:
            raise ValueError(f"{where}: surrogate={self.surrogate} needs advantage={' or '.join(makers)}")
        if self.surrogate == "gmpo" and (self.advantage in OF_TOKENS or self.ratio != "token"):
            raise ValueError(f"{where}: surrogate=gmpo takes ratio=token and one advantage a response")
        if self.advantage == "gdpo" and (self.overlong == "soft" or self.kl == "reward"):
            raise ValueError(
                f"{where}: advantage=gdpo normalizes each reward alone, so overlong=soft and kl=reward have no place. "
                "Give the penalty as a reward function."
            )
        if self.kl == "reward" and self.kl_kind != "k1":
            raise ValueError(f"{where}: kl=reward takes kl_kind=k1, log pi_old - log ref, got {self.kl_kind}")
        if self.kl == "loss" and self.kl_kind == "k1":
            raise ValueError(f"{where}: kl_kind=k1 in the loss has no gradient in expectation. Use k2 or k3.")
        if self.kl == "none" and self.kl_coef > 0.0:
            raise ValueError(f"{where}.kl_coef={self.kl_coef} does nothing with kl=none. Use kl=reward or kl=loss.")
        if self.positive_share > 0.0 and self.ent_target is None:
            raise ValueError(f"{where}.positive_share={self.positive_share} holds an entropy: give ent_target, nats")
        if self.overlong_buffer is not None and not 0 < self.overlong_buffer <= self.max_tokens:
            raise ValueError(f"{where}.overlong_buffer must lie in 1 ... max_tokens={self.max_tokens} or be null")

    def check_envs(self, n_envs: int) -> None:
        """ValueError where so many responses cannot be divided as asked."""
        if n_envs % self.group_size:
            raise ValueError(
                f"n_envs={n_envs} must be a multiple of algo.group_size={self.group_size}: responses come in groups"
            )
        if n_envs < self.n_minibatches:
            raise ValueError(f"algo.n_minibatches={self.n_minibatches} is more than the n_envs={n_envs} responses")

    @property
    def needs_groups(self) -> bool:
        return self.advantage in OF_GROUPS

    @property
    def needs_critic(self) -> bool:
        return self.advantage in OF_CRITIC

    @property
    def value_heads(self) -> int:
        """1; 2 where a median is learned beside the mean; 0 without a critic."""
        return (2 if self.advantage == "value_median" else 1) if self.needs_critic else 0

    @property
    def needs_reference(self) -> bool:
        return self.kl != "none" and self.kl_coef > 0.0

    @property
    def needs_greedy(self) -> bool:
        """Whether every prompt also needs the reward of its greedy response."""
        return self.advantage == "remax"

    @property
    def needs_tracker(self) -> bool:
        return self.advantage == "tracker"

    @property
    def needs_entropy(self) -> bool:
        """Whether the loss reads the entropy of the policy."""
        return self.ent_coef > 0.0 or self.ent_target is not None or self.entropy_share < 1.0

    def weights(self, rewards: Tensor) -> Tensor:
        """[K] of the K rewards [N, K]."""
        if self.reward_weights is None:
            return torch.ones_like(rewards[0])
        if len(self.reward_weights) != rewards.shape[1]:
            raise ValueError(
                f"TokenConfig.reward_weights has {len(self.reward_weights)} numbers for {rewards.shape[1]} rewards"
            )
        return rewards.new_tensor(self.reward_weights)

    def notices(self) -> list[str]:
        """Lines that a run prints when it starts."""
        lines = [f"algo={self.name} is experimental: {self.experimental}"] if self.experimental else []
        if self.ratio in OF_RESPONSES and self.aggregation == "token_mean":
            lines.append(f"ratio={self.ratio} with aggregation=token_mean weighs responses by their length")
        wide = self.ratio.startswith("sequence") and self.surrogate == "clip" and self.clip_range > 0.01
        if wide and self.max_tokens > 64:
            lines.append(
                f"clip_range={self.clip_range} is wide for the mean ratio of up to {self.max_tokens} tokens; "
                "GSPO's is 3e-4"
            )
        return lines

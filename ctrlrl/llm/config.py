"""A method for tokens as a point in a product: advantage x ratio x surrogate x aggregation x KL x entropy x data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ctrlrl.llm.config_checks import check
from ctrlrl.llm.estimators import OF_CRITIC, OF_GROUPS
from ctrlrl.llm.objectives import OF_REFERENCE, OF_RESPONSES


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
    beta: float = 0.1  # dpo, regress: the KL to the reference is worth this much reward
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
    window: int | None = None  # tokens of a response that one round writes; the next goes on with what is unfinished
    max_rounds: int = 4  # dynamic_sampling: batches sampled for one update at most

    def __post_init__(self) -> None:
        check(self)

    def check_envs(self, n_envs: int) -> None:
        """ValueError where so many responses cannot be divided as asked."""
        if n_envs % self.group_size:
            raise ValueError(
                f"n_envs={n_envs} must be a multiple of algo.group_size={self.group_size}: responses come in groups"
            )
        if self.advantage == "beta_norm" and n_envs < 2 * self.group_size:
            raise ValueError(
                f"n_envs={n_envs} is one prompt of algo.group_size={self.group_size} responses, and "
                "advantage=beta_norm compares the shares of several; raise n_envs"
            )
        if n_envs < self.n_minibatches:
            raise ValueError(f"algo.n_minibatches={self.n_minibatches} is more than the n_envs={n_envs} responses")
        if self.surrogate == "dpo" and n_envs < 2 * self.n_minibatches:
            raise ValueError(f"algo.n_minibatches={self.n_minibatches} is more than the {n_envs // 2} pairs of n_envs")

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
    def against_reference(self) -> bool:
        """Whether the ratio is to the reference, not to the policy that sampled."""
        return self.surrogate in OF_REFERENCE

    @property
    def needs_reference(self) -> bool:
        return self.against_reference or (self.kl != "none" and self.kl_coef > 0.0)

    @property
    def needs_recording(self) -> bool:
        """Whether only responses of others teach anything."""
        return self.advantage == "one"

    @property
    def needs_sampling(self) -> str | None:
        """A setting that asks for more than recorded responses can tell; None where they are enough."""
        told = {
            f"advantage={self.advantage}": self.needs_critic or self.needs_greedy or self.needs_tracker,
            "kl=reward": self.kl == "reward",
            "positive_share": self.positive_share > 0.0,
            "window": self.window is not None,
        }
        return next((name for name, needed in told.items() if needed), None)

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
        if self.off_policy_limit is not None and self.n_epochs * self.n_minibatches == 1:
            lines.append(
                f"off_policy_limit={self.off_policy_limit} leaves no response out where a batch is one step: the "
                "policy is still the one that answered"
            )
        wide = self.ratio.startswith("sequence") and self.surrogate == "clip" and self.clip_range > 0.01
        if wide and self.max_tokens > 64:
            lines.append(
                f"clip_range={self.clip_range} is wide for the mean ratio of up to {self.max_tokens} tokens; "
                "GSPO's is 3e-4"
            )
        return lines

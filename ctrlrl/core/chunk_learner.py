"""What cloning chunks of actions by a denoising network has in common, whatever the path from noise to data."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ctrlrl.core.off_policy import Nets, OffPolicyLearner, detached
from ctrlrl.core.update import GradStep, Target, together
from ctrlrl.functional.averaging import ema_decay
from ctrlrl.functional.checks import in_range
from ctrlrl.functional.learning_rate import warmup_cosine
from ctrlrl.functional.masked import batch_mean
from ctrlrl.types import HybridBatch, Metrics, PolicyOutput, Transition, Window


@dataclass
class ChunkConfig:
    """What all have; words and numbers are those of Diffusion Policy's code where it has them."""

    heads: ClassVar[tuple[str, ...]]  # what `head` may be
    horizon: int = 16  # actions predicted together
    n_obs_steps: int = 2  # observations seen; the first action predicted belongs to the oldest
    n_action_steps: int = 8  # actions executed, from the present one on, before the next prediction
    obs_columns: list[int] | None = None  # numbers of an observation that the policy sees; null = all, [] = none
    action_range: str = "data"  # what becomes [-1, 1]: the data's range, or "box", one for all data sets (to compose)
    head: str = "mlp"  # mlp | residual | unet | transformer
    # widths of the layers, of the U-Net's resolutions, of the blocks (one width) of residual and transformer
    hidden: list[int] = field(default_factory=lambda: [512, 512, 512])
    embed_dim: int = 16  # of the level, mlp and unet
    n_heads: int = 4  # transformer
    dropout: float = 0.0  # residual and transformer
    learning_rate: float = 3e-4
    warmup_steps: int = 500  # updates over which the learning rate rises; it then falls in half a cosine
    weight_decay: float = 1e-6
    betas: list[float] = field(default_factory=lambda: [0.95, 0.999])
    batch_size: int = 256
    ema_power: float = 0.75
    ema_max: float = 0.9999
    sampling_steps: int = 10
    switches: list[int] = field(default_factory=list)  # numbers of the action that are open or shut: [3] for a gripper
    switch_guess: float = 1.0  # where a warm start's guess has them, of their range's +-1
    stochastic_eval: bool = True  # fresh noise for every plan, as the authors; false: always the same noise

    def __post_init__(self) -> None:
        where = type(self).__name__
        for name in ("horizon", "n_obs_steps", "n_action_steps", "n_heads", "batch_size", "sampling_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{where}.{name} must be at least 1, got {getattr(self, name)}")
        if self.warmup_steps < 0:
            raise ValueError(f"{where}.warmup_steps must be at least 0, got {self.warmup_steps}")
        executed = self.n_obs_steps - 1 + self.n_action_steps
        if self.horizon < executed:
            raise ValueError(
                f"{where}.horizon={self.horizon} is shorter than the {executed} rows up to the last executed action "
                "(n_obs_steps - 1 + n_action_steps). Raise horizon, or lower n_action_steps."
            )
        columns = self.obs_columns
        if columns is not None and (len(set(columns)) < len(columns) or min(columns, default=0) < 0):
            raise ValueError(f"{where}.obs_columns must be different numbers from 0 on, got {columns}")
        if columns == [] and self.head == "transformer":
            raise ValueError(f"{where}.head=transformer needs something to see, and obs_columns is []; use head=mlp")
        if self.action_range not in ("data", "box"):
            raise ValueError(f"{where}.action_range must be data or box, got {self.action_range!r}")
        if self.head not in self.heads:
            raise ValueError(f"{where}.head must be one of {', '.join(self.heads)}, got {self.head!r}")
        in_range(where, low=0.0, high=float("inf"), open_ends=True, learning_rate=self.learning_rate)
        in_range(where, low=0.0, high=float("inf"), weight_decay=self.weight_decay, ema_power=self.ema_power)
        in_range(where, low=0.0, high=1.0, ema_max=self.ema_max, dropout=self.dropout)
        in_range(where, low=0.0, high=1.0, switch_guess=self.switch_guess)
        if self.head in ("residual", "transformer", "gpt") and len(set(self.hidden)) != 1:
            raise ValueError(f"{where}.hidden: the blocks of head={self.head} have one width, got {self.hidden}")
        if len(self.betas) != 2 or not all(0.0 <= b < 1.0 for b in self.betas):
            raise ValueError(f"{where}.betas must be two numbers in [0, 1), got {self.betas}")

    def check_warm(self, warm: list[Any]) -> None:
        if warm and self.n_action_steps != 1:
            raise ValueError(
                f"{type(self).__name__}.warm_start makes a plan at every step: n_action_steps must be 1, got "
                f"{self.n_action_steps}"
            )

    @property
    def window(self) -> Window:
        return Window(self.n_obs_steps, self.horizon, self.n_action_steps)


class ChunkLearner(OffPolicyLearner):
    """Trains a second head like the policy's; the policy's own follows it, and it is the one that acts.

    The policy has `head`, a `process` with `lesson`, normalisers of observations and actions, and `condition(obs)`.
    Evaluation and checkpoints use its weights, an exponential moving average of the trained ones.
    """

    normalized = False
    clones = True
    stackable = False  # convolutions and embeddings are not stacked

    def __init__(self, cfg: Any, policy: Any, *, normalizer: nn.Module, spared: Collection[str], device: torch.device):
        """spared: names of the head's parameters without weight decay."""
        self.spared = frozenset(spared)
        nets = Nets(normalizer=normalizer, policy=policy, online=copy.deepcopy(policy.head)).to(device)
        self.follow = torch.zeros((), device=device)  # how far the average moves in this update
        super().__init__(cfg, nets)

    @property
    def compile_units(self) -> tuple[str, ...]:
        return ("loss",)

    def optimizers(self) -> dict[str, GradStep]:
        cfg = self.cfg
        settings = {"learning_rate": cfg.learning_rate, "betas": tuple(cfg.betas)}
        decayed, spared = self._groups(self.nets.online)
        decay = GradStep(decayed, weight_decay=cfg.weight_decay, **settings)
        return {"policy": decay, "spared": GradStep(spared, **settings)}

    def followers(self) -> dict[str, Target]:
        groups = zip(self.opt, self._groups(self.nets.policy.head), strict=True)
        return {name: Target(copies, self.opt[name]) for name, copies in groups}

    def _groups(self, head: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The parameters with weight decay and those without."""
        named = list(head.named_parameters())
        return [p for name, p in named if name not in self.spared], [p for name, p in named if name in self.spared]

    def prefit(self, data: Transition) -> None:
        """Once something is learned, the weights are in the normalisers' units: new data must fit into them."""
        policy = self.nets.policy
        if not self.n_updates:
            policy.obs_normalizer.fit(policy.seen(data.obs))
        if self.n_updates or self.cfg.action_range == "box":
            mend = "Train a new policy on this data, or leave these episodes out."
            if not self.n_updates:
                mend = "Cut them with data.clip_actions=1, or take their own range with algo.action_range=data."
            policy.action_normalizer.refuse_outside(data.action, "the data set's actions", mend)
        else:
            policy.action_normalizer.fit(data.action)

    def set_progress(self, done: float) -> None:
        total = self.n_updates / done if done else float("inf")
        share = warmup_cosine(self.n_updates, warmup=self.cfg.warmup_steps, total=total)
        for step in self.opt.values():
            step.learning_rate.fill_(self.cfg.learning_rate * share)

    def update(self, batch: Transition | HybridBatch) -> Metrics:
        step = torch.tensor(float(self.n_updates), dtype=torch.float64)  # the host's own count: nothing is read
        kept = ema_decay(step, power=self.cfg.ema_power, highest=self.cfg.ema_max)
        self.follow.fill_(1.0 - float(kept))
        return super().update(batch)

    def step(self, batch: Transition, phase: int) -> Metrics:
        policy = self.nets.policy
        chunk, condition = policy.action_normalizer(batch.action), self.condition(batch)
        noise, uniform = self.random.randn_like(chunk), self.random.rand_like(chunk[:, 0, 0])
        x, level, target = policy.process.lesson(chunk, noise, uniform)
        loss = self.loss(x, level, target, condition)
        together(loss, list(self.opt.values()))
        for average in self.targets.values():
            average.move(self.follow)
        return detached(loss_policy=loss)

    def condition(self, batch: Transition) -> Tensor:
        """What the network is told of every window, [N, C]."""
        return self.nets.policy.condition(batch.obs)

    def loss(self, x: Tensor, level: Tensor, target: Tensor, condition: Tensor) -> Tensor:
        """Mean squared error of what the trained weights say of noisy chunks [N, H, A]."""
        with self.precision():
            said = self.nets.online(x, level, condition).float()
        return batch_mean((said - target).square().flatten(1).mean(1))

    @torch.no_grad()
    def act_in_episode(
        self, obs: Tensor, memory: Any = None, begins: Tensor | None = None, *, deterministic: bool = False
    ) -> tuple[PolicyOutput, Any]:
        policy = self.nets.policy
        if policy.training:
            policy.eval()
        with self.precision():
            return policy.act_in_episode(obs, memory, begins, deterministic=deterministic)

    @torch.no_grad()
    def held_out(self, batch: Transition, *, deterministic: bool) -> Metrics:
        """Of windows; the action is the present one, the first of a chunk that is executed. Weights are the average."""
        policy, now = self.nets.policy, self.cfg.n_obs_steps - 1
        policy.eval()
        with self.precision():
            action = policy.executed(policy.sample(batch.obs, deterministic=deterministic)[:, now])
            chunk = policy.action_normalizer(batch.action)
            noise, uniform = torch.randn_like(chunk), torch.rand_like(chunk[:, 0, 0])
            x, level, target = policy.process.lesson(chunk, noise, uniform)
            said = policy.head(x, level, self.condition(batch)).float()
        error = action - batch.action[:, now]
        return {"action_error": error.square().mean(-1), "loss": (said - target).square().flatten(1).mean(1)}

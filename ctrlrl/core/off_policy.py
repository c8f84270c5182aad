"""What the off-policy algorithms share: normalised batches, a schedule of phases, precision, and compiled updates.

A paper writes `step(batch, phase)` in the order of its pseudo-code. Everything in it is per element with the batch on
the last axis (features after it), so that the same lines train the stacked networks of several seeds.
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ctrlrl.core.compile import Graph, Mode, compiled, undoing
from ctrlrl.core.learner import Learner
from ctrlrl.core.process import flushed, wide_products
from ctrlrl.core.random import Randomness
from ctrlrl.core.update import GradStep, Target
from ctrlrl.functional.checks import in_range
from ctrlrl.types import HybridBatch, Metrics, PolicyOutput, Transition, tree_map


@dataclass
class OnlineConfig:
    """How an off-policy learner meets an environment; words and numbers are Stable-Baselines3's where it has them."""

    buffer_size: int = 1_000_000  # transitions that the replay buffer keeps
    learning_starts: int = 100  # environment steps before the first update; at random where nothing was learned before
    train_freq: int = 1  # steps of all environments between updates
    utd: float = 1.0  # updates for every environment step; SB3's gradient_steps / (train_freq * n_envs)
    n_steps: int = 1  # rewards of a row, discounted, before the value of where they led
    action_noise: float = 0.0  # standard deviation of what is added to the actions tried, which lie in [-1, 1]
    offline_share: float | None = (
        0.5  # of a batch, from the data set where there is one; null: its rows begin the buffer
    )

    def __post_init__(self) -> None:
        where = type(self).__name__
        for name, least in (("buffer_size", 1), ("learning_starts", 0), ("train_freq", 1), ("n_steps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{where}.{name} must be at least {least}, got {getattr(self, name)}")
        in_range(where, low=0.0, high=float("inf"), open_ends=True, utd=self.utd)
        in_range(where, low=0.0, high=float("inf"), action_noise=self.action_noise)
        if self.offline_share is not None:
            in_range(where, low=0.0, high=1.0, offline_share=self.offline_share)

    def check_envs(self, n_envs: int) -> None:
        if self.buffer_size < n_envs:
            raise ValueError(f"algo.buffer_size={self.buffer_size} is smaller than one step of n_envs={n_envs}")


class Nets(nn.Module):
    """The networks of a learner under their names: `nets.policy`, `nets.critic`, ..."""

    def __init__(self, **modules: nn.Module):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


def with_average(nets: Nets, policy_tau: float | None) -> Nets:
    """Where there is a rate to follow at, the policy becomes an average of `trained`, a copy of it."""
    if policy_tau is not None:
        nets.add_module("trained", copy.deepcopy(nets.policy))  # type: ignore[arg-type]
    return nets


class OffPolicyLearner(Learner):
    """nets must hold `normalizer` and `policy`. They may be exchanged for stacked ones: look them up at every use."""

    loop = "off_policy"
    continuous_only = True
    normalized: ClassVar[bool] = True  # obs and next_obs of a batch reach `step` normalised
    stackable: ClassVar[bool] = True  # `step` trains the stacked networks of several seeds as it stands
    offline: ClassVar[bool] = True  # learns from a data set alone
    clones: ClassVar[bool] = False  # the data set's actions, without a look at its rewards
    online: ClassVar[bool] = False  # learns from its own steps in an environment; its config is an OnlineConfig
    kept: ClassVar[tuple[str, ...]] = ()  # of PolicyOutput.extras, [B, M] of M objectives: what a replayed row keeps

    cfg: Any
    nets: Any
    targets: dict[str, Target]
    cache: Path | None = None  # folder for what `prefit` computes of a data set once; None keeps nothing

    def __init__(self, cfg: Any, nets: Nets):
        self.cfg, self.nets = cfg, nets
        self.random = Randomness()
        self.n_updates = 0
        self._mode: Mode = "eager"
        self._bf16 = False
        self._graphs: dict[tuple[int, frozenset[str]], Graph] = {}  # of a phase and the extras that its batches have
        self.prepare()

    @property
    def averages(self) -> bool:
        """Whether nets.policy, which acts, is an average that follows nets.trained at the rate `policy_tau`."""
        return hasattr(self.nets, "trained")

    @property
    def trained_policy(self) -> Any:
        """What the policy's losses train."""
        return self.nets.trained if self.averages else self.nets.policy

    def optimizers(self) -> dict[str, GradStep]:
        """The gradient steps over the present networks."""
        raise NotImplementedError

    def followers(self) -> dict[str, Target]:
        """The targets that follow them; by default none."""
        return {}

    def step(self, batch: Any, phase: int) -> Metrics:
        """One update in the paper's order; phase counts 0 ... period - 1 over and over."""
        raise NotImplementedError

    def begin_online(self) -> None:
        """Offline training is over and the environment comes next; by default nothing."""

    @property
    def compile_units(self) -> tuple[str, ...]:
        """Methods for torch.compile; the graph mode takes the whole step."""
        return ()

    @property
    def rows(self) -> int:
        """Rows of the batch that one update takes."""
        return self.cfg.batch_size

    @property
    def period(self) -> int:
        """Updates after which the schedule begins anew, e.g. the policy delay."""
        return 1

    def prepare(self) -> None:
        """Optimizers and targets anew, over the present networks."""
        self.opt = self.optimizers()
        self.targets = self.followers()
        if self.averages:
            self.targets["policy"] = Target(self.nets.policy, self.opt["policy"])

    def prefit(self, data: Transition) -> None:
        if getattr(self.cfg, "normalize_obs", False):
            self.nets.normalizer.fit(data.obs)

    def discount(self, batch: Transition) -> float | Tensor:
        """Of the value behind a row: gamma, or [N] where rows span different numbers of steps."""
        return batch.extras.get("discount", self.cfg.gamma)

    @torch.no_grad()
    def act(self, obs: Tensor, *, deterministic: bool = False) -> PolicyOutput:
        policy = self.nets.policy
        if policy.training:
            policy.eval()  # dropout is for learning
        with self.precision():
            return policy.act(self.nets.normalizer(obs), deterministic=deterministic)

    def explore(self, obs: Tensor) -> PolicyOutput:
        """What to try in the environment while learning."""
        return self.act(obs)

    @torch.no_grad()
    def held_out(self, batch: Transition, *, deterministic: bool) -> Metrics:
        """Of rows that were not learned from: "action_error" [N], of the action that the policy takes there, its
        squares averaged over the action's numbers; and "loss" [N], what `step` averages, where an algorithm has it."""
        action = self.act(batch.obs, deterministic=deterministic).action
        return {"action_error": (action - batch.action).square().mean(-1)}

    def update(self, batch: Transition | HybridBatch) -> Metrics:
        phase = self.n_updates % self.period
        self.n_updates += 1
        if self._mode != "graph":
            with flushed(), nullcontext() if self._bf16 else wide_products():  # whose float32 products are narrow ones
                return self._step(batch, phase)
        form = phase, frozenset(() if isinstance(batch, HybridBatch) else batch.extras)
        if form not in self._graphs:
            self._graphs[form] = self._captured(batch, phase)
        return tree_map(torch.clone, self._graphs[form](batch))

    def _captured(self, batch: Transition | HybridBatch, phase: int) -> Graph:
        changed = list(self.nets.state_dict().values())  # the flat vectors lie under them
        changed += [t for step in self.opt.values() for t in step.state_dict().values()]
        streams = self.random.streams or ()
        return Graph(lambda b: self._step(b, phase), (batch,), undo=undoing(changed), generators=streams)

    def _step(self, batch: Transition | HybridBatch, phase: int) -> Metrics:
        if not self.trained_policy.training:
            self.trained_policy.train()
        if isinstance(batch, HybridBatch):
            metrics = self.step(HybridBatch(self._normalized(batch.real), self._normalized(batch.sim)), phase)
        else:
            metrics = self.step(self._normalized(batch), phase)
        if self.averages:
            self.targets["policy"].move(self.cfg.policy_tau)
        return metrics

    def _normalized(self, batch: Transition) -> Transition:
        if not self.normalized:
            return batch
        norm = self.nets.normalizer
        return batch._replace(obs=norm(batch.obs), next_obs=norm(batch.next_obs))

    def precision(self) -> AbstractContextManager[Any]:
        """bfloat16 products over float32 weights where asked for; networks return float32."""
        if not self._bf16:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def set_dtype(self, dtype: str) -> None:
        self._bf16 = dtype == "bfloat16"

    def set_hyper(self, name: str, value: Any) -> None:
        """Change a setting between updates; ValueError for one that its config refuses."""
        replace(self.cfg, **{name: value})
        if name == "gamma" and getattr(self.cfg, "n_steps", 1) > 1:
            raise ValueError(
                f"gamma={value}: with n_steps={self.cfg.n_steps} the kept rows hold its powers; make a new model"
            )
        if name == "policy_tau" and (value is None) == self.averages:
            raise ValueError(f"policy_tau={value}: whether the policy that acts is an average is settled at the start")
        setattr(self.cfg, name, value)
        self._graphs.clear()  # they hold the old one

    def set_compile(self, mode: str) -> None:
        self._mode = mode  # type: ignore[assignment]
        if mode == "compile":
            for name in self.compile_units:
                setattr(self, name, compiled(getattr(self, name), "compile"))

    def training_state(self) -> dict[str, Tensor]:
        random = {f"random/{key}": t for key, t in self.random.state_dict().items()}
        return {**super().training_state(), **random, "n_updates": torch.tensor(self.n_updates)}

    def resume(self, state: dict[str, Tensor]) -> None:
        """The rates are those of the configuration, which may be another than at saving; schedules set theirs anew."""
        asked = [(step, step.learning_rate.clone()) for step in self.opt.values()]
        super().resume(state)
        for step, rate in asked:
            step.learning_rate.copy_(rate)

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        super().load_training_state(state)
        self.n_updates = int(state["n_updates"])
        self.random.load_state_dict({k[7:]: t for k, t in state.items() if k.startswith("random/")})


def detached(**values: Tensor) -> Metrics:
    """Metrics from keyword arguments: loss_critic -> "loss/critic"."""
    return {name.replace("_", "/", 1): value.detach() for name, value in values.items()}

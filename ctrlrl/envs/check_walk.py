"""Walks through an environment, kept step by step, and what the checks of `check_env` share."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ctrlrl.types import EnvSpec, TimeStep, VecEnv

_MEMORY = 2**28  # bytes that one walk may take
_REPLAY = 256  # most steps of a walk that is made again to compare
_START_ROWS = 256  # beginnings of episodes that show where resets lie
_SHORT = 6  # steps of an episode where `make` takes episode_length: time limits are then seen in any task


class Walk(NamedTuple):
    """T steps after one reset, time-major, on the CPU."""

    first: Tensor  # [B, O] observation of the reset
    obs: Tensor  # [T, B, O]
    final_obs: Tensor
    reward: Tensor  # [T, B] or [T, B, M]
    terminated: Tensor  # [T, B]
    truncated: Tensor
    mask: Tensor  # [T, B]; True throughout where the environment gives none
    masked: bool  # whether it gives one: the step after an episode's end is then only a reset

    @property
    def done(self) -> Tensor:
        return self.terminated | self.truncated

    @property
    def before(self) -> Tensor:
        """[T, B, O] the observation that was acted on."""
        return torch.cat((self.first.unsqueeze(0), self.obs[:-1]))

    @property
    def begins(self) -> Tensor:
        """[T, B] whether obs is the first of a new episode."""
        return ~self.mask if self.masked else self.done


class Difference(NamedTuple):
    step: int  # 0: the reset
    lane: int
    fields: tuple[str, ...]

    @property
    def where(self) -> str:
        return at(self.step, self.lane)


def at(step: int, lane: int) -> str:
    return f"lane {lane}, {f'step {step}' if step else 'the reset'}"


def first_lanes(walk: Walk, n: int) -> Walk:
    rows = {name: getattr(walk, name)[:, :n] for name in (*TimeStep._fields[:-1], "mask")}
    return Walk(first=walk.first[:n], **rows, masked=walk.masked)


def first_true(flags: Tensor) -> tuple[int, int] | None:
    """(step from 1 on, lane) of the earliest True in [T, B]."""
    found = flags.nonzero()
    return (int(found[0, 0]) + 1, int(found[0, 1])) if len(found) else None


def any_of(flags: Tensor, n_axes: int = 2) -> Tensor:
    """Whether any is True, for each element of the first axes."""
    return flags.flatten(n_axes).any(n_axes) if flags.ndim > n_axes else flags


def differs(a: Tensor, b: Tensor, n_axes: int = 2) -> Tensor:
    """Where two tensors are not the same, over their first axes; NaN equals NaN."""
    unlike = a != b
    if a.is_floating_point():
        unlike &= ~(a.isnan() & b.isnan())
    return any_of(unlike, n_axes)


def first_difference(a: Walk, b: Walk, lanes: slice = slice(None)) -> Difference | None:
    """Where two walks part, in time first; a longer one is cut."""
    n = min(len(a.obs), len(b.obs))
    start = differs(a.first[lanes], b.first[lanes], 1).nonzero()
    if len(start):
        return Difference(0, int(start[0]) + (lanes.start or 0), ("obs",))
    unlike = {
        name: differs(getattr(a, name)[:n, lanes], getattr(b, name)[:n, lanes])
        for name in ("obs", "final_obs", "reward", "terminated", "truncated", "mask")
    }
    found = first_true(torch.stack(tuple(unlike.values())).any(0))
    if found is None:
        return None
    step, lane = found
    return Difference(step, lane + (lanes.start or 0), tuple(k for k, flags in unlike.items() if flags[step - 1, lane]))


def random_actions(spec: EnvSpec, n_steps: int, seed: int) -> Tensor:
    """[T, B, A] uniform in [-1, 1], or int64 [T, B] or [T, B, D]; on the CPU."""
    g = torch.Generator().manual_seed(seed)
    if spec.n_actions:
        return torch.randint(spec.n_actions, (n_steps, spec.n_envs), generator=g)
    unit = torch.rand(n_steps, spec.n_envs, spec.action_dim or len(spec.nvec), generator=g)
    return (unit * torch.tensor(spec.nvec)).long() if spec.nvec else 2.0 * unit - 1.0


def keep(step: TimeStep) -> TimeStep:
    """A copy that the next step does not overwrite, of whatever the environment put there."""

    def copy(x: Any) -> Any:
        return x.detach().clone() if isinstance(x, Tensor) else x

    fields = {name: copy(getattr(step, name)) for name in TimeStep._fields[:-1]}
    return TimeStep(**fields, extras={name: copy(x) for name, x in step.extras.items()})


def act(env: VecEnv, action: Tensor) -> TimeStep:
    """One step; the caller's action stays as it is, whatever the environment does to its own."""
    return env.step(action.clone().to(env.spec.device))


def stack(first: Tensor, steps: list[TimeStep]) -> Walk:
    rows = {name: torch.stack([getattr(s, name) for s in steps]).cpu() for name in TimeStep._fields[:-1]}
    masked = "mask" in steps[0].extras
    mask = torch.stack([s.extras["mask"] for s in steps]).cpu() if masked else torch.ones_like(rows["terminated"])
    return Walk(first=first.cpu(), **rows, mask=mask, masked=masked)


def go_on(env: VecEnv, first: Tensor, actions: Tensor) -> Walk:
    return stack(first.detach().clone(), [keep(act(env, action)) for action in actions])


def record(env: VecEnv, actions: Tensor, seed: int) -> Walk:
    return go_on(env, env.reset(seed), actions)


@contextmanager
def generators_kept() -> Iterator[None]:
    """Whatever an environment draws from the global generators, the caller's numbers stay the same."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


class Subject:
    """The environment under test, how to make more of it, and its main walk, made once.

    takes: names of make's parameters.
    """

    def __init__(
        self, env: VecEnv, make: Callable[..., VecEnv] | None, *, takes: Collection[str], steps: int, seed: int
    ) -> None:
        self.env, self.takes, self.steps, self.seed = env, takes, steps, seed
        self._make = make
        self._made: list[VecEnv] = []

    @property
    def spec(self) -> EnvSpec:
        return self.env.spec

    @property
    def can_make(self) -> bool:
        return self._make is not None

    def another(self, n_envs: int, seed: int, **words: Any) -> VecEnv:
        """A new instance; closed at the end."""
        assert self._make is not None
        env = self._make(n_envs=n_envs, seed=seed, **words)
        self._made.append(env)
        if env.spec.n_envs != n_envs:
            raise ValueError(f"make(n_envs={n_envs}) gave {env.spec.n_envs} lanes")
        return env

    def close(self) -> None:
        for env in self._made:
            env.close()

    @cached_property
    def actions(self) -> Tensor:
        """Enough to see two time limits, within `steps` and the memory."""
        spec = self.spec
        wanted = max(2 * spec.episode_length + 2, _REPLAY)
        fits = max(16, _MEMORY // (spec.n_envs * (8 * spec.obs_dim + 8)))
        return random_actions(spec, min(wanted, self.steps, fits), self.seed)

    @cached_property
    def replay(self) -> Tensor:
        """The leading actions of the main walk that comparisons repeat."""
        return self.actions[:_REPLAY]

    @cached_property
    def raw(self) -> tuple[Any, list[TimeStep]]:
        """The main walk as it came, of whatever shapes."""
        first, steps = self.env.reset(self.seed), []
        first = first.detach().clone() if isinstance(first, Tensor) else first
        for t, action in enumerate(self.actions):
            try:
                step = act(self.env, action)
            except Exception as error:
                raise RuntimeError(f"step {t + 1} raised {type(error).__name__}: {error}") from error
            if not isinstance(step, TimeStep):
                raise TypeError(f"step must return a ctrlrl.types.TimeStep, got {type(step).__name__}")
            steps.append(keep(step))
        return first, steps

    @cached_property
    def walk(self) -> Walk:
        return stack(*self.raw)

    @property
    def n_start_rows(self) -> int:
        return min(_START_ROWS, max(32, _MEMORY // (32 * self.spec.obs_dim)))

    @cached_property
    def starts(self) -> Tensor:
        """[R, 2 O + M] of R resets, shuffled: first observation, and the final_obs and reward of the first step."""
        n, g = self.spec.n_envs, torch.Generator().manual_seed(self.seed)
        n_resets = min(32, max(2, -(-self.n_start_rows // n)))
        actions = random_actions(self.spec, n_resets, self.seed + 1)
        lanes = torch.arange(0, n, -(-n * n_resets // (2 * self.n_start_rows)))
        rows = []
        for k, action in enumerate(actions):
            first = self.env.reset(self.seed + 1 + k).detach().clone()
            step = act(self.env, action)
            rows.append(row_of(*(x[lanes.to(x.device)] for x in (first, step.final_obs, step.reward))).cpu())
        return torch.cat(rows)[torch.randperm(len(lanes) * n_resets, generator=g)]

    @cached_property
    def varied(self) -> bool:
        """Whether resets differ at all, by seed or by lane."""
        obs = self.starts[:, : self.spec.obs_dim]
        return bool((obs != obs[:1]).any())

    @cached_property
    def all_starts_differ(self) -> bool:
        """Up to chance: float32 has few numbers near 1."""
        obs = self.starts[:, : self.spec.obs_dim]
        return len(obs.unique(dim=0)) > 0.9 * len(obs)

    @cached_property
    def clocked(self) -> Clocked | None:
        """One seed and the same actions, the start clocks even and spread; None where `make` cannot."""
        if "stagger" not in self.takes:
            return None
        words = {"episode_length": _SHORT} if "episode_length" in self.takes else {}
        n = 16 if words else 8
        even, spread = (self.another(n, self.seed, stagger=on, **words) for on in (False, True))
        limit = even.spec.episode_length
        actions = random_actions(even.spec, min(self.steps, limit + 1 + 2 * _SHORT), self.seed)
        return Clocked(limit, record(even, actions, self.seed), record(spread, actions, self.seed))


class Clocked(NamedTuple):
    limit: int  # steps
    even: Walk
    spread: Walk


def row_of(obs: Tensor, final_obs: Tensor, reward: Tensor) -> Tensor:
    """[N, 2 O + M]: how an episode begins."""
    return torch.cat((obs.float(), final_obs.float(), reward.float().reshape(len(obs), -1)), 1)

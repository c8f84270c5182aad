"""Policies that draw a chunk of actions from noise: by a diffusion, arXiv:2303.04137, or by a flow, arXiv:2210.02747.

A process knows its path from noise to data: what the network is trained on, and how its samples are made. Chunks are
normalised here; the policy unnormalises the one action that it executes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ctrlrl.functional.predictions import ends, noisy, prediction
from ctrlrl.functional.samplers import ddim, ddpm, euler, midpoint, uniform_times
from ctrlrl.functional.schedules import (
    Schedule,
    cosine_schedule,
    leading_levels,
    level_at,
    trailing_levels,
    vp_schedule,
)
from ctrlrl.nn.normalize import MinMaxNormalizer
from ctrlrl.policies.receding import Memory, advance
from ctrlrl.types import PolicyOutput, Window

Predict = Callable[[Tensor, float], Tensor]  # x [n, H, A] and a level -> what the network says, [n, H, A]
Noise = Callable[[Tensor], Tensor]
SCHEDULES: dict[str, Callable[[int], Schedule]] = {"cosine": cosine_schedule, "vp": vp_schedule}


class DiffusionProcess(nn.Module):
    """K levels of a schedule, 0 the cleanest; the network is told the number of the level."""

    path = "preserving"
    alpha: Tensor  # [K]
    sigma: Tensor  # [K]

    def __init__(
        self,
        n_levels: int,
        prediction: str,
        sampler: str,
        n_steps: int,
        spacing: str,
        warm: Sequence[int] = (),
        schedule: str = "cosine",
    ):
        """warm: the levels at which a shifted former sample is denoised again; () = samples begin at noise."""
        super().__init__()
        self.schedule = SCHEDULES[schedule](n_levels)
        self.n_levels, self.prediction, self.sampler, self.warm = n_levels, prediction, sampler, tuple(warm)
        spaced = leading_levels if spacing == "leading" else trailing_levels
        self.levels = spaced(n_levels, n_steps) if sampler == "ddim" else list(reversed(range(n_levels)))
        alpha, sigma = self.schedule.tables()
        self.register_buffer("alpha", alpha, persistent=False)
        self.register_buffer("sigma", sigma, persistent=False)

    def scales(self, level: float) -> tuple[float, float]:
        """alpha and sigma where the network is told `level`: x = alpha data + sigma noise."""
        return self.schedule.scales(int(level))

    def level_at(self, alpha: float, sigma: float) -> float:
        return level_at(self.schedule, alpha, sigma)

    def lesson(self, data: Tensor, noise: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy chunks [n, H, A], their levels [n], and what the network shall say. uniform: [n] in [0, 1)."""
        k = (uniform * self.n_levels).long()
        alpha, sigma = (table[k].view(-1, 1, 1) for table in (self.alpha, self.sigma))
        return noisy(data, noise, alpha, sigma), k.float(), prediction(self.prediction, data, noise, alpha, sigma)

    def sample(self, predict: Predict, x: Tensor, noise: Noise) -> Tensor:
        """From noise x [n, H, A] to data. noise: makes what the ancestral sampler adds."""
        if self.sampler == "ddim":
            return ddim(predict, x, self.levels, self.schedule, kind=self.prediction)
        return ddpm(predict, x, self.levels, self.schedule, kind=self.prediction, noise=noise)

    def resume(self, predict: Predict, guess: Tensor, noise: Noise) -> Tensor:
        """From a guess [n, H, A], to which no noise is added, to data. RTI-DP, arXiv:2508.05396."""
        return ddpm(predict, guess, self.warm, self.schedule, kind=self.prediction, noise=noise)


class FlowProcess(nn.Module):
    """A straight path from noise at time 0 to data at 1; the network is told the time.

    It says the velocity, data - noise, or the data themselves: of those noise need not pass through the network, which
    a narrow one cannot do for a long chunk. The field that is followed is the velocity's either way.
    """

    path = "straight"

    def __init__(self, sampler: str, n_steps: int, warm: Sequence[float] = (), prediction: str = "velocity"):
        """warm: the times at which a shifted former sample goes on from; () = samples begin at noise."""
        super().__init__()
        self.solve = midpoint if sampler == "midpoint" else euler
        self.times, self.warm, self.prediction = uniform_times(n_steps), tuple(warm), prediction

    def scales(self, level: float) -> tuple[float, float]:
        return level, 1.0 - level

    def level_at(self, alpha: float, sigma: float) -> float:
        return alpha / (alpha + sigma)

    def lesson(self, data: Tensor, noise: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        t = uniform.view(-1, 1, 1)
        at = t, 1.0 - t
        return noisy(data, noise, *at), uniform, prediction(self.prediction, data, noise, *at)

    def field(self, predict: Predict) -> Predict:
        """The velocity at x and a time below 1, of what the network says there."""
        if self.prediction == "velocity":
            return predict

        def velocity(x: Tensor, t: float) -> Tensor:
            at = self.scales(t)
            return prediction("velocity", *ends(self.prediction, predict(x, t), x, *at), *at)

        return velocity

    def sample(self, predict: Predict, x: Tensor, noise: Noise) -> Tensor:
        """Clipped once, at the end: on the way it would bend the flow."""
        return self.solve(self.field(predict), x, self.times).clamp(-1.0, 1.0)

    def resume(self, predict: Predict, guess: Tensor, noise: Noise) -> Tensor:
        return self.solve(self.field(predict), guess, (*self.warm, 1.0)).clamp(-1.0, 1.0)


class ChunkPolicy(nn.Module):
    """p(chunk | last observations) behind min-max normalisers, executed as `advance` has it.

    head: (noisy chunk [n, H, A], level [n] or a number, condition [n, n_obs * O]) -> [n, H, A].
    start: the noise that deterministic plans begin at; drawn once, saved with the weights. Single `draws` begin at 0.
    columns: the numbers of an observation that it sees, None = all; none at all make an unconditional policy.
    switches: numbers of the action that are one of two, as a gripper is. They are executed at an end of their range; in
    the plan that a warm start goes on from they are kept at +-`switch_guess`, because a shifted jump is a bad guess
    (RTI-DP's "clip", arXiv:2508.05396 and its code).
    """

    start: Tensor
    columns: Tensor | None
    n_asked = 1  # evaluations of the network that one answer of `predictor` takes

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        head: Any,
        process: Any,
        window: Window,
        *,
        columns: Sequence[int] | None = None,
        switches: Sequence[int] = (),
        switch_guess: float = 1.0,
    ):
        super().__init__()
        self.obs_dim, self.window, self.process, self.head = obs_dim, window, process, head
        self.switches, self.switch_guess = list(switches), switch_guess
        if self.switches and not 0 <= min(self.switches) <= max(self.switches) < action_dim:
            raise ValueError(f"switches={self.switches}: an action has the numbers 0 ... {action_dim - 1}")
        seen = None if columns is None else torch.tensor(columns, dtype=torch.int64)
        self.register_buffer("columns", seen, persistent=False)
        self.obs_normalizer = MinMaxNormalizer(obs_dim if columns is None else len(columns))
        self.action_normalizer = MinMaxNormalizer(action_dim)
        self.register_buffer("start", torch.randn(window.horizon, action_dim))

    def seen(self, obs: Tensor) -> Tensor:
        """Observations [..., O] -> what it sees of them [..., number of columns]."""
        return obs if self.columns is None else obs.index_select(-1, self.columns)

    def condition(self, obs: Tensor) -> Tensor:
        """Raw observations [n, n_obs, O], oldest first -> [n, n_obs * number of columns]."""
        return self.obs_normalizer(self.seen(obs)).flatten(1)

    def predictor(self, obs: Tensor, head: Any = None) -> Predict:
        """What the network says under these observations [n, n_obs, O]; their part of it is computed once.

        head: a network other than its own, e.g. the one that is trained and that its own follows.
        """
        said = self.head if head is None else head
        context = said.context(self.condition(obs))
        return lambda x, level: said.at(x, level, context).float()

    def sample(self, obs: Tensor, *, deterministic: bool = False, head: Any = None) -> Tensor:
        """Normalised chunks [n, H, A] under raw observations [n, n_obs, O]. head: as `predictor` takes it."""
        start = self.start.expand(obs.shape[0], -1, -1)
        x = start if deterministic else torch.randn_like(start)
        return self.process.sample(self.predictor(obs, head), x, noise_maker(deterministic))

    def draws(self, obs: Tensor, n: int, *, head: Any = None, deterministic: bool = False) -> Tensor:
        """n first actions of fresh chunks under each of [N, O], within the box: [n, N, A]. For windows of one step.

        Deterministic: n times the action that begins at the most probable noise, 0.
        """
        many = obs.expand(n, *obs.shape).flatten(0, 1).unsqueeze(1)
        noise = noise_maker(deterministic)
        x = noise(self.start.expand(many.shape[0], -1, -1))
        chunk = self.process.sample(self.predictor(many, head), x, noise)[:, 0]
        return self.action_normalizer.inverse(chunk).clamp(-1.0, 1.0).unflatten(0, (n, -1))

    def resample(self, obs: Tensor, guess: Tensor, *, deterministic: bool = False) -> Tensor:
        """The same from guesses [n, H, A] close to the data, through a few last levels."""
        return self.process.resume(self.predictor(obs), guess, noise_maker(deterministic))

    def act_in_episode(
        self, obs: Tensor, memory: Memory | None, begins: Tensor | None, *, deterministic: bool = False
    ) -> tuple[PolicyOutput, Memory]:
        def plan(seen: Tensor) -> Tensor:
            return self.thrown(self.sample(seen, deterministic=deterministic), self.switch_guess)

        def follow(seen: Tensor, guess: Tensor) -> Tensor:
            return self.thrown(self.resample(seen, guess, deterministic=deterministic), self.switch_guess)

        action, memory = advance(memory, obs, begins, self.window, plan, follow if self.process.warm else None)
        return PolicyOutput(self.executed(action), None, {}), memory

    def executed(self, x: Tensor) -> Tensor:
        """Normalised actions [..., A] as they are executed: switches thrown, in the environment's units and its box."""
        return self.action_normalizer.inverse(self.thrown(x, 1.0)).clamp(-1.0, 1.0)

    def thrown(self, x: Tensor, size: float) -> Tensor:
        """Normalised actions [..., A] with their switches at +-size."""
        if not self.switches:
            return x
        x = x.clone()
        x[..., self.switches] = torch.where(x[..., self.switches] > 0.0, size, -size)
        return x

    def act(self, obs: Tensor, *, deterministic: bool = False) -> PolicyOutput:
        """As at the first step of an episode: observations [n, O] to the first action of a new plan."""
        return self.act_in_episode(obs, None, None, deterministic=deterministic)[0]


def noise_maker(deterministic: bool) -> Noise:
    return torch.zeros_like if deterministic else torch.randn_like

"""Policies that draw a chunk of actions from noise: by a diffusion, arXiv:2303.04137, or by a flow, arXiv:2210.02747.

A process knows its path from noise to data: what the network is trained on, and how its samples are made. Chunks are
normalised here; the policy unnormalises the one action that it executes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ctrlrl.functional.paths import sample_path
from ctrlrl.functional.predictions import noisy, prediction
from ctrlrl.functional.samplers import ddim, ddpm, euler, midpoint, uniform_times
from ctrlrl.functional.schedules import cosine_schedule, leading_levels, trailing_levels
from ctrlrl.nn.normalize import MinMaxNormalizer
from ctrlrl.policies.receding import Memory, advance
from ctrlrl.types import PolicyOutput, Window

Predict = Callable[[Tensor, float], Tensor]  # x [n, H, A] and a level -> what the network says, [n, H, A]
Noise = Callable[[Tensor], Tensor]


class DiffusionProcess(nn.Module):
    """K levels of a squared cosine, 0 the cleanest; the network is told the number of the level."""

    alpha: Tensor  # [K]
    sigma: Tensor  # [K]

    def __init__(self, n_levels: int, prediction: str, sampler: str, n_steps: int, spacing: str, warm: Sequence[int]):
        """warm: the levels at which a shifted former sample is denoised again; () = samples begin at noise."""
        super().__init__()
        self.schedule = cosine_schedule(n_levels)
        self.n_levels, self.prediction, self.sampler, self.warm = n_levels, prediction, sampler, tuple(warm)
        spaced = leading_levels if spacing == "leading" else trailing_levels
        self.levels = spaced(n_levels, n_steps) if sampler == "ddim" else list(reversed(range(n_levels)))
        alpha, sigma = self.schedule.tables()
        self.register_buffer("alpha", alpha, persistent=False)
        self.register_buffer("sigma", sigma, persistent=False)

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
    """A straight path from noise at time 0 to data at 1; the network is told the time, and says data - noise."""

    def __init__(self, sampler: str, n_steps: int, warm: Sequence[float]):
        """warm: the times at which a shifted former sample goes on from; () = samples begin at noise."""
        super().__init__()
        self.solve = midpoint if sampler == "midpoint" else euler
        self.times, self.warm = uniform_times(n_steps), tuple(warm)

    def lesson(self, data: Tensor, noise: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, velocity = sample_path(data, noise, uniform.view(-1, 1, 1))
        return x, uniform, velocity

    def sample(self, predict: Predict, x: Tensor, noise: Noise) -> Tensor:
        """Clipped once, at the end: on the way it would bend the flow."""
        return self.solve(predict, x, self.times).clamp(-1.0, 1.0)

    def resume(self, predict: Predict, guess: Tensor, noise: Noise) -> Tensor:
        return self.solve(predict, guess, (*self.warm, 1.0)).clamp(-1.0, 1.0)


class ChunkPolicy(nn.Module):
    """p(chunk | last observations) behind min-max normalisers, executed as `advance` has it.

    head: (noisy chunk [n, H, A], level [n] or a number, condition [n, n_obs * O]) -> [n, H, A].
    start: the noise that all deterministic samples begin at; drawn once, saved with the weights.
    switches: numbers of the action that are one of two, as a gripper is. They are executed at an end of their range; in
    the plan that a warm start goes on from they are kept at +-`switch_guess`, because a shifted jump is a bad guess
    (RTI-DP's "clip", arXiv:2508.05396 and its code).
    """

    start: Tensor

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        head: Any,
        process: Any,
        window: Window,
        *,
        switches: Sequence[int] = (),
        switch_guess: float = 1.0,
    ):
        super().__init__()
        self.window, self.process, self.head = window, process, head
        self.switches, self.switch_guess = list(switches), switch_guess
        if self.switches and not 0 <= min(self.switches) <= max(self.switches) < action_dim:
            raise ValueError(f"switches={self.switches}: an action has the numbers 0 ... {action_dim - 1}")
        self.obs_normalizer, self.action_normalizer = MinMaxNormalizer(obs_dim), MinMaxNormalizer(action_dim)
        self.register_buffer("start", torch.randn(window.horizon, action_dim))

    def condition(self, obs: Tensor) -> Tensor:
        """Raw observations [n, n_obs, O], oldest first -> [n, n_obs * O]."""
        return self.obs_normalizer(obs).flatten(1)

    def predictor(self, obs: Tensor) -> Predict:
        """What the network says under these observations [n, n_obs, O]; their part of it is computed once."""
        context = self.head.context(self.condition(obs))
        return lambda x, level: self.head.at(x, level, context).float()

    def sample(self, obs: Tensor, *, deterministic: bool = False) -> Tensor:
        """Normalised chunks [n, H, A] under raw observations [n, n_obs, O]."""
        start = self.start.expand(obs.shape[0], -1, -1)
        x = start if deterministic else torch.randn_like(start)
        return self.process.sample(self.predictor(obs), x, _noise(deterministic))

    def resample(self, obs: Tensor, guess: Tensor, *, deterministic: bool = False) -> Tensor:
        """The same from guesses [n, H, A] close to the data, through a few last levels."""
        return self.process.resume(self.predictor(obs), guess, _noise(deterministic))

    def act_in_episode(
        self, obs: Tensor, memory: Memory | None, begins: Tensor | None, *, deterministic: bool = False
    ) -> tuple[PolicyOutput, Memory]:
        def plan(seen: Tensor) -> Tensor:
            return self.thrown(self.sample(seen, deterministic=deterministic), self.switch_guess)

        def follow(seen: Tensor, guess: Tensor) -> Tensor:
            return self.thrown(self.resample(seen, guess, deterministic=deterministic), self.switch_guess)

        action, memory = advance(memory, obs, begins, self.window, plan, follow if self.process.warm else None)
        action = self.action_normalizer.inverse(self.thrown(action, 1.0)).clamp(-1.0, 1.0)
        return PolicyOutput(action, None, {}), memory

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


def _noise(deterministic: bool) -> Noise:
    return torch.zeros_like if deterministic else torch.randn_like

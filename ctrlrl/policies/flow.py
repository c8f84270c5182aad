"""Policies that act at the end of a flow in action space, which begins at standard normal noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ctrlrl.functional import distributions as dist
from ctrlrl.functional.paths import END_TIMES, predicted_noise, sample_path
from ctrlrl.functional.samplers import euler, midpoint, uniform_times
from ctrlrl.nn.velocity import CosineVelocity, FourierVelocity
from ctrlrl.types import PolicyOutput

LOG_STD_BOUNDS = (-20.0, 4.0)


class NoisyFlowPolicy(nn.Module):
    """a = (phi_1(z; s) + n) / scale, z ~ N(0, I), n ~ N(0, std^2), a free std. PolicyFlow, arXiv:2602.01156.

    The density of n alone is known: `log_prob` of an output is that of its noise.
    degenerate: z = 0 always, which leaves a Gaussian around phi_1(0; s).
    scale: flow and noise live in the box [-scale, scale]; against a box of +-1 the start z alone would be too wide.
    """

    needs_extras: ClassVar[bool] = True
    grid: Tensor  # [2 n + 1] the times at which the midpoint rule asks for the velocity, and the end

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        *,
        activation: str,
        embed_dim: int,
        path: str,
        flow_steps: int,
        log_std_init: float,
        degenerate: bool,
        scale: float = 1.0,
        **init: Any,
    ):
        super().__init__()
        self.degenerate, self.scale = degenerate, scale
        self.velocity = FourierVelocity(obs_dim, action_dim, hidden, embed_dim=embed_dim, activation=activation, **init)
        self.log_std = nn.Parameter(torch.full((action_dim,), float(log_std_init)))
        self.times = uniform_times(flow_steps, END_TIMES[path])
        self.register_buffer("grid", torch.tensor(uniform_times(2 * flow_steps, END_TIMES[path])), persistent=False)

    def bounded_log_std(self) -> Tensor:
        return self.log_std.clamp(*LOG_STD_BOUNDS)

    def flow(self, obs: Tensor, z: Tensor) -> Tensor:
        """phi_1(z; s): [..., O] and [..., A] -> [..., A]."""
        context, rows = self.velocity.context(obs), self.velocity.time(self.grid)
        per_step = 2.0 / self.times[1]
        return midpoint(lambda x, t: self.velocity.at(context, x, rows[round(t * per_step)]), z, self.times)

    def act(self, obs: Tensor, *, deterministic: bool = False) -> PolicyOutput:
        """The deterministic action belongs to z = 0 and n = 0; log_prob is None for it."""
        z = obs.new_zeros(*obs.shape[:-1], len(self.log_std), dtype=torch.float32)
        if not (deterministic or self.degenerate):
            z = torch.randn_like(z)
        mean = self.flow(obs, z)
        if deterministic:
            return PolicyOutput(mean / self.scale, None, {})
        log_std = self.bounded_log_std()
        noise = dist.gaussian_sample(torch.zeros_like(mean), log_std)
        log_prob = dist.gaussian_log_prob(noise, torch.zeros_like(noise), log_std)
        extras = {"z": z, "mean": mean, "noise": noise, "log_std": log_std.expand_as(mean)}
        return PolicyOutput((mean + noise) / self.scale, log_prob, extras)


class MatchedFlowPolicy(nn.Module):
    """a = phi_1(z; s), kept with the flow-matching errors that stand for its density. FPO, arXiv:2507.21053.

    Every action is stored with `n_pairs` draws of noise and time and its error there; `log_prob` is minus their mean.
    squash: the action is tanh of the flow's end, as the authors step their environments; the errors are those of the
    end itself.
    """

    needs_extras: ClassVar[bool] = True
    grid: Tensor  # [n] times of the Euler steps, 0, 1 / n, ...; those of the pairs are drawn from them

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        *,
        activation: str,
        n_frequencies: int,
        scale: float,
        flow_steps: int,
        n_pairs: int,
        squash: bool,
        **init: Any,
    ):
        super().__init__()
        self.n_pairs, self.squash = n_pairs, squash
        self.velocity = CosineVelocity(
            obs_dim, action_dim, hidden, n_frequencies=n_frequencies, scale=scale, activation=activation, **init
        )
        self.times = uniform_times(flow_steps)
        self.register_buffer("grid", torch.tensor(self.times[:-1]), persistent=False)

    def _time_rows(self) -> Tensor:
        # the authors' time runs from 1, noise, to 0, and their field against ours
        return self.velocity.time(1.0 - self.grid)

    def flow(self, context: Tensor, z: Tensor) -> Tensor:
        """phi_1(z; s): the states' part of the field [..., H] and [..., A] -> [..., A]."""
        rows, n = self._time_rows(), len(self.grid)
        return euler(lambda x, t: -self.velocity.at(context, x, rows[round(t * n)]), z, self.times)

    def matching_error(self, context: Tensor, end: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """Mean over A of (e - predicted e)^2 on the path from e to the flow's end, [..., K].

        context [..., H]; end [..., A]; noise e [..., K, A]; step [..., K] int64, the place of t in the grid.
        """
        t = self.grid[step].unsqueeze(-1)
        point, _ = sample_path(end.unsqueeze(-2).expand_as(noise), noise, t)
        known = context.unsqueeze(-2) + nn.functional.embedding(step, self._time_rows())
        velocity = -self.velocity.at(known, point)
        return (noise - predicted_noise(point, velocity, t)).square().mean(-1)

    def act(self, obs: Tensor, *, deterministic: bool = False) -> PolicyOutput:
        """The deterministic action belongs to z = 0, the most probable noise."""
        context = self.velocity.context(obs)
        z = obs.new_zeros(*obs.shape[:-1], self.velocity.action_dim, dtype=torch.float32)
        if not deterministic:
            z = torch.randn_like(z)
        end = self.flow(context, z)
        action = end.tanh() if self.squash else end
        if deterministic:
            return PolicyOutput(action, None, {})
        pairs = (*end.shape[:-1], self.n_pairs)
        noise = torch.randn(*pairs, end.shape[-1], device=end.device)
        step = torch.randint(len(self.grid), pairs, device=end.device)
        error = self.matching_error(context, end, noise, step)
        return PolicyOutput(action, -error.mean(-1), {"end": end, "noise": noise, "step": step, "error": error})

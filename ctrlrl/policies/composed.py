"""Several chunk policies sampled as one, without training: GPC, arXiv:2510.01068, and superposition, arXiv:2412.17762.

There is one noisy chunk and one sampler; every parent says what it sees at the same signal-to-noise ratio.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctrlrl.functional.composition import (
    Model,
    Rule,
    and_along_flow,
    and_weights,
    combined,
    convex,
    guided,
    or_weights,
    row_weights,
    superpose,
)
from ctrlrl.functional.predictions import ends, on_path, prediction
from ctrlrl.functional.samplers import clipped, ddim
from ctrlrl.policies.composable import Parent, can_be_tracked, covers, is_diffusion, one_window, same_task, weights_fit
from ctrlrl.policies.diffusion import ChunkPolicy, noise_maker
from ctrlrl.policies.receding import Memory, advance
from ctrlrl.types import PolicyOutput, Window


class ComposedPolicy(nn.Module):
    """mode: what the parents' predictions become.

    convex:  their mean under weights that add up to 1; parents of weight 0 are left out of everything, so weight 1
             is that parent to the bit.
    product: base + sum of weight * (parent - base), with an unconditional `base`.
    or:      samples of any of them, as often as its weight says; ancestral sampling.
    and:     samples that are equally likely under all; ancestral sampling, or with `exact` along the probability flow,
             whose divergences Hutchinson's estimator finds.

    The sampler is that of the first parent that is a diffusion, else of the first one. Chunks are aligned in time, and
    begin at the noise of the longest; rows of which some parents say nothing are left to the others.
    """

    start: Tensor

    def __init__(
        self,
        parents: Sequence[Parent],
        weights: Sequence[float],
        *,
        mode: str = "convex",
        base: Parent | None = None,
        exact: bool = False,
        n_actions: int | None = None,
    ):
        super().__init__()
        weights_fit(parents, weights, mode, base, exact)
        same_task([*parents, *([] if base is None else [base])])
        used = [(parent, w) for parent, w in zip(parents, weights, strict=True) if w != 0.0]
        self.mode, self.exact = mode, exact
        self.weights = [w for _, w in used]
        live = [parent for parent, _ in used]
        self.policies = nn.ModuleList([parent.policy for parent in live])
        self.base: Any = None if base is None else base.policy
        everyone = [*live, *([] if base is None else [base])]
        self._host = next((i for i, parent in enumerate(everyone) if is_diffusion(parent)), 0)
        if mode != "convex":
            one_window(everyone, mode)
        if mode in ("or", "and"):
            can_be_tracked(live, mode)
        self.window, self.firsts = common_window([parent.policy.window for parent in live])
        if n_actions is not None:
            covers(live, n_actions)
            self.window = self.window._replace(n_actions=n_actions)
        self.register_buffer("start", _start(self._policies(), self.firsts, self.window.horizon), persistent=False)

    def _policies(self) -> list[Any]:
        return list(self.policies)

    @property
    def host(self) -> Any:
        """The policy whose sampler runs."""
        return [*self.policies, self.base][self._host]

    def sample(self, obs: Tensor, *, deterministic: bool = False) -> Tensor:
        """Normalised chunks [n, H, A] under raw observations [n, n_obs, O]."""
        if self._alone:
            return self.host.sample(obs, deterministic=deterministic)
        start, noise = self.start.expand(obs.shape[0], -1, -1), noise_maker(deterministic)
        x = start if deterministic else torch.randn_like(start)
        if self.mode in ("convex", "product"):
            return self.host.process.sample(self.predictor(obs), x, noise)
        if self.exact:
            return self._exact_and(obs, x, start.sign() if deterministic else None)
        schedule = self.host.process.schedule
        levels = range(len(schedule.beta) - 1, -1, -1)
        return superpose(self._models(obs, "noise"), self._rule(x), x, levels, schedule, noise=noise)[0]

    def resample(self, obs: Tensor, guess: Tensor, *, deterministic: bool = False) -> Tensor:
        """The same from guesses [n, H, A] close to the data, through the host's few last levels."""
        if self._alone:
            return self.host.resample(obs, guess, deterministic=deterministic)
        return self.host.process.resume(self.predictor(obs), guess, noise_maker(deterministic))

    def act_in_episode(
        self, obs: Tensor, memory: Memory | None, begins: Tensor | None, *, deterministic: bool = False
    ) -> tuple[PolicyOutput, Memory]:
        host = self.host

        def plan(seen: Tensor) -> Tensor:
            return host.thrown(self.sample(seen, deterministic=deterministic), host.switch_guess)

        def follow(seen: Tensor, guess: Tensor) -> Tensor:
            return host.thrown(self.resample(seen, guess, deterministic=deterministic), host.switch_guess)

        guessed = self._alone or self.mode in ("convex", "product")
        warm = host.process.warm and guessed and self.window.n_actions == 1
        action, memory = advance(memory, obs, begins, self.window, plan, follow if warm else None)
        action = host.action_normalizer.inverse(host.thrown(action, 1.0)).clamp(-1.0, 1.0)
        return PolicyOutput(action, None, {}), memory

    def act(self, obs: Tensor, *, deterministic: bool = False) -> PolicyOutput:
        """As at the first step of an episode: observations [n, O] to the first action of a new plan."""
        return self.act_in_episode(obs, None, None, deterministic=deterministic)[0]

    @property
    def _alone(self) -> bool:
        return len(self.policies) == 1 and self.base is None

    def predictor(self, obs: Tensor) -> Model:
        """What the parents say together, as the host's sampler asks for it."""
        models = self._models(obs, self.host.process.prediction)
        if self.base is not None:
            return guided(models[-1], models[:-1], self.weights)
        if all(policy.window.horizon == self.window.horizon for policy in self._policies()):
            return convex(models, self.weights)
        rows = torch.arange(self.window.horizon, device=obs.device)
        spoken = torch.stack(
            [
                (rows >= first) & (rows < first + policy.window.horizon)
                for policy, first in zip(self._policies(), self.firsts, strict=True)
            ]
        )
        shares = row_weights(torch.tensor(self.weights, device=obs.device), spoken).unsqueeze(-1)
        return combined(
            [_times(model, share) for model, share in zip(models, shares, strict=True)], [1.0] * len(models)
        )

    def _models(self, obs: Tensor, kind: str) -> list[Model]:
        """Every parent, the base last, as a model of common chunks [n, H, A] that predicts this kind."""
        firsts = [*self.firsts, *([] if self.base is None else [0])]
        policies = [*self._policies(), *([] if self.base is None else [self.base])]
        return [self._model(policy, first, obs, kind) for policy, first in zip(policies, firsts, strict=True)]

    def _model(self, policy: ChunkPolicy, first: int, obs: Tensor, kind: str) -> Model:
        n_obs, horizon, _ = policy.window
        own = policy.predictor(obs[:, obs.shape[1] - n_obs :])
        said = translated(own, policy.process, self.host.process, kind)
        after = self.window.horizon - first - horizon
        if first == after == 0:
            return said
        return lambda x, level: F.pad(said(x[:, first : first + horizon], level), (0, 0, first, after))

    def _rule(self, x: Tensor) -> Rule:
        if self.mode == "and":
            return and_weights
        prior = torch.tensor(self.weights, dtype=x.dtype, device=x.device).log().unsqueeze(1)
        return lambda means, log_density, z, beta: or_weights(log_density, bias=prior)

    def _exact_and(self, obs: Tensor, x: Tensor, fixed: Tensor | None) -> Tensor:
        """fixed: the probe of all steps; None: a new one for each.

        The noise is what the clipped data leave of x: early weights are large, and unclipped noise would stay so.
        """
        schedule, levels = self.host.process.schedule, self.host.process.levels
        probe = _signs if fixed is None else lambda x: fixed
        together = and_along_flow(self._models(obs, "noise"), schedule, probe=probe, least=1e-4)

        def predict(x: Tensor, k: int) -> Tensor:
            return clipped(ends("noise", together(x, k), x, *schedule.scales(k))[0], 1.0)

        return ddim(predict, x, levels, schedule, kind="data")


def translated(predict: Model, process: Any, host: Any, kind: str) -> Model:
    """What a network of `process` says, at x and level of `host`'s path and as a prediction of this kind.

    It is asked at the same signal-to-noise ratio, which on its own path is another x and another level.
    """
    here = _alike(process, host)
    if here and kind == process.prediction:
        return predict

    def said(x: Tensor, level: float) -> Tensor:
        alpha, sigma = host.scales(level)
        own_x, own_alpha, own_sigma = (x, alpha, sigma) if here else on_path(process.path, x, alpha, sigma)
        own_level = level if here else process.level_at(own_alpha, own_sigma)
        spoken = predict(own_x, own_level)
        if kind == process.prediction and process.path == host.path:
            return spoken
        return prediction(kind, *ends(process.prediction, spoken, own_x, own_alpha, own_sigma), alpha, sigma)

    return said


def common_window(windows: Sequence[Window]) -> tuple[Window, list[int]]:
    """The window that holds all of these with the present rows on one another, and the row where each begins in it.

    As few actions are executed as by the parent that executes the fewest.
    """
    n_obs = max(window.n_obs for window in windows)
    ahead = max(window.horizon - window.n_obs for window in windows)
    n_actions = min(window.n_actions for window in windows)
    return Window(n_obs, n_obs + ahead, n_actions), [n_obs - window.n_obs for window in windows]


def _signs(x: Tensor) -> Tensor:
    return torch.randn_like(x).sign()


def _times(model: Model, share: Tensor) -> Model:
    return lambda x, level: share * model(x, level)


def _alike(process: Any, host: Any) -> bool:
    return type(process) is type(host) and getattr(process, "schedule", None) == getattr(host, "schedule", None)


def _start(policies: Sequence[Any], firsts: Sequence[int], horizon: int) -> Tensor:
    """The parents' own noise of deterministic samples, the longest parent's where they overlap: [H, A]."""
    start = policies[0].start.new_zeros(horizon, policies[0].start.shape[1])
    for policy, first in sorted(zip(policies, firsts, strict=True), key=lambda pair: pair[0].window.horizon):
        start[first : first + policy.window.horizon] = policy.start
    return start

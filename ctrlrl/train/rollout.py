"""Collect rollouts: T vector steps into preallocated, time-major storage, and the returns of finished episodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ctrlrl.core.actor_critic import ActorCriticLearner
from ctrlrl.core.compile import Graph
from ctrlrl.functional.returns import discounted_sums
from ctrlrl.functional.scan import append_axes
from ctrlrl.types import Extras, PolicyOutput, Rollout, TimeStep, VecEnv

WINDOW = 100  # episodes the reported training return averages over


class EpisodeSums(NamedTuple):
    """Sums over the whole episodes that ended in one rollout; 0-dim tensors on the device."""

    episodes: Tensor
    returns: Tensor
    lengths: Tensor


class Steps(NamedTuple):
    """What the returns of episodes are made of, time-major, as in a Rollout."""

    reward: Tensor  # [T, B] or [T, B, M]
    terminated: Tensor  # [T, B] bool
    truncated: Tensor  # [T, B] bool
    extras: Extras


class EpisodeTracker:
    """Running return and length of every lane, advanced once a rollout.

    With staggered start clocks a lane's first episode is cut short by design, so it does not count.
    """

    def __init__(self, n_envs: int, device: torch.device, *, skip_first: bool):
        self.running = torch.zeros(2, n_envs, device=device)  # return and length of the episodes under way
        self.counts = torch.full((n_envs,), not skip_first, device=device)

    def advance(self, rollout: Rollout | Steps) -> EpisodeSums:
        sums, counted = self.ended(rollout)
        returns, lengths = (sums.double() * counted.unsqueeze(1)).sum((0, 2))
        return EpisodeSums(counted.sum(), returns, lengths)

    def ended(self, rollout: Rollout | Steps) -> tuple[Tensor, Tensor]:
        """Return and length up to every step [T, 2, B], and where a whole episode ended [T, B]."""
        done = rollout.terminated | rollout.truncated
        reward = rollout.reward if rollout.reward.ndim == 2 else rollout.reward.sum(-1)
        mask = rollout.extras.get("mask")
        steps = torch.ones_like(reward) if mask is None else mask.to(reward.dtype)
        sums = discounted_sums(torch.stack((reward, steps), 1), done.unsqueeze(1), self.running, gamma=1.0)
        counted = done & (self.counts | (done.cumsum(0) > 1))
        self.running.copy_(sums[-1] * ~done[-1])
        self.counts |= done.any(0)
        return sums, counted


def recent_means(recent: deque[EpisodeSums]) -> dict[str, float]:
    """Mean return and length of the last WINDOW or more whole episodes; older sums are dropped. Reads the device."""
    counts = [int(sums.episodes) for sums in recent]
    while len(counts) > 1 and sum(counts[1:]) >= WINDOW:
        counts.pop(0)
        recent.popleft()
    n = sum(counts)
    if n == 0:
        return {}
    returns = sum(float(sums.returns) for sums in recent)
    lengths = sum(float(sums.lengths) for sums in recent)
    return {"rollout/return": returns / n, "rollout/length": lengths / n, "rollout/episodes": float(n)}


def fresh_seed(seed: int, env_steps: int) -> int:
    """For an environment that cannot be restored: not the seed that the run began with."""
    return int(np.random.SeedSequence((seed, env_steps)).generate_state(1)[0])


class Collector:
    """Fills one Rollout after another. Values come once a rollout, in large batches, from the critic that acted.

    on_step: sees every step as (observation acted on, policy output, time step); False ends collecting at once.
    """

    def __init__(self, env: VecEnv, learner: ActorCriticLearner, n_steps: int, *, graph: bool = False):
        self.env, self.learner, self.n_steps, self.graph = env, learner, n_steps, graph
        self.on_step: Callable[[Tensor, PolicyOutput, TimeStep], bool] | None = None
        self.storage: Rollout | None = None
        self.obs: Tensor | None = None
        self._captured: Graph | None = None
        # (time, lanes, final observations) of the truncations of this rollout; on CUDA the value is taken in the step
        self._cut: list[tuple[int, Tensor, Tensor]] = []
        self._on_cpu = env.spec.device.type == "cpu"
        # of all lanes in the step that truncates, where the critic must know whose lanes they are
        self._in_step = not self._on_cpu or getattr(learner, "by_lane", False)

    def reset(self, seed: int | None) -> None:
        self.obs = self.env.reset(seed).clone()

    @torch.no_grad()
    def collect(self) -> Rollout | None:
        """The next rollout; None where `on_step` ended it."""
        assert self.obs is not None, "reset() comes first"
        if self.storage is None:
            self._allocate()
        if self.graph:
            if self._captured is None:
                obs, saved_obs, env_state = self.obs, self.obs.clone(), self.env.state_dict()

                def undo() -> None:
                    obs.copy_(saved_obs)
                    self.env.load_state_dict(env_state)

                self._captured = Graph(self._steps, (), undo=undo)
            self._captured()
        elif not self._steps():
            return None
        return self._with_values()

    def _steps(self) -> bool:
        storage = self.storage
        assert storage is not None
        assert self.obs is not None
        self._cut.clear()
        for t in range(self.n_steps):
            out = self.learner.act(self.obs)
            assert out.log_prob is not None
            step = self.env.step(out.action)
            storage.obs[t] = self.obs
            storage.action[t] = out.action
            storage.log_prob[t] = out.log_prob
            storage.reward[t] = step.reward
            storage.terminated[t] = step.terminated
            storage.truncated[t] = step.truncated
            for name, tensor in {**out.extras, **step.extras}.items():
                if name not in storage.extras:  # an environment may report a thing only from its first episode end on
                    storage.extras[name] = self._room(*tensor.shape[1:], dtype=tensor.dtype)
                    if tensor.is_floating_point():
                        storage.extras[name].fill_(torch.nan)  # not told in the steps before
                storage.extras[name][t] = tensor
            self._keep_final_values(t, step)
            goes_on = self.on_step is None or self.on_step(self.obs, out, step)
            self.obs.copy_(step.obs)
            if not goes_on:
                return False
        return True

    def _keep_final_values(self, t: int, step: TimeStep) -> None:
        assert self.storage is not None
        if self._in_step:
            if not self._on_cpu or step.truncated.any():
                self.storage.next_value[t] = self.learner.value(step.final_obs)
        elif step.truncated.any():
            lanes = step.truncated.nonzero().squeeze(1)
            self._cut.append((t, lanes, step.final_obs[lanes]))

    def _with_values(self) -> Rollout:
        """Add value and next_value. Where an episode terminated, next_value is arbitrary: no formula may read it."""
        storage = self.storage
        assert storage is not None
        assert self.obs is not None
        value, last = self.learner.value(storage.obs), self.learner.value(self.obs)
        following = torch.cat((value[1:], last.unsqueeze(0)))
        if self._in_step:
            following = torch.where(append_axes(storage.truncated, following.ndim), storage.next_value, following)
        elif self._cut:
            times = torch.cat([torch.full_like(lanes, t) for t, lanes, _ in self._cut])
            lanes = torch.cat([lanes for _, lanes, _ in self._cut])
            following[times, lanes] = self.learner.value(torch.cat([obs for *_, obs in self._cut]))
        return storage._replace(value=value, next_value=following)

    def _room(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        spec = self.env.spec
        return torch.zeros(self.n_steps, spec.n_envs, *shape, dtype=dtype, device=spec.device)

    def _allocate(self) -> None:
        assert self.obs is not None
        spec, room = self.env.spec, self._room
        # where both values come after the rollout, they take the place of what is allocated here
        heads = () if not self._in_step else self.learner.value(self.obs).shape[1:]
        if spec.action_dim:
            action = room(spec.action_dim)
        else:
            action = room(*((len(spec.nvec),) if spec.nvec else ()), dtype=torch.int64)
        self.storage = Rollout(
            obs=room(spec.obs_dim, dtype=self.obs.dtype),
            action=action,
            log_prob=room(*self.learner.log_prob_shape),
            value=room(*heads),
            next_value=room(*heads),
            reward=room() if spec.reward_dim == 1 else room(spec.reward_dim),
            terminated=room(dtype=torch.bool),
            truncated=room(dtype=torch.bool),
            extras={},
        )

"""Roll a policy into a data set: preallocated rows, one lane after another, cut into whole episodes at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ctrlrl.data.episodes import Array, Episodes, Facts
from ctrlrl.types import TimeStep, VecEnv, begins, forgetting

Act = Callable[[Tensor], Tensor]
OWN_NOISE = -1.0  # a noise level: sample from the policy's own distribution


@torch.no_grad()
def collect(
    act: Act,
    env: VecEnv,
    facts: Facts,
    *,
    steps: int,
    seed: int,
    noise: Sequence[float] = (0.0,),
    sample: Act | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Episodes:
    """`steps` transitions of a policy; the environment must not stagger its clocks.

    act, sample: observations [B, O] to the policy's best actions and to a sample of them; see `forgetting`.
    noise: levels, dealt out to the lanes in turn. Continuous actions: standard deviation of a Gaussian added to the
        action before it is clipped to [-1, 1]; discrete ones: probability of a random action; -1: `sample`.
    on_step: called with the rows so far after every vector step.

    What is stored is the clipped action, which the environment executed. Episodes that the end of collecting cuts stay,
    as time-outs with their true last observation, and False in `episode_complete`.
    """
    spec = env.spec
    _check(env, steps, noise, sample)
    level = torch.tensor(noise, device=spec.device)[torch.arange(spec.n_envs, device=spec.device) % len(noise)]
    choose = _with_noise(act, sample, level, spec.n_actions)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        lanes = _Lanes(env, env.reset(seed))
        forget = [forgetting(policy) for policy in (act, sample) if policy is not None]
        for each in forget:
            each(None)
        rows = 0
        while rows < steps:  # once; again only where some steps of an environment are no transitions
            before, more = rows, -(-(steps - rows) // spec.n_envs)
            lanes.widen(more)
            for _ in range(more):
                begun = begins(lanes.step(choose(lanes.obs)))
                for each in forget if begun.any() else ():
                    each(begun)
                if on_step is not None:
                    on_step(min(lanes.time * spec.n_envs, steps))
            rows = lanes.finish()
            if rows == before:
                raise RuntimeError(f"{facts.path}: {more} steps of {spec.n_envs} environments gave no transition")
    lanes.drop_last(rows - steps)
    return lanes.episodes(facts, seed, level)


def _check(env: VecEnv, steps: int, noise: Sequence[float], sample: Act | None) -> None:
    spec = env.spec
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not noise or len(noise) > spec.n_envs:
        raise ValueError(f"noise has {len(noise)} levels for {spec.n_envs} environments; give 1 to n_envs of them")
    for value in noise:
        if not (value == OWN_NOISE or 0.0 <= value <= (1.0 if spec.n_actions else 10.0)):
            what = "a probability" if spec.n_actions else "a standard deviation in 0 ... 10"
            raise ValueError(f"noise must be {what}, or -1 for the policy's own, got {value:g}")
        if value == OWN_NOISE and sample is None:
            raise ValueError("noise=-1 samples from the policy, and this one is deterministic; give levels from 0 on")
    if spec.nvec or spec.reward_dim != 1:
        raise ValueError(
            "a data set holds one reward and one action, discrete or continuous, a row; this task has more"
        )


def _with_noise(act: Act, sample: Act | None, level: Tensor, n_actions: int) -> Act:
    """Observations to actions [B, A] in [-1, 1] or [B] int64, each lane with its level [B] of noise."""
    own, std = level == OWN_NOISE, level.clamp(min=0.0).unsqueeze(1)
    any_own, any_noise = bool(own.any()), bool((level > 0).any())  # read once, not in every step

    def noisy(obs: Tensor) -> Tensor:
        action = act(obs)
        if any_own and sample is not None:
            action = torch.where(own if n_actions else own.unsqueeze(1), sample(obs), action)
        if n_actions:
            if any_noise:
                chance = torch.rand(len(level), device=level.device) < level
                action = torch.where(chance, torch.randint_like(action, n_actions), action)
            return action
        if any_noise:
            action = action + std * torch.randn_like(action)
        return action.clamp(-1.0, 1.0)

    return noisy


class _Lanes:
    """Storage [B, T, ...]: a lane's rows lie one after another, so that its episodes are slices of one table."""

    def __init__(self, env: VecEnv, obs: Tensor):
        self.env, self.obs, self.time = env, obs.clone(), 0
        self.columns: dict[str, Tensor] = {}
        self.finals: list[tuple[int, Tensor, Tensor]] = []  # time, lanes, last observations of the episodes that ended
        self.success: list[Tensor | None] = []  # what the environment told of these

    def widen(self, more: int) -> None:
        """Room for `more` further steps."""
        spec, n = self.env.spec, self.env.spec.n_envs
        flag = torch.zeros(n, more, dtype=torch.bool, device=spec.device)
        number = torch.zeros(n, more, device=spec.device)
        action = number.long() if spec.n_actions else torch.empty(n, more, spec.action_dim, device=spec.device)
        room = {
            "obs": torch.empty(n, more, spec.obs_dim, dtype=self.obs.dtype, device=spec.device),
            "action": action,
            "reward": number,
            "terminated": flag,
            "done": flag.clone(),
            "valid": flag.clone(),
        }
        self.columns = {k: torch.cat((self.columns[k], v), 1) if self.columns else v for k, v in room.items()}

    def step(self, action: Tensor) -> TimeStep:
        c, t = self.columns, self.time
        c["obs"][:, t], c["action"][:, t] = self.obs, action
        step = self.env.step(action)
        done = step.terminated | step.truncated
        c["reward"][:, t], c["terminated"][:, t], c["done"][:, t] = step.reward, step.terminated, done
        c["valid"][:, t] = step.extras.get("mask", torch.ones_like(done))
        if done.any():
            self._keep_finals(step, done)
        self.obs.copy_(step.obs)
        self.time += 1
        return step

    def _keep_finals(self, step: TimeStep, done: Tensor) -> None:
        lanes = done.nonzero().squeeze(1)
        self.finals.append((self.time, lanes, step.final_obs[lanes]))
        self.success.append(step.extras["success"][lanes] if "success" in step.extras else None)

    def finish(self) -> int:
        """Number of rows that are transitions: not resets, and not those in which a simulation broke down."""
        self.columns["valid"] &= self.columns["reward"].isfinite()
        return int(self.columns["valid"].sum())

    def drop_last(self, surplus: int) -> None:
        """Take back the latest rows, as many as are too many."""
        n = self.env.spec.n_envs
        rows = self.columns["valid"].T.flatten().nonzero().squeeze(1)  # in the order of time
        rows = rows[len(rows) - surplus :]
        self.columns["valid"][rows % n, rows // n] = False

    def episodes(self, facts: Facts, seed: int, level: Tensor) -> Episodes:
        c = {k: v.cpu() for k, v in self.columns.items()}
        following = torch.zeros_like(c["valid"])
        following[:, :-1] = c["valid"][:, 1:]
        end = c["valid"] & (c["done"] | ~following)
        lane, time = end.nonzero().T
        final_obs = self._final_obs(c["obs"], end, lane, time)
        keep = c["valid"].flatten()
        flat = {k: v.flatten(0, 1) if bool(keep.all()) else v.flatten(0, 1)[keep] for k, v in c.items()}
        whole = c["done"][lane, time].numpy()
        extras = {
            "episode_noise_std": level.cpu()[lane].numpy(),
            "episode_seed": np.full(len(lane), seed, dtype=np.int64),
            "episode_lane": lane.numpy(),
            "episode_in_lane": _counted(lane.numpy()),
            "episode_complete": whole,
        }
        told = self._success(end)
        broken = int((~c["reward"].isfinite()).sum())
        if broken:
            facts = replace(
                facts, notices=(*facts.notices, f"{broken:,} rows left out: the simulation broke down there")
            )
        return Episodes(
            obs=flat["obs"].numpy(),
            action=flat["action"].numpy(),
            reward=flat["reward"].numpy(),
            terminated=flat["terminated"].numpy(),
            ends=np.flatnonzero(end.flatten()[keep].numpy()).astype(np.int64) + 1,
            final_obs=final_obs.numpy(),
            has_final=np.ones(len(lane), dtype=bool),
            usable=np.ones(int(keep.sum()), dtype=bool),
            extras={"timeouts": (end & ~c["terminated"]).flatten()[keep].numpy()},
            episode_extras=extras if told is None else extras | {"episode_success": told},
            facts=facts,
        )

    def _final_obs(self, obs: Tensor, end: Tensor, lane: Tensor, time: Tensor) -> Tensor:
        """[E, O]: of an ended episode what the step gave; of a cut one the observation that was acted on next."""
        inside = time + 1 < obs.shape[1]
        found = self.obs.cpu()[lane]
        found[inside] = obs[lane[inside], time[inside] + 1]
        for rows, there, (_, _, observation) in zip(*self._ended(end), self.finals, strict=True):
            found[rows] = observation.cpu()[there]
        return found

    def _success(self, end: Tensor) -> Array | None:
        """[E] 0 or 1, nan where nothing was told; None where the environment never tells."""
        if all(told is None for told in self.success):
            return None
        found = torch.full((int(end.sum()),), torch.nan)
        for rows, there, told in zip(*self._ended(end), self.success, strict=True):
            if told is not None:
                found[rows] = told.float().cpu()[there]
        return found.numpy()

    def _ended(self, end: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """For every entry of `finals`: which episodes these are, and which of its lanes they come from."""
        number = (end.flatten().cumsum(0) - 1).view_as(end)
        there = [end[lanes.cpu(), time] for time, lanes, _ in self.finals]
        rows = [number[lanes.cpu()[t], time] for t, (time, lanes, _) in zip(there, self.finals, strict=True)]
        return rows, there


def _counted(lane: Array) -> Array:
    """How many of the same value stand before each in an ascending array: the number of an episode in its lane."""
    first = np.flatnonzero(np.concatenate(([True], lane[1:] != lane[:-1])))
    return np.arange(len(lane)) - np.repeat(first, np.diff(np.concatenate((first, [len(lane)]))))

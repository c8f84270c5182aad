"""Judge a policy by where its roll-outs end: the goals they cover, besides the returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ctrlrl.functional.coverage import goal_reached, goal_shares, share_entropy
from ctrlrl.train.evaluate import forked_rng
from ctrlrl.types import Scene, VecEnv, forgetting

TRIALS = 1000  # roll-outs
COVERED = 0.02  # share of the roll-outs from which on a goal counts as covered


class Trials(NamedTuple):
    """One episode a lane, as `scene` sees it."""

    scene: Scene
    paths: Tensor  # [T + 1, N, 2] positions; after its end a roll-out stays where it ended
    reached: Tensor  # [N] int64, the goal it ended at, -1 = none


@torch.no_grad()
def run_trials(act: Callable[[Tensor], Tensor], env: VecEnv, scene: Scene, *, seed: int) -> Trials:
    """The first episode of every lane of `env`, which must have a time limit and not stagger its clocks.

    act: observations [B, O] to actions; sampled ones, because a deterministic policy ends in one place from one start.
    """
    limit = env.spec.episode_length
    if limit < 1:
        raise ValueError("trials: the environment must have a time limit")
    with forked_rng(seed):
        obs = env.reset(seed)
        forgetting(act)(None)
        paths = torch.empty(limit + 1, env.spec.n_envs, 2, dtype=obs.dtype)
        paths[0] = obs[:, scene.position]
        last, running = obs.clone(), torch.ones(env.spec.n_envs, 1, dtype=torch.bool, device=obs.device)
        for t in range(limit):
            step = env.step(act(obs))
            obs = step.obs
            last = torch.where(running, step.final_obs, last)
            paths[t + 1] = last[:, scene.position]
            running = running & ~(step.terminated | step.truncated).unsqueeze(1)
    last, target = last.cpu(), scene.target
    reached = goal_reached(
        last[:, scene.position],
        scene.goals.cpu(),
        reach=scene.reach,
        target=None if target is None else last[:, target],
    )
    return Trials(scene, paths, reached)


def coverage(trials: Trials) -> dict[str, float | int | list[float]]:
    """How many goals there are and are covered, the entropy in nats over them, and the share that ended at each."""
    shares = goal_shares(trials.reached, len(trials.scene.goals))
    return {
        "goals": len(shares),
        "goals_covered": int((shares >= COVERED).sum()),
        "coverage_entropy": share_entropy(shares).item(),
        "goal_shares": shares.tolist(),
        "reached": shares.sum().item(),
        "trials": trials.reached.numel(),
    }

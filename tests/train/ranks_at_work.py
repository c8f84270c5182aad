"""What two processes do for test_distributed.py: `python ranks_at_work.py OUT` under torchrun's variables.

Every function here runs the same in one process (with all lanes and rows) and on a rank (with its part of them).
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctrlrl.algos.bpo import BPOConfig, BPOLearner
from ctrlrl.algos.iql import IQLConfig, IQLLearner
from ctrlrl.algos.ppo import PPOConfig, PPOLearner
from ctrlrl.build import build
from ctrlrl.config import CheckpointConfig, EnvConfig, EvalConfig, LogConfig, TrainConfig
from ctrlrl.core import update as core_update
from ctrlrl.core.ranks import Ranks
from ctrlrl.data.dataset import Dataset
from ctrlrl.loops import training_loop
from ctrlrl.shares import share
from ctrlrl.train.distributed import agree, join
from ctrlrl.types import EnvSpec, Rollout, Transition, tree_map

T, N = 8, 6  # steps, and lanes of each rank
SPEC = EnvSpec(3, 2, 0, 1, 2 * N, 0, torch.device("cpu"))
LEARNERS: dict[str, tuple[Any, Any]] = {"ppo": (PPOLearner, PPOConfig), "bpo": (BPOLearner, BPOConfig)}
CASES: dict[str, dict[str, Any]] = {
    "one minibatch": {"n_minibatches": 1},
    "four minibatches": {"n_minibatches": 4},
    "minibatches by size": {"minibatch_size": 24},
    "batch advantages": {"n_minibatches": 2, "normalize_advantage": "batch"},
    "bpo": {"algo": "bpo", "n_minibatches": 2},
    "adaptive rate": {"n_minibatches": 4, "desired_kl": 0.01},
    "kl limit": {"n_minibatches": 4, "target_kl": 0.008},
}


def rollout(seed: int) -> Rollout:
    """Of all lanes of both ranks; the second rank's are of another scale, so that averages of parts would show."""
    g = torch.Generator().manual_seed(seed)
    scale = torch.cat((torch.ones(N), torch.full((N,), 3.0)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(T, 2 * N, *shape, generator=g)

    ends = torch.rand(T, 2 * N, generator=g) < 0.2
    kind = torch.rand(T, 2 * N, generator=g) < 0.5
    obs, action = scale.unsqueeze(1) * normal(3) + scale.unsqueeze(1), normal(2)
    log_prob = -action.square().sum(-1) / 2 - 1.8379 + 0.1 * normal()
    ended = (ends & kind, ends & ~kind)
    return Rollout(obs, action, log_prob, normal(), normal(), scale * normal() + scale, *ended, {})


def shuffles(ranks: Ranks) -> Any:
    """randperm for minibatches that hold, in one process, the rows which the ranks' minibatches hold together."""
    calls = [0]

    def of_rank(n: int, rank: int) -> Tensor:
        return torch.randperm(n, generator=torch.Generator().manual_seed(10 * calls[0] + rank))

    def order(n: int, **kwargs: Any) -> Tensor:
        calls[0] += 1
        if ranks.size == 2:
            return of_rank(n, ranks.index)
        parts = []
        for rank in (0, 1):
            row = of_rank(n // 2, rank)
            parts.append(row // N * 2 * N + rank * N + row % N)
        return torch.stack(parts, 1).flatten()  # any cut at an even place takes as many of both

    return order


class FakeTorch:
    """torch with another randperm."""

    def __init__(self, randperm: Any):
        self.randperm = randperm

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def on_policy(case: str, ranks: Ranks) -> dict[str, Tensor]:
    """The learner's state after one and after three updates, and the last metrics."""
    settings = dict(CASES[case])
    kind, config = LEARNERS[settings.pop("algo", "ppo")]
    if "minibatch_size" in settings:
        settings["minibatch_size"] //= ranks.size
    shared = {"n_steps": T, "n_epochs": 2, "hidden": [8], "normalize_obs": True, "normalize_reward": True}
    torch.manual_seed(1 + ranks.index)  # set_ranks gives the second rank the first one's weights
    learner = kind(config(**shared, learning_rate=1e-2, ent_coef=0.01, **settings), SPEC)
    if ranks.size > 1:
        learner.set_ranks(ranks)
    core_update.torch, state = FakeTorch(shuffles(ranks)), {}  # type: ignore[attr-defined]
    try:
        for seed in range(3):
            whole = rollout(seed)
            own = slice(ranks.index * N, (ranks.index + 1) * N) if ranks.size == 2 else slice(None)
            metrics = ranks.averaged(learner.update(tree_map(lambda x, own=own: x[:, own].contiguous(), whole)))
            if seed in (0, 2):
                found = {**learner.model_state(), **learner.training_state()}
                found.pop("discounted_return")
                state |= {f"{seed} {k}": v.detach().clone() for k, v in found.items()}
    finally:
        core_update.torch = torch  # type: ignore[attr-defined]
    for spread in ("explained_variance", "advantage_variance"):
        metrics.pop(f"value/{spread}")  # the ranks' mean is not that of all rows
    return state | {f"metric {k}": v.double() for k, v in metrics.items()}


def offline(joint: bool, ranks: Ranks) -> dict[str, Tensor]:
    """IQL's state after one and five updates on batches of 32 rows."""
    g = torch.Generator().manual_seed(0)
    obs = torch.randn(200, 4, generator=g)
    action = torch.rand(200, 2, generator=g) * 2 - 1
    ended = torch.rand(200, generator=g) < 0.1
    data = Dataset.of(Transition(obs, action, torch.randn(200, generator=g), obs + 0.1, ended, {}))
    torch.manual_seed(3 + ranks.index)
    learner = IQLLearner(IQLConfig(hidden=[8], joint=joint), EnvSpec(4, 2, 0, 1, 1, 0, torch.device("cpu")))
    if ranks.size > 1:
        learner.set_ranks(ranks)
    state = {}
    for i in range(5):
        index = torch.randint(200, (32,), generator=g)
        own = index[16 * ranks.index : 16 * ranks.index + 16] if ranks.size == 2 else index
        metrics = ranks.averaged(learner.update(data.take(own)))
        if i in (0, 4):
            state |= {f"{i} {k}": v.detach().clone() for k, v in learner.model_state().items()}
    return state | {f"metric {k}": v.double() for k, v in metrics.items()}


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(
        **{
            "algo": PPOConfig(
                n_steps=8, n_minibatches=2, n_epochs=1, hidden=[8], normalize_obs=True, normalize_reward=True
            ),
            "env": EnvConfig(name="pendulum"),
            "n_envs": 8,
            "total_steps": 512,  # 8 iterations
            "eval": EvalConfig(every=256, episodes=2),
            "log": LogConfig(every=0.0, progress=False),
            "checkpoint": CheckpointConfig(every=1e6),
            "threads": 1,
            **changes,
        }
    )


def run(folder: Path, ranks: Ranks, *, stop_at: int | None = None, resume: bool = False) -> dict[str, Any]:
    """Train; with `stop_at` the second rank alone gets a SIGTERM in that iteration."""
    trainer = build(config(), folder, ranks=ranks, resume=resume)
    loop: Any = trainer.loop
    collect, calls = loop.collect, [0]

    def counting() -> Any:
        calls[0] += 1
        if calls[0] == stop_at and ranks.index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return collect()

    loop.collect = counting
    result = trainer.train()
    final = {**trainer.learner.model_state(), **trainer.learner.training_state(), **loop.state_dict()}
    return {"status": result["status"], "calls": calls[0], "state": {k: v.clone() for k, v in final.items()}}


def said(call: Any) -> str:
    try:
        call()
    except (ValueError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def non_finite(ranks: Ranks) -> str:
    """A reward that is no number, on the second rank alone."""
    loop: Any = training_loop(share(config(), ranks, cuda=False), ranks)
    bad = loop.collector.collect()
    if ranks.index == 1:
        bad.reward[2, 3] = torch.nan
    loop.collector.collect = lambda: bad
    return said(loop.iterate)


def fail() -> str:
    raise ValueError("n_envs is wrong")


def main(out: Path) -> None:
    torch.set_num_threads(1)
    ranks = join(cuda=False)
    found: dict[str, Any] = {"ranks": (ranks.size, ranks.index)}
    found["on_policy"] = {case: on_policy(case, ranks) for case in CASES}
    found["offline"] = {str(joint): offline(joint, ranks) for joint in (False, True)}
    found["whole"] = run(out / "whole", ranks)
    found["stopped"] = run(out / "stopped", ranks, stop_at=3)
    found["resumed"] = run(out / "stopped", ranks, resume=True)
    rate = {"algo.learning_rate": 1e-3 * (1 + ranks.index), "n_envs": 8}
    found["disagree"] = said(lambda: agree(ranks, rate))
    found["agree"] = said(lambda: agree(ranks, {"n_envs": 8}))
    found["error of the first"] = said(lambda: ranks.of_first(fail))
    found["non-finite"] = non_finite(ranks)
    torch.save(found, out / f"rank{ranks.index}.pt")
    ranks.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

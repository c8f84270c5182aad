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
from ctrlrl.algos.fpo import FPOConfig, FPOLearner
from ctrlrl.algos.iql import IQLConfig, IQLLearner
from ctrlrl.algos.mtppo import MTPPOConfig, MTPPOLearner
from ctrlrl.algos.pdppo import PDPPOConfig, PDPPOLearner
from ctrlrl.algos.policyflow import PolicyFlowConfig, PolicyFlowLearner
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
LEARNERS: dict[str, tuple[Any, Any]] = {
    "ppo": (PPOLearner, PPOConfig),
    "bpo": (BPOLearner, BPOConfig),
    "mtppo": (MTPPOLearner, MTPPOConfig),
    "pdppo": (PDPPOLearner, PDPPOConfig),
    "policyflow": (PolicyFlowLearner, PolicyFlowConfig),
    "fpo": (FPOLearner, FPOConfig),
}
CASES: dict[str, dict[str, Any]] = {
    "one minibatch": {"n_minibatches": 1},
    "four minibatches": {"n_minibatches": 4},
    "minibatches by size": {"minibatch_size": 24},
    "batch advantages": {"n_minibatches": 2, "normalize_advantage": "batch"},
    "bpo": {"algo": "bpo", "n_minibatches": 2},
    "adaptive rate": {"n_minibatches": 4, "desired_kl": 0.01},
    "kl limit": {"n_minibatches": 4, "target_kl": 0.008},
    "decoupled horizons": {"algo": "mtppo", "n_minibatches": 2},
    "error routing": {"algo": "mtppo", "n_minibatches": 2, "routing": "error"},
    "post-decision critics": {"algo": "pdppo", "n_minibatches": 2, "learning_rate": 1e-3, "normalize_reward": False},
    "policyflow": {"algo": "policyflow", "n_minibatches": 2, "embed_dim": 8, "desired_kl": None},
    "fpo": {"algo": "fpo", "n_minibatches": 2, "ent_coef": 0.0, "n_pairs": 2, "vf_hidden": [8]},
}


def rollout(seed: int, algo: str) -> Rollout:
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
    whole = Rollout(obs, action, log_prob, normal(), normal(), scale * normal() + scale, *ended, {})
    if algo == "mtppo":
        return whole._replace(value=normal(4), next_value=normal(4))
    if algo == "pdppo":
        choice = torch.randint(3, (T, 2 * N), generator=g)
        split = scale.unsqueeze(1) * normal(2)
        return whole._replace(
            action=choice, log_prob=0.1 * normal() - 1.1, extras={"post_obs": obs + 1.0, "reward_split": split}
        )
    if algo == "policyflow":
        flow = {"z": normal(2), "mean": action, "noise": normal(2), "log_std": torch.zeros_like(action)}
        return whole._replace(extras=flow)
    if algo == "fpo":
        step = torch.randint(10, (T, 2 * N, 2), generator=g)
        pairs = {"end": action, "noise": normal(2, 2), "step": step, "error": normal(2).square()}
        return whole._replace(log_prob=-pairs["error"].mean(-1), extras=pairs)
    return whole


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
    algo = settings.pop("algo", "ppo")
    kind, config = LEARNERS[algo]
    if "minibatch_size" in settings:
        settings["minibatch_size"] //= ranks.size
    shared = {"n_steps": T, "n_epochs": 2, "hidden": [8], "normalize_obs": True, "normalize_reward": True}
    shared |= {"learning_rate": 1e-2, "ent_coef": 0.01}
    spec = SPEC._replace(action_dim=0, n_actions=3) if algo == "pdppo" else SPEC
    torch.manual_seed(1 + ranks.index)  # set_ranks gives the second rank the first one's weights
    learner = kind(config(**(shared | settings)), spec)
    if algo == "policyflow":  # every sample at one time, where a run draws them
        middle = len(learner.policy.grid) // 2
        learner._draw_times = lambda n: (
            learner.policy.grid[middle].expand(n),
            lambda net, obs, x: net.on_grid(obs, x, learner.policy.grid, torch.full((n,), middle)),
        )
    if ranks.size > 1:
        learner.set_ranks(ranks)
    core_update.torch, state = FakeTorch(shuffles(ranks)), {}  # type: ignore[attr-defined]
    try:
        for seed in range(3):
            whole = rollout(seed, algo)
            own = slice(ranks.index * N, (ranks.index + 1) * N) if ranks.size == 2 else slice(None)
            metrics = ranks.averaged(learner.update(tree_map(lambda x, own=own: x[:, own].contiguous(), whole)))
            if seed in (0, 2):
                found = {**learner.model_state(), **learner.training_state()}
                common = {k: v for k, v in found.items() if not k.startswith(learner.lanes)}
                state |= {f"{seed} {k}": v.detach().clone() for k, v in common.items()}
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

"""What two processes do for test_token_ranks.py: `python token_ranks_at_work.py OUT` under torchrun's variables."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctrlrl.core import update as core_update
from ctrlrl.core.ranks import Ranks
from ctrlrl.llm.batches import Rollout
from ctrlrl.train.distributed import join
from tests.llm.small_models import env, loop_of, state

N = 8  # responses of each rank
CASES: dict[str, dict[str, Any]] = {
    "grpo": {"kl_coef": 0.1},
    "dr_grpo": {},
    "gbpo": {},
    "gspo": {"clip_range": 0.2},
    "bapo": {},
    "reinforce_pp": {"kl_coef": 0.1},
    "bnpo": {},
    "ppo_tokens": {},
    "spo": {},
    "topr": {},
    "grpo in micro-batches": {"kl_coef": 0.1, "micro_batch_size": 3},
    "ppo_tokens in micro-batches": {"micro_batch_size": 2},
}


def batches(method: str) -> list[Rollout]:
    """Two, of the responses of both ranks, which differ in length and reward."""
    loop = loop_of(method, task=env(2 * N))
    torch.manual_seed(0)
    return [loop.collect() for _ in range(2)]


class InOrder:
    """torch with minibatches in the order of the rows: a rank's are then the same prompts as in one process."""

    def __getattr__(self, name: str) -> Any:
        return torch.arange if name == "randperm" else getattr(torch, name)


def learned(case: str, ranks: Ranks) -> dict[str, Tensor]:
    """The learner's state after two batches of two epochs each, and the last metrics."""
    method = case.partition(" ")[0]
    loop = loop_of(method, task=env(2 * N), learning_rate=1e-2, n_epochs=2, **CASES[case])
    learner = loop.learner
    learner.prompt_weight(len(loop.env.prompts))
    if ranks.size > 1:
        if ranks.index:
            with torch.no_grad():  # set_ranks gives the second rank the first one's weights
                learner.opt["policy"].flat.add_(1.0)
        learner.set_ranks(ranks)
    core_update.torch, metrics = InOrder(), {}  # type: ignore[attr-defined]
    try:
        for batch in batches(method):
            if ranks.size > 1:
                rows = torch.arange(2 * N) // N == ranks.index
                batch = batch.where(rows)
            metrics = ranks.averaged(learner.update(batch))
    finally:
        core_update.torch = torch  # type: ignore[attr-defined]
    found = state(learner)
    own = ("advantage/std", "ratio/min", "ratio/max")  # the mean over ranks is another number
    return found | {f"metric {k}": v.double() for k, v in metrics.items() if k not in own}


def main(out: Path) -> None:
    torch.set_num_threads(1)
    ranks = join(cuda=False)
    torch.save({case: learned(case, ranks) for case in CASES}, out / f"rank{ranks.index}.pt")
    ranks.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

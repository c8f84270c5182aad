"""The running success rate of every prompt, which is a baseline where a prompt gets one response at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ctrlrl.core.ranks import ALONE, Ranks
from ctrlrl.functional.tracker import prompt_weight, tracker_start, tracker_step
from ctrlrl.llm.batches import Rollout

Score = Callable[[Rollout], Tensor]  # log-probs [N, L] under the present policy


class PromptTracker:
    """Counts of each of n prompts, and its last response, on which the policy's change since then is measured."""

    def __init__(self, n: int, *, longest: int, device: torch.device):
        """longest: tokens of a response."""
        half = torch.full((n,), 0.5, device=device)
        success, failure = tracker_start(half, 1)
        self.state = {
            "success": success,
            "failure": failure,
            "seen": torch.zeros(n, dtype=torch.bool, device=device),
            "ids": torch.zeros(n, longest, dtype=torch.int64, device=device),
            "mask": torch.zeros(n, longest, dtype=torch.bool, device=device),
            "log_prob": torch.zeros(n, longest, device=device),
        }

    def counts(self, prompt: Tensor) -> tuple[Tensor, Tensor]:
        return self.state["success"][prompt], self.state["failure"][prompt]

    def weight(self) -> Tensor:
        return prompt_weight(self.state["success"], self.state["failure"])

    def step(self, batch: Rollout, log_prob: Tensor, score: Score, ranks: Ranks = ALONE) -> None:
        """Take in a batch, once its advantages are made; of several responses to a prompt the last one is kept.

        log_prob: [N, L] of its tokens when they were sampled. ranks: whose batches are all taken in.
        """
        state, prompt = self.state, batch.prompt
        then, mask = state["log_prob"][prompt], state["mask"][prompt]
        now = score(batch._replace(ids=state["ids"][prompt], mask=mask))
        each = torch.where(mask, (now - then).abs(), 0.0)
        length = mask.sum(1).clamp(min=1)
        change = torch.where(state["seen"][prompt], each.sum(1) / length, 0.0)
        told = (prompt, batch.reward, change, batch.ids, batch.mask.byte(), log_prob)
        prompt, reward, change, ids, own, log_prob = (ranks.stacked(x).flatten(0, 1) for x in told)
        success, failure = tracker_step(*self.counts(prompt), reward.clamp(0.0, 1.0), change)
        state["success"][prompt], state["failure"][prompt], state["seen"][prompt] = success, failure, True
        n = ids.shape[1]
        for name, rows in (("ids", ids), ("mask", own.bool()), ("log_prob", log_prob)):
            state[name][prompt] = 0
            state[name][prompt, :n] = rows

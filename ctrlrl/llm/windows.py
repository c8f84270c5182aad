"""Responses written a window of tokens at a time: what is unfinished goes on in the next round, under the next policy.

So a few long responses hold up nobody. Source: T-PPO, arXiv:2506.15050.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ctrlrl.llm.batches import Rollout
from ctrlrl.llm.environment import Asked, TextEnv
from ctrlrl.llm.generate import Responses


class Unfinished:
    """N responses under way, of up to T tokens."""

    def __init__(self, n: int, longest: int, device: torch.device):
        self.state = {
            "prompt": torch.zeros(n, dtype=torch.int64),
            "ids": torch.zeros(n, longest, dtype=torch.int64, device=device),
            "length": torch.zeros(n, dtype=torch.int64, device=device),
            "open": torch.zeros(n, dtype=torch.bool, device=device),
        }

    def round(self, learner: Any, env: TextEnv, weights: Tensor) -> Rollout:
        """Every response one window longer; new prompts take the place of those that had ended.

        The policy learns from the tokens of this window, which it wrote itself. A response is over, and judged, at its
        end of sequence or at T tokens; the others have reward 0 and do not count as ended.
        """
        self._begin(learner, env)
        state, places = self.state, torch.arange(self.state["ids"].shape[1], device=env.spec.device)
        prompt_ids, prompt_mask = env.prompts.tokens(state["prompt"])
        before = state["length"].unsqueeze(1)
        size = min(learner.cfg.window, len(places) - int(before.min()))
        context = _packed(prompt_ids, prompt_mask, state["ids"], places < before)
        found = learner.respond(*context, n=1, max_new_tokens=size)
        own = found.mask & (torch.arange(size, device=places.device) < len(places) - before)
        window = (places >= before) & (places < before + own.sum(1, keepdim=True))
        state["ids"][window] = found.ids[own]
        state["length"] += own.sum(1)
        over = state["length"] == len(places)
        if env.eos is not None:
            over = over | ((found.ids == env.eos) & own).any(1)
        state["open"] = ~over
        rewards = self._judged(env, over, len(weights))
        return Rollout(
            prompt=state["prompt"].to(places.device),
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            ids=state["ids"].clone(),
            mask=places < state["length"].unsqueeze(1),
            log_prob=None,
            ended=over,
            rewards=rewards,
            reward=(rewards.nan_to_num(0.0) * weights).sum(1),
            greedy_reward=None,
            group=torch.arange(len(over), device=places.device),
            window=window,
        )

    def _begin(self, learner: Any, env: TextEnv) -> None:
        state, new = self.state, (~self.state["open"]).nonzero().squeeze(1)
        if len(new):
            state["prompt"][new.cpu()] = env.ask(len(new), learner.prompt_weight(len(env.prompts))).rows
            state["ids"][new], state["length"][new] = env.pad, 0

    def _judged(self, env: TextEnv, over: Tensor, n_rewards: int) -> Tensor:
        rewards = torch.zeros(len(over), n_rewards, device=over.device)
        if bool(over.any()):
            state, rows = self.state, over.nonzero().squeeze(1)
            ids, length = state["ids"][rows], state["length"][rows].unsqueeze(1)
            mask = torch.arange(ids.shape[1], device=ids.device) < length
            whole = Responses(ids, mask, None, over[rows])
            rewards[rows] = env.judge(Asked(state["prompt"][rows.cpu()], ids[:, :0], None), whole)
        return rewards


def _packed(prompt_ids: Tensor, prompt_mask: Tensor | None, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """Prompts, padded on the left, and what follows them, padded on the right, as rows that are padded on the left."""
    keep = torch.cat([torch.ones_like(prompt_ids, dtype=torch.bool) if prompt_mask is None else prompt_mask, mask], 1)
    width = int(keep.sum(1).max())
    order = keep.long().argsort(dim=1, stable=True)[:, -width:]
    keep = keep.gather(1, order)
    return torch.cat([prompt_ids, ids], 1).gather(1, order), None if bool(keep.all()) else keep

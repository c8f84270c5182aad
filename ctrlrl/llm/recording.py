"""Recorded, judged responses as what a learner reads: batches of whole prompts, with advantages known beforehand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ctrlrl.llm.advantages import advantages
from ctrlrl.llm.batches import Rollout
from ctrlrl.llm.config import TokenConfig
from ctrlrl.llm.recorded import Recorded, pairs
from ctrlrl.types import EnvSpec


class Recording:
    """What takes the place of prompts and reward functions. `test`: kept from learning; None: all is learned from."""

    def __init__(
        self,
        train: Recorded,
        tokenizer: Any,
        *,
        eos: int,
        pad: int,
        make_model: Callable[[], nn.Module],
        n_envs: int,
        device: torch.device,
        test: Recorded | None = None,
        notices: tuple[str, ...] = (),
    ):
        """n_envs: responses of one update."""
        self.train, self.test = train, train if test is None else test
        self.tokenizer, self.eos, self.pad, self.make_model = tokenizer, eos, pad, make_model
        self.max_new_tokens = max(part.ids.shape[1] for part in (train, self.test))
        self.notices = list(notices)
        self.spec = EnvSpec(
            obs_dim=int(train.prompt_ids.shape[1]),
            action_dim=0,
            n_actions=len(tokenizer) if hasattr(tokenizer, "__len__") else 0,
            reward_dim=1,
            n_envs=n_envs,
            episode_length=self.max_new_tokens,
            device=device,
        )


class Batches:
    """Some responses to each of a batch of prompts, which are gone through in a shuffled order, again and again.

    Rows are drawn alone, or, for a loss that compares two, as pairs of a better and a worse one. Advantages compare a
    response with all that were recorded of its prompt, not only with those of its batch.
    """

    def __init__(self, cfg: TokenConfig, data: Recorded, n: int, device: torch.device):
        """n: about so many responses a batch."""
        compared = cfg.needs_groups or cfg.surrogate == "dpo"
        data = _several(data) if compared else data
        out = advantages(cfg, data.reward.unsqueeze(1), data.group, data.mask)
        keep = torch.ones_like(data.group, dtype=torch.bool) if out.keep is None else out.keep
        kept = keep.nonzero().squeeze(1)
        if not len(kept):
            raise ValueError(f"algo={cfg.name}: the data rules leave no recorded response to learn from")
        self.data, self.device = data.rows(kept), device
        self.advantage = out.advantage[kept]
        self.target = None if out.target is None else out.target[kept]
        size = 1
        if cfg.surrogate == "dpo":
            self.units, size = torch.stack(pairs(self.data.reward, self.data.group), 1), 2  # [U, 2] rows
            if not len(self.units):
                raise ValueError(f"algo={cfg.name}: no prompt has two recorded responses of different reward")
        else:
            self.units = torch.arange(len(kept)).unsqueeze(1)
        self.members = members(torch.unique(self.data.group[self.units[:, 0]], return_inverse=True)[1])
        self.taken = max(1, min(cfg.group_size // size, self.members.shape[1]))  # units of a prompt
        self.n_prompts = min(max(1, n // (self.taken * size)), len(self.members))
        self._order, self._place = torch.zeros(len(self.members), dtype=torch.int64), len(self.members)

    def sample(self) -> Rollout:
        asked: list[Tensor] = []
        while (missing := self.n_prompts - sum(map(len, asked))) > 0:
            if self._place == len(self._order):
                self._order, self._place = torch.randperm(len(self._order)), 0
            asked.append(self._order[self._place : self._place + missing])
            self._place += len(asked[-1])
        found = self.members[torch.cat(asked)]  # [P, M]
        key = torch.rand(found.shape).masked_fill(found < 0, -1.0)
        unit = found.gather(1, key.argsort(1, descending=True)[:, : self.taken])
        there = (unit >= 0).repeat_interleave(self.units.shape[1], 1).flatten()
        rows = self.units[torch.where(unit >= 0, unit, unit[:, :1])].flatten(1)  # [P, C]; none is left without tokens
        return self._batch(rows, there)

    def _batch(self, rows: Tensor, there: Tensor) -> Rollout:
        data, first, flat = self.data, rows[:, 0], rows.flatten()
        before, after = int(data.prompt_mask[first].sum(1).max()), int(data.mask[flat].sum(1).max())
        seen = data.prompt_mask[first, -before:]
        here = self.device
        advantage, target = (
            None if x is None else (x[flat][:, :after] if x.ndim == 2 else x[flat]).to(here)
            for x in (self.advantage, self.target)
        )
        return Rollout(
            prompt=data.group[flat].to(here),
            prompt_ids=data.prompt_ids[first, -before:].to(here),
            prompt_mask=None if bool(seen.all()) else seen.to(here),
            ids=data.ids[flat, :after].to(here),
            mask=(data.mask[flat, :after] & there.unsqueeze(1)).to(here),
            log_prob=None,
            ended=torch.ones(len(flat), dtype=torch.bool, device=here),
            rewards=data.reward[flat].unsqueeze(1).to(here),
            reward=data.reward[flat].to(here),
            greedy_reward=None,
            group=torch.arange(len(rows), device=here).repeat_interleave(rows.shape[1]),
            advantage=advantage,
            target=target,
        )

    def state_dict(self) -> dict[str, Tensor]:
        return {"order": self._order, "place": torch.tensor(self._place)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._order, self._place = state["order"], int(state["place"])


def _several(data: Recorded) -> Recorded:
    """Without the prompts that have one response: there is nothing to compare it with."""
    kept = (torch.bincount(data.group)[data.group] > 1).nonzero().squeeze(1)
    if not len(kept):
        raise ValueError("dataset: no prompt has two recorded responses to compare")
    return data.rows(kept)


def members(group: Tensor) -> Tensor:
    """[P, M] the places in `group` [N] of each of the P numbers in it, -1 behind the last of fewer than M."""
    order, count = group.argsort(stable=True), torch.bincount(group)
    place = torch.arange(len(group)) - (count.cumsum(0) - count)[group[order]]
    found = torch.full((len(count), int(count.max())), -1, dtype=torch.int64)
    found[group[order], place] = order
    return found

"""Prompts to answer as an environment: a step is one response, its reward what the reward functions give for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ctrlrl.llm.generate import Responses
from ctrlrl.llm.prompts import Prompts, decode
from ctrlrl.llm.rewards import Rewards
from ctrlrl.types import EnvSpec


class Asked(NamedTuple):
    """Prompts of one step, each to be answered `n` times."""

    rows: Tensor  # [P] which of the prompts, on the CPU
    ids: Tensor  # [P, L], padded on the left
    mask: Tensor | None  # [P, L] bool, False on the padding; None where there is none


class TextEnv:
    """prompts are gone through in a shuffled order, again and again; `test` is never asked while learning."""

    def __init__(
        self,
        prompts: Prompts,
        rewards: Rewards,
        tokenizer: Any,
        *,
        make_model: Callable[[], nn.Module],
        max_new_tokens: int,
        n_envs: int,
        device: torch.device,
        test: Prompts | None = None,
        solved: float | None = None,
    ):
        """n_envs: responses of one step. solved: the reward from which on a response counts as a success."""
        self.prompts, self.rewards, self.tokenizer = prompts, rewards, tokenizer
        self.make_model, self.max_new_tokens, self.solved = make_model, max_new_tokens, solved
        self.test = prompts if test is None else test
        self.notices: list[str] = []  # lines that a run prints when it starts
        self.eos, self.pad = special_tokens(tokenizer)
        self.spec = EnvSpec(
            obs_dim=int(prompts.ids.shape[1]),
            action_dim=0,
            n_actions=len(tokenizer) if hasattr(tokenizer, "__len__") else 0,
            reward_dim=1,
            n_envs=n_envs,
            episode_length=max_new_tokens,
            device=device,
        )
        self._order, self._place = torch.zeros(len(prompts), dtype=torch.int64), len(prompts)

    def ask(self, n: int, weight: Tensor | None = None) -> Asked:
        """The next n prompts. weight: [len(prompts)] in proportion to which they are drawn, with replacement."""
        if weight is not None:
            index = torch.multinomial(weight.cpu(), n, replacement=True)
        else:
            taken: list[Tensor] = []
            while (missing := n - sum(map(len, taken))) > 0:
                if self._place == len(self._order):
                    self._order, self._place = torch.randperm(len(self.prompts)), 0
                taken.append(self._order[self._place : self._place + missing])
                self._place += len(taken[-1])
            index = torch.cat(taken)
        return self.asked(self.prompts, index)

    @staticmethod
    def asked(prompts: Prompts, index: Tensor) -> Asked:
        return Asked(index, *prompts.tokens(index))

    def judge(self, asked: Asked, responses: Responses, *, test: bool = False) -> Tensor:
        """[N, K] what each reward function gives for each response, NaN where it does not apply."""
        n = responses.ids.shape[0] // len(asked.rows)
        rows = asked.rows.repeat_interleave(n).tolist()
        prompts, columns = (self.test if test else self.prompts).rows(rows)
        completions, ids = decode(self.tokenizer, responses.ids, responses.lengths, prompts)
        parts = self.rewards(prompts, completions, columns, ids)
        return parts.to(responses.ids.device)

    def state_dict(self) -> dict[str, Tensor]:
        return {"order": self._order, "place": torch.tensor(self._place)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._order, self._place = state["order"], int(state["place"])

    def close(self) -> None:
        pass


def special_tokens(tokenizer: Any) -> tuple[int | None, int]:
    """End of sequence and padding; without a token of its own, padding is the end of sequence, which masks allow."""
    eos, pad = (getattr(tokenizer, f"{name}_token_id", None) for name in ("eos", "pad"))
    return eos, next((token for token in (pad, eos) if token is not None), 0)


def context_of(model: Any) -> int | None:
    """Tokens of a model's context, where it says."""
    return getattr(getattr(model, "config", None), "max_position_embeddings", None)


def longest_prompt(context: int | None, max_new_tokens: int) -> int | None:
    """Tokens that a prompt may have in a context of so many; None: any."""
    if context is None:
        return None
    if context <= max_new_tokens:
        raise ValueError(f"max_tokens={max_new_tokens} leaves no room in the model's context of {context} tokens")
    return context - max_new_tokens

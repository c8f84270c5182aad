"""What a model says of responses: log-probabilities, entropies and values, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ctrlrl.core.ranks import Ranks
from ctrlrl.functional.ratio import silenced
from ctrlrl.llm.batches import Rows, bunched, parts
from ctrlrl.llm.config import TokenConfig
from ctrlrl.llm.language_model import LanguageModel
from ctrlrl.llm.objectives import RATIOS, Bounds, adaptive_bounds
from ctrlrl.llm.tokens import head_log_prob, token_log_prob


class Scorer:
    """`policy` is read with the gradient by `forward`; all else is without one.

    reference: None = the policy without its adapters. critic: from states of the policy to values, which do not move
    it; None where there is none.
    """

    def __init__(
        self, cfg: TokenConfig, policy: LanguageModel, reference: LanguageModel | None, critic: nn.Module | None
    ):
        self.cfg, self.policy, self.reference, self.critic = cfg, policy, reference, critic
        self.dtype = "float32"

    def precision(self, device: torch.device) -> AbstractContextManager[Any]:
        """Of the products; weights stay float32."""
        if self.dtype == "float32":
            return nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16)

    def bunched(self, rows: Rows) -> Rows:
        n = rows.ids.shape[0]
        least = 2 if self.cfg.surrogate == "dpo" else 1  # a pair stays together
        return bunched(rows, min(self.cfg.micro_batch_size or n, max(n // self.cfg.n_minibatches, least)))

    def micro(self, rows: Rows) -> Iterator[Rows]:
        """Bunched rows, micro_batch_size of them at a time."""
        return parts(rows, self.cfg.micro_batch_size)

    def forward(
        self, rows: Rows, model: LanguageModel | None = None, *, learning: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Log-probs and entropies [N, L] of the responses, and the states [N, L, D] before each of their tokens."""
        model, temperature = self.policy if model is None else model, self.cfg.temperature
        with self.precision(rows.ids.device):
            states = model.response_states(rows.prompt_ids, rows.prompt_mask, rows.ids, learning=learning)
            if model.split and type(model.output) is nn.Linear:
                weight, bias = model.output.weight, model.output.bias
                log_prob, entropy = head_log_prob(states, weight, rows.ids, bias=bias, temperature=temperature)
            else:
                log_prob, entropy = token_log_prob(model.head(states), rows.ids, temperature=temperature)
        return log_prob, entropy, states

    def values(self, states: Tensor) -> Tensor:
        """[N, L], or [N, L, 2]."""
        assert self.critic is not None
        return self.critic(states.detach().float()).squeeze(-1)

    @torch.no_grad()
    def log_probs(self, rows: Any) -> tuple[Tensor, Tensor | None]:
        """Of anything with prompts, ids and a mask: log-probs [N, L] and, with a critic, values."""
        found, values = [], []
        for part in self.micro(self.bunched(_plain(rows))):
            log_prob, _, states = self.forward(part)
            found.append(log_prob)
            if self.critic is not None:
                values.append(self.values(states))
        return torch.cat(found), torch.cat(values) if values else None

    @torch.no_grad()
    def reference_log_probs(self, rows: Any) -> Tensor:
        if self.reference is None:
            with self.policy.without_adapters():
                return self.log_probs(rows)[0]
        pieces = self.micro(self.bunched(_plain(rows)))
        return torch.cat([self.forward(part, self.reference)[0] for part in pieces])

    @torch.no_grad()
    def entropy(self, rows: Any) -> Tensor:
        """Mean over the counting tokens, 0-dim, nats."""
        total = torch.zeros((), device=rows.ids.device)
        for part in self.micro(self.bunched(_plain(rows))):
            told = self.forward(part)[1]
            assert told is not None
            total += torch.where(part.mask, told, 0.0).sum()
        return total / rows.mask.sum().clamp(min=1)

    @torch.no_grad()
    def bounds(self, rows: Rows, ranks: Ranks, *, holder_p: float) -> Bounds | None:
        """Those of the ratio where a method chooses them for the whole step, which its parts do not see."""
        pieces = list(self.micro(rows))
        if self.cfg.surrogate != "clip_bounds" or (ranks.size == 1 and len(pieces) == 1):
            return None
        seen = []
        for part in pieces:
            now = self.forward(part)[0]
            log_ratio = silenced(now, now if part.log_prob_old is None else part.log_prob_old, part.mask)
            ratio = RATIOS[self.cfg.ratio](self.cfg, log_ratio, part.mask, holder_p)
            advantage = part.advantage if part.advantage.ndim == 2 else part.advantage.unsqueeze(1)
            seen.append((ratio, advantage.expand_as(ratio), part.mask.to(ratio.dtype)))
        columns = [torch.cat(x) for x in zip(*seen, strict=True)]
        width = max(ranks.gathered(columns[0].shape[1]))  # recorded responses are as long as each rank's longest
        padded = (nn.functional.pad(x, (0, width - x.shape[1])) for x in columns)
        ratio, advantage, mask = (ranks.stacked(x).flatten(0, 1) for x in padded)
        return adaptive_bounds(self.cfg, ratio, advantage, mask.bool())


def _plain(rows: Any) -> Rows:
    return Rows(rows.prompt_ids, rows.prompt_mask, rows.ids, rows.mask, rows.mask)

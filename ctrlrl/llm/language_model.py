"""One way to call any causal language model: transformers' with or without PEFT, or a module tokens -> logits."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

# settings of transformers' models whose logits are not their output layer's
_OWN_LOGITS = (
    "final_logit_softcapping",
    "logits_scaling",
    "logit_scale",
    "output_multiplier_scale",
    "lm_head_multiplier",
    "logits_soft_cap",
    "output_logit_soft_cap",
)


class LanguageModel:
    """`states` runs the network and `head` turns its states into logits, so that the logits can be made piece by piece.

    A module tokens [N, L] -> logits [N, L, V] has logits for states, an identity for a head, and no cache. Everything
    runs in evaluation mode: dropout would make the first ratio of an update differ from 1.
    """

    def __init__(self, module: Any, *, checkpoint: bool = False):
        """checkpoint: gradient checkpointing, layers are computed again in the backward pass."""
        self.module = module.eval()
        self.config = getattr(module, "config", None)
        self.adapted = hasattr(module, "disable_adapter")  # PEFT
        if self.adapted and any(c.is_prompt_learning for c in module.peft_config.values()):
            raise ValueError(
                "adapters that put tokens before the prompt (prefix or prompt tuning): not taken, use LoRA"
            )
        whole = module.get_base_model() if self.adapted else module
        of_text: Any = self.config
        if hasattr(of_text, "get_text_config"):
            of_text = of_text.get_text_config()  # of a model that also sees or hears
        self.cached = hasattr(whole, "prepare_inputs_for_generation")
        self.output: Any = whole.get_output_embeddings() if self.cached else None
        self.split = False
        if self.cached:
            self.cached, alike = _tried(module, whole)
            own = any(getattr(of_text, name, None) not in (None, 1, 1.0) for name in _OWN_LOGITS)
            self.split = self.cached and alike and not own
        self.trunk: Any = whole.get_decoder() if self.split else module
        taken = inspect.signature(whole.forward).parameters
        context = getattr(of_text, "max_position_embeddings", None)
        self.last_position = None if context is None else context - 1
        self.masked = self.cached or {"attention_mask", "position_ids"} <= set(taken)
        self._checkpointed: list[nn.Module] = self._checkpointing(whole) if checkpoint else []

    def states(self, ids: Tensor, attended: Tensor | None = None, *, learning: bool = False) -> Tensor:
        """[N, L] tokens to [N, L, D]. attended: [N, L] bool, False on the left padding; None where there is none."""
        with self._checkpoints() if learning else nullcontext():
            return self._states(ids, **self._attending(attended, 0, attended is not None))[0]

    def response_states(
        self, prompt_ids: Tensor, prompt_mask: Tensor | None, ids: Tensor, *, learning: bool = False
    ) -> Tensor:
        """States [N, T, D] before each token of the responses [N, T] to the prompts [P, L], N / P neighbours to each.

        A prompt is read once for all of its responses where the model has a cache: with 16 short answers to a prompt
        that is most of the work. prompt_mask: [P, L] bool, False on left padding.
        """
        copies, length = ids.shape[0] // prompt_ids.shape[0], ids.shape[1]
        answered = torch.ones_like(ids, dtype=torch.bool)
        masks = None if prompt_mask is None else [prompt_mask.repeat_interleave(copies, 0), answered]
        attended = None if masks is None else torch.cat(masks, 1)[:, :-1]
        if copies == 1 or not self.cached or (learning and self._checkpointed):
            whole = torch.cat([prompt_ids.repeat_interleave(copies, 0), ids], 1)[:, :-1]
            return self.states(whole, attended, learning=learning)[:, -length:]
        first, cache = self.begin(prompt_ids, prompt_mask, copies)
        if length == 1:
            return first.unsqueeze(1)
        told = {} if attended is None else self._attending(attended, prompt_ids.shape[1], True)
        rest, _ = self._states(ids[:, :-1], use_cache=True, past_key_values=cache, **told)
        return torch.cat([first.unsqueeze(1), rest], 1)

    def head(self, states: Tensor) -> Tensor:
        return states if not self.split else self.output(states)

    def begin(self, ids: Tensor, attended: Tensor | None, copies: int) -> tuple[Tensor, Any]:
        """States [N * copies, D] after each of N prompts, and what `extend` goes on with: every prompt is read once."""
        if not self.cached:
            ids = ids.repeat_interleave(copies, 0)
            attended = None if attended is None else attended.repeat_interleave(copies, 0)
            return self.states(ids, attended)[:, -1], ids
        states, cache = self._states(ids, use_cache=True, **self._attending(attended, 0, attended is not None))
        if copies > 1:
            cache.batch_repeat_interleave(copies)
        return states[:, -1].repeat_interleave(copies, 0), cache

    def extend(self, tokens: Tensor, cache: Any, attended: Tensor | None) -> tuple[Tensor, Any]:
        """States [N, D] after one more token [N] each. attended: [N, L] of all tokens, this one included."""
        if not self.cached:
            ids = torch.cat([cache, tokens.unsqueeze(1)], 1)
            return self.states(ids, attended)[:, -1], ids
        told = {} if attended is None else self._attending(attended, attended.shape[1] - 1, True)
        states, cache = self._states(tokens.unsqueeze(1), use_cache=True, past_key_values=cache, **told)
        return states[:, -1], cache

    def _attending(self, attended: Tensor | None, begin: int, needed: bool) -> dict[str, Tensor]:
        """The keywords for left-padded prompts: positions count what is attended (specification 1, rule 2)."""
        if not needed or attended is None:
            return {}
        if not self.masked:
            raise ValueError(
                "the model takes neither attention_mask nor position_ids, and its prompts have different lengths: "
                "give it both, or prompts of one length"
            )
        # a row that has its tokens already is written on beside those that have not, and thrown away there
        positions = (attended.cumsum(1) - 1).clamp(min=0, max=self.last_position)[:, begin:]
        return {"attention_mask": attended.long(), "position_ids": positions}

    def _states(self, ids: Tensor, **told: Any) -> tuple[Tensor, Any]:
        if not self.cached:
            out = self.trunk(ids, **told)
            return getattr(out, "logits", out), None
        out = self.trunk(input_ids=ids, **{"use_cache": False} | told)
        return out.last_hidden_state if self.split else out.logits, out.past_key_values

    def _checkpointing(self, whole: nn.Module) -> list[nn.Module]:
        names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
        enable: Any = next((getattr(whole, name) for name in names if hasattr(whole, name)), None)
        if enable is None:
            raise ValueError("algo.gradient_checkpointing is for models of transformers; leave it out for this one")
        enable({"use_reentrant": False})
        layers = [m for m in whole.modules() if getattr(m, "gradient_checkpointing", False) is True]
        for layer in layers:
            if isinstance(rate := getattr(layer, "dropout", None), float) and rate > 0.0:
                raise ValueError(
                    f"algo.gradient_checkpointing: {type(layer).__name__} would drop {rate:g} of its activations; load "
                    "the model with dropout=0"
                )
        return layers

    @contextmanager
    def _checkpoints(self) -> Iterator[None]:
        """Only the layers' own flag says training, which checkpointing asks for: the dropout inside them stays off."""
        for layer in self._checkpointed:
            layer.training = True
        try:
            yield
        finally:
            for layer in self._checkpointed:
                layer.training = False

    def without_adapters(self) -> Any:
        """A context in which a PEFT model is what it was before its adapters."""
        return self.module.disable_adapter()


@torch.no_grad()
def _tried(module: Any, whole: Any) -> tuple[bool, bool]:
    """Whether a model's cache can be copied, and whether its output layer alone makes its logits: of two tokens."""
    ids = torch.tensor([[0, 1]], device=next(module.parameters()).device)
    out = module(input_ids=ids, use_cache=True)
    states = whole.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    made = whole.get_output_embeddings()(states).float()
    alike = made.shape == out.logits.shape and torch.allclose(made, out.logits.float(), rtol=1e-4, atol=1e-5)
    return hasattr(getattr(out, "past_key_values", None), "batch_repeat_interleave"), alike

"""Recorded, labelled responses as a task: env=tokens/recorded data=file data.path=FILE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ctrlrl.llm.environment import special_tokens
from ctrlrl.llm.prompts import encode
from ctrlrl.llm.recorded import Labelled, Recorded, encode_labelled
from ctrlrl.llm.recording import Recording
from ctrlrl.llm.symbols import byte_tokenizer, small_llama
from ctrlrl.llm.tasks import Network, opened, with_template
from ctrlrl.llm.text_files import load_labelled


@dataclass
class RecordedSettings(Network):
    context: int = 1024  # tokens of prompt and response; longer ones are left out. Of a model from the disk at most its

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.context < 2:
            raise ValueError(f"env.context must be at least 2 tokens, got {self.context}")


class RecordedTask:
    """Without env.model a small Llama over bytes: `algo=sft` first teaches it to write."""

    Settings = RecordedSettings

    def __init__(self, settings: RecordedSettings):
        self.settings = settings

    def recording(self, path: str | None, *, n_envs: int, device: torch.device, holdout: float) -> Recording:
        """holdout: share of the prompts, the last ones, whose responses are for judging alone."""
        settings = self.settings
        if path is None:
            raise ValueError("env=tokens/recorded needs data=file data.path=FILE, labelled responses")
        if not Path(path).is_file():
            raise ValueError(f"data.path={path}: no such file")
        make: Callable[[], nn.Module]
        if settings.model is None:
            tokenizer, longest = byte_tokenizer(), settings.context

            def make() -> nn.Module:
                return small_llama(
                    tokenizer,
                    hidden_size=settings.hidden_size,
                    n_layers=settings.n_layers,
                    n_heads=settings.n_heads,
                    init_std=settings.init_std,
                    context=settings.context,
                ).to(device)
        else:
            tokenizer, make, room = opened(settings.model, device)
            longest = min(settings.context, settings.context if room is None else room)
        data, left_out = tokens_of(from_file(path, tokenizer), tokenizer, longest)
        notices = [] if not left_out else [f"{left_out} responses are longer than {longest} tokens and left out"]
        if holdout == 0.0:
            notices.append("data.holdout=0: it is judged on the pairs that it learns from")
        train, test = apart(data, holdout)
        eos, pad = special_tokens(tokenizer)
        assert eos is not None
        return Recording(
            train,
            tokenizer,
            eos=eos,
            pad=pad,
            make_model=make,
            n_envs=n_envs,
            device=device,
            test=test,
            notices=tuple(notices),
        )


def from_file(path: str | Path, tokenizer: Any) -> Labelled:
    """Prompts as the model is asked them: a text by the chat template where there is one, else with a line end."""
    data = load_labelled(path)
    return data._replace(prompts=[with_template(tokenizer, prompt) for prompt in data.prompts])


def tokens_of(data: Labelled, tokenizer: Any, longest: int) -> tuple[Recorded, int]:
    """Responses of at most `longest` tokens with their prompts, and how many do not fit."""
    eos, pad = special_tokens(tokenizer)
    if eos is None:
        raise ValueError("tokenizer: recorded responses end with an end-of-sequence token, and it has none")
    plain = {"add_special_tokens": False} if callable(tokenizer) else {}

    def response(text: Any) -> list[int]:
        said = text if isinstance(text, str) else text[-1]["content"]
        return list(tokenizer.encode(said, **plain))

    return encode_labelled(
        data,
        response,
        encode_prompt=lambda prompt: encode(tokenizer, [prompt])[0],
        eos=eos,
        pad=pad,
        longest=longest,
    )


def apart(data: Recorded, holdout: float) -> tuple[Recorded, Recorded | None]:
    """What is learned from, and the responses to the last prompts, a share of them."""
    if holdout == 0.0:
        return data, None
    n = int(data.group.max()) + 1
    edge = n - max(1, round(holdout * n))
    if edge < 1:
        raise ValueError(f"data.holdout={holdout} leaves none of the {n} prompts to learn from")
    train, test = ((part).nonzero().squeeze(1) for part in (data.group < edge, data.group >= edge))
    return data.rows(train), data.rows(test)

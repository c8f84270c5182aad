"""Tasks of characters, with a tokenizer and a small Llama made on the spot, and GSM8K for a checkpoint on the disk."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from ctrlrl.llm.environment import TextEnv, longest_prompt, special_tokens
from ctrlrl.llm.prompts import Prompts
from ctrlrl.llm.rewards import RewardFn, Rewards, correct_characters, exact_number, exact_text
from ctrlrl.llm.symbols import BOS, need_transformers, small_llama, symbol_tokenizer
from ctrlrl.llm.text_files import text_columns

HELD_OUT = 10  # of a task with at least a thousand prompts every tenth is kept from learning


@dataclass
class Network:
    """The model of a task."""

    model: str | None = None  # folder of a transformers checkpoint; null = a small Llama with random weights
    hidden_size: int = 64
    n_layers: int = 2
    n_heads: int = 4
    init_std: float = 0.02  # of the random weights; transformers' own. Narrow networks learn faster from 0.1

    def __post_init__(self) -> None:
        if not self.init_std > 0.0:
            raise ValueError(f"env.init_std must be above 0, got {self.init_std}")
        for name in ("hidden_size", "n_layers", "n_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"env.{name} must be at least 1, got {getattr(self, name)}")
        if self.hidden_size % (2 * self.n_heads):
            raise ValueError(f"env.hidden_size={self.hidden_size} must be a multiple of 2 x env.n_heads={self.n_heads}")


class Question(NamedTuple):
    prompt: Any
    answer: str


class CharacterTask:
    """Questions with one right answer of fixed length."""

    Settings: ClassVar[type]
    reward: ClassVar[RewardFn] = staticmethod(correct_characters)

    def __init__(self, settings: Any):
        self.settings = settings

    def questions(self) -> list[Question]:
        raise NotImplementedError

    def env(
        self,
        *,
        n_envs: int,
        device: torch.device,
        max_tokens: int = 32,
        path: str | None = None,
        ends: bool = False,
        buffer: int | None = None,
    ) -> TextEnv:
        """max_tokens: of a response; by default as many as the answer has.

        ends: with room for the end of sequence before the last `buffer` tokens, null = a fifth of all, where a method
        takes a response of full length for one that was cut off.
        """
        settings, tokenizer = self.settings, symbol_tokenizer()
        asked = self.questions()
        whole = len(asked[0].answer)
        if ends:
            whole = (5 * (whole + 1) + 3) // 4 if buffer is None else whole + 1 + buffer
        longest = min(whole, max_tokens)
        if settings.model is not None:
            raise ValueError(f"env.model={settings.model}: this task has characters for tokens; leave env.model out")

        def make() -> nn.Module:
            return small_llama(
                tokenizer,
                hidden_size=settings.hidden_size,
                n_layers=settings.n_layers,
                n_heads=settings.n_heads,
                init_std=settings.init_std,
                context=32,
            ).to(device)

        train, test = split(asked) if len(asked) >= 1000 else (asked, asked)
        return TextEnv(
            _prompts(train, tokenizer, 32 - longest, device),
            Rewards(type(self).reward),
            tokenizer,
            make_model=make,
            max_new_tokens=longest,
            n_envs=n_envs,
            device=device,
            test=_prompts(test, tokenizer, 32 - longest, device),
            solved=1.0,
        )


def split(asked: list[Question]) -> tuple[list[Question], list[Question]]:
    """Every tenth of a fixed shuffle is for the test alone."""
    order = torch.randperm(len(asked), generator=torch.Generator().manual_seed(0)).tolist()
    mixed = [asked[i] for i in order]
    return [q for i, q in enumerate(mixed) if i % HELD_OUT], mixed[::HELD_OUT]


def _prompts(asked: list[Question], tokenizer: Any, longest: int | None, device: torch.device) -> Prompts:
    columns = {"answer": [q.answer for q in asked]}
    pad = special_tokens(tokenizer)[1]
    return Prompts([q.prompt for q in asked], columns, tokenizer, pad=pad, longest=longest, device=device)


@dataclass
class CopySettings(Network):
    length: int = 4  # letters
    letters: int = 6  # of the alphabet

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.length <= 12 or not 2 <= self.letters <= 6 or self.letters**self.length > 100_000:
            raise ValueError("env.letters must lie in 2 ... 6 and env.letters ** env.length below 100,000")


class Copy(CharacterTask):
    """`^abca>`: say the letters again."""

    Settings = CopySettings

    def questions(self) -> list[Question]:
        words = map("".join, itertools.product("abcdef"[: self.settings.letters], repeat=self.settings.length))
        return [Question(f"{BOS}{word}>", word) for word in words]


@dataclass
class SortSettings(Network):
    length: int = 4  # digits

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.length <= 5:
            raise ValueError(f"env.length must lie in 1 ... 5, got {self.length}")


class Sorting(CharacterTask):
    """`^3142>`: say the digits in order."""

    Settings = SortSettings

    def questions(self) -> list[Question]:
        words = map("".join, itertools.product("0123456789", repeat=self.settings.length))
        return [Question(f"{BOS}{word}>", "".join(sorted(word))) for word in words]


@dataclass
class ParitySettings(Network):
    length: int = 5  # bits

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.length <= 12:
            raise ValueError(f"env.length must lie in 1 ... 12, got {self.length}")


class Parity(CharacterTask):
    """`^01101>`: 1 where the number of ones is odd."""

    Settings = ParitySettings
    reward = staticmethod(exact_text)

    def questions(self) -> list[Question]:
        words = map("".join, itertools.product("01", repeat=self.settings.length))
        return [Question(f"{BOS}{word}>", str(word.count("1") % 2)) for word in words]


@dataclass
class AdditionSettings(Network):
    digits: int = 2  # of each summand

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.digits <= 2:
            raise ValueError(f"env.digits must be 1 or 2, got {self.digits}")


class Addition(CharacterTask):
    """`^07+95=`: their sum, `102`."""

    Settings = AdditionSettings

    def questions(self) -> list[Question]:
        n = self.settings.digits
        pairs = itertools.product(range(10**n), repeat=2)
        return [Question(f"{BOS}{x:0{n}}+{y:0{n}}=", f"{x + y:0{n + 1}}") for x, y in pairs]


@dataclass
class WordProblemSettings:
    model: str | None = None  # folder of a transformers checkpoint
    instruction: str = "Solve the problem. End with #### and the answer as a number."
    test_share: float = 0.05  # of the problems, the last ones, kept from learning

    def __post_init__(self) -> None:
        if not 0.0 < self.test_share < 1.0:
            raise ValueError(f"env.test_share must lie in (0, 1), got {self.test_share}")


class WordProblems:
    """GSM8K's problems: question and answer in an NPZ or JSON-lines file, the number behind `####` judged."""

    Settings = WordProblemSettings

    def __init__(self, settings: WordProblemSettings):
        self.settings = settings

    def env(self, *, n_envs: int, device: torch.device, max_tokens: int = 256, path: str | None = None) -> TextEnv:
        """max_tokens: of a response."""
        settings = self.settings
        if settings.model is None or not Path(settings.model).is_dir():
            raise ValueError(
                f"env=tokens/gsm8k needs env.model=FOLDER of a checkpoint on the disk, got {settings.model}"
            )
        if path is None:
            raise ValueError("env=tokens/gsm8k needs data.path=FILE, JSON lines or an NPZ with question and answer")
        tokenizer, make, context = opened(settings.model, device)
        asked = [
            Question(with_template(tokenizer, f"{settings.instruction}\n{q}".strip()), a)
            for q, a in zip(*text_columns(path, "question", "answer"), strict=True)
        ]
        n_test = max(1, round(len(asked) * settings.test_share))
        room = longest_prompt(context, max_tokens)
        train, test = asked[:-n_test], asked[-n_test:]

        return TextEnv(
            _prompts(train, tokenizer, room, device),
            Rewards(exact_number),
            tokenizer,
            make_model=make,
            max_new_tokens=max_tokens,
            n_envs=n_envs,
            device=device,
            test=_prompts(test, tokenizer, room, device),
            solved=1.0,
        )


def opened(folder: str, device: torch.device) -> tuple[Any, Callable[[], nn.Module], int | None]:
    """Tokenizer, model and context, in tokens, of a checkpoint folder; the model is read when it is asked for."""
    if not Path(folder).is_dir():
        raise ValueError(f"env.model={folder}: no such folder; give that of a transformers checkpoint")
    transformers = need_transformers()
    transformers.utils.logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"env.model={folder}: not a checkpoint of transformers ({str(error).splitlines()[0]})"
        ) from None

    def make() -> nn.Module:
        load: Callable[..., Any] = transformers.AutoModelForCausalLM.from_pretrained
        return load(folder, local_files_only=True, dtype=torch.float32).to(device)

    return tokenizer, make, getattr(config, "max_position_embeddings", None)


def with_template(tokenizer: Any, prompt: Any) -> Any:
    """A text as the chat that the tokenizer has a template for, else with a line end; a chat as it is."""
    if not isinstance(prompt, str):
        return prompt
    return [{"role": "user", "content": prompt}] if getattr(tokenizer, "chat_template", None) else f"{prompt}\n"

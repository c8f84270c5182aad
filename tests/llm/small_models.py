"""Models of a few hundred weights, and a task for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ctrlrl.llm.environment import TextEnv
from ctrlrl.llm.learner import TokenLearner
from ctrlrl.llm.loop import TokenLoop
from ctrlrl.llm.presets import preset
from ctrlrl.llm.prompts import Prompts
from ctrlrl.llm.rewards import Rewards
from ctrlrl.llm.symbols import small_llama, symbol_tokenizer

TOKENIZER = symbol_tokenizer()
EOS, PAD = TOKENIZER.eos_token_id, TOKENIZER.pad_token_id
WORDS = ["ab", "fc", "de", "aa", "cb", "fd", "ed", "bb"]


def llama(seed: int = 0, scale: float = 8.0, **sizes: Any) -> Any:
    """Weights `scale` times as large as usual: what it says then depends on what it read."""
    torch.manual_seed(seed)
    model = small_llama(TOKENIZER, **{"hidden_size": 16, "n_layers": 2, "n_heads": 2, "context": 32, **sizes})
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(scale)
    return model.eval()


def gpt2() -> Any:
    """Its positions are absolute, and it comes with dropout on."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=22, n_positions=32, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3)
    return GPT2LMHeadModel(config)


class Bigram(nn.Module):
    """tokens [N, L] -> logits [N, L, V]: the next token depends on the present one."""

    def __init__(self, n: int = len(TOKENIZER)):
        super().__init__()
        self.table = nn.Embedding(n, n)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table(tokens)


def letters(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """Rewards in [0, 1] that differ between almost all completions."""
    return [sum(map(ord, f"{text}{right}")) % 11 / 10.0 for text, right in zip(completions, answer, strict=True)]


def env(n_envs: int = 16, *, words: list[str] = WORDS, rewards: Any = letters, **options: Any) -> TextEnv:
    prompts = Prompts([f"^{w}>" for w in words], {"answer": words}, TOKENIZER, pad=PAD)
    given = {"make_model": llama, "max_new_tokens": 3, "device": torch.device("cpu"), "solved": 1.0, **options}
    return TextEnv(prompts, Rewards(rewards), TOKENIZER, n_envs=n_envs, **given)


def loop_of(
    method: str = "grpo", *, model: Any = None, task: TextEnv | None = None, steps: int = 64, **changes: Any
) -> Any:
    """A loop whose groups have four responses where the method compares them."""
    group = {} if preset(method).group_size <= 2 else {"group_size": 5 if method == "mc_grpo" else 4}
    cfg = preset(method, **{"max_tokens": 3, "learning_rate": 1e-3, **group, **changes})
    task = env(4 * cfg.group_size) if task is None else task
    learner = TokenLearner(cfg, task.spec, model=llama() if model is None else model, eos=task.eos, pad=task.pad)
    return TokenLoop(learner, task, total_steps=steps)


def state(learner: Any) -> dict[str, Tensor]:
    both = {**learner.model_state(), **learner.training_state()}
    return {k: v.detach().clone() for k, v in both.items()}

"""A language model that learns from rewards: `GBPO(model, tokenizer, reward_fns=[...], dataset=x).learn(9_600)`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from ctrlrl import tasks, texts
from ctrlrl.core.process import keep_memory
from ctrlrl.face.numbers import of_fields, whole
from ctrlrl.llm.environment import TextEnv, context_of, longest_prompt, special_tokens
from ctrlrl.llm.generate import Engine
from ctrlrl.llm.learner import TokenLearner
from ctrlrl.llm.loop import TokenLoop
from ctrlrl.llm.prompts import Prompts, decode
from ctrlrl.llm.recorded import Labelled, is_recorded, labelled
from ctrlrl.llm.recorded_loop import RecordedLoop
from ctrlrl.llm.recorded_task import from_file, tokens_of
from ctrlrl.llm.recording import Recording
from ctrlrl.llm.rewards import RewardFn, Rewards
from ctrlrl.llm.symbols import need_transformers
from ctrlrl.registry import ALGORITHMS, lookup, unknown
from ctrlrl.train.callbacks import of_metrics
from ctrlrl.train.evaluate import Evaluation
from ctrlrl.train.log import Progress


class LanguageAgent:
    """model:      a causal language model of transformers, with or without PEFT, a folder or name of one, or any module
                tokens [N, L] -> logits [N, L, V].
    tokenizer:  of transformers, or an object with encode, decode, eos_token_id and pad_token_id; None with a folder.
    reward_fns: one or several functions (prompts, completions, **columns) -> list[float | None], as TRL takes them.
    dataset:    prompts (texts or chats), dicts with `prompt` and further columns, or a `datasets.Dataset`. Or recorded
                responses: a file of labelled ones, or rows with prompt, response, reward, or prompt, chosen, rejected.
    eval_dataset: what `evaluate` asks, or tells apart; None: `dataset`. n_envs: responses of one update; None: 8
    prompts' or, where every prompt has one response, 64. engine: samples instead of the model, see
    `llm.generate.sampled_elsewhere`.
    ref_model:  what a KL penalty is to; None: the model as it is given, or without its adapters.
    Further keyword arguments are the fields of the method's config: `group_size=8`, `learning_rate=1e-6`, ...
    """

    algo: ClassVar[str]

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        reward_fns: RewardFn | Sequence[RewardFn] = (),
        dataset: Any = None,
        *,
        eval_dataset: Any = None,
        n_envs: int | None = None,
        seed: int | None = None,
        device: torch.device | str = "auto",
        dtype: str = "float32",
        engine: Engine | None = None,
        ref_model: nn.Module | None = None,
        **settings: Any,
    ):
        where = type(self).__name__
        kind = lookup(ALGORITHMS, self.algo, "algorithm")
        known = [f.name for f in fields(kind.config) if f.name != "name"]
        for name in settings:
            if name not in known:
                raise TypeError(f"{where}: {unknown('argument', name, known)}")
        if dataset is None:
            raise ValueError(f"{where} needs dataset, the prompts to learn from")
        self.cfg = kind.config(**of_fields(kind.config, settings, where))
        n_envs, seed = whole(where, "n_envs", n_envs), whole(where, "seed", seed)
        for line in self.cfg.notices():
            warnings.warn(line, stacklevel=2)
        keep_memory()
        self.device = tasks.resolve_device(str(device))
        if seed is not None:
            torch.manual_seed(seed)
        self.model, self.tokenizer = _opened(model, tokenizer)
        _refuse_half(self.model)
        self.model.to(self.device)
        dataset, eval_dataset = (list(x) if isinstance(x, Iterator) else x for x in (dataset, eval_dataset))
        n = (64 if self.cfg.group_size == 1 else 8 * self.cfg.group_size) if n_envs is None else n_envs
        self.cfg.check_envs(n)
        self.env = (
            self._recording(reward_fns, dataset, eval_dataset, n)
            if isinstance(dataset, (str, PathLike)) or is_recorded(dataset)
            else self._prompts(reward_fns, dataset, eval_dataset, n)
        )
        recorded = isinstance(self.env, Recording)
        self.learner: TokenLearner = kind(
            self.cfg,
            self.env.spec,
            model=self.model,
            eos=self.env.eos,
            pad=self.env.pad,
            engine=engine,
            reference=None if ref_model is None else ref_model.to(self.device),
            recorded=recorded,
        )
        self.learner.set_dtype(dtype)
        self._loop: Any = (
            RecordedLoop(self.learner, self.env, gradient_steps=0)
            if isinstance(self.env, Recording)
            else TokenLoop(self.learner, self.env, total_steps=0)
        )
        self.log_history: list[dict[str, float]] = []  # one row an update

    def _prompts(self, reward_fns: Any, dataset: Any, eval_dataset: Any, n: int) -> TextEnv:
        if self.cfg.needs_recording:
            raise ValueError(f"{type(self).__name__} imitates: its dataset needs prompt, response and reward")
        room = longest_prompt(context_of(self.model), self.cfg.max_tokens)
        pad = special_tokens(self.tokenizer)[1]
        options: dict[str, Any] = {"pad": pad, "longest": room, "device": self.device}
        return TextEnv(
            Prompts.of(dataset, self.tokenizer, **options),
            Rewards(reward_fns),
            self.tokenizer,
            make_model=lambda: self.model,
            max_new_tokens=self.cfg.max_tokens,
            n_envs=n,
            device=self.device,
            test=None if eval_dataset is None else Prompts.of(eval_dataset, self.tokenizer, **options),
        )

    def _recording(self, reward_fns: Any, dataset: Any, eval_dataset: Any, n: int) -> Recording:
        if reward_fns:
            raise ValueError("reward_fns: recorded responses come with their rewards; leave it out")
        longest = context_of(self.model) or 10**9
        (train, left), (test, _) = (
            tokens_of(self._labelled(part), self.tokenizer, longest) if part is not None else (None, 0)
            for part in (dataset, eval_dataset)
        )
        if left:
            warnings.warn(f"dataset: {left} responses do not fit into {longest:,} tokens; left out", stacklevel=3)
        assert train is not None
        eos, pad = special_tokens(self.tokenizer)
        assert eos is not None
        return Recording(
            train,
            self.tokenizer,
            eos=eos,
            pad=pad,
            make_model=lambda: self.model,
            n_envs=n,
            device=self.device,
            test=test,
        )

    def _labelled(self, dataset: Any) -> Labelled:
        if isinstance(dataset, (str, PathLike)):
            return from_file(Path(dataset), self.tokenizer)
        return labelled(dataset)

    @property
    def num_timesteps(self) -> int:
        """Responses so far, or, of recorded ones, gradient steps."""
        return getattr(self._loop, self._loop.clock)

    def learn(
        self,
        total_timesteps: int | None = None,
        *,
        iterations: int | None = None,
        callback: Callable[[dict[str, float]], bool | None] | None = None,
        progress_bar: bool = False,
    ) -> Self:
        """Learn from `total_timesteps` more responses, or for so many updates; a second call goes on.

        Of recorded responses total_timesteps are gradient steps, and so are iterations.

        callback: called with the metrics of each update; False ends learning.
        """
        if (total_timesteps is None) == (iterations is None):
            raise ValueError("learn takes either total_timesteps, which counts responses, or iterations, updates")
        where, loop = type(self).__name__, self._loop
        total_timesteps = whole(where, "total_timesteps", total_timesteps)
        iterations, goes_on = whole(where, "iterations", iterations), of_metrics(callback, where)
        each = 1 if isinstance(self.env, Recording) else self.env.spec.n_envs
        steps = total_timesteps if total_timesteps is not None else (iterations or 0) * each
        if steps < 1:
            raise ValueError("learn: total_timesteps or iterations must be at least 1")
        before, made = self.num_timesteps, 0
        loop.total_steps = before + steps
        counted = iterations is not None and loop.clock == "env_steps"  # an update may take more responses, or fewer
        unit = "responses" if loop.clock == "env_steps" else "updates"
        with Progress(f"{self.algo} {steps:,} {unit}", steps, unit=loop.clock, enabled=progress_bar) as progress:
            while made < (iterations or 0) if counted else not loop.done:
                metrics = {name: float(value) for name, value in loop.iterate().items()}
                made += 1
                if counted and self.num_timesteps > before:
                    loop.total_steps = before + round((self.num_timesteps - before) / made * (iterations or 0))
                row = {"env_steps": loop.env_steps, "gradient_steps": loop.gradient_steps}
                self.log_history.append(row | loop.episode_metrics() | metrics)
                progress.update(made * each if counted else self.num_timesteps - before, self.log_history[-1])
                if not goes_on(self.log_history[-1]):
                    break
        return self

    def generate(self, prompts: Any, *, n: int = 1, greedy: bool = True) -> list[Any]:
        """Completions of one prompt or of several, `n` of each one after another; in the form of their prompts."""
        single = isinstance(prompts, str) or bool(len(prompts) and isinstance(prompts[0], dict))
        asked = [prompts] if single else list(prompts)
        room = longest_prompt(context_of(self.model), self.cfg.max_tokens)
        made = Prompts(asked, {}, self.tokenizer, pad=self.env.pad, longest=room, device=self.device)
        ids, mask = made.tokens(torch.arange(len(made)))
        found = self.learner.respond(ids, mask, n=n, max_new_tokens=self.cfg.max_tokens, greedy=greedy)
        mirrored = [prompt for prompt in asked for _ in range(n)]
        completions, _ = decode(self.tokenizer, found.ids, found.lengths, mirrored)
        return completions

    def evaluate(self, episodes: int = 100, *, seed: int = 0, deterministic: bool = True) -> Evaluation:
        """Rewards and lengths of the responses to so many of the evaluation prompts; greedy, or sampled.

        Of recorded responses: whether each of so many pairs is told apart (`texts.text_evaluator`).
        """
        return texts.text_evaluator(self.learner, self.env, episodes=episodes, seed=seed, deterministic=deterministic)()

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Model, or adapters, and tokenizer as transformers reads them."""
        texts.save_pretrained(self.model, self.tokenizer, Path(folder))


def _refuse_half(model: nn.Module) -> None:
    """ValueError for weights to be trained that a small step leaves as they were."""
    half = next(
        (p.dtype for p in model.parameters() if p.requires_grad and p.dtype in (torch.bfloat16, torch.float16)), None
    )
    if half is not None:
        raise ValueError(
            f"model: its weights are {str(half).removeprefix('torch.')}, in which small steps round away: load it with "
            "dtype=torch.float32; dtype='bfloat16' here gives products in bfloat16"
        )


def _opened(model: Any, tokenizer: Any) -> tuple[nn.Module, Any]:
    if isinstance(model, (str, PathLike)):
        transformers = need_transformers()
        if tokenizer is None:
            tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        model = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch module or the folder of one, got {type(model).__name__}")
    if tokenizer is None:
        raise ValueError("tokenizer: give that of the model")
    return model, tokenizer

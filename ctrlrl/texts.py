"""From a configuration to what learning with a language model takes: prompts, learner, loop, and how it is judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ctrlrl.config import TrainConfig, own_settings
from ctrlrl.core.random import seed_generators
from ctrlrl.core.ranks import Ranks
from ctrlrl.data.columns import sha256
from ctrlrl.data.episodes import Facts
from ctrlrl.llm.environment import TextEnv
from ctrlrl.llm.learner import TokenLearner
from ctrlrl.llm.loop import TokenLoop
from ctrlrl.llm.recorded_loop import RecordedLoop, told_apart
from ctrlrl.llm.recording import Recording
from ctrlrl.registry import ALGORITHMS, TOKEN_TASKS, lookup
from ctrlrl.shares import start_together
from ctrlrl.train.evaluate import Evaluation, forked_rng

AT_ONCE = 256  # prompts that an evaluation answers together


def answers_prompts(cfg: TrainConfig) -> bool:
    """Whether a run trains a language model."""
    return bool(lookup(ALGORITHMS, cfg.algo.name, "algorithm").loop == "tokens")


def learns_recorded(env: str) -> bool:
    """Whether an environment is a file of recorded responses."""
    return env in TOKEN_TASKS and hasattr(lookup(TOKEN_TASKS, env, "environment"), "recording")


def text_env(cfg: TrainConfig, device: torch.device) -> TextEnv | Recording:
    """The prompts of a configured task, or its recorded responses; ValueError where the environment has none."""
    if cfg.env.name not in TOKEN_TASKS:
        raise ValueError(
            f"algo={cfg.algo.name} teaches a language model, and env={cfg.env.name} has no prompts. Use one of "
            f"{', '.join(f'env={name}' for name in TOKEN_TASKS)}"
        )
    kind = lookup(TOKEN_TASKS, cfg.env.name, "environment")
    task, data = kind(own_settings(cfg.env, kind.Settings)), cfg.data
    if learns_recorded(cfg.env.name):
        return task.recording(data.path, n_envs=cfg.n_envs, device=device, holdout=data.holdout)
    algo = cfg.algo
    own = {"ends": algo.overlong != "none", "buffer": algo.overlong_buffer} if hasattr(task, "questions") else {}
    return task.env(n_envs=cfg.n_envs, device=device, max_tokens=algo.max_tokens, path=data.path, **own)


def token_learner(cfg: TrainConfig, env: TextEnv | Recording) -> TokenLearner:
    kind = lookup(ALGORITHMS, cfg.algo.name, "algorithm")
    algo = replace(cfg.algo, max_tokens=env.max_new_tokens)
    recorded = isinstance(env, Recording)
    learner: TokenLearner = kind(algo, env.spec, model=env.make_model(), eos=env.eos, pad=env.pad, recorded=recorded)
    learner.set_dtype(cfg.dtype)
    return learner


def token_loop(cfg: TrainConfig, device: torch.device, ranks: Ranks) -> TokenLoop | RecordedLoop:
    recorded = learns_recorded(cfg.env.name)
    if cfg.data.name != ("file" if recorded else "none"):
        raise ValueError(
            f"data={cfg.data.name}: recorded responses are learned with data=file data.path=FILE env=tokens/recorded; "
            "without data, algo learns from prompts"
        )
    if cfg.algo.needs_recording and not recorded:
        raise ValueError(f"algo={cfg.algo.name} imitates: give data=file data.path=FILE env=tokens/recorded")
    if cfg.compile == "graph":
        raise ValueError(f"compile=graph is not for algo={cfg.algo.name}. Use compile=eager.")
    cfg.algo.check_envs(cfg.n_envs)
    env = text_env(cfg, device)
    env.notices += cfg.algo.notices()
    seed_generators(cfg.seed)
    learner = token_learner(cfg, env)
    start_together(learner, cfg.seed, ranks)
    if isinstance(env, Recording):
        path = str(cfg.data.path)
        facts = Facts("labelled", path, checksum=sha256(Path(path)))
        return RecordedLoop(learner, env, gradient_steps=cfg.gradient_steps, facts=facts)
    return TokenLoop(learner, env, total_steps=cfg.env_steps(type(learner)))


def load_reference(cfg: TrainConfig, learner: Any, training: Mapping[str, torch.Tensor]) -> None:
    """What recorded responses are judged against, from a checkpoint."""
    if learns_recorded(cfg.env.name):
        learner.load_reference({k.removeprefix("learner/"): v for k, v in training.items()})


def text_evaluator(
    learner: TokenLearner, env: TextEnv | Recording, *, episodes: int, seed: int, deterministic: bool = True
) -> Callable[[], Evaluation]:
    """A function that judges the responses to `episodes` of the test prompts, or to all where there are fewer.

    Of recorded responses: on how many of `episodes` pairs the better one is told apart; 1 or 0 is a pair's return.
    """
    if isinstance(env, Recording):
        return lambda: _pairs_judged(learner, env, episodes, seed)
    chosen = torch.randperm(len(env.test), generator=torch.Generator().manual_seed(seed))[:episodes]
    n_rewards = len(env.rewards.fns)
    weights = learner.cfg.weights(torch.empty(1, n_rewards, device=env.spec.device))

    def run() -> Evaluation:
        rewards, lengths = [], []
        with forked_rng(seed):
            for index in chosen.split(AT_ONCE):
                asked = env.asked(env.test, index)
                responses = learner.respond(
                    asked.ids, asked.mask, n=1, max_new_tokens=env.max_new_tokens, greedy=deterministic
                )
                rewards.append((env.judge(asked, responses, test=True).nan_to_num(0.0) * weights).sum(1))
                lengths.append(responses.lengths)
        returns = torch.cat(rewards).double().cpu()
        success = None if env.solved is None else (returns >= env.solved).float()
        return Evaluation(returns, torch.cat(lengths).cpu(), success)

    return run


def _pairs_judged(learner: TokenLearner, env: Recording, episodes: int, seed: int) -> Evaluation:
    found = told_apart(learner, env.test, most=episodes, seed=seed)
    return Evaluation(found.right.double(), found.length, found.right.float())


def save_pretrained(model: Any, tokenizer: Any, folder: Path) -> None:
    """A transformers or PEFT model and its tokenizer; of another module ValueError."""
    if not hasattr(model, "save_pretrained"):
        raise ValueError(f"{type(model).__name__} is not of transformers; save its state_dict() instead")
    model.save_pretrained(str(folder))
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(str(folder))

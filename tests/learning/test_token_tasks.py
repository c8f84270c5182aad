"""Language models learn the small tasks from rewards alone, with the settings that come with ctrlrl."""

import time
from typing import Any

import pytest

from ctrlrl import settings
from ctrlrl.judging import evaluator
from ctrlrl.loops import training_loop

METHODS = ("grpo", "gbpo", "gspo", "rloo", "ppo_tokens", "spo")


def started(*words: str) -> tuple[Any, Any]:
    cfg = settings.typed(settings.train_config(list(words)))
    return cfg, training_loop(cfg)


def greedy_accuracy(cfg: Any, loop: Any) -> float:
    returns = evaluator(loop.learner, cfg, episodes=10**9, seed=0)().returns
    return (returns >= 1.0).double().mean().item()


def test_one_letter_is_copied_after_thirty_small_updates():
    words = "algo=grpo env=tokens/copy experiment=none env.length=1 env.letters=3 env.hidden_size=32 env.n_layers=1"
    words += " env.init_std=0.1 n_envs=48 algo.group_size=16 algo.kl=none algo.kl_coef=0 algo.learning_rate=0.01"
    cfg, loop = started(*words.split(), "algo.n_epochs=2", "iterations=30")
    first = loop.collect().reward.mean().item()
    while not loop.done:
        loop.iterate()
    assert first < 0.3
    assert greedy_accuracy(cfg, loop) == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_four_letters_are_copied_by_update_forty(method: str, seed: int):
    _, loop = started(f"algo={method}", "env=tokens/copy", f"seed={seed}")
    rewards = []
    while not loop.done:
        loop.iterate()
        rewards.append(loop.recent[-1]["reward/mean"])
    assert len(rewards) == 40
    assert rewards[-1] >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grpo", "gbpo"])
def test_sums_are_right_in_most_cases_after_a_minute_of_one_core(method: str):
    cfg, loop = started(f"algo={method}", "env=tokens/addition", "seed=0")
    begin = time.process_time()
    while not loop.done and time.process_time() - begin < 60.0:
        loop.iterate()
    assert greedy_accuracy(cfg, loop) >= 0.6

"""Mean reward of language models that learn the small tasks, by update: `python benchmarks/token_curves.py`.

One JSON line a run: method, task, seed, the mean reward of every `--every` updates, that of the held-out prompts'
greedy answers, and CPU seconds. Settings are those of configs/experiment/<method>/tokens/<task>.yaml.
"""

from __future__ import annotations

import argparse
import json
import time

import torch

from ctrlrl import settings
from ctrlrl.core.process import keep_memory
from ctrlrl.judging import evaluator
from ctrlrl.loops import training_loop

METHODS = ("grpo", "gbpo", "gspo", "rloo", "ppo_tokens", "spo")


def curve(method: str, task: str, seed: int, *, every: int, words: list[str], cpu_seconds: float | None) -> dict:
    cfg = settings.typed(settings.train_config([f"algo={method}", f"env=tokens/{task}", f"seed={seed}", *words]))
    torch.set_num_threads(1)
    keep_memory()
    begin = time.process_time()
    loop = training_loop(cfg)
    rewards, seconds = {}, 0.0
    update = 0
    while not loop.done and (cpu_seconds is None or seconds < cpu_seconds):
        loop.iterate()
        update += 1
        seconds = time.process_time() - begin
        if update % every == 0 or loop.done:
            rewards[update] = round(loop.recent[-1]["reward/mean"], 3)
    found = evaluator(loop.learner, cfg, episodes=10**9, seed=0)()
    return {
        "method": method,
        "task": task,
        "seed": seed,
        "updates": update,
        "reward": rewards,
        "greedy_reward": round(found.returns.mean().item(), 3),
        "greedy_exact": round((found.returns >= 1.0).double().mean().item(), 3),
        "test_prompts": len(found.returns),
        "cpu_seconds": round(seconds, 1),
    }


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--methods", nargs="+", default=METHODS)
    asked.add_argument("--task", default="copy")
    asked.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    asked.add_argument("--every", type=int, default=8)
    asked.add_argument("--cpu-seconds", type=float, default=None, help="end learning after this much CPU time")
    asked.add_argument("--words", nargs="*", default=[], help="further words of `ctrlrl train`")
    given = asked.parse_args()
    for method in given.methods:
        for seed in given.seeds:
            made = curve(method, given.task, seed, every=given.every, words=given.words, cpu_seconds=given.cpu_seconds)
            print(json.dumps(made), flush=True)


if __name__ == "__main__":
    main()

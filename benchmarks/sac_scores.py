"""Seconds of training until SAC reaches the return that Stable-Baselines3's SAC has after its own training.

python benchmarks/sac_scores.py [--steps 200_000] [--seeds 0 1 2] [--envs halfcheetah hopper walker2d] [words ...]
A cell trains SB3 first (one environment, its defaults, one thread), then ours with the preset and `words`
(dtype=bfloat16, n_envs=8, ...) until the mean of 20 deterministic episodes reaches SB3's, looked at every 30 s, or
until as many steps are taken. Both clocks stand still while a policy is evaluated. 200,000 steps of SB3 take about 50
minutes. Rows go to benchmarks/results/sac_scores.jsonl; a cell that is there is not run again. `--table` prints them.
"""

from __future__ import annotations

import argparse
import math
import sys
from json import loads
from pathlib import Path

import torch

from ctrlrl.bench.ours import ToScore
from ctrlrl.bench.replay_peers import sb3_score
from ctrlrl.bench.rows import append, identity
from ctrlrl.settings import train_config, typed

RESULTS = Path(__file__).parent / "results" / "sac_scores.jsonl"
ENVS = ("halfcheetah", "hopper", "walker2d")
LOOK = 30.0  # seconds of training between two looks at the policy: the first lucky one ends the run


def rows() -> list[dict]:
    return [loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def run(env: str, seed: int, steps: int, words: list[str]) -> dict:
    cfg = typed(train_config(["algo=sac", f"env={env}", f"seed={seed}", "threads=1", f"total_steps={steps}", *words]))
    torch.set_num_threads(1)
    peer = sb3_score(cfg, steps, seed)
    ours = ToScore(cfg, peer["score"], "evaluation", LOOK)
    seconds = ours.lap().value
    return {
        "kind": "score",
        "env": env,
        "algo": "sac",
        "seed": seed,
        "peer_steps": steps,
        "words": words,
        "look_seconds": LOOK,
        "n_envs": cfg.n_envs,
        "dtype": cfg.dtype,
        "threads": 1,
        "target": peer["score"],
        "value": seconds,
        "unit": "seconds to target",
        "peer": "stable-baselines3, its defaults",
        "peer_value": peer["seconds"],
        "ratio": peer["seconds"] / seconds,
        "runs": ours.history,
        "peer_runs": [peer],
        **identity(),
    }


def table() -> str:
    lines = [
        "| task | seed | SB3: return, seconds | ctrlrl: seconds, steps | times faster |",
        "|---|---:|---:|---:|---:|",
    ]
    for r in sorted(rows(), key=lambda r: (r["env"], r["peer_steps"], r["seed"])):
        own = "not reached" if r["value"] is None else f"{r['value']:,.0f}, {r['runs'][0]['env_steps']:,}"
        ratio = "–" if r["value"] is None else f"{r['ratio']:.2f}"
        peer = f"{r['target']:,.0f}, {r['peer_value']:,.0f}"
        lines.append(f"| {r['env']} ({' '.join(r['words'])}) | {r['seed']} | {peer} | {own} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--envs", nargs="+", default=ENVS)
    parser.add_argument("--table", action="store_true")
    options, words = parser.parse_known_args()
    if options.table:
        print(table())
        return
    done = {(r["env"], r["seed"], r["peer_steps"], tuple(r["words"])) for r in rows()}
    for seed in options.seeds:
        for env in options.envs:
            if (env, seed, options.steps, tuple(words)) in done:
                continue
            row = run(env, seed, options.steps, words)
            append([row], RESULTS)
            reached = f"{row['value']:.0f} s" if math.isfinite(row["value"]) else "not reached"
            print(
                f"{env} seed {seed}: SB3 {row['target']:.0f} in {row['peer_value']:.0f} s, ours {reached}",
                file=sys.stderr,
            )


if __name__ == "__main__":
    main()

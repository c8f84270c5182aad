"""Seconds of training until SAC reaches the return that Stable-Baselines3's SAC has after its own training.

python benchmarks/sac_scores.py [--steps 200_000] [--seeds 0 1 2] [--envs halfcheetah hopper walker2d] [words ...]
SB3 trains with its own defaults on one environment, one thread, and is judged at the end by the mean of 20
deterministic episodes. Ours trains with the preset and `words` (dtype=bfloat16, n_envs=8, ...) until its own mean,
looked at every 30 s, is as high twice in a row, or as many updates are made. Both clocks stand still while a policy is
evaluated; where anything else runs on the machine, compare the processor's seconds. 200,000 steps of SB3 take about 50
minutes: `--only peer` trains SB3 alone, and ours uses its row later, on the same machine. Rows go to
benchmarks/results/sac_scores.jsonl; a run that is there is not made again. `--table` prints them.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace
from json import loads
from pathlib import Path

import torch

from ctrlrl.bench.ours import ToScore
from ctrlrl.bench.replay_peers import sb3_score
from ctrlrl.bench.rows import append, identity
from ctrlrl.provenance import machine
from ctrlrl.settings import train_config, typed

RESULTS = Path(__file__).parent / "results" / "sac_scores.jsonl"
ENVS = ("halfcheetah", "hopper", "walker2d")
LOOK = 30.0  # seconds of training between two looks at the policy
IN_A_ROW = 2  # looks that must meet SB3's return: one alone may be luck


def rows(path: Path) -> list[dict]:
    return [loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def key(row: dict) -> tuple:
    return row["kind"], row["env"], row["seed"], row["peer_steps"], tuple(row["words"])


def peer_row(env: str, seed: int, steps: int) -> dict:
    words = ["algo=sac", f"env={env}", "experiment=none"]  # SB3's values of the words that both sides have
    result = sb3_score(typed(train_config(words)), steps, seed)
    peer = {"kind": "peer", "env": env, "algo": "sac", "seed": seed, "peer_steps": steps, "words": [], "threads": 1}
    return {**peer, "peer": "stable-baselines3, its defaults", **result, **identity()}


def own_row(env: str, seed: int, peer: dict, words: list[str]) -> dict:
    cfg = typed(train_config(["algo=sac", f"env={env}", f"seed={seed}", "threads=1", "env.threads=1", *words]))
    ours = ToScore(
        replace(cfg, total_steps=int(peer["peer_steps"] / cfg.algo.utd)), peer["score"], "evaluation", LOOK, IN_A_ROW
    )
    lap = ours.lap()
    return {
        "kind": "score",
        "env": env,
        "algo": "sac",
        "seed": seed,
        "peer_steps": peer["peer_steps"],
        "words": words,
        "look_seconds": LOOK,
        "looks_in_a_row": IN_A_ROW,
        "n_envs": cfg.n_envs,
        "dtype": cfg.dtype,
        "threads": 1,
        "target": peer["score"],
        "value": lap.value,
        "cpu_seconds": lap.cpu_seconds,
        "unit": "seconds to target",
        "peer": peer["peer"],
        "peer_value": peer["seconds"],
        "peer_cpu_seconds": peer["cpu_seconds"],
        "ratio": peer["seconds"] / lap.value,
        "runs": ours.history,
        **identity(),
    }


def table(path: Path) -> str:
    lines = [
        "| task | seed | SB3: return, seconds | ctrlrl: seconds, steps | times faster | by the processor's seconds |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    own = [r for r in rows(path) if r["kind"] == "score"]
    for r in sorted(own, key=lambda r: (r["env"], r["words"], r["peer_steps"], r["seed"])):
        reached = "not reached" if r["value"] is None else f"{r['value']:,.0f}, {r['runs'][0]['env_steps']:,}"
        cpu = r["peer_cpu_seconds"] / r["cpu_seconds"]
        ratio = "– | –" if r["value"] is None else f"{r['ratio']:.2f} | {cpu:.2f}"
        peer = f"{r['target']:,.0f}, {r['peer_value']:,.0f}"
        lines.append(f"| {' '.join([r['env'], *r['words']])} | {r['seed']} | {peer} | {reached} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--envs", nargs="+", default=ENVS)
    parser.add_argument("--only", choices=["peer"], help="train SB3 alone")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true")
    options, words = parser.parse_known_args()
    if options.table:
        print(table(options.out))
        return
    torch.set_num_threads(1)
    here = machine()
    done = {key(row): row for row in rows(options.out) if row["machine"] == here}
    for seed in options.seeds:
        for env in options.envs:
            peer = done.get(("peer", env, seed, options.steps, ()))
            if peer is None:
                peer = peer_row(env, seed, options.steps)
                append([peer], options.out)
                print(f"{env} seed {seed}: SB3 {peer['score']:.0f} in {peer['seconds']:.0f} s", file=sys.stderr)
            if options.only == "peer" or ("score", env, seed, options.steps, tuple(words)) in done:
                continue
            row = own_row(env, seed, peer, words)
            append([row], options.out)
            reached = f"{row['value']:.0f} s" if math.isfinite(row["value"]) else "not reached"
            print(f"{env} seed {seed}: {peer['score']:.0f} by ours: {reached}", file=sys.stderr)


if __name__ == "__main__":
    main()

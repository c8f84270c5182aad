"""Train every robot task with its preset and keep one row a run.

python benchmarks/robot_scores.py [--seeds 0 1 2] [--jobs 2]
Rows go to benchmarks/results/robot_scores.jsonl; a cell that is there is not run again. `--table` prints them as
Markdown: every seed, its last return and its best.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ctrlrl.registry import ROBOTS, VECTOR_ROBOTS
from ctrlrl.report.published import published

RESULTS = Path(__file__).parent / "results" / "robot_scores.jsonl"
TASKS = [name for name in ROBOTS if not name.endswith("-v4") and name not in VECTOR_ROBOTS]


def rows() -> list[dict]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def run(cell: tuple[str, str, int]) -> None:
    algo, env, seed = cell
    with tempfile.TemporaryDirectory() as folder:
        words = [
            f"algo={algo}",
            f"env={env}",
            f"seed={seed}",
            f"run.dir={folder}/run",
            "env.threads=1",
            "total_steps=1_000_000",
        ]
        words += ["eval.every=250_000", "eval.episodes=20", "run.report=false"]
        done = subprocess.run([sys.executable, "-m", "ctrlrl.cli", "train", *words], capture_output=True, text=True)
        if done.returncode:
            print(f"{algo} {env} {seed}: exit {done.returncode}\n{done.stderr}", file=sys.stderr)
            return
        result = json.loads(Path(folder, "run", "result.json").read_text())
    row = {"kind": "score_at_budget", "command": "ctrlrl train " + " ".join(words[:3] + words[4:]), **result}
    with open(RESULTS, "a") as file:
        file.write(json.dumps(row) + "\n")
    print(f"{algo} {env} seed {seed}: {result['final_return_mean']:.0f} in {result['train_seconds']:.0f} s", flush=True)


def table() -> str:
    lines = ["| task | PPO, seeds: last (best) | BPO, seeds: last (best) | SB3 zoo PPO |", "|---|---|---|---|"]
    for env in TASKS:
        cells = [env]
        for algo in ("ppo", "bpo"):
            found = sorted((r for r in rows() if (r["algo"], r["env"]) == (algo, env)), key=lambda r: r["seed"])
            number = "{:,.1f}" if env in ("reacher", "pusher") else "{:,.0f}"
            shown = [f"{number.format(r['final_return_mean'])} ({number.format(r['best_return_mean'])})" for r in found]
            cells.append(" · ".join(shown) or "not run")
        zoo = [p for p in published("ppo", f"{ROBOTS[env]}") if p.source == "SB3 zoo"]
        cells.append(f"{zoo[0].value:,.0f} ± {zoo[0].std:,.0f} ({zoo[0].task})" if zoo else "–")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--algos", nargs="+", default=["ppo", "bpo"])
    parser.add_argument("--envs", nargs="+", default=TASKS)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        print(table())
        return
    done = {(r["algo"], r["env"], r["seed"]) for r in rows()}
    cells = [(a, e, s) for s in options.seeds for e in options.envs for a in options.algos]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(run, [cell for cell in cells if cell not in done]))
    seconds = [r["train_seconds"] for r in rows()]
    print(f"{len(seconds)} runs, median {statistics.median(seconds):.0f} s")


if __name__ == "__main__":
    main()

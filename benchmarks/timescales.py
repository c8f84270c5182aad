"""Several discounts against one on LunarLander-v3, as in arXiv:2604.13517: four conditions, five seeds, one row a run.

python benchmarks/timescales.py [--conditions ppo decoupled attention error] [--seeds 1 2 3 4 5] [--jobs 2]
Rows go to benchmarks/results/timescales.jsonl; a cell that is there is not run again. `--table` prints them as
Markdown. Needs pip install 'ctrlrl[box2d]'.

A run's number is the authors': the returns of its training episodes, averaged where several end in one step, linear in
between on a grid of 1000 points, and the mean of that over the last tenth of the steps.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ctrlrl.loops import training_loop
from ctrlrl.provenance import facts
from ctrlrl.report.stats import welch
from ctrlrl.settings import train_config, typed
from ctrlrl.tasks import device_of
from ctrlrl.train.rollout import EpisodeSums, EpisodeTracker
from ctrlrl.types import Rollout

RESULTS = Path(__file__).parent / "results" / "timescales.jsonl"
ROUTED = ["experiment=mtppo/lunarlander", "algo.mean_over_heads=true"]  # experiments 2 and 3
CONDITIONS = {
    "ppo": ["experiment=ppo/lunarlander"],
    "decoupled": ["experiment=mtppo/lunarlander"],  # experiment 6, lambda_aux 1; `ppo` is its lambda_aux 0
    "attention": [*ROUTED, "algo.routing=attention"],
    "error": [*ROUTED, "algo.routing=error"],
}
NAMES = {
    "ppo": "PPO, one discount of .999",
    "decoupled": "Target Decoupling",
    "attention": "attention routing",
    "error": "error routing",
}
SHOWN = ("policy/hack_rate", "policy/router_entropy", *(f"policy/weight_{g}" for g in ("0.5", "0.9", "0.99", "0.999")))
VARIANCE = "value/advantage_variance"


class Recorder(EpisodeTracker):
    """Keeps every episode besides: the environment step at which it ended, and its return."""

    def __init__(self, n_envs: int) -> None:
        super().__init__(n_envs, torch.device("cpu"), skip_first=False)
        self.n_envs, self.steps = n_envs, 0
        self.found: list[tuple[int, float]] = []

    def advance(self, rollout: Rollout) -> EpisodeSums:
        sums, counted = self.ended(rollout)
        for t, lane in counted.nonzero().tolist():
            self.found.append((self.steps + (t + 1) * self.n_envs, float(sums[t, 0, lane])))
        self.steps += counted.numel()
        returns, lengths = (sums.double() * counted.unsqueeze(1)).sum((0, 2))
        return EpisodeSums(counted.sum(), returns, lengths)


def curve(episodes: list[tuple[int, float]], total: int) -> np.ndarray:
    """Training return on a grid of 1000 steps, [1000]."""
    steps, returns = np.array(episodes).T
    ends, group = np.unique(steps, return_inverse=True)
    means = np.bincount(group, weights=returns) / np.bincount(group)
    return np.interp(np.linspace(0, total, 1000), ends, means)


def run(condition: str, seed: int, total: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    words = [*CONDITIONS[condition], f"seed={seed}", f"total_steps={total}"]
    cfg = typed(train_config(words))
    loop = training_loop(cfg)
    recorder = loop.episodes = Recorder(cfg.n_envs)
    measured: list[dict[str, float]] = []
    stepping = learning = 0.0
    begin = time.perf_counter()
    while not loop.done:
        before = time.process_time()
        rollout = loop.collect()
        between = time.process_time()
        measured.append({name: float(value) for name, value in loop.learn(rollout).items()})
        stepping, learning = stepping + between - before, learning + time.process_time() - between
    seconds = time.perf_counter() - begin
    returns = curve(recorder.found, total)
    parts = np.array_split(np.arange(len(measured)), 10)
    tenths = {name: [float(np.mean([measured[i][name] for i in part])) for part in parts] for name in measured[0]}
    return {
        "kind": "timescales",
        "condition": condition,
        "command": "ctrlrl train " + " ".join(words),
        **facts(cfg, device_of(cfg)),
        "total_steps": total,
        "last_tenth": float(returns[900:].mean()),
        "episodes": len(recorder.found),
        "tenths": [float(part.mean()) for part in np.split(returns, 10)],
        "metrics": tenths,
        "train_seconds": round(seconds, 1),
        "cpu_seconds": {"acting and stepping": round(stepping, 1), "learning": round(learning, 1)},
    }


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def table(found_rows: list[dict[str, Any]], total: int) -> str:
    """Every seed, mean, deviation (n - 1), worst seed and Welch's p against PPO; then what the routers did."""
    found = {
        c: sorted((r for r in found_rows if (r["condition"], r["total_steps"]) == (c, total)), key=lambda r: r["seed"])
        for c in CONDITIONS
    }
    baseline = [r["last_tenth"] for r in found["ppo"]]
    lines = ["| | seeds: return over the last tenth | mean ± std | worst | p against PPO | Var A of .999, last tenth |"]
    lines.append("|---|---|---|---|---|---|")
    for condition, own in found.items():
        values = [r["last_tenth"] for r in own]
        cells = [NAMES[condition], " · ".join(f"{v:.1f}" for v in values) or "not run"]
        enough = len(values) > 1
        cells += [f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}", f"{min(values):.1f}"] if enough else ["", ""]
        tested = enough and len(baseline) > 1 and condition != "ppo"
        cells.append(f"{welch(values, baseline)[1]:.3f}" if tested else "")
        variances = [r["metrics"][VARIANCE][-1] for r in own if VARIANCE in r["metrics"]]
        cells.append(f"{np.mean(variances):.0f}" if variances else "")
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| means over seeds: first tenth → last | " + " | ".join(n.partition("/")[2] for n in SHOWN) + " |"]
    lines.append("|---" * (len(SHOWN) + 1) + "|")
    for condition in ("attention", "error"):
        if not found[condition]:
            continue
        series = [np.mean([r["metrics"][name] for r in found[condition]], axis=0) for name in SHOWN]
        lines.append("| " + " | ".join([NAMES[condition], *(f"{s[0]:.2f} → {s[-1]:.2f}" for s in series)]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conditions", nargs="+", default=list(CONDITIONS), choices=list(CONDITIONS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.steps < 20_480:
        parser.error("--steps must be at least 20480, ten updates: the metrics of each tenth are kept")
    if not options.table:
        done = {(r["condition"], r["seed"], r["total_steps"]) for r in rows(options.out)}
        cells = [(c, s, options.steps) for s in options.seeds for c in options.conditions]
        with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
            for future in as_completed([pool.submit(run, *cell) for cell in cells if cell not in done]):
                if error := future.exception():
                    print(f"a run failed: {error}", file=sys.stderr)
                    continue  # the same command tries it again
                row = future.result()
                with open(options.out, "a") as file:
                    file.write(json.dumps(row) + "\n")
                said = f"{row['last_tenth']:.1f} in {row['train_seconds']:.0f} s, CPU {row['cpu_seconds']}"
                print(f"{row['condition']} seed {row['seed']}: {said}", flush=True)
    print(table(rows(options.out), options.steps))


if __name__ == "__main__":
    main()

"""C-MORL, its baseline and CAPQL on the robots with several objectives, at equal steps; one row a run.

python benchmarks/fronts.py [--seeds 0 1 2] [--envs mo_hopper_2obj ...] [--algos cmorl ...] [--nominal] [--jobs 2]
                            [words ...]
Every cell is `ctrlrl train` with the presets of cmorl/<env> and scalarized_ppo/<env>; CAPQL takes their steps and
reference with its own defaults. --nominal: the paper's nominal steps as true ones, an eighth of the presets', of which
stage one keeps its share. Rows go to benchmarks/results/fronts.jsonl; a cell that is there with the same words is not
run again. `--table` prints them as Markdown, with the published rows.
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

from ctrlrl.report.tables import front_size
from ctrlrl.settings import train_config, typed

RESULTS = Path(__file__).parent / "results" / "fronts.jsonl"
ENVS = ("mo_hopper_2obj", "mo_hopper", "mo_halfcheetah", "mo_ant_2obj")
ALGOS = ("cmorl", "scalarized_ppo")
PUBLISHED = {  # C-MORL's row of arXiv:2602.07764: v4 rewards; hypervolume, expected utility, sparsity
    "mo_hopper_2obj": (1.37e5, 253.0, 113.0),
    "mo_hopper": (2.19e7, 181.0, 53.0),
    "mo_ant_2obj": (1.31e5, 250.0, 2650.0),
}
PROCESSES = 8  # the authors', whose step counts leave them out
NOTE = """\
Steps are those of all policies' environments while they learn; the paper's nominal ones leave its eight processes out.
Evaluation steps come on top. Fronts are the final ones on fresh episodes, discounted by 0.99, at
most 500 steps of each. The published rows are of mo-gymnasium's v4 robots, these of v5, whose rewards differ: the two
do not compare."""


def rows() -> list[dict]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def words_of(algo: str, env: str, seed: int, nominal: bool, more: list[str]) -> list[str]:
    """What is typed after `ctrlrl train`."""
    preset = typed(train_config([f"experiment=cmorl/{env}"]))
    steps = preset.total_steps // PROCESSES if nominal else None
    own: list[str] = []
    if algo == "capql":
        reference = ",".join(f"{x:g}" for x in preset.algo.reference)
        own = ["experiment=none", "algo=capql", f"env={env}", "n_envs=8", "algo.utd=0.125"]
        own += [f"algo.reference=[{reference}]", f"eval.episodes={preset.algo.eval_episodes}"]
        steps = steps or preset.total_steps
    else:
        own = [f"experiment={algo}/{env}"]
    if steps is not None:
        own += [f"total_steps={steps}"]
        if algo == "cmorl" and preset.algo.init_steps is not None:
            own += [f"algo.init_steps={preset.algo.init_steps // PROCESSES}"]
    return [*own, f"seed={seed}", *more]


def run(words: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = ["env.threads=1", "threads=1", "run.report=false", "log.progress=false", f"run.dir={folder}/run"]
        command = [sys.executable, "-m", "ctrlrl.cli", "train", *words, *place]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{' '.join(words)}: exit {done.returncode}\n{done.stderr}", file=sys.stderr)
            return
        result = json.loads(Path(folder, "run", "result.json").read_text())
    size = front_size(result)
    own = {k: v for k, v in result.items() if k not in ("front", "front_stored")}
    row = {"kind": "front", "command": "ctrlrl train " + " ".join(words), "front_size": size, **own}
    with open(RESULTS, "a") as file:
        file.write(json.dumps(row) + "\n")
    print(
        f"{' '.join(words)}: hypervolume {row['hypervolume']:.4g} in {row['train_seconds']:.0f} s",
        file=sys.stderr,
        flush=True,
    )


def table(seeds: list[int], nominal: bool, more: list[str]) -> str:
    lines = ["| task | algorithm | steps | seeds | hypervolume | expected utility | sparsity | policies |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|---:|")
    for env in ENVS:
        for algo in (*ALGOS, "capql"):
            here = [r for r in rows() if (r["algo"], r["env"]) == (algo, env) and r["seed"] in seeds]
            found = [r for r in here if _asked(r, nominal, more)]
            if found:
                taken = " / ".join(f"{n:,}" for n in sorted({r["env_steps"] for r in found}))
                names = ("hypervolume", "expected_utility", "sparsity", "front_size")
                cells = [_spread([r[name] for r in found]) for name in names]
                lines.append("| " + " | ".join([env, algo, taken, str(len(found)), *cells]) + " |")
        if env in PUBLISHED:
            cells = [f"{x:.4g}" for x in PUBLISHED[env]]
            lines.append("| " + " | ".join([f"{env} (v4)", "C-MORL, published", "–", "–", *cells, "–"]) + " |")
    return "\n".join([*lines, "", NOTE])


def _asked(row: dict, nominal: bool, more: list[str]) -> bool:
    words = words_of(row["algo"], row["env"], row["seed"], nominal, more)
    return row["command"] == "ctrlrl train " + " ".join(words)


def _spread(values: list[float]) -> str:
    """Median, least and most."""
    if len(values) == 1:
        return f"{values[0]:.4g}"
    return f"{statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"


def main() -> None:
    global RESULTS
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--envs", nargs="+", default=ENVS)
    parser.add_argument("--algos", nargs="+", default=ALGOS)
    parser.add_argument("--nominal", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true")
    options, more = parser.parse_known_args()
    RESULTS = options.out
    if not options.table:
        done = {row["command"] for row in rows() if "command" in row}
        grid = [(a, e, s) for s in options.seeds for e in options.envs for a in options.algos]
        cells = [words_of(*cell, options.nominal, more) for cell in grid]
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(run, [words for words in cells if "ctrlrl train " + " ".join(words) not in done]))
    print(table(options.seeds, options.nominal, more))


if __name__ == "__main__":
    main()

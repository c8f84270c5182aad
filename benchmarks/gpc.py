"""GPC's table: two weaker parents a task, the weight that a search finds, and the composed policy on fresh seeds.

python benchmarks/gpc.py DATA OUT [--tasks door hammer pen relocate] [--pairs few kinds views] [--seeds 0]
python benchmarks/gpc.py DATA OUT --table

DATA holds <task>.npz (Meta-World: ctrlrl data collect env=Meta-World/<task> policy=expert episodes=50 successful=true
first_steps=200 out=DATA/<task>.npz) or adroit_<task>-expert.npz. A task whose name ends in -v3 is Meta-World's.
few:   two diffusions that learn from a few episodes each (--demos), none of them the same.
kinds: a diffusion and a flow, otherwise the same.
views: two diffusions that learn from the same episodes, twice as many; each sees two thirds of the observation's
       numbers, drawn at random, one third in common.
Run folders go to OUT; what is there is not run again. Rows go to benchmarks/results/gpc.jsonl.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

from ctrlrl.data.write import write
from ctrlrl.sources import load_data

RESULTS = Path(__file__).parent / "results" / "gpc.jsonl"
ADROIT = {"door": "Door", "hammer": "Hammer", "pen": "Pen", "relocate": "Relocate"}
DEMOS = {"door": 2, "hammer": 2, "pen": 10, "relocate": 10}  # of which one diffusion learns less than all; else 5
LEARNING = ("algo.hidden=[256,256,256]", "algo.learning_rate=1e-3", "algo.batch_size=128", "algo.warmup_steps=200")


def call(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "ctrlrl.cli", *words], check=True)


def env_id(task: str) -> str:
    return f"AdroitHand{ADROIT[task]}-v1" if task in ADROIT else f"Meta-World/{task}"


def demonstrations(data: Path, task: str, out: Path, first: int, count: int) -> tuple[Path, int]:
    """A file of `count` episodes of the task's data set from number `first` on, and how wide its observations are."""
    whole = load_data(data / (f"adroit_{task}-expert.npz" if task in ADROIT else f"{task}.npz"))
    if first + count > whole.n_episodes:
        raise SystemExit(f"{task}: {whole.n_episodes} episodes, episodes {first} to {first + count - 1} are asked for")
    path = out / f"demos_{first}_{count}.npz"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        write(whole.only(np.arange(first, first + count)), path, "rollouts", name=path.name)
    return path, whole.obs.shape[1]


def demos_of(args: argparse.Namespace, task: str) -> int:
    return args.demos or DEMOS.get(task, 5)


def parents(args: argparse.Namespace, task: str, pair: str, seed: int) -> list[Path]:
    folder, demos = args.out / task, demos_of(args, task)
    cells: list[tuple[str, str, Path, list[str]]] = []
    if pair in ("few", "kinds"):
        for i, algo in enumerate(("diffusion", "diffusion" if pair == "few" else "flow")):
            data, _ = demonstrations(args.data, task, folder, i * demos, demos)
            cells.append((f"{algo}_{i}", algo, data, []))
    else:
        data, width = demonstrations(args.data, task, folder, 0, 2 * demos)
        thirds = np.array_split(np.random.default_rng(0).permutation(width), 3)
        for name, left_out in (("a", 2), ("b", 0)):
            seen = sorted(int(c) for i, third in enumerate(thirds) if i != left_out for c in third)
            cells.append((f"views_{name}", "diffusion", data, [f"algo.obs_columns={seen}".replace(" ", "")]))
    made = []
    for name, algo, data, words in cells:
        run = folder / f"{name}_s{seed}"
        made.append(run)
        if (run / "result.json").exists() and json.loads((run / "result.json").read_text())["status"] == "finished":
            continue
        call(
            "train", f"algo={algo}", "env=gym", f"env.id={env_id(task)}", "data=file", f"data.path={data}",
            "data.clip_actions=1", "algo.action_range=box", f"gradient_steps={args.steps}", f"seed={seed}",
            f"run.dir={run}", "run.report=false", "eval.every=0", "eval.episodes=5", *LEARNING, *words,
        )  # fmt: skip
    return made


def compose(args: argparse.Namespace, task: str, pair: str, seed: int) -> None:
    first, second = parents(args, task, pair, seed)
    out = args.out / task / f"{pair}_s{seed}"
    if not (out / "compose.json").exists():
        call(
            "eval", f"compose=[{first},{second}]", "compose.weight=search", f"compose.episodes={args.search}",
            f"compose.dir={out}", f"episodes={args.episodes}",
        )  # fmt: skip
        found = json.loads((out / "compose.json").read_text())
        row = {
            "kind": "gpc",
            "env": env_id(task),
            "task": task,
            "pair": pair,
            "seed": seed,
            "demos": demos_of(args, task),
        }
        row |= {"steps": args.steps, "episodes": args.episodes, "search_episodes": args.search}
        row |= {"weight": found["weights"][0], "composed": found["composed"]["success_rate"]}
        row |= {"parents": [alone["success_rate"] for alone in found["alone"]]}
        row |= {"curve": found["search"]["success_rate"]}
        with open(RESULTS, "a") as file:
            file.write(json.dumps(row) + "\n")


def table() -> str:
    """Every row, and the means of each task: of the parent that did better in its row, and of the composed policy."""
    lines = [
        "| task | parents | first | second | weight of the first | composed | gain |",
        "|---|---|---|---|---|---|---|",
    ]
    both: dict[str, list[tuple[float, float]]] = {}
    for row in map(json.loads, RESULTS.read_text().splitlines() if RESULTS.exists() else ()):
        first, second = row["parents"]
        both.setdefault(row["task"], []).append((max(first, second), row["composed"]))
        lines.append(
            f"| {row['task']} | {row['pair']}, seed {row['seed']} | {first:.2f} | {second:.2f} | {row['weight']:g} | "
            f"{row['composed']:.2f} | {row['composed'] - max(first, second):+.2f} |"
        )
    for task, pairs in both.items():
        better, composed = (statistics.mean(values) for values in zip(*pairs, strict=True))
        lines.append(
            f"| {task} | mean of {len(pairs)} | {better:.3f} | | | {composed:.3f} | {composed - better:+.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tasks", nargs="+", default=["door", "hammer", "pen", "relocate"])
    parser.add_argument("--pairs", nargs="+", default=["few", "views"], choices=["few", "kinds", "views"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--demos", type=int, help="episodes of a parent; without it those of DEMOS")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--search", type=int, default=50, help="roll-outs of each weight")
    parser.add_argument("--episodes", type=int, default=100, help="of the final evaluation, on fresh seeds")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if not args.table:
        for task in args.tasks:
            for pair in args.pairs:
                for seed in args.seeds:
                    compose(args, task, pair, seed)
    print(table())


if __name__ == "__main__":
    main()

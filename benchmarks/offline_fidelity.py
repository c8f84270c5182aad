"""Train an offline learner of ctrlrl's, or of its authors' code, by the protocol of the published reference runs.

python benchmarks/offline_fidelity.py --algo iql --data hopper-medium.npz --seeds 0 1 2
python benchmarks/offline_fidelity.py --algo iql --data hopper-medium.npz --seeds 0 1 2 --side peer --peer-dir CORL
python benchmarks/offline_fidelity.py --table

A row at every point of `offline_protocol.POINTS`: Q at the data's and at the policy's actions, action error, losses,
ten episodes. A run whose last row is there is not run again. `--table` prints every pair of ours, the authors' code and
the single runs of reference_runs.json.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from offline_protocol import POINTS, REPOSITORY, OursSide, PeerSide, Side, load, measure, settings

from ctrlrl.bench.rows import append, identity
from ctrlrl.train.off_policy import CHUNK

HERE = Path(__file__).parent
RESULTS, REFERENCE = HERE / "results" / "offline_fidelity.jsonl", HERE / "reference_runs.json"
TOLERANCE = 0.15  # of quantities that vary little; beyond it the table prints them bold


def run(algo: str, path: Path, seed: int, side: str, options: argparse.Namespace) -> None:
    cell = {"kind": "fidelity", "algo": algo, "data": path.stem, "seed": seed, "side": side, "dtype": options.dtype}
    last = min(options.updates or POINTS[algo][-1], POINTS[algo][-1])
    there = {key(row) for row in rows(options.out)}
    if key(cell | {"step": last}) in there:
        print(f"{algo} {path.stem} seed {seed} {side}: there already", flush=True)
        return
    columns, env_id = load(path, algo)
    own = settings(algo, path.stem)
    learner: Side
    if side == "peer":
        learner = PeerSide(REPOSITORY[algo], algo, options.peer_dir, columns, seed=seed, **own)
    else:
        learner = OursSide(algo, path, env_id, seed, options.dtype)
    done, cpu = 0, 0.0
    for point in sorted({p for p in POINTS[algo] if p < last} | {last}):
        begin = time.process_time()
        losses = learner.advance(point - done)
        cpu, done = cpu + time.process_time() - begin, point
        row = cell | {"step": point, "name": learner.name, **measure(learner, columns, env_id), "losses": losses}
        row |= {"updates_per_cpu_s": done / cpu, "env": env_id, "settings": own, **identity()}
        if key(row) not in there:
            append([row], options.out)
        shown = f"Q {row['q_data']:.4g}, action MSE {row['action_mse']:.4f}"
        print(
            f"{algo} {path.stem} seed {seed} {side} {point}: {shown}, "
            f"return {row['return_mean']:.0f} ± {row['return_std']:.0f}",
            flush=True,
        )


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("algo", "data", "seed", "side", "dtype", "step"))


def table(path: Path) -> str:
    """Every pair of ours, the authors' code and the reference run: quantities that vary little, their ratios' least and
    greatest over the points, then returns."""
    found = rows(path) + [row | {"side": "reference"} for row in json.loads(REFERENCE.read_text())["rows"]]
    cells: dict[tuple[str, str], dict[str, list[Any]]] = {}
    for row in found:
        side = row["side"] + (f" {row['dtype']}" if row.get("dtype", "float32") != "float32" else "")
        cells.setdefault((row["algo"], row["data"]), {}).setdefault(side, []).append(row)
    near = ["| algorithm | data | step | quantity | mean over seeds | beside | ratio |", "|" + "---|" * 7]
    spans = ["", "| algorithm | data | pair | ratios over the points |", "|" + "---|" * 4]
    ends = ["", "| algorithm | data | return: seeds x evaluations | beside | apart, in s.e. |", "|" + "---|" * 5]
    for (algo, data), sides in sorted(cells.items()):
        for first, second in combinations(sorted(sides), 2):
            shared = {row["step"] for row in sides[first]} & {row["step"] for row in sides[second]}
            pair = [(side, [row for row in sides[side] if row["step"] in shared]) for side in (first, second)]
            if shared:
                near += [f"| {algo} | {data} | {line}" for line in _quantities(shared, *pair)]
                spans += [f"| {algo} | {data} | {first} / {second} | {_span(shared, *pair)} |"]
                ends += [f"| {algo} | {data} | {_returns(*pair)}"]
    return "\n".join(near + spans + ends)


Named = tuple[str, list[Any]]  # a side and its rows


def _means(steps: set[int], first: Named, second: Named) -> Iterator[tuple[int, str, float, float]]:
    """Step, quantity and its mean over the seeds of either side."""
    for step in sorted(steps):
        a, b = ([_flat(row) for row in found if row["step"] == step] for _, found in (first, second))
        for name in [name for name in a[0] if name in b[0]]:
            yield step, name, *(statistics.fmean(row[name] for row in found) for found in (a, b))


def _quantities(steps: set[int], first: Named, second: Named) -> list[str]:
    lines = []
    for step, name, x, y in _means(steps, first, second):
        ratio = f"{x / y:.3f}" if abs(x / y - 1.0) <= TOLERANCE else f"**{x / y:.3f}**"
        lines.append(f"{step:,} | {name} | {first[0]} {x:.4g} | {second[0]} {y:.4g} | {ratio} |")
    return lines


def _span(steps: set[int], first: Named, second: Named) -> str:
    ratios: dict[str, list[float]] = {}
    for _, name, x, y in _means(steps, first, second):
        ratios.setdefault(name, []).append(x / y)
    return ", ".join(f"{name} {min(found):.2f} … {max(found):.2f}" for name, found in ratios.items())


def _flat(row: dict[str, Any]) -> dict[str, float]:
    named = {"Q data": "q_data", "Q policy": "q_policy", "action MSE": "action_mse"}
    return {name: row[field] for name, field in named.items() if row.get(field) is not None} | row["losses"]


def _returns(first: Named, second: Named) -> str:
    """Each evaluation of each seed is one number."""
    shown, moments = [], []
    for side, found in (first, second):
        values = [row["return_mean"] for row in found]
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        moments.append((statistics.fmean(values), error))
        size = f"{len({row['seed'] for row in found})} x {len({row['step'] for row in found})}"
        shown.append(f"{side} {moments[-1][0]:.0f} ± {error:.0f} ({size})".replace("nan", "?"))
    apart = (moments[0][0] - moments[1][0]) / math.hypot(moments[0][1], moments[1][1])
    return " | ".join([*shown, "– |" if math.isnan(apart) else f"{apart:+.1f} |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", choices=list(POINTS), default="iql")
    parser.add_argument("--data", type=Path, nargs="+", default=[], help="rollout files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--side", choices=["ours", "peer"], default="ours")
    parser.add_argument("--peer-dir", help="a checkout of the authors' repository")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of ours")
    parser.add_argument(
        "--updates", type=int, help=f"stop here, a multiple of {CHUNK}; schedules stay those of the whole run"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        print(table(options.out))
        return
    if options.updates is not None and options.updates % CHUNK:
        parser.error(f"--updates must be a multiple of {CHUNK}, got {options.updates}")
    torch.set_num_threads(1)
    for path in options.data:
        for seed in options.seeds:
            run(options.algo, path, seed, options.side, options)


if __name__ == "__main__":
    main()

"""Make rliable_numbers.json: rliable's own output on published curves, for test_aggregate.py. Not part of the tests.

    pip install rliable==1.2.0        # in an environment of its own
    python tests/report/make_rliable_numbers.py d3rlpy_d4rl_curves.npz > tests/report/rliable_numbers.json

The file holds returns [pairs, seeds, evaluations], algo, task, seed of takuseno/d3rlpy-benchmarks @ 1771c9b2 (MIT).
"""

import json
import sys

import numpy as np
from rliable import library, metrics

ALGOS = {"IQL": "iql", "TD3+BC": "td3_plus_bc", "CQL": "cql"}
TASKS = ("hopper-medium-v0", "hopper-medium-replay-v0", "hopper-medium-expert-v0",
         "halfcheetah-medium-v0", "halfcheetah-medium-replay-v0", "halfcheetah-medium-expert-v0")  # fmt: skip
RANGES = {"halfcheetah": (-280.178953, 12135.0), "hopper": (-20.272305, 3234.3)}  # D4RL's reference returns
REPS = 10_000
STATISTICS = {
    "IQM": metrics.aggregate_iqm,
    "median": metrics.aggregate_median,
    "mean": metrics.aggregate_mean,
    "optimality gap": lambda x: metrics.aggregate_optimality_gap(x, gamma=100.0),
}


def last_scores(file):
    found = {}
    for algo, name in ALGOS.items():
        columns = []
        for task in TASKS:
            low, high = RANGES[task.split("-")[0]]
            (row,) = np.flatnonzero((file["algo"] == name) & (file["task"] == task))
            curves = file["returns"][row]  # [10 seeds, evaluations], NaN padded
            last = [curve[np.isfinite(curve)][-1] for curve in curves]
            columns.append(100.0 * (np.array(last, dtype=np.float64) - low) / (high - low))
        found[algo] = np.round(np.stack(columns, axis=1), 4)
    return found


def numbers(scores):
    state = np.random.RandomState(0)
    out = {"scores": {a: s.tolist() for a, s in scores.items()}, "tasks": TASKS, "estimates": {a: {} for a in scores}}
    for name, statistic in STATISTICS.items():
        point, interval = library.get_interval_estimates(
            scores, lambda x, f=statistic: np.array([f(x)]), reps=REPS, random_state=state
        )
        for algo in scores:
            low, high = interval[algo][:, 0]
            out["estimates"][algo][name] = {"value": float(point[algo][0]), "low": float(low), "high": float(high)}
    pairs = {f"{x} > {y}": (scores[x], scores[y]) for x in scores for y in scores if x != y}
    point, interval = library.get_interval_estimates(
        pairs, metrics.probability_of_improvement, reps=2000, random_state=state
    )
    out["improvement"] = {}
    for pair in pairs:
        (low,), (high,) = interval[pair]
        out["improvement"][pair] = {"value": float(np.squeeze(point[pair])), "low": float(low), "high": float(high)}
    taus = np.linspace(0.0, 120.0, 25)
    share, bands = library.create_performance_profile(scores, taus, reps=2000)
    out["taus"] = taus.tolist()
    out["profiles"] = {
        a: {"share": share[a].tolist(), "low": bands[a][0].tolist(), "high": bands[a][1].tolist()} for a in scores
    }
    return out


if __name__ == "__main__":
    json.dump(numbers(last_scores(np.load(sys.argv[1], allow_pickle=False))), sys.stdout)

"""Network evaluations per decision and success of one run, sampled in full and warm-started (real-time iteration).

python benchmarks/real_time_iteration.py RUN [--levels 2 1 0] [--episodes 50] [--seed 100] [WORDS ...]
Both sides plan at every step. WORDS are settings of both, e.g. algo.sampler=ddpm. Rows go to --out as JSON lines.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ctrlrl import runs
from ctrlrl.bench.rows import identity
from ctrlrl.policies.rehearsal import rehearsed


def calls(folder: Path, words: list[str]) -> tuple[int, int]:
    """Network evaluations of an episode's first decision, and of every later one."""
    cfg, learner = runs.load_run(folder, words=words)
    policy = learner.nets.policy
    first = policy.n_asked * len(rehearsed(policy.process.sample).levels)
    return first, policy.n_asked * len(rehearsed(policy.process.resume).levels) if cfg.algo.warm_start else first


def row(folder: Path, words: list[str], episodes: int, seed: int) -> dict:
    first, later = calls(folder, words)
    found = runs.evaluate_run(folder, episodes=episodes, seed=seed, words=words)
    length = found["length_mean"]
    return {
        "run": folder.name,
        "algo": found["algo"],
        "env": found["env"],
        "settings": words,
        "calls_first": first,
        "calls_later": later,
        "calls_per_decision": (first + later * (length - 1)) / length,
        **{k: found[k] for k in ("episodes", "seed", "success_rate", "return_mean", "return_std", "length_mean")},
        **identity(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--levels", nargs="+", default=["2", "1", "0"], help="of a flow: times, e.g. 0.9")
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--out", type=Path)
    options = parser.parse_intermixed_args()
    both = ["algo.n_action_steps=1", *options.words]
    warm = f"algo.warm_start=[{','.join(options.levels)}]"
    rows = [row(options.run, words, options.episodes, options.seed) for words in (both, [*both, warm])]
    for one in rows:
        print(json.dumps(one))
    fewer = rows[0]["calls_per_decision"] / rows[1]["calls_per_decision"]
    print(f"{fewer:.1f}x fewer network evaluations per decision")
    if options.out:
        with open(options.out, "a") as file:
            file.writelines(json.dumps(one) + "\n" for one in rows)


if __name__ == "__main__":
    main()

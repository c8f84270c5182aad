"""Train an offline learner of ctrlrl's, or of its authors' code, by the protocol of the published reference runs.

python benchmarks/offline_fidelity.py --algo iql --data hopper-medium.npz --seeds 0 1 2
python benchmarks/offline_fidelity.py --algo iql --data hopper-medium.npz --seeds 0 1 2 --side peer --peer-dir CORL
python benchmarks/offline_fidelity.py --table

Batch 256, states standardised, raw rewards (IQL: times 1000 / (max - min episode return)), each file's settings in
`settings`. At every point of POINTS one row: Q at the data's and at the policy's actions (the smaller critic, on 20,000
fixed rows), action error, losses averaged over the last 500 even-numbered updates, ten episodes of the deterministic
policy from `reset(seed=100 + k)`. Of the authors' side only loading and evaluation are ours. A run whose last row is
there is not run again. `--table` prints ours beside the authors' code and beside reference_runs.json.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import warnings
from collections import deque
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch

from ctrlrl import compose
from ctrlrl.bench.offline_peers import Columns, Peer
from ctrlrl.bench.rows import append, identity
from ctrlrl.build import training_loop
from ctrlrl.train.off_policy import CHUNK

HERE = Path(__file__).parent
RESULTS, REFERENCE = HERE / "results" / "offline_fidelity.jsonl", HERE / "reference_runs.json"
QUARTERS = (12_500, 25_000, 37_500, 50_000)
POINTS = {
    "iql": QUARTERS,
    "td3bc": QUARTERS,
    "prdc": (5_000, 10_000, 15_000, 20_000, 23_450),
    "a2pr": (1_000, 2_000, 3_000, 4_000, 5_000, 5_900),
}
REPOSITORY = {"iql": "corl", "td3bc": "corl", "prdc": "prdc", "a2pr": "a2pr"}
SCORES = {
    "Hopper-v4": (-20.272305, 3234.3),
    "HalfCheetah-v4": (-280.178953, 12135.0),
    "Walker2d-v4": (1.629008, 4592.3),
}
AVERAGED, ROWS, EPISODES, FIRST_SEED = 500, 20_000, 10, 100
TOLERANCE = 0.15  # of quantities that vary little; beyond it the table prints them bold


class Side(Protocol):
    name: str

    def advance(self, n: int) -> dict[str, float]: ...  # n updates; the averaged losses at their end
    def policy(self, obs: np.ndarray) -> torch.Tensor: ...
    def q(self, obs: np.ndarray, action: torch.Tensor) -> torch.Tensor: ...
    def act(self, obs: np.ndarray) -> np.ndarray: ...


def settings(algo: str, data: str) -> dict[str, Any]:
    """Of the authors' configuration or README for a file, in the words of `ctrlrl.bench.offline_peers.DEFAULTS`."""
    task = data.partition("-")[0]
    if algo == "iql":
        policy = {"deterministic": True, "tau": 0.001} if task == "hopper" else {"deterministic": False, "tau": 0.005}
        return policy | {"max_steps": POINTS["iql"][-1]}
    alpha = 40.0 if task == "halfcheetah" and algo != "td3bc" else 2.5
    if algo == "a2pr":
        own = {"hopper": {"mask": 0.4, "discount": 0.995}, "walker2d": {"mask": 1.0, "vae_weight": 1.5}}
        return {"alpha": alpha, **own.get(task, {"mask": 1.0})}
    return {"alpha": alpha}


def load(path: Path, algo: str) -> tuple[Columns, str]:
    """All rows of a rollout file, next observations from inside the episode or its true end; the Gymnasium id."""
    file = np.load(path)
    obs, ends = file["observations"], file["episode_ends"]
    following = np.concatenate((obs[1:], obs[-1:]))
    following[ends - 1] = file["final_observations"]
    rewards = file["rewards"]
    if algo == "iql":
        rewards = rewards * reward_scale(rewards, ends)
    columns = {
        "observations": obs, "actions": file["actions"], "rewards": rewards, "next_observations": following,
        "terminals": file["terminals"],
    }  # fmt: skip
    return {name: np.asarray(column, dtype=np.float32) for name, column in columns.items()}, str(file["env_id"])


def reward_scale(rewards: np.ndarray, ends: np.ndarray) -> float:
    returns = np.add.reduceat(rewards.astype(np.float64), np.concatenate(([0], ends[:-1])))
    return 1000.0 / (returns.max() - returns.min())


class PeerSide(Peer):
    def __init__(self, *words: Any, **settings: Any):
        super().__init__(*words, **settings)
        self.recent: deque[dict[str, float]] = deque(maxlen=AVERAGED)
        self.updates = 0

    def advance(self, n: int) -> dict[str, float]:
        for _ in range(n):
            logged = self.update()
            self.updates += 1
            if self.updates % 2 == 0:
                self.recent.append({name: float(value) for name, value in logged.items()})
        return {name: statistics.fmean(row[name] for row in self.recent) for name in self.recent[-1]}


OURS = {  # what makes ours the authors' code, where the default is the paper's
    "iql": [
        "algo.joint=true",
        "algo.init=torch",
        "algo.log_std_min=-20",
        "algo.normalize_obs=true",
        "data.return_range=true",
    ],
    "td3bc": [],
    "prdc": [],
    "a2pr": [],
}
WORDS = {"deterministic": "deterministic_policy", "discount": "gamma"}  # the authors' setting -> ours, else the same
LOSSES = {  # the authors' name -> ours and a factor: CORL halves IQL's critic loss
    "iql": {"value_loss": ("loss/value", 1.0), "q_loss": ("loss/critic", 0.5), "actor_loss": ("loss/policy", 1.0)},
    "td3bc": {"critic_loss": ("loss/critic", 1.0), "actor_loss": ("loss/policy", 1.0)},
    "prdc": {
        "critic_loss": ("loss/critic", 1.0),
        "dc_loss": ("loss/constraint", 1.0),
        "combined_loss": ("loss/policy", 1.0),
    },
    "a2pr": {
        "critic_loss": ("loss/critic", 1.0),
        "vae_loss": ("loss/vae", 1.0),
        "recon_loss": ("loss/reconstruction", 1.0),
        "KL_loss": ("loss/kl", 1.0),
        "bc_loss": ("loss/pull", 1.0),
        "combined_loss": ("loss/policy", 1.0),
    },
}


class OursSide:
    """Losses are averaged over the last 1,000 updates: the loop keeps means over its chunks."""

    name = "ctrlrl"

    def __init__(self, algo: str, path: Path, env_id: str, seed: int, dtype: str):
        own = {name: value for name, value in settings(algo, path.stem).items() if name != "max_steps"}
        words = [f"algo={algo}", "data=file", f"data.path={path}", f"env={env_id.lower()}", f"seed={seed}"]
        words += ["experiment=none", "device=cpu", f"dtype={dtype}", f"gradient_steps={POINTS[algo][-1]}", *OURS[algo]]
        words += [f"algo.{WORDS.get(name, name)}={str(value).lower()}" for name, value in own.items()]
        self.loop: Any = training_loop(compose.typed(compose.train_config(words)))
        self.algo, self.learner, self.recent = algo, self.loop.learner, deque(maxlen=2 * AVERAGED // CHUNK)

    def advance(self, n: int) -> dict[str, float]:
        end = self.loop.gradient_steps + n
        while self.loop.gradient_steps < end:
            self.recent.append({name: value.item() for name, value in self.loop.iterate().items()})
        return {
            name: factor * statistics.fmean(chunk[ours] for chunk in self.recent)
            for name, (ours, factor) in LOSSES[self.algo].items()
        }

    def policy(self, obs: np.ndarray) -> torch.Tensor:
        return self.learner.act(torch.from_numpy(obs), deterministic=True).action

    @torch.no_grad()
    def q(self, obs: np.ndarray, action: torch.Tensor) -> torch.Tensor:
        nets = self.learner.nets
        with self.learner.precision():
            return nets.critic(nets.normalizer(torch.from_numpy(obs)), action).amin(0)

    def act(self, obs: np.ndarray) -> np.ndarray:
        one = torch.as_tensor(obs[None], dtype=torch.float32)
        return self.learner.act(one, deterministic=True).action[0].numpy()


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


def measure(side: Side, columns: Columns, env_id: str) -> dict[str, Any]:
    n = len(columns["rewards"])
    fixed = np.sort(np.random.default_rng(0).choice(n, min(ROWS, n), replace=False))
    obs, action = columns["observations"][fixed], torch.from_numpy(columns["actions"][fixed])
    policy = side.policy(obs)
    returns, lengths = episodes(side, env_id)
    low, high = SCORES.get(env_id, (math.nan, math.nan))
    return {
        "q_data": side.q(obs, action).mean().item(),
        "q_policy": side.q(obs, policy).mean().item(),
        "action_mse": (policy - action).square().mean().item(),
        "return_mean": float(np.mean(returns)),
        "return_std": float(np.std(returns)),
        "score": float(100.0 * (np.mean(returns) - low) / (high - low)),
        "length_mean": float(np.mean(lengths)),
        "returns": returns,
    }


def episodes(side: Side, env_id: str) -> tuple[list[float], list[int]]:
    """Undiscounted returns and lengths, one episode after another as the reference runs did."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the -v4 rules are what the files were made with
        env = gym.make(env_id)
    returns, lengths = [], []
    for k in range(EPISODES):
        obs, _ = env.reset(seed=FIRST_SEED + k)
        total, length, over = 0.0, 0, False
        while not over:
            obs, reward, terminated, truncated, _ = env.step(side.act(obs))
            total, length, over = total + float(reward), length + 1, terminated or truncated
        returns.append(total)
        lengths.append(length)
    env.close()
    return returns, lengths


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("algo", "data", "seed", "side", "dtype", "step"))


def table(path: Path) -> str:
    """Ours beside the authors' code and the reference run: quantities that vary little, then returns."""
    found = rows(path) + [row | {"side": "reference"} for row in json.loads(REFERENCE.read_text())["rows"]]
    grouped: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in found:
        side = row["side"] + (f" {row['dtype']}" if row.get("dtype", "float32") != "float32" else "")
        grouped.setdefault((row["algo"], row["data"], side), []).append(row)
    cells = sorted({(algo, data) for algo, data, side in grouped if side.startswith("ours")})
    lines = [
        "| algorithm | data | step | quantity | side | mean of seeds | ours / side |",
        "|---|---|---|---|---|---|---|",
    ]
    ends = [
        "",
        "| algorithm | data | side | seeds | evaluations | return | ± s.e. | ours - side, in s.e. |",
        "|" + "---|" * 8,
    ]
    for algo, data in cells:
        ours = [side for a, d, side in grouped if (a, d) == (algo, data) and side.startswith("ours")]
        others = [side for a, d, side in grouped if (a, d) == (algo, data) and not side.startswith("ours")]
        for side in sorted(ours):
            mine = grouped[algo, data, side]
            for other in sorted(others):
                lines += _quantities(algo, data, side, mine, other, grouped[algo, data, other])
            ends += [_returns(algo, data, side, mine, None)]
            ends += [_returns(algo, data, other, grouped[algo, data, other], mine) for other in sorted(others)]
    return "\n".join(lines + ends)


def _quantities(algo: str, data: str, side: str, mine: list[Any], other: str, theirs: list[Any]) -> list[str]:
    lines = []
    for step in sorted({row["step"] for row in mine} & {row["step"] for row in theirs}):
        a, b = ([_flat(row) for row in rows if row["step"] == step] for rows in (mine, theirs))
        for name in [name for name in a[0] if name in b[0]]:
            x, y = (statistics.fmean(row[name] for row in rows) for rows in (a, b))
            ratio = f"{x / y:.3f}" if abs(x / y - 1.0) <= TOLERANCE else f"**{x / y:.3f}**"
            lines.append(f"| {algo} | {data} | {step:,} | {name} | {side} {x:.4g}, {other} | {y:.4g} | {ratio} |")
    return lines


def _flat(row: dict[str, Any]) -> dict[str, float]:
    named = {"Q data": "q_data", "Q policy": "q_policy", "action MSE": "action_mse"}
    return {name: row[field] for name, field in named.items() if row.get(field) is not None} | row["losses"]


def _returns(algo: str, data: str, side: str, theirs: list[Any], mine: list[Any] | None) -> str:
    """Over all seeds and evaluations, each evaluation one number."""
    mean, error = _mean_and_error(theirs)
    apart = "–"
    if mine is not None:
        ours, our_error = _mean_and_error(mine)
        apart = f"{(ours - mean) / math.hypot(error, our_error):+.1f}"
    seeds = len({row["seed"] for row in theirs})
    return f"| {algo} | {data} | {side} | {seeds} | {len(theirs)} | {mean:.0f} | {error:.0f} | {apart} |"


def _mean_and_error(found: list[Any]) -> tuple[float, float]:
    values = [row["return_mean"] for row in found]
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), error


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

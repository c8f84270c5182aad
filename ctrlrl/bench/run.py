"""`ctrlrl bench <kind> [key=value ...]`: measure, print a table, then one JSON line a row; `out=FILE` appends them."""

from __future__ import annotations

import math
import os
import resource
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ctrlrl import settings
from ctrlrl.bench import chunks, offline_ours, peers, replay_peers, token_peers
from ctrlrl.bench.ours import EVAL_EPISODES, Deciding, Stepping, ToScore, Training, agent
from ctrlrl.bench.rows import append, compare, identity
from ctrlrl.config import TrainConfig
from ctrlrl.disk import strict_json
from ctrlrl.envs.sb3 import SB3Env
from ctrlrl.judging import judged
from ctrlrl.loops import training_loop
from ctrlrl.provenance import changed_env
from ctrlrl.registry import ALGORITHMS, GYMNASIUM_IDS, lookup, unknown
from ctrlrl.tasks import backend_of, device_of, make_env
from ctrlrl.train.evaluate import evaluate

KINDS = ("throughput", "train", "score", "updates", "latency", "memory")
UNITS = {"score": "seconds to target", "memory": "MiB peak", "latency": "µs", "updates": "updates/s"}
TARGETS = {"cartpole": 475.0, "pendulum": -200.0, "halfcheetah": 4500.0}
OWN = tuple("vs pairs seconds target by eval_seconds out env_threads peer_budget peer_dir warm iterations".split())
OWN += ("sizes", "engines", "steps")
READ = {  # by one kind alone
    "score": ("target", "by", "eval_seconds", "peer_budget"),
    "updates": ("peer_dir", "warm"),
    "memory": ("iterations",),
    "latency": ("sizes", "engines", "steps"),
}


@dataclass
class BenchOptions:
    """Keys of `bench` itself; every other key is one of `ctrlrl train`, e.g. n_envs=1024,65536 or compile=compile."""

    vs: str | None = None  # throughput: gymnasium | mj_step | sb3; train: sb3 | rsl_rl | trl; score, latency: sb3, and
    # diffusers for policies that predict chunks of actions;
    # updates: corl | prdc | a2pr (the authors' code in peer_dir) | floor (IQL's matrix products) | single (seeds=8),
    # and sb3 for sac and td3
    pairs: int = 5
    seconds: float = 5.0  # of one lap
    target: float | None = None  # score: mean return
    by: str = "training"  # score: mean of the last 100 training episodes; "evaluation": of 20 deterministic episodes
    eval_seconds: float = 0.2  # score: training time between two looks at the policy
    peer_budget: int = 0  # score: environment steps the peer may take; 0 = its tuned budget
    peer_dir: str | None = None  # updates: a checkout of the authors' repository
    warm: int = 0  # updates: of either side before the first lap
    iterations: int = 8  # memory: rollouts and updates before the peak is read
    env_threads: int | None = None  # physics threads
    engines: list[str] = field(default_factory=lambda: list(chunks.ENGINES))  # latency of chunks, measured in turn
    steps: list[int] = field(default_factory=list)  # latency of chunks: of the sampler; [] = algo.sampling_steps
    sizes: list[int] = field(default_factory=list)  # latency of chunks: [obs, action] of no environment
    out: str | None = None
    n_envs: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 0.0 < self.seconds < math.inf:
            raise ValueError(f"seconds must be above 0, got {self.seconds}")
        for name in ("pairs", "iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def main(words: list[str]) -> int:
    if not words:
        raise ValueError(f"bench needs a kind, e.g. ctrlrl bench throughput env=pendulum; kinds: {', '.join(KINDS)}")
    kind = words[0]
    if kind not in KINDS:
        raise ValueError(unknown("bench", kind, KINDS))
    own = [w for w in words[1:] if w.partition("=")[0] in OWN]
    sizes = [w for w in words[1:] if w.startswith("n_envs=")]
    rest = [w for w in words[1:] if w not in own and w not in sizes]
    options = settings.command(BenchOptions, own)
    for reader, keys in READ.items():
        unread = next((w for w in own if w.partition("=")[0] in keys), None)
        if unread is not None and kind != reader:
            raise ValueError(f"{unread}: bench {kind} does not read it, bench {reader} does; leave it out")
    if kind == "memory" and options.vs:
        raise ValueError(f"vs={options.vs}: bench memory measures this library alone; leave it out")
    if options.out:
        append([], Path(options.out))  # a file that cannot be written is found before anything is measured
    if options.env_threads is not None:
        rest.append(f"env.threads={options.env_threads}")
    if not any(w.startswith("threads=") for w in rest):
        rest.append("threads=1")
    counts = sizes[0].partition("=")[2].split(",") if sizes else [""]
    if kind == "memory" and len(counts) > 1:
        raise ValueError(f"{sizes[0]}: bench memory reads the peak of the whole process; give one n_envs a command")
    if kind in ("latency", "updates") and len(counts) > 1:
        raise ValueError(f"{sizes[0]}: bench {kind} measures the same with any number of environments; give one")
    rows = []
    for count in counts:
        cfg = settings.typed(settings.train_config(rest + ([f"n_envs={count}"] if count else [])))
        torch.set_num_threads(cfg.threads or 1)
        note(f"{kind} {cfg.env.name} n_envs={cfg.n_envs}" + (f" against {options.vs}" if options.vs else ""))
        rows += measure(kind, cfg, options)
    print(table(rows))
    for row in rows:
        print(strict_json(row))
    if options.out:
        append(rows, Path(options.out))
    return 0


def measure(kind: str, cfg: TrainConfig, options: BenchOptions) -> list[dict[str, Any]]:
    device = device_of(cfg)
    row: dict[str, Any] = {
        "kind": kind,
        "env": cfg.env.id or cfg.env.name,
        "backend": backend_of(cfg.env),
        "algo": None if kind == "throughput" else cfg.algo.name,
        "n_envs": cfg.n_envs,
        "threads": torch.get_num_threads(),
        "env_threads": (cfg.env.threads or os.cpu_count()) if backend_of(cfg.env) == "mujoco" else 1,
        "device": str(device) if device.type == "cpu" else torch.cuda.get_device_name(device),
        "dtype": cfg.dtype,
        "compile": cfg.compile,
        "unit": UNITS.get(kind, "env_steps/s"),
    }
    found = MEASURES[kind](cfg, options, device)
    return [row | fields | identity() for fields in (found if isinstance(found, list) else [found])]


def _throughput(cfg: TrainConfig, options: BenchOptions, device: torch.device) -> dict[str, Any]:
    if backend_of(cfg.env) == "gymnasium":
        return _adapter(cfg, options)
    if options.vs == "sb3":
        raise ValueError("throughput vs=sb3 measures the adapter around a DummyVecEnv; it needs env.backend=gymnasium")
    if cfg.compile == "graph":
        raise ValueError("compile=graph is of a learner's step; bench throughput steps with compile=compile or eagerly")
    env = make_env(cfg.env, cfg.n_envs, seed=0, device=device, compile=cfg.compile == "compile")
    ours = Stepping(env, options.seconds)
    peer: Any = None
    if options.vs == "gymnasium":
        peer = peers.GymnasiumStepping(cfg.env.name, cfg.n_envs, options.seconds)
    elif options.vs == "mj_step":
        peer = peers.RawMujoco(cfg.env.name, cfg.env.threads or os.cpu_count() or 1, options.seconds)
    elif options.vs is not None:
        raise ValueError(f"throughput compares with vs=gymnasium, vs=mj_step or vs=sb3, got {options.vs}")
    return compare(ours, peer, options.pairs, note=note)


def _adapter(cfg: TrainConfig, options: BenchOptions) -> dict[str, Any]:
    """Gymnasium's environments behind our adapter; with `vs`, against the same ones without it."""
    gym_id = cfg.env.id or GYMNASIUM_IDS[cfg.env.name]
    if options.vs == "sb3":
        env: Any = SB3Env(peers.plain_sb3(gym_id, cfg.n_envs))
        plain: Any = peers.plain_sb3
        name = f"stable-baselines3 {version('stable-baselines3')}, DummyVecEnv"
    elif options.vs in (None, "gymnasium"):
        env = make_env(cfg.env, cfg.n_envs, seed=0)
        plain, name = peers.plain_gymnasium, f"gymnasium {version('gymnasium')}, SyncVectorEnv"
    else:
        raise ValueError(
            f"with env.backend=gymnasium, throughput compares with vs=gymnasium or vs=sb3, got {options.vs}"
        )
    ours, peer = Stepping(env, options.seconds, chunk=peers.PLAIN_CHUNK), None
    if options.vs is not None:
        peer = peers.PlainStepping(plain(gym_id, cfg.n_envs), name, ours.actions, options.seconds)
    return compare(ours, peer, options.pairs, note=note)


def _train(cfg: TrainConfig, options: BenchOptions, device: torch.device) -> dict[str, Any]:
    if backend_of(cfg.env) == "tokens":
        return _answers(cfg, options)
    _against_ppo(cfg, options)
    ours = Training(cfg, options.seconds)
    peer: Any = None
    if options.vs == "sb3":
        peer = peers.SB3Training(cfg.env.name, options.seconds)
    elif options.vs == "rsl_rl":
        compiled = cfg.compile == "compile"
        env = make_env(cfg.env, cfg.n_envs, seed=0, device=device, compile=compiled)
        peer = peers.RslRlTraining(env, cfg.algo, options.seconds)
    elif options.vs is not None:
        raise ValueError(f"train compares with vs=sb3 or vs=rsl_rl, got {options.vs}")
    return compare(ours, peer, options.pairs, note=note)


def _against_ppo(cfg: TrainConfig, options: BenchOptions) -> None:
    """ValueError where the peer, a PPO, would learn in another way than the algorithm."""
    kind: Any = lookup(ALGORITHMS, cfg.algo.name, "algorithm")
    if options.vs in ("sb3", "rsl_rl") and kind.loop != "on_policy":
        raise ValueError(
            f"vs={options.vs} is a PPO here and algo={cfg.algo.name} is not on-policy; "
            "`ctrlrl bench updates vs=sb3` compares sac and td3"
        )


def _answers(cfg: TrainConfig, options: BenchOptions) -> dict[str, Any]:
    """A language model that learns."""
    ours = token_peers.Answering(cfg, options.seconds)
    if options.vs not in (None, "trl"):
        raise ValueError(f"train of env={cfg.env.name} compares with vs=trl, got {options.vs}")
    peer = None if options.vs is None else token_peers.TRLTraining(ours, cfg, options.seconds)
    spec = ours.loop.env.spec
    shapes = {"prompt_tokens": spec.obs_dim, "response_tokens": spec.episode_length, "group_size": cfg.algo.group_size}
    return compare(ours, peer, options.pairs, note=note) | shapes | {"unit": "tokens/s"}


def _score(cfg: TrainConfig, options: BenchOptions, device: torch.device) -> dict[str, Any]:
    if options.by not in ("training", "evaluation"):
        raise ValueError(f"by must be training or evaluation, got {options.by!r}")
    target = TARGETS.get(cfg.env.name) if options.target is None else options.target
    if target is None:
        raise ValueError(f"bench score needs target=RETURN for env={cfg.env.name}")
    _against_ppo(cfg, options)
    ours = ToScore(cfg, target, options.by, options.eval_seconds)
    peer: Any = None
    if options.vs == "sb3":
        peer = peers.SB3ToScore(cfg.env.name, target, options.by, options.eval_seconds, cfg.seed, options.peer_budget)
    elif options.vs is not None:
        raise ValueError(f"score compares with vs=sb3, got {options.vs}")
    fields = compare(ours, peer, options.pairs, note=note)
    _times_faster(fields)
    history = {"target": target, "by": options.by, "runs": ours.history}
    return fields | history | ({"peer_runs": peer.history} if peer is not None else {})


def _latency(cfg: TrainConfig, options: BenchOptions, device: torch.device) -> dict[str, Any] | list[dict[str, Any]]:
    """`predict` on one observation of the environment, deterministic, on the CPU; of chunks a plan, by every engine."""
    if hasattr(cfg.algo, "sampling_steps") and hasattr(cfg.algo, "window"):
        own = {name: getattr(options, name) for name in ("sizes", "engines", "steps", "vs", "pairs", "seconds")}
        found = chunks.latencies(cfg, **own, note=note)
        for fields in found:
            _times_faster(fields)
        return found if not options.sizes else [fields | {"env": None, "backend": None} for fields in found]
    if cfg.dtype != "float32":
        raise ValueError(f"dtype={cfg.dtype}: predict, which bench latency measures, is float32; leave it out")
    if cfg.env.name != "gym" and (changed := changed_env(type(cfg.env)(name=cfg.env.name), cfg.env)):
        raise ValueError(f"{changed}: bench latency measures predict in the task as it is; leave it out")
    _against_ppo(cfg, options)
    model = agent(cfg)
    model.observation_space.seed(0)
    obs = model.observation_space.sample()
    ours = Deciding("ctrlrl", lambda: model.predict(obs, deterministic=True), options.seconds)
    peer: Any = None
    if options.vs == "sb3":
        peer = peers.sb3_deciding(model, cfg.algo, obs, options.seconds)
    elif options.vs is not None:
        raise ValueError(f"latency compares with vs=sb3, got {options.vs}")
    fields = compare(ours, peer, options.pairs, note=note)
    _times_faster(fields)
    return fields | {"n_envs": 1, "device": "cpu", "compile": "eager"}


def _times_faster(fields: dict[str, Any]) -> None:
    """Of a time, less is better: the ratio says how many times faster, as elsewhere."""
    if fields["ratio"] is not None:
        fields["ratio"] = 1.0 / fields["ratio"] if fields["ratio"] else math.inf


def _memory(cfg: TrainConfig, options: BenchOptions, device: torch.device) -> dict[str, Any]:
    """Peak memory of the process (or of the GPU) over some iterations of training, and what it learned meanwhile."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    loop = training_loop(cfg)
    test_env = make_env(cfg.env, EVAL_EPISODES, seed=0, device=device, stagger=False)
    returns = []
    begin = time.perf_counter()
    for _ in range(options.iterations):
        loop.iterate()
        score = evaluate(judged(loop.learner), test_env, episodes=EVAL_EPISODES, seed=1000).returns.mean().item()
        returns.append(round(score, 1))
        note(f"  {loop.env_steps:,} steps, evaluation return {score:.1f}")
    seconds = round(time.perf_counter() - begin, 1)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    none = dict.fromkeys(("spread", "peer", "peer_value", "ratio", "cpu_seconds"))
    return none | {
        "value": round(peak, 1),
        "pairs": 1,
        "env_steps": loop.env_steps,
        "wall_seconds": seconds,
        "returns": returns,
    }


def _updates(cfg: TrainConfig, options: BenchOptions, device: torch.device) -> dict[str, Any]:
    kind: Any = lookup(ALGORITHMS, cfg.algo.name, "algorithm")
    if kind.loop != "off_policy":
        raise ValueError(f"algo={cfg.algo.name}: bench updates takes offline algorithms, and sac, td3 and rlpd")
    if not kind.offline:
        return _replayed(cfg, options, device)
    own = {name: getattr(options, name) for name in ("vs", "peer_dir", "pairs", "seconds", "warm")}
    return offline_ours.updates(cfg, device, **own, note=note)


def _replayed(cfg: TrainConfig, options: BenchOptions, device: torch.device) -> dict[str, Any]:
    """Of a learner that needs no data set: updates from a full replay buffer."""
    ours = replay_peers.Replaying(cfg, options.seconds, device)
    if options.vs not in (None, "sb3"):
        raise ValueError(f"updates of algo={cfg.algo.name} compare with vs=sb3, got {options.vs}")
    peer = None if options.vs is None else replay_peers.SB3Replaying(cfg, options.seconds, ours.rows)
    spec = ours.loop.env.spec
    shapes = {"obs_dim": spec.obs_dim, "action_dim": spec.action_dim, "batch_size": cfg.algo.batch_size}
    return compare(ours, peer, options.pairs, note=note) | shapes | {"n_envs": None}


MEASURES: dict[str, Any] = {
    "throughput": _throughput,
    "train": _train,
    "score": _score,
    "updates": _updates,
    "latency": _latency,
    "memory": _memory,
}


def table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'env or algo':<14}{'n_envs':>9}  {'ctrlrl':>16}  {'peer':>16}  {'ratio':>7}  unit; peer"]
    for row in rows:
        what = row["algo"] if row["kind"] == "updates" else row["env"]
        if "engine" in row:
            what = f"{row['head']} {row['sampler']} {row['sampling_steps']} {row['engine']}"
        digits = 2 if row["unit"] == "ms" else 1
        peer = "–" if row["peer_value"] is None else f"{row['peer_value']:,.{digits}f}"
        ratio = "–" if row["ratio"] is None else f"{row['ratio']:.2f}x"
        value = f"{row['value']:,.{digits}f}"
        unit = row["unit"] + (f"; {row['peer']}" if row["peer"] else "")
        lines.append(f"{what:<14}{row['n_envs'] or '–':>9}  {value:>16}  {peer:>16}  {ratio:>7}  {unit}")
        if row.get("disturbed"):
            lines.append(
                "  the machine was busy: the peer's wall time is over 1.3 of its CPU time; run again when idle"
            )
    return "\n".join(lines)


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

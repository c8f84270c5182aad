"""From a configuration to environment, learner, loop and trainer: the only file that knows everything."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctrlrl.config import EnvConfig, TrainConfig
from ctrlrl.core.compile import resolve
from ctrlrl.core.learner import Learner
from ctrlrl.core.process import keep_memory, set_threads
from ctrlrl.core.stacked import extract
from ctrlrl.data.episodes import Episodes
from ctrlrl.envs.spaces import Spaces
from ctrlrl.envs.timeout import TimedEnv
from ctrlrl.nn.features import Vector
from ctrlrl.policies.quick import Quick
from ctrlrl.provenance import facts
from ctrlrl.registry import ALGORITHMS, GYMNASIUM_IDS, ROBOTS, SIMULATORS, lookup, unknown
from ctrlrl.seeds import refuse_unless_stackable, stacked
from ctrlrl.sources import cache_folder, dataset, load_data, notices, read_data, same_robot, same_task, score_range
from ctrlrl.train.checkpoint import Checkpoint, random_state, read_zip, write_zip
from ctrlrl.train.evaluate import Evaluation, evaluate
from ctrlrl.train.log import RunFolder
from ctrlrl.train.off_policy import OfflineLoop
from ctrlrl.train.on_policy import OnPolicyLoop
from ctrlrl.train.stacked import StackedTrainer
from ctrlrl.train.trainer import Loop, Trainer
from ctrlrl.types import EnvSpec, VecEnv

# what the faces take from here besides what stands below
__all__ = ["Episodes", "Spaces", "evaluate", "load_data", "notices", "read_zip", "same_task", "write_zip"]


def make_env(
    cfg: EnvConfig,
    n_envs: int,
    *,
    seed: int | None = None,
    device: torch.device | str = "cpu",
    stagger: bool | None = None,
    compile: bool = False,
    render: bool = False,
    episode_length: int | None = None,
) -> VecEnv:
    """One vectorised environment of the configured task; `stagger` overrides the configuration (evaluation: False).

    episode_length: steps until truncation on the torch and mujoco backends; None is the task's own limit.
    """
    device, backend = torch.device(device), backend_of(cfg)
    stagger = cfg.stagger if stagger is None else stagger
    if cfg.timeout is not None and backend != "gymnasium":
        raise ValueError(f"env.timeout is for environments that Python code steps; env={cfg.name} runs on {backend}")
    if backend == "torch":
        from ctrlrl.envs.sim import BatchedSim

        sim = lookup(SIMULATORS, cfg.name, "environment")()
        return BatchedSim(
            sim, n_envs, seed=seed, device=device, stagger=stagger, compile=compile, episode_length=episode_length
        )
    if device.type != "cpu":
        raise ValueError(
            f"env={cfg.name} runs on {backend}, which steps on the CPU, got device={device}. Use device=cpu."
        )
    if backend == "mujoco":
        from ctrlrl.envs.mujoco_cpu import MujocoPool

        return MujocoPool(
            cfg.name,
            n_envs,
            seed=seed,
            n_threads=cfg.threads,
            exact=cfg.exact,
            stagger=stagger,
            episode_length=episode_length,
        )
    gym_id = cfg.id or GYMNASIUM_IDS[cfg.name]
    if backend == "envpool":
        from ctrlrl.envs.envpool import EnvPoolEnv

        return EnvPoolEnv(gym_id, n_envs=n_envs, seed=seed, n_threads=cfg.threads)
    from ctrlrl.envs.gymnasium import GymnasiumEnv

    env = GymnasiumEnv(gym_id, n_envs=n_envs, seed=seed, render_mode="rgb_array" if render else None)
    return env if cfg.timeout is None else TimedEnv(env, cfg.timeout)


def backend_of(cfg: EnvConfig) -> str:
    """The backend that `auto` stands for; ValueError where the named one does not have the task."""
    if cfg.name == "gym" and not cfg.id:
        raise ValueError("env=gym needs a Gymnasium id, e.g. env.id=LunarLander-v3")
    has = {"torch": cfg.name in SIMULATORS, "mujoco": cfg.name in ROBOTS}
    has["gymnasium"] = has["envpool"] = cfg.id is not None or cfg.name in GYMNASIUM_IDS
    if not any(has.values()):
        raise ValueError(unknown("environment", cfg.name, [*SIMULATORS, *ROBOTS, "gym"]))
    if cfg.backend == "auto":
        return next(name for name, there in has.items() if there)
    if not has[cfg.backend]:
        able = ", ".join(name for name, there in has.items() if there)
        raise ValueError(f"env.backend={cfg.backend} does not have env={cfg.name}; it runs on: {able}")
    return cfg.backend


def make_learner(algo: Any, spec: EnvSpec, **parts: Any) -> Learner:
    """The learner of an algorithm's config (its `name` is the registry key) for an environment's spec.

    parts: what a config cannot hold, e.g. `own_features`, a function that makes a user's feature extractor.
    """
    keep_memory()
    kind = lookup(ALGORITHMS, algo.name, "algorithm")
    refuse_discrete(kind, algo.name, spec)
    return kind(algo, spec, **parts)


def refuse_discrete(kind: type[Learner], name: str, spec: EnvSpec) -> None:
    if kind.continuous_only and not spec.action_dim:
        raise ValueError(
            f"algo={name} is for continuous actions, those of this environment are discrete. Use algo=ppo."
        )


def resolve_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={name}: this machine has no CUDA device that torch can use. Use device=cpu.")
    if device.type == "cuda" and device.index is not None:
        if device.index >= torch.cuda.device_count():
            raise ValueError(f"device={name}: this machine has cuda:0 to cuda:{torch.cuda.device_count() - 1}")
        torch.cuda.set_device(device)  # graph capture and generators follow the current device
    return device


def device_of(cfg: TrainConfig) -> torch.device:
    """Where a run computes; `auto` is the CPU for environments that step there while learning."""
    if cfg.device == "auto" and cfg.data.name == "none" and backend_of(cfg.env) != "torch":
        return torch.device("cpu")
    return resolve_device(cfg.device)


def widest_layer(algo: Any) -> int:
    return max([*algo.hidden, *(getattr(algo, "vf_hidden", None) or [])], default=0)


def evaluator(learner: Learner, cfg: TrainConfig, *, episodes: int, seed: int) -> Callable[[], Evaluation]:
    """A function that evaluates the policy on fresh episodes of the training task."""
    device = device_of(cfg) if backend_of(cfg.env) == "torch" else torch.device("cpu")
    env: VecEnv | None = None

    def run() -> Evaluation:
        nonlocal env
        if env is None:
            # a seed, because an environment without one would take it from the generator that training uses
            env = make_env(cfg.env, min(episodes, 64), seed=seed, device=device, stagger=False)
        return evaluate(judged(learner), env, episodes=episodes, seed=seed)

    return run


def judged(learner: Learner) -> Callable[[Tensor], Tensor]:
    """Acting as in an evaluation: deterministic, but for learners that declare otherwise."""
    return acting(learner, deterministic=not learner.stochastic_eval)


def acting(learner: Learner, *, deterministic: bool = True) -> Callable[[Tensor], Tensor]:
    """Observations to actions, on the device of the observations."""

    def act(obs: Tensor) -> Tensor:
        return learner.act(obs.to(learner.device), deterministic=deterministic).action.to(obs.device)

    return act


def quick(learner: Learner) -> Quick | None:
    """What acts on a single observation in NumPy, as `acting` does deterministically; None for other learners."""
    if learner.loop == "off_policy":
        nets: Any = learner.nets
        return Quick(nets.normalizer, Vector(0), nets.policy)
    parts = [getattr(learner, name, None) for name in ("normalizer", "features", "policy")]
    return None if None in parts else Quick(*parts)  # type: ignore[arg-type]


def training_loop(cfg: TrainConfig) -> Loop:
    """Environment or data set, learner and loop of a run, without run folder, log or evaluation."""
    device = device_of(cfg)
    kind = lookup(ALGORITHMS, cfg.algo.name, "algorithm")
    if cfg.seeds > 1:
        refuse_unless_stackable(kind, cfg.seeds)
    if kind.loop == "off_policy":
        return offline_loop(cfg, read_data(cfg.data), device)
    if cfg.data.name != "none":
        raise ValueError(
            f"algo={cfg.algo.name} learns from the environment alone; leave data out, or use an offline algo"
        )
    if kind.continuous_only:
        refuse_discrete(kind, cfg.algo.name, env_spec(cfg, device))  # before memory is taken for all environments
    torch.manual_seed(cfg.seed)
    mode = resolve(cfg.compile, device, cfg.total_steps)
    env = make_env(cfg.env, cfg.n_envs, seed=cfg.seed, device=device, compile=mode == "compile")
    learner = make_learner(cfg.algo, env.spec)
    learner.set_dtype(cfg.dtype)
    learner.set_compile(mode)
    return on_policy_loop(
        learner,
        env,
        total_steps=cfg.total_steps,
        seed=cfg.seed,
        staggered=cfg.env.stagger and backend_of(cfg.env) not in ("gymnasium", "envpool"),
        graph=mode == "graph",
    )


def offline_loop(cfg: TrainConfig, episodes: Episodes, device: torch.device) -> OfflineLoop:
    """Learner and loop over a data set; of the environment it reads the shapes alone."""
    spec, env = env_spec(cfg, device), f"env={cfg.env.id or cfg.env.name}"
    if not spec.action_dim:
        raise ValueError(f"algo={cfg.algo.name} is for continuous actions, those of {env} are discrete")
    same_task(episodes, spec, env)
    same_robot(episodes.facts, cfg.env)
    torch.manual_seed(cfg.seed)
    if cfg.seeds > 1:
        return stacked_loop(cfg, episodes, spec)
    learner = make_learner(cfg.algo, spec)
    learner.set_dtype(cfg.dtype)
    learner.set_compile(resolve(cfg.compile, device, 0))
    return loop_over(cfg, episodes, learner)


def stacked_loop(cfg: TrainConfig, episodes: Episodes, spec: EnvSpec) -> OfflineLoop:
    """All seeds of a run as one learner."""
    data = dataset(cfg, episodes, lookup(ALGORITHMS, cfg.algo.name, "algorithm"), spec.device)

    def make() -> Any:
        learner: Any = make_learner(cfg.algo, spec)
        learner.set_dtype(cfg.dtype)
        learner.cache = cache_folder(episodes.facts)
        return learner

    learner, source = stacked(make, seeds_of(cfg), data)
    learner.set_compile(resolve(cfg.compile, spec.device, 0))
    return OfflineLoop(
        learner,
        source,
        gradient_steps=cfg.gradient_steps,
        batch_size=cfg.algo.batch_size,
        facts=episodes.facts,
    )


def seeds_of(cfg: TrainConfig) -> range:
    return range(cfg.seed, cfg.seed + cfg.seeds)


def loop_over(cfg: TrainConfig, episodes: Episodes, learner: Learner) -> OfflineLoop:
    """The loop that teaches a data set to a learner, which sees the whole of it once before."""
    data = dataset(cfg, episodes, type(learner), learner.device)
    teachable: Any = learner
    teachable.cache = cache_folder(episodes.facts)
    learner.prefit(data.all())
    return OfflineLoop(
        teachable,
        data,
        gradient_steps=cfg.gradient_steps,
        batch_size=cfg.algo.batch_size,
        facts=episodes.facts,
    )


def env_spec(cfg: TrainConfig, device: torch.device) -> EnvSpec:
    """The task's spec with one environment, on the learner's device."""
    env = make_env(cfg.env, 1, seed=0, stagger=False)
    env.close()
    return env.spec._replace(device=device)


def build(cfg: TrainConfig, folder: Path, *, resume: bool = False) -> Trainer:
    """The trainer of a run; with `resume`, standing where the run folder's last checkpoint left it."""
    device = device_of(cfg)
    set_threads(cfg.threads, widest_layer(cfg.algo), device)
    loop = training_loop(cfg)
    every = loop.total_steps // 10 if cfg.eval.every is None else cfg.eval.every
    data = getattr(loop, "facts", None)
    told = list(getattr(loop.env, "notices", ())) if data is None else notices(data, cfg.env)
    span = None if data is None else score_range(cfg, data)
    options: dict[str, Any] = {
        "eval_every": every,
        "log_every": cfg.log.every,
        "log_steps": cfg.log.every_steps,
        "checkpoint_every": cfg.checkpoint.every,
        "checkpoint_steps": cfg.checkpoint.every_steps,
        "keep": cfg.checkpoint.keep,
        "spec": env_spec(cfg, device) if loop.env is None else loop.env.spec,
        "device": device,
        "facts": facts(cfg, device, data) | {"notices": told, "score_range": span},
        "progress": cfg.log.progress,
        "score": scorer(span),
    }
    trainer = (
        _stacked_trainer(cfg, loop, folder, options)
        if cfg.seeds > 1
        else Trainer(
            loop,
            RunFolder(folder, tensorboard=cfg.log.tensorboard, clock=loop.clock),
            evaluate=evaluator(loop.learner, cfg, episodes=cfg.eval.episodes, seed=cfg.eval.seed),
            **options,
        )
    )
    for line in told:
        trainer.progress.note(line)
    if resume:
        trainer.resume()
    return trainer


def _stacked_trainer(cfg: TrainConfig, loop: Any, folder: Path, options: dict[str, Any]) -> StackedTrainer:
    learner, device = loop.learner, options["device"]
    with torch.random.fork_rng():
        mirror: Any = make_learner(cfg.algo, options["spec"]._replace(device=device))  # in turn each of the seeds
    mirror.set_dtype(cfg.dtype)
    run = evaluator(mirror, cfg, episodes=cfg.eval.episodes, seed=cfg.eval.seed)

    def single(place: int) -> tuple[Learner, dict[str, Tensor]]:
        extract(learner, place, mirror)
        return mirror, random_state(device) | {f"rng/{device.type}": learner.random.streams[place].get_state()}

    def evaluate_seed(place: int) -> Evaluation:
        extract(learner, place, mirror)
        return run()

    return StackedTrainer(
        loop,
        RunFolder(folder, clock=loop.clock),
        seeds=seeds_of(cfg),
        evaluate_seed=evaluate_seed,
        single=single,
        tensorboard=cfg.log.tensorboard,
        **options,
    )


def scorer(span: Sequence[float] | None) -> Callable[[float], float | None]:
    """Returns on the 0-100 scale between two reference returns; None for all where there are none."""
    if span is None:
        return lambda _: None
    low, high = span
    return lambda value: 100.0 * (value - low) / (high - low)


def on_policy_loop(
    learner: Learner, env: VecEnv, *, total_steps: int, seed: int | None, staggered: bool, graph: bool = False
) -> OnPolicyLoop:
    return OnPolicyLoop(
        learner,  # type: ignore[arg-type]
        env,
        n_steps=learner.cfg.n_steps,
        total_steps=total_steps,
        seed=seed,
        staggered=staggered,
        graph=graph,
    )


def as_vec_env(env: Any, *, seed: int | None = None) -> VecEnv:
    """A ctrlrl VecEnv as it is; SB3's, another simulator's or Gymnasium's environment behind its adapter."""
    if isinstance(env, VecEnv):
        return env
    from ctrlrl.envs.adapters import adapt
    from ctrlrl.envs.gymnasium import GymnasiumEnv
    from ctrlrl.envs.sb3 import SB3Env, is_sb3

    if is_sb3(env):
        return SB3Env(env, seed=seed)
    return adapt(env, seed=seed) or GymnasiumEnv(env, seed=seed)


def spaces(cfg: EnvConfig, spec: EnvSpec) -> Spaces:
    """Observation and action space of a named task, in the units its users know."""
    gym_id = cfg.id or GYMNASIUM_IDS.get(cfg.name)
    return Spaces.of_id(gym_id) if gym_id else Spaces.of_spec(spec)


def spaces_of(env: Any, spec: EnvSpec) -> Spaces:
    """Of an environment object; of a simulator's, those that its adapter shows."""
    from ctrlrl.envs.adapters import kinds

    return Spaces.of_spec(spec) if kinds(env) not in ([], ["envpool"]) else Spaces.of_env(env, spec)


def agent_checkpoint(learner: Learner, facts: dict[str, Any]) -> Checkpoint:
    return Checkpoint(learner.model_state(), learner.training_state(), facts)


def restore_agent(learner: Learner, checkpoint: Checkpoint, where: str) -> None:
    try:
        learner.load_model_state(checkpoint.model)
        learner.load_training_state(checkpoint.training)
    except (RuntimeError, KeyError) as error:
        raise ValueError(
            f"{where}: the weights do not fit the saved configuration ({str(error).splitlines()[0]})"
        ) from None


def run_folder(cfg: TrainConfig) -> Path:
    """The folder of a new run: `run.dir`, which must be free, or a name that no other run has."""
    if cfg.run.dir is not None:
        path = Path(cfg.run.dir)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ValueError(f"run.dir={path} is taken; use another name, or go on with run.resume={path}")
        return path
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{cfg.algo.name}-{cfg.env.name}-s{cfg.seed}-{stamp}-{os.getpid()}"

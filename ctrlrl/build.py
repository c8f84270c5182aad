"""From a configuration to environment, learner, loop and trainer: the only file that knows everything."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctrlrl.config import EnvConfig, TrainConfig, own_settings
from ctrlrl.core.compile import resolve
from ctrlrl.core.learner import Learner
from ctrlrl.core.process import keep_memory, set_threads
from ctrlrl.core.ranks import ALONE, Ranks
from ctrlrl.core.stacked import extract
from ctrlrl.data.episodes import Episodes
from ctrlrl.envs.face import name_of
from ctrlrl.envs.sim import BatchedSim, Sim
from ctrlrl.envs.spaces import Spaces
from ctrlrl.envs.timeout import TimedEnv
from ctrlrl.nn.features import Vector
from ctrlrl.online import online_loop, refuse_unless_online
from ctrlrl.policies.quick import Quick
from ctrlrl.provenance import facts
from ctrlrl.registry import ALGORITHMS, GYMNASIUM_IDS, ROBOTS, SIMULATORS, lookup, unknown
from ctrlrl.seeds import refuse_unless_stackable, stacked
from ctrlrl.shares import share, start_together
from ctrlrl.sources import cache_folder, dataset, load_data, notices, read_data, same_robot, same_task, score_range
from ctrlrl.train.buffer_files import load_buffer, save_buffer
from ctrlrl.train.checkpoint import Checkpoint, random_state, read_zip, write_zip
from ctrlrl.train.evaluate import Evaluation, evaluate
from ctrlrl.train.log import OthersFolder, RunFolder
from ctrlrl.train.off_policy import OfflineLoop
from ctrlrl.train.on_policy import OnPolicyLoop
from ctrlrl.train.stacked import StackedTrainer
from ctrlrl.train.trainer import Loop, Trainer
from ctrlrl.train.trials import TRIALS, Trials, run_trials
from ctrlrl.types import EnvSpec, VecEnv

# what the faces take from here besides what stands below
__all__ = ["Episodes", "Spaces", "evaluate", "load_buffer", "load_data", "name_of", "notices", "read_zip", "same_task"]
__all__ += ["save_buffer", "write_zip"]


ON_ANY_DEVICE = ("torch", "mujoco_warp")  # backends that step where the learner computes


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
    first_lane: int = 0,
) -> VecEnv:
    """One vectorised environment of the configured task; `stagger` overrides the configuration (evaluation: False).

    first_lane: the number of the first lane, of which the random numbers on the torch and mujoco backends depend.
    episode_length: steps until truncation on the torch, mujoco and mujoco_warp backends; None is the task's own limit.
    """
    device, backend = torch.device(device), backend_of(cfg)
    stagger = cfg.stagger if stagger is None else stagger
    if cfg.timeout is not None and backend != "gymnasium":
        raise ValueError(f"env.timeout is for environments that Python code steps; env={cfg.name} runs on {backend}")
    if backend == "torch":
        return BatchedSim(
            make_sim(cfg),
            n_envs,
            first_lane=first_lane,
            seed=seed,
            device=device,
            stagger=stagger,
            compile=compile,
            episode_length=episode_length,
        )
    if backend == "mujoco_warp":
        from ctrlrl.envs.mujoco_warp import MujocoWarp

        return MujocoWarp(
            cfg.name,
            n_envs,
            seed=seed,
            device=device,
            stagger=stagger,
            episode_length=episode_length,
            room=cfg.contact_room,
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
            first_lane=first_lane,
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


def make_sim(cfg: EnvConfig) -> Sim:
    """The torch-native simulator of a task with the settings of its configuration."""
    kind = lookup(SIMULATORS, cfg.name, "environment")
    return kind() if kind.Settings is None else kind(own_settings(cfg, kind.Settings))


def backend_of(cfg: EnvConfig) -> str:
    """The backend that `auto` stands for; ValueError where the named one does not have the task."""
    if cfg.name == "gym" and not cfg.id:
        raise ValueError("env=gym needs a Gymnasium id, e.g. env.id=LunarLander-v3")
    has = {"torch": cfg.name in SIMULATORS, "mujoco": cfg.name in ROBOTS}
    has["mujoco_warp"] = has["mujoco"]
    has["gymnasium"] = has["envpool"] = cfg.id is not None or cfg.name in GYMNASIUM_IDS
    if not any(has.values()):
        raise ValueError(unknown("environment", cfg.name, [*SIMULATORS, *ROBOTS, "gym"]))
    if cfg.backend == "auto":
        return next(name for name, there in has.items() if there)
    if not has[cfg.backend]:
        able = ", ".join(name for name, there in has.items() if there)
        raise ValueError(f"env.backend={cfg.backend} does not have env={cfg.name}; it runs on: {able}")
    return cfg.backend


def env_extras(cfg: EnvConfig) -> tuple[str, ...]:
    """What the steps of a configured task are promised to tell besides, without making the environment."""
    return lookup(SIMULATORS, cfg.name, "environment").extras if backend_of(cfg) == "torch" else ()


def refuse_unless_offered(algo: str, offered: Sequence[str], env: str) -> None:
    """ValueError where an algorithm that learns from an environment needs what this one does not tell."""
    kind = lookup(ALGORITHMS, algo, "algorithm")
    missing = kind.needs - set(offered) if kind.loop == "on_policy" else ()
    if missing:
        able = [name for name in SIMULATORS if kind.needs <= set(lookup(SIMULATORS, name, "environment").extras)]
        raise ValueError(
            f"algo={algo} needs {', '.join(sorted(missing))} of every step, which {env} does not tell. "
            f"These environments do: {', '.join(able)}"
        )


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
    meets_env = cfg.env_steps(lookup(ALGORITHMS, cfg.algo.name, "algorithm")) > 0
    if cfg.device == "auto" and meets_env and backend_of(cfg.env) not in ON_ANY_DEVICE:
        return torch.device("cpu")
    return resolve_device(cfg.device)


def widest_layer(algo: Any) -> int:
    return max([*algo.hidden, *(getattr(algo, "vf_hidden", None) or [])], default=0)


def evaluator(learner: Learner, cfg: TrainConfig, *, episodes: int, seed: int) -> Callable[[], Evaluation]:
    """A function that evaluates the policy on fresh episodes of the training task."""
    device = device_of(cfg) if backend_of(cfg.env) in ON_ANY_DEVICE else torch.device("cpu")
    env: VecEnv | None = None

    def run() -> Evaluation:
        nonlocal env
        if env is None:
            # a seed, because an environment without one would take it from the generator that training uses
            env = make_env(cfg.env, min(episodes, 64), seed=seed, device=device, stagger=False)
        return evaluate(judged(learner, cfg.eval.deterministic), env, episodes=episodes, seed=seed)

    return run


def judged(learner: Learner, deterministic: bool | None = None) -> Callable[[Tensor], Tensor]:
    """Acting as in an evaluation: as asked for, else deterministic, but for learners that declare otherwise."""
    return acting(learner, deterministic=not learner.stochastic_eval if deterministic is None else deterministic)


def trials(learner: Learner, cfg: TrainConfig, *, seed: int, n: int = TRIALS) -> Trials | None:
    """Where `n` roll-outs of the sampling policy end; None for a task that is not judged by that."""
    if backend_of(cfg.env) != "torch" or (scene := (sim := make_sim(cfg.env)).scene) is None:
        return None
    env = BatchedSim(sim.trial(), n, seed=seed, device=device_of(cfg), stagger=False)
    return run_trials(acting(learner, deterministic=False), env, scene, seed=seed)


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


def training_loop(cfg: TrainConfig, ranks: Ranks = ALONE) -> Loop:
    """Environment or data set, learner and loop of a run, or of a rank's share of it, without folder and evaluation."""
    device = device_of(cfg)
    kind = lookup(ALGORITHMS, cfg.algo.name, "algorithm")
    if cfg.seeds > 1:
        refuse_unless_stackable(kind, cfg.seeds)
    if kind.loop == "off_policy":
        return off_policy_loop(cfg, kind, device, ranks)
    if cfg.data.name != "none":
        raise ValueError(
            f"algo={cfg.algo.name} learns from the environment alone; leave data out, or use an offline algo"
        )
    refuse_unless_offered(cfg.algo.name, env_extras(cfg.env), f"env={cfg.env.id or cfg.env.name}")
    if kind.continuous_only:
        refuse_discrete(kind, cfg.algo.name, env_spec(cfg, device))  # before memory is taken for all environments
    torch.manual_seed(cfg.seed)
    steps = cfg.env_steps(kind)
    mode = resolve(cfg.compile, device, steps)
    first_lane = ranks.index * cfg.n_envs
    # elsewhere a lane's seed is the environment's plus its place there
    seed = cfg.seed + (0 if backend_of(cfg.env) in ("torch", "mujoco") else first_lane)
    env = make_env(cfg.env, cfg.n_envs, seed=seed, device=device, compile=mode == "compile", first_lane=first_lane)
    learner = make_learner(cfg.algo.for_envs(cfg.n_envs), env.spec)
    learner.set_dtype(cfg.dtype)
    learner.set_compile(mode)
    start_together(learner, cfg.seed, ranks)
    return on_policy_loop(
        learner,
        env,
        total_steps=steps,
        seed=seed,
        staggered=_staggered(cfg.env),
        graph=mode == "graph" and backend_of(cfg.env) == "torch",  # Warp's physics is a graph of its own
    )


def _staggered(cfg: EnvConfig) -> bool:
    """Whether the first episode of every lane is cut short by design."""
    return cfg.stagger and backend_of(cfg) not in ("gymnasium", "envpool")


def off_policy_loop(cfg: TrainConfig, kind: Any, device: torch.device, ranks: Ranks = ALONE) -> Loop:
    """Over a data set, over an environment's replayed steps, or over the first and then both."""
    steps = cfg.env_steps(kind)
    if kind.offline and (steps == 0 or cfg.data.name == "none"):
        return offline_loop(cfg, read_data(cfg.data), device, ranks)
    env_name = f"env={cfg.env.id or cfg.env.name}"
    refuse_unless_online(kind, cfg.algo.name, env_spec(cfg, device), env_name)
    if cfg.seeds > 1 or ranks.size > 1:
        several = f"seeds={cfg.seeds}" if cfg.seeds > 1 else f"{ranks.size} processes"
        raise ValueError(f"{several}: a run off-policy in an environment is one seed in one process; see ctrlrl sweep")
    before: Any = offline_loop(cfg, read_data(cfg.data), device) if kind.offline else None
    torch.manual_seed(cfg.seed)
    env = make_env(cfg.env, cfg.n_envs, seed=cfg.seed, device=device)
    if before is not None:
        learner: Any = before.learner
    else:
        learner = make_learner(cfg.algo, env.spec)
        learner.set_dtype(cfg.dtype)
        learner.set_compile(resolve(cfg.compile, device, 0))
    return online_loop(
        learner,
        env,
        env_steps=steps,
        seed=cfg.seed,
        staggered=_staggered(cfg.env),
        data=None if before is None else before.source,
        before=before,
    )


def offline_loop(cfg: TrainConfig, episodes: Episodes, device: torch.device, ranks: Ranks = ALONE) -> OfflineLoop:
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
    loop = loop_over(cfg, episodes, learner)
    start_together(learner, cfg.seed, ranks)
    return loop


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


def build(cfg: TrainConfig, folder: Path, *, resume: bool = False, ranks: Ranks = ALONE) -> Trainer:
    """The trainer of a run; with `resume`, standing where the run folder's last checkpoint left it.

    ranks: the processes that share the run; what the trainers of all but the first write goes nowhere.
    """
    whole, cfg = cfg, share(cfg, ranks, cuda=device_of(cfg).type == "cuda")
    device = device_of(cfg)
    set_threads(cfg.threads, widest_layer(cfg.algo), device)
    loop = training_loop(cfg, ranks)
    every = loop.total_steps // 10 if cfg.eval.every is None else cfg.eval.every
    data = getattr(loop, "facts", None)
    told = [*getattr(loop.env, "notices", ()), *(() if data is None else notices(data, cfg.env))]
    if cfg.compile == "compile" and not getattr(loop.learner, "compile_units", True):
        told.append(
            f"compile=compile: algo={cfg.algo.name} has nothing to compile with these settings; it runs eagerly"
        )
    span = None if data is None else score_range(cfg, data)
    together = {"ranks": ranks.size} if ranks.size > 1 else {}
    options: dict[str, Any] = {
        "eval_every": every,
        "log_every": cfg.log.every,
        "log_steps": cfg.log.every_steps,
        "checkpoint_every": cfg.checkpoint.every,
        "checkpoint_steps": cfg.checkpoint.every_steps,
        "keep": cfg.checkpoint.keep,
        "keep_buffer": cfg.checkpoint.buffer,
        "spec": env_spec(cfg, device) if loop.env is None else loop.env.spec,
        "device": device,
        "facts": facts(whole, device, data) | {"notices": told, "score_range": span} | together,
        "progress": cfg.log.progress,
        "score": scorer(span),
    }
    trainer = (
        _stacked_trainer(cfg, loop, folder, options)
        if cfg.seeds > 1
        else Trainer(
            loop,
            OthersFolder(folder, clock=loop.clock)
            if ranks.index
            else RunFolder(folder, tensorboard=cfg.log.tensorboard, clock=loop.clock),
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

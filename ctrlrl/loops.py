"""From a configuration to learner and loop: on-policy, over a data set, over replayed steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctrlrl.config import TrainConfig
from ctrlrl.core.compile import resolve
from ctrlrl.core.learner import Learner
from ctrlrl.core.off_policy import OffPolicyLearner
from ctrlrl.core.process import keep_memory
from ctrlrl.core.random import seed_generators
from ctrlrl.core.ranks import ALONE, Ranks
from ctrlrl.data.arrivals import arrivals
from ctrlrl.data.dataset import Dataset
from ctrlrl.data.episodes import Episodes, Facts
from ctrlrl.data.replay import Mixture, Pair, ReplayBuffer
from ctrlrl.data.scores import task_of
from ctrlrl.data.split import held_out
from ctrlrl.registry import ALGORITHMS, GYMNASIUM_IDS, SIMULATORS, lookup
from ctrlrl.seeds import refuse_unless_stackable, stacked
from ctrlrl.shares import start_together
from ctrlrl.sources import cache_folder, dataset, read_data, same_box, same_robot, same_task, spec_of
from ctrlrl.tasks import backend_of, device_of, env_device, env_extras, env_spec, eval_env, is_staggered, make_env
from ctrlrl.tasks import spaces as env_spaces
from ctrlrl.texts import token_loop
from ctrlrl.train.checkpoint import read_folder, same_spec
from ctrlrl.train.off_policy import OfflineLoop
from ctrlrl.train.on_policy import OnPolicyLoop
from ctrlrl.train.online import OnlineLoop
from ctrlrl.train.population import PopulationLoop
from ctrlrl.train.trainer import Loop
from ctrlrl.types import EnvSpec, Source, VecEnv


def make_learner(algo: Any, spec: EnvSpec, **parts: Any) -> Learner:
    """The learner of an algorithm's config (its `name` is the registry key) for an environment's spec.

    parts: what a config cannot hold, e.g. `own_features`, a function that makes a user's feature extractor.
    """
    keep_memory()
    kind = lookup(ALGORITHMS, algo.name, "algorithm")
    refuse_discrete(kind, algo.name, spec)
    refuse_rewards(kind, algo.name, spec)
    return kind(algo, spec, **parts)


def refuse_rewards(kind: type[Learner], name: str, spec: EnvSpec) -> None:
    """ValueError where an environment pays a vector and the algorithm learns from one number, or the reverse."""
    if kind.multi_objective == (spec.reward_dim > 1):
        return
    able = [n for n in ALGORITHMS if lookup(ALGORITHMS, n, "algorithm").multi_objective != kind.multi_objective]
    if kind.multi_objective:
        raise ValueError(f"algo={name} is for several objectives, this environment pays one reward. Use algo=ppo.")
    raise ValueError(
        f"algo={name} learns from one reward, this environment pays {spec.reward_dim}"
        f"{' (' + ', '.join(spec.objectives) + ')' if spec.objectives else ''}. Use algo={' or algo='.join(able)}."
    )


def refuse_discrete(kind: type[Learner], name: str, spec: EnvSpec) -> None:
    if kind.continuous_only and not spec.action_dim:
        able = "ppo" if spec.reward_dim == 1 else "cmorl"
        raise ValueError(
            f"algo={name} is for continuous actions, those of this environment are discrete. Use algo={able}."
        )


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


def refuse_unfit(cfg: TrainConfig) -> None:
    """ValueError where the algorithm cannot learn in the environment, before memory is taken for all lanes of it."""
    kind = lookup(ALGORITHMS, cfg.algo.name, "algorithm")
    refuse_unless_offered(cfg.algo.name, env_extras(cfg.env), f"env={cfg.env.id or cfg.env.name}")
    if kind.continuous_only:
        refuse_discrete(kind, cfg.algo.name, env_spec(cfg, device_of(cfg)))


def training_loop(cfg: TrainConfig, ranks: Ranks = ALONE, *, resume: bool = False) -> Loop:
    """Environment or data set, learner and loop of a run, or of a rank's share of it, without folder and evaluation.

    resume: a checkpoint will bring all weights, those of a pretrained base too.
    """
    device = device_of(cfg)
    kind = lookup(ALGORITHMS, cfg.algo.name, "algorithm")
    if cfg.seeds > 1:
        refuse_unless_stackable(kind, cfg.seeds)
    if kind.loop == "tokens":
        return token_loop(cfg, device, ranks)
    if kind.loop in ("off_policy", "hybrid"):
        return off_policy_loop(cfg, kind, device, ranks, resume=resume)
    if kind.loop == "population":
        return population_loop(cfg, kind, device, ranks)
    if cfg.data.name != "none":
        raise ValueError(
            f"algo={cfg.algo.name} learns from the environment alone; leave data out, or use an offline algo"
        )
    refuse_unfit(cfg)
    seed_generators(cfg.seed)
    steps = cfg.env_steps(kind)
    mode = resolve(cfg.compile, device, steps, graph=getattr(cfg.algo, "target_kl", None) is None)
    first_lane = ranks.index * cfg.n_envs
    # elsewhere a lane's seed is the environment's plus its place there
    seed = cfg.seed + (0 if backend_of(cfg.env) in ("torch", "mujoco") else first_lane)
    env = make_env(cfg.env, cfg.n_envs, seed=seed, device=device, compile=mode == "compile", first_lane=first_lane)
    learner = make_learner(cfg.algo.for_envs(cfg.n_envs), env.spec)
    learner.set_dtype(cfg.dtype)
    if cfg.compile == "auto" and backend_of(cfg.env) == "envpool":  # rows that are resets are left out of a rollout,
        mode = "eager"  # and each other number of rows would be compiled anew
    learner.set_compile(mode)
    start_together(learner, cfg.seed, ranks)
    return on_policy_loop(
        learner,
        env,
        total_steps=steps,
        seed=seed,
        staggered=is_staggered(cfg.env, env.spec),
        graph=mode == "graph" and backend_of(cfg.env) == "torch",  # Warp's physics is a graph of its own
    )


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


def population_loop(cfg: TrainConfig, kind: type[Learner], device: torch.device, ranks: Ranks) -> PopulationLoop:
    """Policies trained side by side; n_envs environments each."""
    if ranks.size > 1:
        raise ValueError(f"algo={cfg.algo.name} trains its policies in one process, here are {ranks.size}")
    if cfg.data.name != "none":
        raise ValueError(f"algo={cfg.algo.name} learns from the environment alone; leave data out")
    spec = env_spec(cfg, device)._replace(n_envs=cfg.n_envs)
    seed_generators(cfg.seed)
    learner: Any = make_learner(cfg.algo.for_envs(cfg.n_envs), spec)
    learner.set_dtype(cfg.dtype)
    # each round of another size would be compiled anew, so `auto` compiles nothing
    mode = "eager" if cfg.compile == "auto" else resolve(cfg.compile, device, 0)
    if mode == "graph":
        raise ValueError(f"compile=graph: algo={cfg.algo.name} changes its sizes. Use compile=compile or eager.")
    learner.set_compile(mode)
    task = eval_env(cfg)
    return PopulationLoop(
        learner,
        lambda n: make_env(cfg.env, n, seed=cfg.seed, device=device, compile=mode == "compile"),
        lambda n: make_env(task, n, seed=cfg.eval.seed, device=env_device(cfg, task), stagger=False),
        spec=spec,
        total_steps=cfg.env_steps(kind),
        seed=cfg.seed,
        eval_seed=cfg.eval.seed,
        staggered=is_staggered(cfg.env, spec),
    )


def off_policy_loop(
    cfg: TrainConfig, kind: Any, device: torch.device, ranks: Ranks = ALONE, *, resume: bool = False
) -> Loop:
    """Over a data set, over an environment's replayed steps, or over the first and then both."""
    steps = cfg.env_steps(kind)
    if steps > 0 and cfg.data.holdout > 0.0:
        raise ValueError("data.holdout is for learning from a data set alone; leave it out, or total_steps")
    if kind.offline and (steps == 0 or cfg.data.name == "none"):
        return offline_loop(cfg, read_data(cfg.data), device, ranks, resume=resume)
    refuse_unless_online(kind, cfg.algo.name)
    if cfg.seeds > 1 or ranks.size > 1:
        several = f"seeds={cfg.seeds}" if cfg.seeds > 1 else f"{ranks.size} processes"
        raise ValueError(f"{several}: a run off-policy in an environment is one seed in one process; see ctrlrl sweep")
    before: Any = offline_loop(cfg, read_data(cfg.data), device, resume=resume) if kind.offline else None
    seed_generators(cfg.seed)
    env = make_env(cfg.env, cfg.n_envs, seed=cfg.seed, device=device)
    if before is not None:
        learner, skilled = before.learner, True
    else:
        learner = make_learner(cfg.algo, env.spec)
        learner.set_dtype(cfg.dtype)
        learner.set_compile(resolve(cfg.compile, device, 0))
        skilled = begin_with_base(learner, env.spec, cfg.env.id or cfg.env.name, resume=resume)
    data, facts = (None, None) if before is None else (before.source, before.facts)
    if before is None and (cfg.data.name != "none" or kind.loop == "hybrid"):
        episodes = read_data(cfg.data)
        same_data(cfg, episodes, env.spec)
        data, facts = dataset(cfg, episodes, kind, device), episodes.facts
        learner.prefit(data.all())
    elif before is None and cfg.data.changes_rewards:
        names = ("reward_scale", "reward_shift", "return_range")
        lost = ", ".join(f"data.{name}={getattr(cfg.data, name)}" for name in names)
        raise ValueError(
            f"{lost}, from a preset, are for a data set's rewards, and there is none: add data=file data.path=FILE, or "
            "say experiment=none"
        )
    return online_loop(
        learner,
        env,
        env_steps=steps,
        seed=cfg.seed,
        staggered=is_staggered(cfg.env, env.spec),
        data=data,
        before=before,
        facts=facts,
        skilled=skilled,
    )


def begin_with_base(learner: Any, spec: EnvSpec, env: str, *, resume: bool) -> bool:
    """Give the learner the policy of the run folder `algo.base`; False where its config names none.

    env: the name of the environment that it is for.
    resume: it is in the checkpoint that follows, and its own folder may be gone.
    """
    base = getattr(learner.cfg, "base", None)
    if base is None or resume:
        return base is not None
    found = read_folder(Path(base) / "checkpoints" / "last")
    same_spec(found.state, spec, f"algo.base={base}", but=("n_envs", "episode_length"))
    same_world(found.state.get("env"), env, f"algo.base={base}")
    take_over(learner, found.model, f"algo.base={base}", "algo.base_...")
    return True


def same_world(base: Any, env: str, where: str) -> None:
    """ValueError where a base is of another task: robots may have as many numbers as each other. Versions may differ.

    base, env: names, of ctrlrl or of Gymnasium; "", "none" and None are not known.
    """
    was, now = (task_of(GYMNASIUM_IDS.get(str(name), str(name))) for name in (base, env))
    if was != now and not {was, now} & {"", "none"}:
        raise ValueError(f"{where} was trained for {base}, this is {env}; name a base of the same task")


def take_over(learner: Any, weights: Mapping[str, Tensor], base: str, form: str) -> None:
    """Give a learner the weights of a pretrained base. form: what the settings of the base's form are called."""
    try:
        learner.begin_with(weights)
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"{base}: its weights do not fit {form} ({str(error).splitlines()[-1].strip()})") from None


def same_data(cfg: TrainConfig, episodes: Episodes, spec: EnvSpec) -> None:
    """ValueError where a data set is of another task than the configured one, whose spec this is."""
    same_task(episodes, spec, f"env={cfg.env.id or cfg.env.name}")
    same_robot(episodes.facts, cfg.env)
    if cfg.env.name == "gym" or cfg.env.name in GYMNASIUM_IDS:
        same_box(episodes.facts, lambda: env_spaces(cfg.env, spec).action, f"env={cfg.env.id or cfg.env.name}")


def offline_loop(
    cfg: TrainConfig, episodes: Episodes, device: torch.device, ranks: Ranks = ALONE, *, resume: bool = False
) -> OfflineLoop:
    """Learner and loop over a data set; of the environment, where there is one, it reads the shapes alone."""
    spec = spec_of(episodes, device) if cfg.env.name == "none" else env_spec(cfg, device)
    refuse_discrete(lookup(ALGORITHMS, cfg.algo.name, "algorithm"), cfg.algo.name, spec)
    same_data(cfg, episodes, spec)
    seed_generators(cfg.seed)
    unseen = None
    if cfg.data.holdout > 0.0:
        episodes, apart = held_out(episodes, cfg.data.holdout)
        as_they_are = replace(cfg, data=replace(cfg.data, return_range=False, best_fraction=1.0))
        unseen = dataset(as_they_are, apart, lookup(ALGORITHMS, cfg.algo.name, "algorithm"), device)
    if cfg.seeds > 1:
        loop = stacked_loop(cfg, episodes, spec)
    else:
        learner = make_learner(cfg.algo, spec)
        learner.set_dtype(cfg.dtype)
        learner.set_compile(resolve(cfg.compile, device, 0))
        begin_with_base(learner, spec, cfg.env.id or cfg.env.name, resume=resume)
        loop = loop_over(cfg, episodes, learner)
        start_together(learner, cfg.seed, ranks)
    loop.spec, loop.unseen = spec, unseen
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


def seeds_of(cfg: TrainConfig) -> range:
    return range(cfg.seed, cfg.seed + cfg.seeds)


def online_loop(
    learner: OffPolicyLearner,
    env: VecEnv,
    *,
    env_steps: int,
    seed: int | None,
    staggered: bool,
    data: Dataset | None = None,
    before: OfflineLoop | None = None,
    facts: Facts | None = None,
    skilled: bool = False,
    buffer: ReplayBuffer | None = None,
) -> OnlineLoop:
    """data: rows to learn from besides; rewards are kept as it has them. before: the updates on it that come first.

    facts: what the data set's file says of itself. skilled: the policy has learned something already.
    buffer: to go on with; None: a new one.
    """
    cfg, spec = learner.cfg, env.spec
    extras = {name: spec.action_dim if name == "next_action" else 0 for name in sorted(learner.needs)}
    extras |= {"discount": 0} if cfg.n_steps > 1 else {}
    extras |= dict.fromkeys(learner.kept, spec.reward_dim)
    fresh = buffer is None
    if buffer is None:
        buffer = ReplayBuffer(
            cfg.buffer_size,
            spec.obs_dim,
            spec.action_dim,
            extras=extras,
            device=learner.device,
            reward_dim=spec.reward_dim,
        )
    source: Source = buffer
    if learner.loop == "hybrid":
        if data is None:
            raise ValueError(f"{cfg.name} learns from a simulator and real data together: give a data set too")
        source = Pair(data, buffer)
    elif data is not None and cfg.offline_share is None:
        if fresh:
            if data.size > cfg.buffer_size:
                raise ValueError(
                    f"algo.buffer_size={cfg.buffer_size}: the {data.size} rows of the data set begin the replay "
                    "buffer, and all of them must have room there"
                )
            buffer.fill(data.all())
    elif data is not None:
        source = Mixture([(data, cfg.offline_share), (buffer, 1.0 - cfg.offline_share)])
    return OnlineLoop(
        learner,
        env,
        buffer,
        source,
        cfg=cfg,
        batch_size=learner.rows,
        env_steps=env_steps,
        seed=seed,
        staggered=staggered,
        before=before,
        facts=facts,
        skilled=skilled or before is not None,
        reward=(1.0, 0.0) if data is None else data.reward,
        arrivals=arrivals(
            learner.needs,
            n_steps=cfg.n_steps,
            gamma=cfg.gamma,
            failure=None if data is None else data.lowest,
        ),
    )


def refuse_unless_online(kind: type[Learner], algo: str) -> None:
    """ValueError where an algorithm cannot go on in an environment."""
    if not getattr(kind, "online", False):
        raise ValueError(f"algo={algo} learns from a data set alone; leave total_steps out")

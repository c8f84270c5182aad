"""From a configuration to the trainer of a run: the file that knows everything."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctrlrl.config import TrainConfig
from ctrlrl.core.learner import Learner
from ctrlrl.core.process import set_threads
from ctrlrl.core.ranks import ALONE, Ranks
from ctrlrl.core.stacked import extract
from ctrlrl.data.episodes import Episodes
from ctrlrl.envs.dynamics import Dynamics
from ctrlrl.envs.face import name_of
from ctrlrl.envs.spaces import Spaces
from ctrlrl.judging import evaluator, scorer
from ctrlrl.loops import make_learner, same_world, seeds_of, take_over, training_loop
from ctrlrl.provenance import facts, settings_by_name
from ctrlrl.shares import share
from ctrlrl.sources import load_data, notices, read_data, same_box, same_robot, same_task, score_range
from ctrlrl.tasks import device_of, dynamics, env_spec, eval_env
from ctrlrl.train.buffer_files import load_buffer, save_buffer
from ctrlrl.train.checkpoint import Checkpoint, exists, random_state, read_zip, write_zip
from ctrlrl.train.evaluate import Evaluation, evaluate
from ctrlrl.train.log import OthersFolder, RunFolder
from ctrlrl.train.stacked import StackedTrainer
from ctrlrl.train.trackers import TRACKERS
from ctrlrl.train.trainer import Trainer

# what the faces take from here besides what stands below
__all__ = [
    "Episodes",
    "Spaces",
    "evaluate",
    "load_buffer",
    "load_data",
    "name_of",
    "notices",
    "read_data",
    "read_zip",
    "same_box",
    "same_robot",
    "same_task",
    "same_world",
    "take_over",
]
__all__ += ["save_buffer", "write_zip"]


def build(cfg: TrainConfig, folder: Path, *, resume: bool = False, ranks: Ranks = ALONE) -> Trainer:
    """The trainer of a run; with `resume`, standing where the run folder's last checkpoint left it.

    ranks: the processes that share the run; what the trainers of all but the first write goes nowhere.
    """
    whole, cfg = cfg, share(cfg, ranks, cuda=device_of(cfg).type == "cuda")
    device = device_of(cfg)
    set_threads(cfg.threads, widest_layer(cfg.algo, cfg.env), device)
    begun = resume and exists(folder / "checkpoints" / "last")  # else it starts from the beginning, its base's too
    loop = training_loop(cfg, ranks, resume=begun)
    often = 0 if getattr(loop, "judges_itself", False) else loop.total_steps // 10
    every = often if cfg.eval.every is None else cfg.eval.every
    data = getattr(loop, "facts", None)
    told = [line for source in (loop.env, loop) for line in getattr(source, "notices", ())]
    told += () if data is None else notices(data, cfg.env)
    if cfg.compile == "compile" and not getattr(loop.learner, "compile_units", True):
        told.append(
            f"compile=compile: algo={cfg.algo.name} has nothing to compile with these settings; it runs eagerly"
        )
    span = None if data is None else score_range(cfg, data)
    learned_with, changed = (dynamics(env).changed() for env in (cfg.env, eval_env(cfg)))
    if changed:
        own = " ".join(f"eval.env.{name}={getattr(Dynamics, name):g}" for name in changed)
        now = " ".join(f"{name}={value:g}" for name, value in changed.items())
        unscored = "" if span is None else ", so no normalized score is given"
        told.append(f"judged with {now}{unscored}; {own} judges the robot itself, with run.resume=... later, too")
        span = None
    more: dict[str, Any] = {"ranks": ranks.size} if ranks.size > 1 else {}
    more |= {"dynamics": {"training": learned_with, "evaluation": changed}} if learned_with or changed else {}
    options: dict[str, Any] = {
        "eval_every": every,
        "log_every": cfg.log.every,
        "log_steps": cfg.log.every_steps,
        "checkpoint_every": cfg.checkpoint.every,
        "checkpoint_steps": cfg.checkpoint.every_steps,
        "keep": cfg.checkpoint.keep,
        "keep_buffer": cfg.checkpoint.buffer,
        "spec": getattr(loop, "spec", None) or (env_spec(cfg, device) if loop.env is None else loop.env.spec),
        "device": device,
        "facts": facts(whole, device, data) | {"notices": told, "score_range": span} | more,
        "progress": cfg.log.progress,
        "score": scorer(span),
    }
    told_to: dict[str, Any] = {
        "trackers": [n for n in TRACKERS if getattr(cfg.log, n)],
        "settings": settings_by_name(whole),
    }
    trainer = (
        _stacked_trainer(cfg, loop, folder, options | told_to)
        if cfg.seeds > 1
        else Trainer(
            loop,
            OthersFolder(folder, clock=loop.clock) if ranks.index else RunFolder(folder, **told_to, clock=loop.clock),
            evaluate=evaluator(
                loop.learner, cfg, episodes=cfg.eval.episodes, seed=cfg.eval.seed, unseen=getattr(loop, "unseen", None)
            ),
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
    run = evaluator(mirror, cfg, episodes=cfg.eval.episodes, seed=cfg.eval.seed, unseen=loop.unseen)

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
        **options,
    )


def widest_layer(algo: Any, env: Any = None) -> int:
    """Of the networks, or of a language model as its task describes it: one from the disk counts as wide."""
    if not hasattr(algo, "hidden"):
        return 4096 if getattr(env, "model", None) else getattr(env, "hidden_size", 4096)
    return max([*algo.hidden, *(getattr(algo, "vf_hidden", None) or [])], default=0)


def agent_checkpoint(learner: Learner, facts: dict[str, Any]) -> Checkpoint:
    return Checkpoint(learner.model_state(), learner.training_state(), facts)


def restore_agent(learner: Learner, checkpoint: Checkpoint, where: str) -> None:
    try:
        learner.load_model_state(checkpoint.model)
        learner.resume(checkpoint.training)
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
    env = cfg.env.name.replace("/", "-")
    return Path("runs") / f"{cfg.algo.name}-{env}-s{cfg.seed}-{stamp}-{os.getpid()}"

"""`ctrlrl eval compose=[runs/a,runs/b]`: evaluate runs composed without training, and search their weights."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ctrlrl.algos.gpc import GPCConfig, GPCLearner, Score, best
from ctrlrl.config import TrainConfig
from ctrlrl.core.learner import Learner
from ctrlrl.disk import write_atomic, write_named
from ctrlrl.judging import judged
from ctrlrl.runs import film, load_run
from ctrlrl.settings import command
from ctrlrl.tasks import env_device, eval_env, make_env, same_spaces
from ctrlrl.train.evaluate import Evaluation, evaluate
from ctrlrl.train.log import Progress

SAMPLER = ("algo.sampler", "algo.sampling_steps", "algo.spacing", "algo.warm_start")
LANES = 64  # environments stepped together at most, of one seed each


@dataclass
class ComposeOptions(GPCConfig):
    runs: list[str] = field(default_factory=list)  # run folders; compose=[runs/a,runs/b] is short for it
    base: str | None = None  # product: run folder of an unconditional policy, trained with algo.obs_columns=[]
    dir: str | None = None  # of compose.json and weights.png; null = <folder of the first run>/a+b

    @property
    def folders(self) -> list[Path]:
        return [Path(run) for run in self.runs]

    @property
    def out(self) -> Path:
        if self.dir is not None:
            return Path(self.dir)
        return self.folders[0].parent / "+".join(folder.name for folder in self.folders)


@dataclass
class Options:
    compose: ComposeOptions = field(default_factory=ComposeOptions)
    episodes: int = 20  # of the composed policy and of every parent, all on the same seeds
    seed: int = 100
    checkpoint: str = "last"  # or best
    video: str | None = None  # file to write, .mp4 or .gif
    deterministic: bool | None = None  # null = as the first run's eval.deterministic

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ValueError(f"episodes must be at least 1, got {self.episodes}")
        search = self.compose
        if search.searches and abs(self.seed - search.seed) < LANES:
            raise ValueError(
                f"compose.seed={search.seed} and seed={self.seed} begin the same episodes: the best of several weights "
                "is judged on fresh ones. Choose seeds farther apart."
            )


def options_of(words: Sequence[str]) -> tuple[Options, list[str]]:
    """The options of a composed evaluation, and the words of other settings for the runs (`algo.sampling_steps=20`)."""
    changes = [word for word in words if word.startswith(("algo.", "eval.env."))]
    own = [word.replace("compose=", "compose.runs=", 1) if word.startswith("compose=") else word for word in words]
    return command(Options, [word for word in own if word not in changes]), changes


def composed_run(options: Options, words: Sequence[str] = ()) -> tuple[TrainConfig, GPCLearner]:
    """The first run's configuration, and the learner that acts as all of them do; ValueError where they cannot."""
    compose = options.compose
    if len(compose.runs) < 2:
        raise ValueError(f"compose takes at least 2 run folders, got {len(compose.runs)}: compose=[runs/a,runs/b]")
    if compose.mode in ("or", "and"):
        unread = SAMPLER[-1:] if compose.exact else SAMPLER
        lost = next((word for word in words if word.partition("=")[0] in unread), None)
        if lost is not None:
            exact = " compose.exact=true" if compose.exact else ""
            raise ValueError(f"{lost}: compose.mode={compose.mode}{exact} does not read it; leave it out")
    named = [*compose.runs, *([] if compose.base is None else [compose.base])]
    loaded = [load_run(Path(name), options.checkpoint, words) for name in named]
    first = loaded[0][0]
    for name, (cfg, _) in zip(named, loaded, strict=True):
        if (cfg.env.name, cfg.env.id) != (first.env.name, first.env.id):
            raise ValueError(f"compose: {named[0]} is of {_env(first)}, {name} of {_env(cfg)}")
    if first.env.name == "none":
        raise ValueError(f"compose: {named[0]} was trained with env=none, and there is nothing to evaluate it in")
    learners = [(name, learner) for name, (_, learner) in zip(named, loaded, strict=True)]
    base = None if compose.base is None else learners.pop()
    return first, GPCLearner(compose, learners, base)


def evaluate_composed(words: Sequence[str], *, progress: bool = True) -> dict[str, Any]:
    """Search the weights if asked to, then judge the composed policy and its parents on fresh seeds.

    Also written to compose.json, a search's curve to weights.png.
    """
    options, changes = options_of(words)
    compose = options.compose
    cfg, learner = composed_run(options, changes)
    searched = _search(cfg, learner, options, progress) if compose.searches else None
    if searched is not None:
        learner.weigh(searched["best"])
    judges: dict[str, Learner] = {"composed": learner} | dict(zip(compose.runs, learner.learners, strict=True))
    found = {
        name: _facts(*_judge(cfg, judge, options, options.episodes, options.seed)) for name, judge in judges.items()
    }
    result = {
        "algo": "gpc",
        "env": cfg.env.id if cfg.env.name == "gym" else cfg.env.name,
        "parents": compose.runs,
        "settings": asdict(compose),
        "weights": learner.weights,
        "checkpoint": options.checkpoint,
        "overrides": changes,
        "episodes": options.episodes,
        "seed": options.seed,
        "composed": found.pop("composed"),
        "alone": [found[run] for run in compose.runs],
        "search": searched,
    }
    compose.out.mkdir(parents=True, exist_ok=True)
    write_atomic(compose.out / "compose.json", json.dumps(result, indent=2).encode())
    return result | {"notes": [*_drawn(result, compose.out / "weights.png"), *_filmed(cfg, learner, options)]}


def _search(cfg: TrainConfig, learner: GPCLearner, options: Options, progress: bool) -> dict[str, Any]:
    """Algorithm 1: every weight of the grid on the same roll-outs."""
    compose = options.compose
    tried = compose.tried(len(compose.runs))
    budget = f"{len(tried)} weights x {compose.episodes} roll-outs"
    total, start = len(tried) * compose.episodes, time.perf_counter()
    scores: list[Score] = []
    with Progress("weights", total, unit="roll-outs", enabled=progress) as shown:
        shown.evaluation(f"search: {budget} from seed {compose.seed} on")
        for weights in tried:
            learner.weigh(weights)
            scores.append(_judge(cfg, learner, options, compose.episodes, compose.seed)[0])
            done = len(scores) * compose.episodes
            shown.evaluation(f"weights {_numbers(weights)}: {_text(scores[-1])}")
            shown.update(done, {"time/steps_per_s": done / (time.perf_counter() - start)})
    return {
        "budget": budget,
        "episodes": compose.episodes,
        "seed": compose.seed,
        "weights": tried,
        "success_rate": [score.success for score in scores],
        "return_mean": [score.return_mean for score in scores],
        "best": tried[best(scores)],
        "seconds": time.perf_counter() - start,
    }


def _judge(cfg: TrainConfig, learner: Learner, options: Options, episodes: int, seed: int) -> tuple[Score, Evaluation]:
    task = eval_env(cfg)
    same_spaces(cfg, task)
    env = make_env(task, min(episodes, LANES), stagger=False, device=env_device(cfg, task))
    deterministic = cfg.eval.deterministic if options.deterministic is None else options.deterministic
    found = evaluate(judged(learner, deterministic), env, episodes=episodes, seed=seed)
    env.close()
    success = None if found.success is None else float(found.success.double().nanmean())
    return Score(success, float(found.returns.mean())), found


def _facts(score: Score, found: Evaluation) -> dict[str, Any]:
    return {
        "success_rate": score.success,
        "return_mean": score.return_mean,
        "return_std": float(found.returns.std(unbiased=False)),
        "length_mean": float(found.lengths.double().mean()),
        "returns": found.returns.tolist(),
        "success": None if found.success is None else found.success.tolist(),
    }


def _drawn(result: dict[str, Any], out: Path) -> list[str]:
    """The curve of a search of two; a line where it could not be drawn: nothing else is lost."""
    from ctrlrl.report.weights_picture import weights_png

    try:
        if result["search"] is not None and len(result["parents"]) == 2:
            write_named(out, weights_png(result))
    except ImportError as error:
        return [str(error)]
    return []


def _filmed(cfg: TrainConfig, learner: Learner, options: Options) -> list[str]:
    """A line where there is no video although it was asked for."""
    try:
        if options.video is not None:
            film(cfg, learner, Path(options.video), seed=options.seed, deterministic=options.deterministic)
    except RuntimeError as error:
        return [str(error)]
    return []


def summary(result: dict[str, Any]) -> str:
    """What the command prints: one line for the composed policy and for each parent."""
    rows = [(f"composed, weights {_numbers(result['weights'])}", result["composed"])]
    rows += list(zip(result["parents"], result["alone"], strict=True))
    width = max(len(name) for name, _ in rows)
    told = [f"{name:<{width}}  {_text(Score(row['success_rate'], row['return_mean']))}" for name, row in rows]
    head = f"{result['env']}, {result['episodes']} episodes from seed {result['seed']} on"
    if result["search"] is not None:
        head += f"; weights found by {result['search']['budget']}"
    return "\n".join([head, *told, *result["notes"]])


def _text(score: Score) -> str:
    success = "" if score.success is None else f"success {score.success:.3f}, "
    return f"{success}return {score.return_mean:,.2f}"


def _numbers(weights: Sequence[float]) -> str:
    return " ".join(f"{w:g}" for w in weights)


def _env(cfg: TrainConfig) -> str:
    return f"env={cfg.env.name}" if cfg.env.id is None else f"env.id={cfg.env.id}"

"""`ctrlrl <verb> [key=value ...]`: parse, build, run.

Exit codes: 0 done, 1 the run failed, 2 the input is wrong, 130 interrupted.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Spinning OpenMP threads cost up to 100x as soon as another process runs; torch reads this once, when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# SDL, which draws Gymnasium's classic tasks, complains of a missing screen, and needs none.
if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

USAGE = """ctrlrl <verb> [key=value ...]

  train    algo=ppo env=halfcheetah total_steps=1_000_000 seed=0 run.dir=runs/x    train; run.resume=runs/x goes on
           algo=iql data=file data.path=hopper-medium.npz env=hopper-v4 gradient_steps=50_000
  sweep    sweep=d4rl_mujoco algo=iql,prdc seed=0,1,2 jobs=2 sweep.dir=runs/s       every combination, resumable
  eval     run=runs/x episodes=20 seed=100 video=out.mp4                           evaluate a run's policy
           run=runs/x picture=paths.png deterministic=false                        sampled actions; paths in the plane
           run=runs/x preference=[0.3,0.7]                                         a front's policy for a preference
           run=runs/x algo.sampler=ddim algo.sampling_steps=5                      settings other than in training
           run=runs/x eval.env.gravity_scale=2                                     in another environment
           compose=[runs/a,runs/b] compose.weight=search                           several runs as one policy (GPC)
  report   runs/a runs/b out=report.html                                           curves and tables; out=table.md
  export   run=runs/x format=onnx out=policy.onnx checkpoint=best                  the policy in one file, checked
  data     info|check|convert|collect PATH out=FILE                                data sets; ctrlrl data --help
  bench    throughput|train|score|latency env=pendulum n_envs=1024 [vs=sb3|rsl_rl] measure speed, peers interleaved
  doctor                                                                           versions, devices, one timing each

`ctrlrl train --help` lists algorithms, environments and presets; `--cfg job` prints the composed configuration."""


@dataclass
class EvalOptions:
    run: str = ""  # run folder
    episodes: int = 20
    seed: int = 100
    checkpoint: str = "last"  # or best
    video: str | None = None  # file to write, .mp4 or .gif
    picture: str | None = None  # file to write, .png: the paths of a task in the plane
    deterministic: bool | None = None  # false: sampled actions; null = as the run's eval.deterministic
    trials: int = 1000  # roll-outs that measure the coverage of goals
    preference: list[float] | None = None  # weights of several objectives; null = the whole front is evaluated

    def __post_init__(self) -> None:
        for name in ("episodes", "trials"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass
class ReportOptions:
    out: str = "report.html"  # .html, or .md for the tables alone
    format: str | None = None  # html | markdown; null = by the suffix of out


@dataclass
class ExportOptions:
    run: str = ""  # run folder
    format: str | None = None  # onnx | torchscript; null = by the suffix of out; of a language model transformers
    out: str = "policy.onnx"  # .onnx, or .pt for torchscript; of a language model a folder
    checkpoint: str = "last"  # or best


def train(words: list[str]) -> int:
    from ctrlrl import registry, settings

    if "--help" in words or "-h" in words:
        print(USAGE)
        print(f"\nalgorithms (algo=):    {' '.join(registry.ALGORITHMS)}")
        print(f"environments (env=):   {' '.join(registry.ENVIRONMENTS)}")
        print(f"data sources (data=):  {' '.join(registry.DATA)}")
        print(f"presets (experiment=): {' '.join(settings.presets())}")
        return 0
    shown, words = _asks_for_config(words)
    resumed = next((w.partition("=")[2] for w in words if w.startswith("run.resume=")), None)
    changes = [w for w in words if not w.startswith("run.resume=")]
    if resumed == "":
        raise ValueError("run.resume= names no folder: run.resume=FOLDER, e.g. ctrlrl train run.resume=runs/x")
    if shown:
        before = None if resumed is None else Path(resumed) / "config.yaml"
        return _print_config(settings.train_config(words) if before is None else settings.load_config(before, changes))

    from ctrlrl import runs

    if resumed is not None:
        folder = Path(resumed)
        trainer = runs.resume(folder, changes)
    else:
        trainer, folder = runs.start(settings.train_config(words), words)
    try:
        result = trainer.train()
    except (ValueError, TypeError) as error:  # what was typed was right: the run failed
        raise RuntimeError(str(error)) from error
    interrupted = result["status"] == "interrupted"
    if trainer.ranks.index == 0:
        print(_summary(result, folder))
        if interrupted:
            print(f"interrupted; go on with: ctrlrl train run.resume={folder}", file=sys.stderr)
        elif settings.typed(settings.load_config(folder / "config.yaml")).run.report:
            for note in runs.illustrate(folder):
                print(note, file=sys.stderr)
    trainer.ranks.leave()
    return 130 if interrupted else 0


def _asks_for_config(words: list[str]) -> tuple[bool, list[str]]:
    """Whether `--cfg job` stands there, in any of Hydra's spellings, and the other words."""
    at = next((i for i, word in enumerate(words) if word.partition("=")[0] in ("--cfg", "-c")), None)
    if at is None:
        return False, words
    _, sign, value = words[at].partition("=")
    value, end = (value, at + 1) if sign else (" ".join(words[at + 1 : at + 2]), at + 2)
    if value != "job":
        raise ValueError(f"{words[at]}: --cfg job prints the configuration; there is no other")
    return True, words[:at] + words[end:]


def sweep(words: list[str]) -> int:
    from ctrlrl.sweep.run import main as run_sweep
    from ctrlrl.sweep.run import usage

    if "--help" in words or "-h" in words:
        print(f"{USAGE}\n\n{usage()}")
        return 0
    if not words:
        raise ValueError("sweep needs sweep=NAME or several values of a key, e.g. seed=0,1,2; see ctrlrl sweep --help")
    code, said = run_sweep(words)
    print(said)
    return code


def evaluate(words: list[str]) -> int:
    if any(word.startswith(("compose=", "compose.")) for word in words):
        from ctrlrl import composing

        print(composing.summary(composing.evaluate_composed(words)))
        return 0
    from ctrlrl import judging, runs, settings

    changes = [word for word in words if word.startswith(("algo.", "eval.env."))]
    options = settings.command(EvalOptions, [word for word in words if word not in (*changes, "run=")])
    if not options.run:
        raise ValueError("eval needs run=FOLDER, e.g. ctrlrl eval run=runs/x")
    if options.video is not None and not options.video.endswith((".mp4", ".gif")):
        raise ValueError(f"video={options.video}: a film is written as .mp4 or .gif")
    folder = Path(options.run)
    result = runs.evaluate_run(
        folder,
        episodes=options.episodes,
        seed=options.seed,
        checkpoint=options.checkpoint,
        deterministic=options.deterministic,
        n_trials=options.trials,
        preference=options.preference,
        picture=None if options.picture is None else Path(options.picture),
        words=changes,
    )
    keys = ("algo", "env", "episodes", "return_mean", "return_std", "return_min", "return_max", "length_mean")
    more = ("success_rate", "normalized_score", "goals", "goals_covered", "coverage_entropy")
    front = ("preference", "utility", "return_vector", "hypervolume", "expected_utility", "sparsity")
    print(_table({k: result[k] for k in (*keys, *more, *front) if k in result}))
    if options.video:
        cfg, learner = runs.load_run(folder, options.checkpoint, changes)
        if options.preference is not None:
            judging.prefer(learner, options.preference)
        try:
            runs.film(cfg, learner, Path(options.video), seed=options.seed, deterministic=options.deterministic)
        except RuntimeError as error:  # a machine that cannot draw has lost nothing but the picture
            print(error, file=sys.stderr)
    return 0


def report(words: list[str]) -> int:
    from ctrlrl import settings
    from ctrlrl.report.markdown import write_report

    folders = [Path(w) for w in words if "=" not in w]
    options = settings.command(ReportOptions, [w for w in words if "=" in w])
    if not folders:
        raise ValueError(
            "report needs run folders, a sweep folder or result rows, e.g. ctrlrl report runs/a out=report.html"
        )
    write_report(folders, Path(options.out), options.format)
    print(options.out)
    return 0


def export(words: list[str]) -> int:
    from ctrlrl import settings
    from ctrlrl.deploy import export_run

    changes = [word for word in words if word.startswith("algo.")]
    options = settings.command(ExportOptions, [word for word in words if word not in (*changes, "run=")])
    if not options.run:
        raise ValueError("export needs run=FOLDER, e.g. ctrlrl export run=runs/x out=policy.onnx")
    print(export_run(Path(options.run), Path(options.out), options.format, options.checkpoint, changes))
    return 0


def bench(words: list[str]) -> int:
    from ctrlrl.bench.run import main as run_bench

    return run_bench(words)


def data(words: list[str]) -> int:
    from ctrlrl import datasets

    text, code = datasets.run(words)
    print(text)
    return code


def doctor(words: list[str]) -> int:
    if words:
        raise ValueError(f"doctor takes no words, got {' '.join(words)}")
    from ctrlrl.bench.doctor import report as examine

    print(examine())
    return 0


VERBS: dict[str, Callable[[list[str]], int]] = {
    "train": train,
    "sweep": sweep,
    "eval": evaluate,
    "report": report,
    "export": export,
    "data": data,
    "bench": bench,
    "doctor": doctor,
}

# errors of a path that was typed wrong; a full disk is none
PLACES = {getattr(errno, name) for name in "ENOENT EEXIST ENOTDIR EISDIR EACCES EPERM EROFS ENAMETOOLONG".split()}


def _keys(options: type, prefix: str = "") -> str:
    from ctrlrl.settings import keys_text

    return keys_text(options, prefix)


def _bench_keys() -> str:
    from ctrlrl.bench.run import KINDS, BenchOptions

    return f"{_keys(BenchOptions)}, and those of train; kinds: {', '.join(KINDS)}"


def _eval_keys() -> str:
    from ctrlrl.composing import ComposeOptions

    beside = _keys(ComposeOptions, "compose.")
    return f"{_keys(EvalOptions)}, and algo.*, eval.env.*; beside compose=[runs/a,runs/b]: {beside}"


OPTIONS: dict[str, Callable[[], str]] = {  # keys and defaults of a verb; train, sweep and data tell theirs themselves
    "eval": _eval_keys,
    "report": lambda: _keys(ReportOptions),
    "export": lambda: f"{_keys(ExportOptions)}, and algo.*",
    "bench": _bench_keys,
    "doctor": lambda: "none",
}


def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    verb = words[0] if words else "--help"
    if verb in ("--help", "-h", "help"):
        print(USAGE)
        raise SystemExit(0)
    try:
        if verb == "--version":
            from importlib.metadata import version

            print(version("ctrlrl"))
            raise SystemExit(0)
        if verb not in VERBS:
            from ctrlrl.registry import unknown

            raise ValueError(unknown("verb", verb, VERBS))
        if verb in OPTIONS and {"--help", "-h"} & {*words}:
            print(f"{USAGE}\n\nkeys of {verb}: {OPTIONS[verb]()}")
            raise SystemExit(0)
        raise SystemExit(VERBS[verb](words[1:]))
    except (ValueError, TypeError) as error:
        if os.environ.get("CTRLRL_TRACEBACK"):
            raise
        print(f"ctrlrl {verb}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if os.environ.get("CTRLRL_TRACEBACK"):
            raise
        print(f"ctrlrl {verb}: {error.filename or 'file'}: {error.strerror or error}", file=sys.stderr)
        typed_wrong = error.errno in PLACES and verb not in ("train", "sweep")  # which check their folders themselves
        raise SystemExit(2 if typed_wrong else 1) from None
    except Exception as error:
        if os.environ.get("CTRLRL_TRACEBACK"):
            raise
        print(f"ctrlrl {verb}: {(str(error).splitlines() or [type(error).__name__])[0]}", file=sys.stderr)
        print("CTRLRL_TRACEBACK=1 shows where it was raised", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print(f"ctrlrl {verb}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _print_config(raw: Any) -> int:
    from omegaconf import OmegaConf

    from ctrlrl import settings

    settings.typed(raw)
    print(OmegaConf.to_yaml(raw), end="")
    return 0


def _summary(result: dict[str, Any], folder: Path) -> str:
    learned = ("env_steps", "steps_per_second")
    if result["env_steps"] == 0:
        learned = ("gradient_steps", "updates_per_second")
    keys = ("algo", "env", "data", "seed", "status", learned[0], "final_return_mean", "final_return_std")
    judged = ("best_return_mean", "success_rate", "normalized_score", "held_out_action_error", "held_out_loss")
    front = ("hypervolume", "expected_utility", "sparsity")
    more = (*judged, *front, "train_seconds", "wall_seconds", learned[1])
    each = {f"seed {own['seed']}": own["final_return_mean"] for own in result.get("seeds", ())}
    return _table({k: result.get(k) for k in keys + more} | each | {"folder": str(folder)})


def _table(values: dict[str, Any]) -> str:
    width = max(len(k) for k in values)
    shown = {k: f"{v:,.2f}" if isinstance(v, float) else str(v) for k, v in values.items() if v is not None}
    return "\n".join(f"{k:<{width}}  {v}" for k, v in shown.items())


if __name__ == "__main__":
    main()

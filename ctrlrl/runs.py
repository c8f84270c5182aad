"""What the commands do with run folders: start, resume, evaluate, film, report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ctrlrl.build import build, read_data, run_folder, widest_layer
from ctrlrl.config import EnvConfig, TrainConfig
from ctrlrl.core.learner import Learner
from ctrlrl.core.process import set_threads
from ctrlrl.core.ranks import Ranks
from ctrlrl.disk import write_atomic, write_named
from ctrlrl.judging import Gaps, evaluator, front_evaluation, gaps, judged, preferred_returns, scorer, trials
from ctrlrl.loops import make_learner
from ctrlrl.provenance import changed_env, settings_by_name, versions
from ctrlrl.registry import ALGORITHMS, GYMNASIUM_IDS, lookup
from ctrlrl.settings import load_config, typed
from ctrlrl.tasks import backend_of, device_of, dynamics, env_device, eval_env, make_env, same_spaces
from ctrlrl.texts import answers_prompts, load_reference, text_env, token_learner
from ctrlrl.train.checkpoint import Checkpoint, exists, fit, read_folder, same_spec, saved_spec
from ctrlrl.train.distributed import agree, join, part
from ctrlrl.train.evaluate import evaluate
from ctrlrl.train.stacked import seed_folder
from ctrlrl.train.trainer import Trainer
from ctrlrl.train.trials import TRIALS, Trials, coverage
from ctrlrl.types import EnvSpec


def start(raw: DictConfig, words: Sequence[str]) -> tuple[Trainer, Path]:
    """A new run: its folder with config.yaml and overrides.txt, and the trainer."""
    cfg = typed(raw)
    ranks = _together(cfg)
    folder = Path(ranks.of_first(lambda: str(run_folder(cfg))))
    trainer = build(cfg, folder, ranks=ranks)
    raw.run.dir = str(folder)
    if raw.data.path is not None and Path(raw.data.path).exists():
        raw.data.path = str(Path(raw.data.path).absolute())  # a resume may be asked for elsewhere
    if ranks.index == 0:
        _write_config(folder, raw, ("\n".join(words) + "\n").encode())
    return trainer, folder


def _together(cfg: TrainConfig) -> Ranks:
    """The processes that torchrun started for this run, once they agree on it."""
    ranks = join(cuda=device_of(cfg).type == "cuda")
    own = {package: version for package, version in versions().items() if package in ("ctrlrl", "torch")}
    try:
        agree(ranks, own | settings_by_name(cfg))
    except ValueError:
        part()
        raise
    return ranks


def resume(folder: Path, words: Sequence[str]) -> Trainer:
    """The trainer of an interrupted run, standing at its last checkpoint."""
    if any(word.partition("=")[0] == "run.dir" for word in words):
        raise ValueError(
            f"run.dir: a resumed run stays in its folder, {folder}. Leave run.dir out, or copy the folder."
        )
    fixed = ("algo", "algo.name", "env", "data", "experiment")
    kept = next((word for word in words if word.partition("=")[0] in fixed), None)
    if kept is not None:
        raise ValueError(
            f"{kept}: a resumed run keeps its algorithm, preset, environment and data; begin a new run.dir"
        )
    raw = load_config(folder / "config.yaml", words)
    cfg, before = typed(raw), typed(load_config(folder / "config.yaml"))
    if (changed := changed_env(before.env, cfg.env)) is not None:
        raise ValueError(f"{changed}: a resumed run keeps its environment, which its rows are of; begin a new run.dir")
    for name in ("seed", "seeds", "dtype"):
        was, asked = getattr(before, name), getattr(cfg, name)
        if was != asked:
            raise ValueError(f"{name}={asked}: the run began with {was}, which its results name; begin a new run.dir")
    kind: Any = lookup(ALGORITHMS, cfg.algo.name, "algorithm")
    if kind.loop == "population" and (before.algo, before.env_steps(kind)) != (cfg.algo, cfg.env_steps(kind)):
        raise ValueError(
            "total_steps and algo.* stay as they were: a front is planned as a whole, and its returns were found by "
            "these settings; begin a new run.dir"
        )
    _same_rows(before, cfg)
    ranks = _together(cfg)
    trainer = build(cfg, folder, resume=True, ranks=ranks)
    if words and ranks.index == 0:
        typed_before = (folder / "overrides.txt").read_bytes() if (folder / "overrides.txt").exists() else b""
        _write_config(folder, raw, typed_before + ("\n".join(words) + "\n").encode())
    return trainer


def _same_rows(before: TrainConfig, now: TrainConfig) -> None:
    """ValueError where the rows of a replay buffer are of other rewards, or other sums of them, than those to come."""
    kind = lookup(ALGORITHMS, now.algo.name, "algorithm")
    if not hasattr(now.algo, "buffer_size") or not now.env_steps(kind):
        return
    fixed = [f"data.{name}" for name in ("reward_scale", "reward_shift", "return_range")]
    summed = getattr(now.algo, "n_steps", 1) > 1 or "return_to_go" in kind.needs
    fixed += ["algo.n_steps", *["algo.gamma"] * summed]
    for key in fixed:
        part, _, name = key.partition(".")
        was, is_now = (getattr(getattr(cfg, part), name, None) for cfg in (before, now))
        if was != is_now:
            raise ValueError(f"{key}={is_now}: the run's replay buffer holds rows made with {was}; begin a new run.dir")
    shares = [getattr(cfg.algo, "offline_share", None) for cfg in (before, now)]
    if shares[0] != shares[1] and None in shares:
        raise ValueError(
            f"algo.offline_share={shares[1]}: the run began with {shares[0]}, and null puts the data set into the "
            "replay buffer at its beginning; begin a new run.dir"
        )


def _write_config(folder: Path, raw: DictConfig, words: bytes) -> None:
    """config.yaml and overrides.txt; in the folder of a stacked run also those of each seed."""
    write_atomic(folder / "config.yaml", OmegaConf.to_yaml(raw, resolve=True).encode())
    write_atomic(folder / "overrides.txt", words)
    for seed in range(raw.seed, raw.seed + raw.seeds) if raw.seeds > 1 else ():
        own, path = raw.copy(), seed_folder(folder, seed)
        own.seed, own.seeds, own.run.dir = seed, 1, str(path)
        _write_config(path, own, words)


def load_run(folder: Path, checkpoint: str = "last", words: Sequence[str] = ()) -> tuple[TrainConfig, Learner]:
    """The configuration of a run and its learner with the weights of checkpoints/<checkpoint>.

    words: settings other than the run's, e.g. "algo.sampler=ddim", "eval.env.gravity_scale=2"; ValueError where the
           weights do not fit them.
    """
    cfg = typed(load_config(folder / "config.yaml", words))
    if cfg.seeds > 1:
        named = seed_folder(folder, cfg.seed)
        raise ValueError(f"{folder} holds {cfg.seeds} seeds trained together; name one of them: run={named}")
    set_threads(cfg.threads, widest_layer(cfg.algo, cfg.env), device_of(cfg))
    path = _checkpoint_folder(folder, checkpoint)
    found = read_folder(path)
    learner: Learner
    if answers_prompts(cfg):
        learner = token_learner(cfg, text_env(cfg, device_of(cfg)))
        same_spec(found.state, learner.spec, str(path), but=("n_envs",))
    else:
        learner = make_learner(cfg.algo, _spec(cfg, found, path))
        learner.set_dtype(cfg.dtype)
    try:
        fit(found.model, learner.model_state())
        learner.load_model_state(found.model)
        load_reference(cfg, learner, found.training)
    except (RuntimeError, KeyError, ValueError) as error:
        first = str(error).splitlines()[0]
        changed = f" with {' '.join(words)}" if words else ""
        raise ValueError(f"{path} does not fit {folder}/config.yaml{changed}: {first}") from None
    return cfg, learner


def _spec(cfg: TrainConfig, found: Checkpoint, path: Path) -> EnvSpec:
    """Of the run's environment, which must be the one that the checkpoint was trained on."""
    if cfg.env.name == "none":
        return saved_spec(found.state, str(path), device_of(cfg))
    env = make_env(cfg.env, 1, stagger=False, device=env_device(cfg))
    env.close()
    same_spec(found.state, env.spec, str(path), but=("n_envs",))
    return env.spec


def _checkpoint_folder(folder: Path, checkpoint: str) -> Path:
    """checkpoints/<checkpoint>; ValueError with the names that there are."""
    path = folder / "checkpoints" / checkpoint
    inside = checkpoint[:1] not in ("", ".") and Path(checkpoint).name == checkpoint
    if not inside or not exists(path):
        names = ", ".join(sorted(p.name for p in (folder / "checkpoints").glob("[!.]*")))
        there = f"; there are {names}" if names else ""
        raise ValueError(f"{folder}/checkpoints: no checkpoint there called {checkpoint!r}{there}.")
    return path


def data_checksum(folder: Path, checkpoint: str = "last") -> str | None:
    """Of the data set that a run's checkpoint learned from."""
    return read_folder(_checkpoint_folder(folder, checkpoint)).state.get("data_checksum")


def evaluate_run(
    folder: Path,
    *,
    episodes: int,
    seed: int,
    checkpoint: str = "last",
    deterministic: bool | None = None,
    n_trials: int = TRIALS,
    picture: Path | None = None,
    words: Sequence[str] = (),
    preference: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Returns, lengths and success of a run's policy, and the goals it covers; also written to the folder's eval.json.

    deterministic: None = as the run's eval.deterministic. picture: file for the paths of a task in the plane.
    words: as `load_run` takes them.
    """
    cfg, learner = load_run(folder, checkpoint, words)
    if learner.multi_objective:
        for name, value in {"picture": picture, "deterministic": deterministic}.items():
            if value is not None:
                raise ValueError(f"{name}={value}: algo={cfg.algo.name} has several objectives; leave it out")
        return _evaluate_front(folder, cfg, learner, preference, checkpoint=checkpoint, episodes=episodes, seed=seed)
    if preference is not None:
        raise ValueError(f"preference: algo={cfg.algo.name} has one objective; leave it out")
    deterministic = cfg.eval.deterministic if deterministic is None else deterministic
    if answers_prompts(cfg):
        asked = replace(cfg, eval=replace(cfg.eval, deterministic=deterministic))
        returns, lengths, success, *_ = evaluator(learner, asked, episodes=episodes, seed=seed)()
    else:
        task = eval_env(cfg)
        same_spaces(cfg, task)
        env = make_env(task, min(episodes, 64), stagger=False, device=env_device(cfg, task))
        returns, lengths, success, *_ = evaluate(judged(learner, deterministic), env, episodes=episodes, seed=seed)
        env.close()
    tried = trials(learner, cfg, seed=seed, n=n_trials)
    if picture is not None:
        gap = gaps(learner, cfg, seed=seed)
        if tried is not None:
            draw_paths(cfg, tried, picture)
        elif gap is not None:
            draw_gap(cfg, gap, picture)
        else:
            raise ValueError(f"picture: env={cfg.env.name} is no task in the plane; video= films it")
    result = {
        "algo": cfg.algo.name,
        "env": cfg.env.id if cfg.env.name == "gym" else cfg.env.name,
        "checkpoint": checkpoint,
        "episodes": len(returns),
        "seed": seed,
        "deterministic": not learner.stochastic_eval if deterministic is None else deterministic,
        "overrides": list(words),
        "return_mean": returns.mean().item(),
        "return_std": returns.std(unbiased=False).item(),
        "return_min": returns.min().item(),
        "return_max": returns.max().item(),
        "length_mean": lengths.double().mean().item(),
        "success_rate": None if success is None else success.double().nanmean().item(),
        "normalized_score": scorer(_score_range(folder, cfg))(returns.mean().item()),
        "returns": returns.tolist(),
        "lengths": lengths.tolist(),
        **({} if tried is None else coverage(tried)),
    }
    write_atomic(folder / "eval.json", json.dumps(result, indent=2).encode())
    return result


def _evaluate_front(
    folder: Path,
    cfg: TrainConfig,
    learner: Any,
    preference: Sequence[float] | None,
    *,
    checkpoint: str,
    episodes: int,
    seed: int,
) -> dict[str, Any]:
    """Of a preference its policy's return vector, without one what all policies are worth; also in eval.json."""
    told: dict[str, Any]
    if preference is None:
        found = front_evaluation(learner, cfg, episodes=episodes, seed=seed).front or {}
        told = {name: value.item() for name, value in found.items() if value.ndim == 0}
        told["front"] = found["returns"].tolist() if found else []
    else:
        learner.prefer(preference)
        discounted, plain = preferred_returns(learner, cfg, episodes=episodes, seed=seed)
        utility = sum(w * g for w, g in zip(preference, discounted, strict=True))
        told = {"preference": list(preference), "utility": utility}
        told |= {"return_vector": discounted, "undiscounted_return_vector": plain}
    result = {
        "algo": cfg.algo.name,
        "env": cfg.env.id if cfg.env.name == "gym" else cfg.env.name,
        "checkpoint": checkpoint,
        "episodes": episodes,
        "seed": seed,
        **told,
    }
    write_atomic(folder / "eval.json", json.dumps(result, indent=2).encode())
    return result


def _score_range(folder: Path, cfg: TrainConfig) -> list[float] | None:
    """As the run's own evaluations had it; None for returns of another robot than the reference's."""
    if dynamics(eval_env(cfg)).changed():
        return None
    try:
        return json.loads((folder / "result.json").read_bytes()).get("score_range")
    except (OSError, ValueError, AttributeError):
        return None  # never evaluated


def draw_paths(cfg: TrainConfig, tried: Trials, out: Path) -> None:
    """The paths of a task in the plane as a picture, coloured by the goal they ended at."""
    from ctrlrl.report.paths_picture import paths_png

    found = coverage(tried)
    covered, goals = found["goals_covered"], found["goals"]
    title = f"{cfg.algo.name} on {cfg.env.name}, seed {cfg.seed}: {covered} of {goals} goals covered"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_named(out, paths_png(title, tried.scene, tried.paths, tried.reached))


def draw_gap(cfg: TrainConfig, found: Gaps, out: Path) -> None:
    """How far a simulator is from the data, by region of the state, as a picture."""
    from ctrlrl.report.gap_picture import Axis, gap_png, telling_axes

    sim, gap = found.obs.double().numpy(), found.gap.double().numpy()
    if found.view is None:
        axes = telling_axes(sim, gap)
    else:
        axes = Axis(found.view[1], "forward velocity, m/s"), Axis(found.view[0], "height of the torso, m")
    changed = " ".join(f"{k}={v:g}" for k, v in dynamics(cfg.env).changed().items())
    title = f"{cfg.algo.name} on {cfg.env.name} {changed}, seed {cfg.seed}".replace(" ,", ",")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_named(out, gap_png(title, axes, sim, gap, read_data(cfg.data).obs))


def film(cfg: TrainConfig, learner: Learner, out: Path, *, seed: int, deterministic: bool | None = None) -> None:
    """One episode as a video; RuntimeError with one line where this machine or task cannot draw.

    deterministic: None = as the run's eval.deterministic.
    """
    from ctrlrl.train.video import record

    env_cfg = eval_env(cfg)
    if backend_of(env_cfg) == "torch":  # tensors have no picture: the same task is drawn by Gymnasium
        if env_cfg.name not in GYMNASIUM_IDS:
            raise RuntimeError(f"env={env_cfg.name} has no renderer; no video was made")
        env_cfg = EnvConfig(name=env_cfg.name, backend="gymnasium")
    elif backend_of(env_cfg) == "envpool":
        env_cfg = replace(env_cfg, backend="gymnasium")
    elif backend_of(env_cfg) == "mujoco_warp":
        env_cfg = replace(env_cfg, backend="mujoco")
    try:
        env = make_env(env_cfg, 1, stagger=False, render=True)
        fps = getattr(env, "frames_per_second", 30.0)
        how = cfg.eval.deterministic if deterministic is None else deterministic
        record(judged(learner, how), env, out, seed=seed, fps=fps)
        env.close()
    except RuntimeError:
        raise
    except Exception as error:  # a renderer fails in as many ways as there are drivers
        raise RuntimeError(f"no video: {type(error).__name__}: {str(error).splitlines()[0]}") from None


def illustrate(folder: Path) -> list[str]:
    """Write curve.png, video.mp4 or paths.png, gap.png where a gap is estimated, and report.html into a run folder.

    Returns a line for each that could not be made.
    """
    from ctrlrl.report.page import write_curve, write_page

    notes = []
    cfg = typed(load_config(folder / "config.yaml"))
    shown = [folder] if cfg.seeds == 1 else [seed_folder(folder, cfg.seed + i) for i in range(cfg.seeds)]
    cfg, learner = load_run(shown[0])
    with torch.random.fork_rng():
        tried = trials(learner, cfg, seed=cfg.eval.seed)
        gap = gaps(learner, cfg, seed=cfg.eval.seed)
        try:
            if tried is None and cfg.env.name != "none" and not answers_prompts(cfg):
                film(cfg, learner, folder / "video.mp4", seed=cfg.eval.seed)
        except RuntimeError as error:
            notes.append(str(error))
    try:
        if tried is not None:
            draw_paths(cfg, tried, folder / "paths.png")
        if gap is not None:
            draw_gap(cfg, gap, folder / "gap.png")
        for run in shown:
            write_curve(run, run / "curve.png")
        write_page(shown, folder / "report.html")
    except ImportError as error:
        notes.append(f"no report: {error}")
    return notes

"""The run's configuration: dataclasses only. Algorithms keep theirs beside the learner; defaults live nowhere else."""

from __future__ import annotations

import functools
import math
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, make_dataclass
from typing import Any, get_type_hints

# of an algorithm: how a rollout is divided, which the Python face leaves to SB3's batch_size and learning_rate
DIVISION = ("n_minibatches", "minibatch_size", "lr_exponent", "lr_base_envs")


def _seed(key: str, value: int) -> None:
    if not 0 <= value < 2**62:
        raise ValueError(f"{key} must lie in 0 ... 2**62 - 1, got {value}")


@dataclass
class EnvConfig:
    """One environment. `name` is a group option (`env=hopper`); `gym` takes any Gymnasium id (`env=gym env.id=...`).

    `none`: learn from a data set without one; what observations and actions are like, it tells.
    """

    name: str = ""
    id: str | None = None  # Gymnasium id, for env=gym or env.backend=gymnasium
    backend: str = "auto"  # auto | torch | mujoco | mujoco_warp | gymnasium | envpool
    exact: bool = False  # MuJoCo: one MjData per world, trajectories equal Gymnasium's to the bit; a third slower
    stagger: bool = True  # spread the start clocks, so that time limits do not all fall on one step
    threads: int | None = None  # physics threads; null = all cores
    contact_room: float = 1.0  # mujoco_warp: times the memory for contacts that is reckoned from the robot's model
    timeout: float | None = None  # seconds a reset or vector step of a Gymnasium environment may take; null = no limit

    def __post_init__(self) -> None:
        if self.backend not in ("auto", "torch", "mujoco", "mujoco_warp", "gymnasium", "envpool"):
            raise ValueError(
                f"env.backend must be auto, torch, mujoco, mujoco_warp, gymnasium or envpool, got {self.backend!r}"
            )
        if self.id is not None and self.name not in ("", "gym") and self.backend not in ("gymnasium", "envpool"):
            raise ValueError(f"env.id={self.id}: env={self.name} is a task of its own; leave one out, or say env=gym")
        if self.exact and self.backend == "mujoco_warp":
            raise ValueError("env.exact=true: mujoco_warp computes in float32; use env.backend=mujoco")
        if not 0.0 < self.contact_room <= 100.0:
            raise ValueError(f"env.contact_room must lie in (0, 100], got {self.contact_room}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"env.threads must be at least 1 or null, got {self.threads}")
        if self.timeout is not None and not 0.0 < self.timeout <= 1e6:
            raise ValueError(f"env.timeout must lie in (0, 1e6] seconds or be null, got {self.timeout}")


@functools.cache
def env_config_with(settings: type | None) -> type[EnvConfig]:
    """EnvConfig with the fields of a simulator's own settings (a dataclass) beside its own: `env.size=20x10`."""
    if settings is None:
        return EnvConfig
    hints = get_type_hints(settings)
    own = [
        (
            f.name,
            hints[f.name],
            field(default=f.default) if f.default is not MISSING else field(default_factory=f.default_factory),
        )
        for f in fields(settings)
    ]

    def check(self: Any) -> None:
        EnvConfig.__post_init__(self)
        own_settings(self, settings)

    return make_dataclass(settings.__name__, own, bases=(EnvConfig,), namespace={"__post_init__": check})


def own_settings(cfg: EnvConfig, settings: type) -> Any:
    """The part of an environment's configuration that its simulator takes; defaults where `cfg` has none of it."""
    return settings(**{f.name: getattr(cfg, f.name) for f in fields(settings) if hasattr(cfg, f.name)})


@dataclass
class DataConfig:
    """A data set to learn from. `name` is a group option (`data=file`); `none` learns from the environment."""

    name: str = "none"  # none | file | d4rl | minari | ogbench
    path: str | None = None  # data=file: HDF5, NPZ or a Minari folder, recognised by content
    id: str | None = None  # data=d4rl, minari, ogbench: e.g. hopper-medium-v2; of a file where its name does not tell
    reward_scale: float = 1.0
    reward_shift: float = 0.0  # added after scaling; AntMaze: -1 for most methods
    return_range: bool = False  # scale rewards by 1000 / (largest - smallest episode return) besides (IQL)
    clip_actions: float | None = None  # into +-this
    best_fraction: float = 1.0  # only the episodes with the highest returns; 0.1 makes bc 10%BC
    group: str | None = None  # only episodes whose episode_group fits one of these patterns: main,other/*
    holdout: float = 0.0  # share of the episodes that is kept from learning, to tell the error on them

    @property
    def changes_rewards(self) -> bool:
        return (self.reward_scale, self.reward_shift, self.return_range) != (1.0, 0.0, False)

    def __post_init__(self) -> None:
        if not 0.0 < self.best_fraction <= 1.0:
            raise ValueError(f"data.best_fraction must lie in (0, 1], got {self.best_fraction}")
        if not 0.0 <= self.holdout < 1.0:
            raise ValueError(f"data.holdout must lie in [0, 1), got {self.holdout}")
        if self.clip_actions is not None and not 0.0 < self.clip_actions <= 1.0:
            raise ValueError(f"data.clip_actions must lie in (0, 1] or be null, got {self.clip_actions}")
        if not math.isfinite(self.reward_scale) or not math.isfinite(self.reward_shift):
            raise ValueError("data.reward_scale and data.reward_shift must be finite numbers")
        if self.name == "file" and not self.path:
            raise ValueError("data=file needs data.path=FILE")
        if self.name in ("d4rl", "minari", "ogbench") and not self.id:
            raise ValueError(f"data={self.name} needs data.id=..., e.g. data.id=hopper-medium-v2")
        if self.name in ("d4rl", "minari", "ogbench") and self.path:
            raise ValueError(
                f"data.path={self.path}: data={self.name} finds the file of data.id={self.id} itself; for a file of "
                f"your own say data=file data.path={self.path} data.id={self.id}"
            )


@dataclass
class EvalConfig:
    # steps between evaluations, each after the rollout, or the 50 updates, in which it is due;
    # null = a tenth of the run; 0 = only at the end
    every: int | None = None
    episodes: int = 10
    seed: int = 10_000
    env: dict[str, Any] = field(default_factory=dict)  # env settings in which it differs: eval.env.gravity_scale=1
    deterministic: bool | None = None  # false: actions are sampled, as in training; null = as the algorithm is judged

    def __post_init__(self) -> None:
        _seed("eval.seed", self.seed)
        if self.episodes < 1:
            raise ValueError(f"eval.episodes must be at least 1, got {self.episodes}")
        if self.every is not None and self.every < 0:
            raise ValueError(f"eval.every must be at least 0 or null, got {self.every}")


@dataclass
class LogConfig:
    every: float = 1.0  # seconds between rows of progress.csv
    every_steps: int | None = None  # steps between rows, instead of seconds: every run has the same rows
    progress: bool = True  # the live bar
    tensorboard: bool = False
    wandb: bool = False  # WANDB_PROJECT, WANDB_MODE, ... say where
    mlflow: bool = False  # MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME say where

    def __post_init__(self) -> None:
        if not self.every >= 0:
            raise ValueError(f"log.every must be at least 0 seconds, got {self.every}")
        if self.every_steps is not None and self.every_steps < 1:
            raise ValueError(f"log.every_steps must be at least 1 or null, got {self.every_steps}")


@dataclass
class CheckpointConfig:
    every: float = 60.0  # seconds between checkpoints; the last and the best are always kept
    every_steps: int | None = None  # steps between checkpoints, besides those by the clock
    keep: int = 0  # numbered ones, checkpoints/step_<n>, that stay: by every_steps, or where that is null by every
    buffer: bool = True  # the replay buffer, where there is one, with the last; else a resumed run fills a new one

    def __post_init__(self) -> None:
        if not self.every >= 0:
            raise ValueError(f"checkpoint.every must be at least 0 seconds, got {self.every}")
        if self.every_steps is not None and self.every_steps < 1:
            raise ValueError(f"checkpoint.every_steps must be at least 1 or null, got {self.every_steps}")
        if self.keep < 0:
            raise ValueError(f"checkpoint.keep must be at least 0, got {self.keep}")


@dataclass
class FolderConfig:
    dir: str | None = None  # null = runs/<algo>-<env>-s<seed>-<time>
    resume: str | None = None  # a run folder: go on where it stopped
    report: bool = True  # write report.html, curve.png and, where the environment renders, video.mp4 at the end


@dataclass
class TrainConfig:
    algo: Any = None
    env: EnvConfig = field(default_factory=EnvConfig)
    data: DataConfig = field(default_factory=DataConfig)
    n_envs: int = 64
    total_steps: int | None = None  # environment steps; null = 1,000,000, or none after offline training
    iterations: int | None = None  # rollouts instead: total_steps is then iterations x n_envs x algo.n_steps
    gradient_steps: int = 1_000_000  # updates of offline training; then the clock of eval, log, checkpoint
    seed: int = 0
    seeds: int = 1  # offline: seeds seed ... seed + seeds - 1 trained together in this process
    device: str = "auto"
    dtype: str = "float32"
    compile: str = "auto"
    threads: int | None = None  # torch threads; null = 1 on a CPU for networks narrower than 256, else torch's choice
    experiment: str = "auto"  # preset; auto = experiment/<algo>/<env> where there is one; none = plain defaults
    eval: EvalConfig = field(default_factory=EvalConfig)
    log: LogConfig = field(default_factory=LogConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    run: FolderConfig = field(default_factory=FolderConfig)

    def __post_init__(self) -> None:
        _seed("seed", self.seed)
        if not 1 <= self.seeds <= 1000:
            raise ValueError(f"seeds must lie in 1 ... 1000, got {self.seeds}; name the first one with seed=")
        for f in fields(self.algo) if is_dataclass(self.algo) else ():
            value = getattr(self.algo, f.name)
            if isinstance(value, float) and math.isnan(value):
                raise ValueError(f"algo.{f.name} must be a number, got nan")
        if self.n_envs < 1:
            raise ValueError(f"n_envs must be at least 1, got {self.n_envs}")
        for name in ("total_steps", "gradient_steps", "iterations"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if hasattr(self.algo, "check_envs"):
            self.algo.check_envs(self.n_envs)
        if self.iterations is not None:
            if not hasattr(self.algo, "n_epochs"):  # n_steps of a replayed step is another thing
                raise ValueError(f"iterations counts rollouts, and algo={self.algo.name} makes none")
            self.total_steps, self.iterations = self.iterations * self.n_envs * getattr(self.algo, "n_steps", 1), None
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype must be float32 or bfloat16, got {self.dtype!r}")
        if self.compile not in ("auto", "eager", "compile", "graph"):
            raise ValueError(f"compile must be auto, eager, compile or graph, got {self.compile!r}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1 or null, got {self.threads}")

    def env_steps(self, learner: type) -> int:
        """Environment steps of a run of this kind of learner; none by default where a data set alone teaches it."""
        return self.total_steps or (0 if getattr(learner, "offline", False) else 1_000_000)

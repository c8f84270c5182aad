"""A model that learns from a data set: `IQL("MlpPolicy", env="Hopper-v4", dataset="hopper.npz").learn(50_000)`."""

from __future__ import annotations

import warnings
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch

from ctrlrl import build, judging, loops, tasks
from ctrlrl.config import DataConfig, TrainConfig
from ctrlrl.core.random import seed_generators
from ctrlrl.face import saved
from ctrlrl.face.data import DATA, data_settings, episodes_of, known_data, refuse_without_data
from ctrlrl.face.environments import Connection, asked_for, check_data
from ctrlrl.face.numbers import count, of_fields, whole
from ctrlrl.face.records import record_offline
from ctrlrl.face.replay_arguments import noise_of
from ctrlrl.face.reporting import Reporting, while_learning
from ctrlrl.face.watch import ReplayWatch, UpdateWatch
from ctrlrl.registry import ALGORITHMS, lookup, unknown
from ctrlrl.train.log import Progress
from ctrlrl.train.off_policy import Means

Array = np.ndarray[Any, Any]


class OfflineAgent(Reporting):
    """`predict`, `save` and `load` are those of the on-policy classes; `learn` counts gradient steps.

    num_timesteps: what callbacks and logs count: `offline_steps`, updates in `learn`, and `env_steps`, steps of the
    environments in `learn_online`. gradient_steps: updates in both.

    env:     what the policy is for, as PPO takes it; it gives the spaces, and only `learn_online` steps it.
    dataset: a file or folder that `ctrlrl data info` reads, or loaded `Episodes`.
    Further keyword arguments are the fields of the algorithm's config (`expectile=0.9`) and those of the data
    transforms (`reward_shift=-1.0`, `return_range=True`, `clip_actions=0.99999`, `best_fraction=0.1`).
    """

    algo: ClassVar[str]
    learner: Any

    def __init__(
        self,
        policy: str = "MlpPolicy",
        env: Any = None,
        dataset: Any = None,
        *,
        seed: int | None = None,
        device: torch.device | str = "auto",
        verbose: int = 0,
        tensorboard_log: str | None = None,
        n_envs: int = 1,
        **settings: Any,
    ):
        where = type(self).__name__
        if policy != "MlpPolicy":
            raise ValueError(f"{where}: policy must be MlpPolicy, got {policy!r}")
        kind = lookup(ALGORITHMS, self.algo, "algorithm").config
        known = [f.name for f in fields(kind) if f.name != "name"]
        if "action_noise" in settings:
            settings["action_noise"] = noise_of(settings["action_noise"], where)
        for name, value in settings.items():
            if name not in (*known, *DATA):
                raise TypeError(f"{where}: {unknown('argument', name, sorted((*known, *DATA)))}")
            if callable(value):
                raise TypeError(f"{where}: {name} is one value for all updates, got the function {value!r}")
        self._data, own = data_settings(of_fields(DataConfig, settings, where))
        self.cfg = kind(**of_fields(kind, own, where))
        self.seed = whole(where, "seed", seed)
        self.device = tasks.resolve_device(str(device))
        self._setup_reporting(verbose, tensorboard_log)
        self.offline_steps = self._updates_before = self._episode_num = 0
        self._means = Means()
        self.n_envs = whole(where, "n_envs", n_envs)
        self._loop: Any = None
        self._online: Any = None
        self._episodes: Any = None
        self._connection: Connection | None = None
        if env is not None:
            self._connection = asked_for(env, self.n_envs, seed=self.seed, device=torch.device("cpu"))
            self._spaces = self._connection.spaces
            self._setup()
        if dataset is not None:
            self.set_dataset(dataset)

    def _setup(self) -> None:
        self.observation_space, self.action_space = self._spaces
        seed_generators(self.seed)
        spec = self._spaces.env_spec(self.device)
        self.learner = loops.make_learner(self.cfg, spec)
        self._quick = judging.quick(self.learner)

    def set_dataset(self, dataset: Any) -> None:
        """Learn from this one from now on; normalisation statistics are taken from it."""
        episodes = episodes_of(dataset, type(self).__name__)
        if not hasattr(self, "learner"):
            raise ValueError(f"{type(self).__name__}: env is needed besides the data set, e.g. env='Hopper-v4'")
        for line in check_data(episodes, self._spaces, self._connection):
            warnings.warn(line, stacklevel=3)
        if self._online is not None and len(self._online.buffer):
            warnings.warn(f"set_dataset: {len(self._online.buffer):,} rows of the replay buffer are left", stacklevel=2)
        self._updates_before = self.gradient_steps - self.offline_steps
        self._episodes, self._loop, self._online = episodes, None, None

    @while_learning
    def learn(
        self,
        gradient_steps: int,
        callback: Any = None,
        log_interval: int | None = 1_000,
        tb_log_name: str | None = None,
        progress_bar: bool = False,
    ) -> Self:
        """Take `gradient_steps` updates from the data set; a second call goes on.

        callback: as PPO's `learn` takes it; a step is one update, and there are no rollouts. log_interval: updates
        between two dumps of the logger.
        """
        if self._episodes is None:
            raise ValueError(f"{type(self).__name__}.learn needs a data set; give dataset=FILE or call set_dataset")
        gradient_steps = count(type(self).__name__, "gradient_steps", gradient_steps)
        if gradient_steps < 1:
            raise ValueError(f"gradient_steps must be at least 1, got {gradient_steps}")
        loop = self._offline_loop()
        before, loop.total_steps = loop.gradient_steps, loop.gradient_steps + gradient_steps
        callback = self._begin(gradient_steps, callback, tb_log_name)
        loop.on_update = watch = UpdateWatch(self, callback, log_interval)
        callback.on_training_start(locals() | {"total_timesteps": self._total_timesteps}, globals())
        title = f"{self.algo} {gradient_steps:,} updates"
        with Progress(title, gradient_steps, unit=loop.clock, enabled=progress_bar) as progress:
            while watch.goes_on and not loop.done:
                loop.iterate()
                progress.update(loop.gradient_steps - before, {})
        callback.on_training_end()
        return self

    def _offline_loop(self) -> Any:
        if self._loop is None:
            n_envs = 1 if self._connection is None else self._connection.env.spec.n_envs
            cfg = TrainConfig(algo=self.cfg, data=self._data, seed=self.seed or 0, n_envs=n_envs)
            self._loop = loops.loop_over(cfg, self._episodes, self.learner)
            self._loop.gradient_steps = self.offline_steps  # of a loaded model, whose schedules go on
        return self._loop

    @while_learning
    def learn_online(
        self,
        total_timesteps: int,
        callback: Any = None,
        log_interval: int | None = 4,
        tb_log_name: str | None = None,
        progress_bar: bool = False,
    ) -> Self:
        """Go on for `total_timesteps` steps of the environment, from a replay buffer and the data set if there is one.

        A second call goes on with the same buffer. `utd`, `learning_starts`, `buffer_size` and `offline_share` are
        arguments of the constructor. callback: as SAC's `learn` takes it. log_interval: episodes between two dumps.
        """
        total_timesteps = count(type(self).__name__, "total_timesteps", total_timesteps)
        if total_timesteps < 1:
            raise ValueError(f"total_timesteps must be at least 1, got {total_timesteps}")
        loop = self._online_loop()
        self.learner.begin_online()  # updates on the data set may have come between
        begin, loop.online_steps = loop.env_steps, loop.env_steps + total_timesteps
        callback = self._begin(total_timesteps, callback, tb_log_name)
        loop.on_step = watch = ReplayWatch(self, loop, callback, self._spaces, log_interval)
        loop.on_update = self._means.add
        callback.on_training_start(locals() | {"total_timesteps": self._total_timesteps}, globals())
        try:
            with Progress(f"{self.algo} {total_timesteps:,} steps", total_timesteps, enabled=progress_bar) as progress:
                while watch.goes_on and not loop.done:
                    loop.iterate()
                    if progress_bar:
                        progress.update(loop.env_steps - begin, loop.episode_metrics())
        finally:
            watch.hand_back()
        callback.on_training_end()
        return self

    def _begin(self, steps: int, callback: Any, tb_log_name: str | None) -> Any:
        """Clock, logger and callback of one `learn` or `learn_online`, which takes `steps` of its own kind."""
        name = tb_log_name or type(self).__name__
        self._start_clock(continues=False)
        self._open_logger(name, continues=name in self._log_folders)
        self._total_timesteps = self.num_timesteps + steps
        self._means = Means()
        return self._called(callback)

    def dump_logs(self, iteration: int = 0) -> None:
        """Write what the logger has, with the means of episodes and of the updates since the last time."""
        record_offline(self, self._means.read(f"step {self.num_timesteps}"))
        self._means.clear()
        self.logger.dump(step=self.num_timesteps)

    def _use(self, connection: Any) -> None:
        """Its environment was stepped by somebody else: the next `learn_online` begins new episodes."""
        if self._online is not None:
            self._online.reset(None)

    @property
    def env_steps(self) -> int:
        return self.num_timesteps - self.offline_steps

    @property
    def gradient_steps(self) -> int:
        return self.offline_steps + self._updates_before + (0 if self._online is None else self._online.gradient_steps)

    @property
    def _n_updates(self) -> int:
        return self.gradient_steps

    def _online_loop(self) -> Any:
        if self._online is None:
            where = type(self).__name__
            if self._connection is None:
                raise ValueError(f"{where}: an environment is needed; give one to load(path, env=...)")
            if self._episodes is None:
                refuse_without_data(self._data, where)
            env = self._connection.env
            loops.refuse_unless_online(type(self.learner), self.algo)
            self._online = loops.online_loop(
                self.learner,
                env,
                env_steps=0,
                seed=self.seed,
                staggered=self._connection.staggered,
                data=None if self._episodes is None else self._offline_loop().source,
                skilled=self.gradient_steps > 0 or getattr(self.learner, "cloned", False),
            )
        return self._online

    @property
    def replay_buffer(self) -> Any:
        """What `learn_online` keeps; None before its first call."""
        return None if self._online is None else self._online.buffer

    def save_replay_buffer(self, path: str | PathLike[str]) -> None:
        """Write the replay buffer as a folder of safetensors chunks; no pickle."""
        if self._online is None:
            raise ValueError(f"{type(self).__name__}.save_replay_buffer: there is none before learn_online")
        build.save_buffer(self._online.buffer, Path(path))

    def load_replay_buffer(self, path: str | PathLike[str], truncate_last_traj: bool = True) -> None:
        """Take over a saved buffer of the same capacity and columns; the next `learn_online` goes on with it, at once.

        truncate_last_traj: taken for SB3's sake; rows are whole transitions, so no trajectory is left open.
        """
        loop = self._online_loop()
        build.load_buffer(loop.buffer, Path(path))
        loop.env_steps = self.env_steps  # `learning_starts` counts the steps before, too

    def predict(
        self, observation: Any, state: Any = None, episode_start: Array | None = None, deterministic: bool = False
    ) -> tuple[Array, Any]:
        """Action for one observation or a batch of them, in the units of `action_space`, clipped to its bounds.

        state: what the last call returned, where the policy remembers its episode; None: it begins. episode_start: of
        a batch, which episodes begin although there is a state.
        """
        act = judging.acting(self.learner, deterministic=deterministic, memory=state, begun=episode_start)
        return self._spaces.predict(act, observation, self.device, self._quick if deterministic else None), act.memory

    def export(self, path: str | PathLike[str], format: str | None = None) -> Path:
        """Write the deterministic policy as one ONNX or TorchScript file; see `ctrlrl.export`."""
        from ctrlrl.deploy import export

        return export(self, path, format)

    def save(self, path: saved.File) -> None:
        """Write path.zip: weights, normaliser and optimiser as safetensors, settings as JSON; no data, no pickle."""
        build.write_zip(path, build.agent_checkpoint(self.learner, saved.offline_facts(self)))

    @classmethod
    def load(
        cls,
        path: saved.File,
        env: Any = None,
        device: torch.device | str = "auto",
        *,
        dataset: Any = None,
        **changes: Any,
    ) -> Self:
        """A saved model; `dataset` to go on learning."""
        checkpoint = saved.read(path)
        facts, where = checkpoint.state, str(path)
        if facts["algo"] != cls.algo:
            raise ValueError(f"{where} holds a model of {facts['algo']}, not of {cls.algo}; use ctrlrl.load(path)")
        saved.check_kinds(facts, saved.OFFLINE, path)
        config = {k: v for k, v in facts["config"].items() if k != "name"}
        kept = {name: facts.get(name) for name in ("seed", "verbose", "tensorboard_log")}
        model = saved.made(cls, where, device=device, **{**kept, **config, **known_data(facts), **changes})
        model._spaces = build.Spaces.from_json(facts["spaces"], where)
        if env is not None:
            model._connection = asked_for(env, model.n_envs, seed=None, device=torch.device("cpu"))
            model._spaces.same(model._connection.spaces, where)
        with saved.filled_by(checkpoint.model, where):
            model._setup()
        build.restore_agent(model.learner, checkpoint, where)
        model.num_timesteps = facts["num_timesteps"]
        model.offline_steps = facts["num_timesteps"] - facts["env_steps"]
        model._updates_before = facts["gradient_steps"] - model.offline_steps
        if dataset is not None:
            model.set_dataset(dataset)
        return model

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
from ctrlrl.config import TrainConfig
from ctrlrl.core.random import seed_generators
from ctrlrl.face import saved
from ctrlrl.face.data import DATA, data_settings, episodes_of, known_data
from ctrlrl.face.environments import Connection, check_data, connect
from ctrlrl.registry import ALGORITHMS, lookup, unknown
from ctrlrl.train.log import Progress

Array = np.ndarray[Any, Any]


class OfflineAgent:
    """`predict`, `save` and `load` are those of the on-policy classes; `learn` counts gradient steps.

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
        n_envs: int = 1,
        **settings: Any,
    ):
        where = type(self).__name__
        if policy != "MlpPolicy":
            raise ValueError(f"{where}: policy must be MlpPolicy, got {policy!r}")
        kind = lookup(ALGORITHMS, self.algo, "algorithm").config
        known = [f.name for f in fields(kind) if f.name != "name"]
        for name in settings:
            if name not in (*known, *DATA):
                raise TypeError(f"{where}: {unknown('argument', name, sorted((*known, *DATA)))}")
        self._data, own = data_settings(settings)
        self.cfg = kind(**own)
        self.seed, self.verbose = seed, verbose
        self.device = tasks.resolve_device(str(device))
        self.gradient_steps = self.num_timesteps = 0
        self.n_envs = n_envs
        self._loop: Any = None
        self._online: Any = None
        self._episodes: Any = None
        self._connection: Connection | None = None
        if env is not None:
            self._connection = connect(env, n_envs, seed=seed, device=torch.device("cpu"))
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
        self._episodes, self._loop, self._online = episodes, None, None

    def learn(self, gradient_steps: int, progress_bar: bool = False) -> Self:
        """Take `gradient_steps` updates from the data set; a second call goes on."""
        if self._episodes is None:
            raise ValueError(f"{type(self).__name__}.learn needs a data set; give dataset=FILE or call set_dataset")
        if gradient_steps < 1:
            raise ValueError(f"gradient_steps must be at least 1, got {gradient_steps}")
        loop = self._offline_loop()
        before, loop.total_steps = loop.gradient_steps, loop.gradient_steps + gradient_steps
        title = f"{self.algo} {gradient_steps:,} updates"
        with Progress(title, gradient_steps, unit=loop.clock, enabled=progress_bar) as progress:
            while not loop.done:
                loop.iterate()
                progress.update(loop.gradient_steps - before, {})
        self.gradient_steps += gradient_steps
        return self

    def _offline_loop(self) -> Any:
        if self._loop is None:
            cfg = TrainConfig(algo=self.cfg, data=self._data, seed=0 if self.seed is None else self.seed)
            self._loop = loops.loop_over(cfg, self._episodes, self.learner)
            self._loop.gradient_steps = self.gradient_steps  # of a loaded model, whose schedules go on
        return self._loop

    def learn_online(self, total_timesteps: int, progress_bar: bool = False) -> Self:
        """Go on for `total_timesteps` steps of the environment, from a replay buffer and the data set if there is one.

        A second call goes on with the same buffer. `utd`, `learning_starts`, `buffer_size` and `offline_share` are
        arguments of the constructor.
        """
        if total_timesteps < 1:
            raise ValueError(f"total_timesteps must be at least 1, got {total_timesteps}")
        loop = self._online_loop()
        self.learner.begin_online()  # updates on the data set may have come between
        begin, loop.online_steps = loop.env_steps, loop.env_steps + total_timesteps
        updates = loop.gradient_steps
        with Progress(f"{self.algo} {total_timesteps:,} steps", total_timesteps, enabled=progress_bar) as progress:
            while not loop.done:
                loop.iterate()
                if progress_bar:
                    progress.update(loop.env_steps - begin, loop.episode_metrics())
        self.num_timesteps += loop.env_steps - begin
        self.gradient_steps += loop.gradient_steps - updates
        return self

    def _online_loop(self) -> Any:
        if self._online is None:
            where = type(self).__name__
            if self._connection is None:
                raise ValueError(f"{where}: an environment is needed; give one to load(path, env=...)")
            env = self._connection.env
            loops.refuse_unless_online(type(self.learner), self.algo)
            self._online = loops.online_loop(
                self.learner,
                env,
                env_steps=0,
                seed=self.seed,
                staggered=self._connection.staggered,
                data=None if self._episodes is None else self._offline_loop().source,
                skilled=self.gradient_steps > 0,
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
        loop.env_steps = self.num_timesteps  # `learning_starts` counts the steps before, too

    def predict(
        self, observation: Any, state: Any = None, episode_start: Array | None = None, deterministic: bool = False
    ) -> tuple[Array, Any]:
        """Action for one observation or a batch of them, in the units of `action_space`, clipped to its bounds.

        state: what the last call returned, where the policy remembers its episode; None: it begins. episode_start: of
        a batch, which episodes begin although there is a state.
        """
        act = judging.acting(self.learner, deterministic=deterministic, memory=state, begun=episode_start)
        return self._spaces.predict(act, observation, self.device, self._quick if deterministic else None), act.memory

    def get_env(self) -> Any:
        return None if self._connection is None else self._connection.face()

    def export(self, path: str | PathLike[str], format: str | None = None) -> Path:
        """Write the deterministic policy as one ONNX or TorchScript file; see `ctrlrl.export`."""
        from ctrlrl.deploy import export

        return export(self, path, format)

    def save(self, path: saved.File) -> None:
        """Write path.zip: weights, normaliser and optimiser as safetensors, settings as JSON; no data, no pickle."""
        build.write_zip(path, build.agent_checkpoint(self.learner, saved.offline_facts(self)))

    @classmethod
    def load(
        cls, path: saved.File, env: Any = None, dataset: Any = None, device: torch.device | str = "auto", **changes: Any
    ) -> Self:
        """A saved model; `dataset` to go on learning."""
        checkpoint = saved.read(path)
        facts, where = checkpoint.state, str(path)
        if facts["algo"] != cls.algo:
            raise ValueError(f"{where} holds a model of {facts['algo']}, not of {cls.algo}; use ctrlrl.load(path)")
        config = {k: v for k, v in facts["config"].items() if k != "name"}
        model = cls(device=device, seed=facts.get("seed"), **{**config, **known_data(facts), **changes})
        model._spaces = build.Spaces.from_json(facts["spaces"], where)
        if env is not None:
            model._connection = connect(env, model.n_envs, seed=None, device=torch.device("cpu"))
            model._spaces.same(model._connection.spaces, where)
        saved.check_size(model, sum(t.numel() for t in checkpoint.model.values()), where)
        model._setup()
        build.restore_agent(model.learner, checkpoint, where)
        model.gradient_steps, model.num_timesteps = facts["num_timesteps"], facts.get("env_steps", 0)
        if dataset is not None:
            model.set_dataset(dataset)
        return model

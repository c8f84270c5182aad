"""A model that learns from a data set: `IQL("MlpPolicy", env="Hopper-v4", dataset="hopper.npz").learn(50_000)`."""

from __future__ import annotations

import warnings
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch

from ctrlrl import build
from ctrlrl.config import DataConfig, EnvConfig, TrainConfig
from ctrlrl.face import saved
from ctrlrl.face.environments import Connection, connect
from ctrlrl.face.records import seed_generators
from ctrlrl.registry import ALGORITHMS, lookup, unknown
from ctrlrl.train.log import Progress

Array = np.ndarray[Any, Any]
DATA = tuple(f.name for f in fields(DataConfig) if f.name not in ("name", "path", "id"))


class OfflineAgent:
    """`predict`, `save` and `load` are those of the on-policy classes; `learn` counts gradient steps.

    env:     what the policy is for, as PPO takes it; it gives the spaces and is not stepped while learning.
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
        self.cfg = kind(**{k: v for k, v in settings.items() if k in known})
        self._data = DataConfig(**{k: v for k, v in settings.items() if k in DATA})
        self.seed, self.verbose = seed, verbose
        self.device = build.resolve_device(str(device))
        self.gradient_steps = 0
        self._loop: Any = None
        self._episodes: Any = None
        self._connection: Connection | None = None
        if env is not None:
            self._connection = connect(env, 1, seed=seed, device=torch.device("cpu"))
            self._spaces = self._connection.spaces
            self._setup()
        if dataset is not None:
            self.set_dataset(dataset)

    def _setup(self) -> None:
        self.observation_space, self.action_space = self._spaces
        seed_generators(self.seed)
        spec = self._spaces.env_spec(self.device)
        if not spec.action_dim:
            raise ValueError(f"{type(self).__name__} is for continuous actions, got {self.action_space}")
        self.learner = build.make_learner(self.cfg, spec)
        self._quick = build.quick(self.learner)

    def set_dataset(self, dataset: Any) -> None:
        """Learn from this one from now on; normalisation statistics are taken from it."""
        episodes = build.load_data(dataset) if isinstance(dataset, (str, PathLike)) else dataset
        if not isinstance(episodes, build.Episodes):
            raise TypeError(f"{type(self).__name__}: dataset must be a path or Episodes, got {type(dataset).__name__}")
        if not hasattr(self, "learner"):
            raise ValueError(f"{type(self).__name__}: env is needed besides the data set, e.g. env='Hopper-v4'")
        build.same_task(episodes, self._spaces.env_spec(self.device), str(self.observation_space))
        for line in build.notices(episodes.facts, EnvConfig()):
            warnings.warn(line, stacklevel=3)
        self._episodes, self._loop = episodes, None

    def learn(self, gradient_steps: int, progress_bar: bool = False) -> Self:
        """Take `gradient_steps` updates from the data set; a second call goes on."""
        if self._episodes is None:
            raise ValueError(f"{type(self).__name__}.learn needs a data set; give dataset=FILE or call set_dataset")
        if gradient_steps < 1:
            raise ValueError(f"gradient_steps must be at least 1, got {gradient_steps}")
        if self._loop is None:
            cfg = TrainConfig(algo=self.cfg, data=self._data, seed=0 if self.seed is None else self.seed)
            self._loop = build.loop_over(cfg, self._episodes, self.learner)
        loop = self._loop
        before, loop.total_steps = loop.gradient_steps, loop.gradient_steps + gradient_steps
        title = f"{self.algo} {gradient_steps:,} updates"
        with Progress(title, gradient_steps, unit=loop.clock, enabled=progress_bar) as progress:
            while not loop.done:
                loop.iterate()
                progress.update(loop.gradient_steps - before, {})
        self.gradient_steps += gradient_steps
        return self

    def predict(
        self, observation: Any, state: Any = None, episode_start: Array | None = None, deterministic: bool = False
    ) -> tuple[Array, Any]:
        """Action for one observation or a batch of them, in the units of `action_space`, clipped to its bounds."""
        act = build.acting(self.learner, deterministic=deterministic)
        return self._spaces.predict(act, observation, self.device, self._quick if deterministic else None), state

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
        model = cls(device=device, seed=facts.get("seed"), **{**config, **facts.get("data", {}), **changes})
        model._spaces = build.Spaces.from_json(facts["spaces"], where)
        if env is not None:
            model._connection = connect(env, 1, seed=None, device=torch.device("cpu"))
            model._spaces.same(model._connection.spaces, where)
        saved.check_size(model, sum(t.numel() for t in checkpoint.model.values()), where)
        model._setup()
        build.restore_agent(model.learner, checkpoint, where)
        model.gradient_steps = facts["num_timesteps"]
        if dataset is not None:
            model.set_dataset(dataset)
        return model

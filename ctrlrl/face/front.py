"""A model that is many policies: `CMORL("MlpPolicy", "mo_hopper", reference=[...]).learn(n)`, asked by preference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any, ClassVar, Self

import numpy as np
import torch

from ctrlrl import build, judging, loops, tasks
from ctrlrl.config import TrainConfig
from ctrlrl.core.random import seed_generators
from ctrlrl.face import saved
from ctrlrl.face.environments import env_config
from ctrlrl.face.numbers import count, of_fields, whole
from ctrlrl.provenance import versions
from ctrlrl.registry import ALGORITHMS, lookup, unknown
from ctrlrl.train.callbacks import of_metrics
from ctrlrl.train.log import Progress

Array = np.ndarray[Any, Any]


class FrontAgent:
    """env: a ctrlrl name or Gymnasium id; how many environments there are changes from round to round, so no object.

    n_envs: environments of each policy. Further keyword arguments are the fields of the algorithm's config.
    """

    algo: ClassVar[str]
    learner: Any

    def __init__(
        self,
        policy: str = "MlpPolicy",
        env: str | None = None,
        *,
        n_envs: int = 8,
        seed: int | None = None,
        device: torch.device | str = "auto",
        **settings: Any,
    ):
        where = type(self).__name__
        if policy != "MlpPolicy":
            raise ValueError(f"{where}: policy must be MlpPolicy, got {policy!r}")
        kind = lookup(ALGORITHMS, self.algo, "algorithm").config
        known = sorted({f.name for f in fields(kind)} - {"name"})
        for name in settings:
            if name not in known:
                raise TypeError(f"{where}: {unknown('argument', name, known)}")
        self.cfg = kind(**of_fields(kind, settings, where))
        self.n_envs, self.seed = whole(where, "n_envs", n_envs), whole(where, "seed", seed)
        self.device = tasks.resolve_device(str(device))
        self.num_timesteps = 0
        self._env: Any = None
        if env is not None:
            if not isinstance(env, str):
                raise TypeError(f"{where}: env must be a name, of which it makes as many as a round needs, got {env!r}")
            self._env = env_config(env)
            spec = tasks.env_spec(self._config(1), self.device)
            self._take(tasks.spaces(self._env, spec), spec)

    def _config(self, steps: int) -> TrainConfig:
        seed = 0 if self.seed is None else self.seed
        return TrainConfig(
            algo=self.cfg, env=self._env, n_envs=self.n_envs, total_steps=steps, seed=seed, device=str(self.device)
        )

    def _take(self, spaces: Any, spec: Any) -> None:
        self._spaces, (self.observation_space, self.action_space) = spaces, spaces
        seed_generators(self.seed)
        self.learner = loops.make_learner(self.cfg, spec)

    def learn(
        self,
        total_timesteps: int,
        *,
        callback: Callable[[dict[str, float]], bool | None] | None = None,
        progress_bar: bool = False,
    ) -> Self:
        """All rounds. total_timesteps counts the steps of all policies' environments; evaluations come on top.

        callback: called with the metrics of each update of all members, "front/hypervolume" among them; False ends
        learning with the front as it is.
        """
        where = type(self).__name__
        if self._env is None:
            raise ValueError(f"{where}.learn needs an environment; give its name to the constructor")
        if self.num_timesteps:
            raise ValueError(f"{where}: a front is planned as a whole and this one has learned; make a new {where}")
        total_timesteps = count(where, "total_timesteps", total_timesteps)
        goes_on = of_metrics(callback, where)
        loop: Any = loops.training_loop(self._config(total_timesteps))
        self.learner = loop.learner
        with Progress(f"{self.algo} {total_timesteps:,} steps", total_timesteps, enabled=progress_bar) as progress:
            while not loop.done:
                metrics = loop.iterate()
                self.num_timesteps = loop.env_steps
                if callback is None and not progress_bar:
                    continue
                row = {name: float(value) for name, value in metrics.items()} | loop.episode_metrics()
                progress.update(loop.env_steps, row)
                if not goes_on({"env_steps": loop.env_steps} | row):
                    break
        return self

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Array | None = None,
        deterministic: bool = True,
        *,
        preference: Any = None,
    ) -> tuple[Array, Any]:
        """Action for one observation or a batch, by the policy of the front that is best for the preference [M].

        preference: weights of the objectives, which sum to 1; None: those told last, at first equal shares.
        """
        if preference is not None:
            self.learner.prefer(preference)
        act = judging.acting(self.learner, deterministic=deterministic, memory=state, begun=episode_start)
        return self._spaces.predict(act, observation, self.device), act.memory

    @property
    def front(self) -> Array:
        """Discounted returns [n, M] of the policies that were kept, as their evaluations found them."""
        return self.learner.archive.returns.numpy().copy()

    def save(self, path: saved.File) -> None:
        """Write path.zip: every policy with its normalizer as safetensors, the rest as JSON; no pickle."""
        rows = self.cfg.minibatches(self.n_envs * self.cfg.n_steps)
        facts = {
            "algo": self.algo,
            "config": asdict(self.cfg),
            "batch_size": self.n_envs * self.cfg.n_steps // rows,
            "n_envs": self.n_envs,
            "num_timesteps": self.num_timesteps,
            "seed": self.seed,
            "objectives": list(self.learner.spec.objectives),
            "spaces": self._spaces.to_json(),
            "versions": versions(),
        }
        build.write_zip(path, build.Checkpoint(self.learner.model_state(), {}, facts))

    @classmethod
    def load(cls, path: saved.File, env: str | None = None, device: torch.device | str = "auto") -> Self:
        """A saved front, to act."""
        checkpoint, where = saved.read(path), str(path)
        found = checkpoint.state
        if found["algo"] != cls.algo:
            raise ValueError(f"{where} holds a model of {found['algo']}, not of {cls.algo}; use ctrlrl.load(path)")
        config = {k: v for k, v in found["config"].items() if k != "name"}
        given = {"n_envs": found.get("n_envs", 8), "seed": found.get("seed"), **config}
        model = saved.made(cls, where, env=env, device=device, **given)
        spaces = build.Spaces.from_json(found["spaces"], where)
        if env is not None:
            spaces.same(model._spaces, where)
        names = tuple(map(str, found.get("objectives", ())))
        spec = spaces.env_spec(model.device)._replace(reward_dim=len(model.cfg.reference), objectives=names)
        with saved.filled_by(checkpoint.model, where):
            model._take(spaces, spec)
        build.restore_agent(model.learner, checkpoint, where)
        model.num_timesteps = found["num_timesteps"]
        return model

    @classmethod
    def of_run(cls, cfg: TrainConfig, learner: Any) -> Self:
        """The front that a run folder holds."""
        settings = {k: v for k, v in asdict(cfg.algo).items() if k != "name"}
        model = cls(n_envs=cfg.n_envs, seed=cfg.seed, device=str(learner.device), **settings)
        model._env, model.learner, model.num_timesteps = cfg.env, learner, 1
        model._spaces = tasks.spaces(cfg.env, learner.spec)
        model.observation_space, model.action_space = model._spaces
        return model

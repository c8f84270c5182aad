"""A policy with its spaces, settings and environment: SB3's constructor, `predict`, `save`, `load` and access."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import fields, replace
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch

from ctrlrl import build, judging, loops, tasks
from ctrlrl.config import DIVISION, TrainConfig
from ctrlrl.core.random import seed_generators
from ctrlrl.face import saved
from ctrlrl.face.arguments import Schedule, advantage_kind, as_schedule, network, policy_name, refuse, start_value
from ctrlrl.face.environments import Connection, asked_for, connect, env_config
from ctrlrl.face.numbers import item, of_fields, whole
from ctrlrl.face.policy_view import PolicyView
from ctrlrl.face.reporting import Reporting
from ctrlrl.registry import ALGORITHMS, lookup, unknown

Array = np.ndarray[Any, Any]
File = saved.File


CLIPS = ("clip_range", "clip_range_vf")


class Setting:
    """A number of the config as an attribute of the model; the next update reads it."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, model: Any, owner: type) -> Any:
        return self if model is None else getattr(model.cfg, self.name)

    def __set__(self, model: Any, value: Any) -> None:
        if not hasattr(model.cfg, self.name):
            raise AttributeError(f"{type(model).__name__} has no {self.name}")
        given = of_fields(type(model.cfg), {self.name: value}, type(model).__name__)
        starts = {name: as_schedule(s)(1.0) for name in CLIPS if (s := getattr(model, name, None)) is not None}
        replace(model.cfg, **starts, **given)  # refuses what the constructor would; a schedule may have come to 0
        model.learner.set_hyper(self.name, given[self.name])


class Model(Reporting):
    """Parameters, defaults and methods are Stable-Baselines3's where it has them; docs/sb3.md says what differs.

    policy: "MlpPolicy", "CnnPolicy" or "MultiInputPolicy", or SB3's own policy class.
    env:    a Gymnasium id or ctrlrl name, a Gymnasium environment or vector environment, an SB3 VecEnv, or a ctrlrl
            VecEnv; None only for `load`.
    n_envs: number of parallel environments made from an id; an environment object keeps its own number.
    batch_size: rows of a minibatch; rounded so that minibatches are of one size.
    learning_rate, clip_range, clip_range_vf: a number, or a function of the remaining progress, 1 to 0.
    None stands for the default of the algorithm's config; its other fields are further keyword arguments, e.g.
    `normalize_obs=True`.
    """

    learning_rate: float | Schedule
    clip_range: Any  # a schedule, None where the algorithm has no such setting
    clip_range_vf: Any
    learner: Any
    policy: PolicyView
    algo: ClassVar[str]
    cnn_hidden: ClassVar[list[int] | None] = None  # layers behind a CnnPolicy's encoder; None = the config's default
    n_epochs, gamma, gae_lambda, target_kl = Setting(), Setting(), Setting(), Setting()
    ent_coef, vf_coef, max_grad_norm = Setting(), Setting(), Setting()

    def __init__(
        self,
        policy: Any,
        env: Any,
        learning_rate: float | Schedule | None = None,
        n_steps: int | None = None,
        batch_size: int = 64,
        n_epochs: int | None = None,
        gamma: float | None = None,
        gae_lambda: float | None = None,
        clip_range: float | Schedule | None = None,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool | str | None = None,
        ent_coef: float | None = None,
        vf_coef: float | None = None,
        max_grad_norm: float | None = None,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: Any = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        n_envs: int = 1,
        **hyper_parameters: Any,
    ):
        where = type(self).__name__
        learning_rate = item(learning_rate)
        buffer = {"rollout_buffer_class": rollout_buffer_class, "rollout_buffer_kwargs": rollout_buffer_kwargs}
        refuse(where, use_sde=use_sde, **buffer)
        self.policy_kwargs = dict(policy_kwargs or {})
        self._policy_name = policy_name(policy, where)
        nets, self._extractor = network(self._policy_name, self.policy_kwargs, cnn_hidden=self.cnn_hidden)
        self._given = {"learning_rate": learning_rate, "clip_range": clip_range, "clip_range_vf": clip_range_vf}
        named = {
            **{name: start_value(value) for name, value in self._given.items()},
            "n_steps": n_steps,
            "n_epochs": n_epochs,
            "gamma": gamma,
            "gae_lambda": gae_lambda,
            "normalize_advantage": advantage_kind(normalize_advantage),
            "ent_coef": ent_coef,
            "vf_coef": vf_coef,
            "max_grad_norm": max_grad_norm,
            "target_kl": target_kl,
        }
        self.cfg = self._config(nets | {k: v for k, v in named.items() if v is not None} | hyper_parameters)
        self.learning_rate = self.cfg.learning_rate if learning_rate is None else learning_rate
        self._setup_lr_schedule()
        for name in CLIPS:
            value = getattr(self.cfg, name, None) if self._given[name] is None else self._given[name]
            setattr(self, name, None if value is None else as_schedule(value))
        self.batch_size, self.seed = whole(where, "batch_size", batch_size), whole(where, "seed", seed)
        n_envs, stats_window_size = whole(where, "n_envs", n_envs), whole(where, "stats_window_size", stats_window_size)
        self.device = tasks.resolve_device(str(device))
        self._setup_reporting(verbose, tensorboard_log, stats_window_size)
        self._total_timesteps = self._n_updates = 0
        self._current_progress_remaining = 1.0
        self._connection: Connection | None = None
        self._loop: Any = None
        self._env_seed = self.seed  # of the next reset
        self._n_envs = 0
        self._check_numbers()
        seed_generators(self.seed)
        if env is not None:
            self._meet(env, n_envs)
            if _init_setup_model:
                self._setup_model()

    @classmethod
    def _config(cls, values: dict[str, Any]) -> Any:
        kind = lookup(ALGORITHMS, cls.algo, "algorithm").config
        known = {f.name for f in fields(kind)} - {"name", *DIVISION}
        for name in values:
            if name not in known:
                raise TypeError(f"{cls.__name__}: {unknown('argument', name, sorted(known))}")
        if "value_clip_max" in known:
            values.setdefault("value_clip_max", False)  # SB3's rule
        return kind(**of_fields(kind, values, cls.__name__))

    def _setup_lr_schedule(self) -> None:
        self.lr_schedule = as_schedule(self.learning_rate)

    def _check_numbers(self) -> None:
        where, cfg = type(self).__name__, self.cfg
        least = 2 if cfg.normalize_advantage == "minibatch" else 1
        if self.batch_size < least:
            why = " where advantages are normalised" if least == 2 else ""
            raise ValueError(f"{where}: batch_size must be at least {least}{why}, got {self.batch_size}")
        if callable(self.learning_rate) and (cfg.lr_schedule != "constant" or cfg.desired_kl is not None):
            other = "desired_kl" if cfg.desired_kl is not None else "lr_schedule"
            raise ValueError(f"{where}: learning_rate is a function and {other} changes it too; choose one")

    def _meet(self, env: Any, n_envs: int) -> None:
        """Take the environment of a constructor or of `load`; one that does not fit is refused before it is made."""
        if isinstance(env, str) and n_envs > 1:
            asked = TrainConfig(env=env_config(env), device=str(self.device))
            asked.algo = self.cfg  # not compared with a number of environments: here batch_size divides a rollout
            loops.refuse_unfit(asked)
        self._use(asked_for(env, n_envs, seed=self.seed, device=self.device))

    def _use(self, connection: Connection) -> None:
        """Take an environment; the next `learn` resets it."""
        loops.refuse_unless_offered(self.algo, connection.env.spec.extras, build.name_of(connection.env))
        self._connection, self._loop = connection, None
        self._spaces, self.device = connection.spaces, connection.env.spec.device
        self.observation_space, self.action_space = self._spaces
        self._n_envs = connection.env.spec.n_envs
        self._check_policy()
        self._count_minibatches()
        if self._env_seed is None:
            self._env_seed = connection.pending_seed()
        else:
            self.action_space.seed(self._env_seed)

    def _count_minibatches(self) -> None:
        rows = self.cfg.n_steps * self._n_envs
        if rows < 2 and self.cfg.normalize_advantage != "none":
            where = type(self).__name__
            raise ValueError(f"{where}: one step a rollout cannot be normalised; raise n_steps, now {self.cfg.n_steps}")
        self.cfg.n_minibatches = max(1, math.ceil(rows / self.batch_size))

    def _check_policy(self) -> None:
        """The policy's word against the observation, as SB3 does it."""
        where, name, structured = type(self).__name__, self._policy_name, self._spaces.structured
        if structured and name != "MultiInputPolicy":
            raise ValueError(f"{where}: you must use MultiInputPolicy for a Dict or Tuple observation, not {name}")
        if not structured and name == "MultiInputPolicy":
            raise ValueError(f"{where}: MultiInputPolicy is for Dict observations, got {self.observation_space}")
        images = any(part.image for part in self._spaces.env_spec(self.device).obs_parts)
        if name == "CnnPolicy" and self._extractor is None and not images:
            raise ValueError(
                f"{where}: CnnPolicy needs uint8 images in 0 ... 255, got {self.observation_space}; use MlpPolicy"
            )

    def _setup_model(self) -> None:
        """Networks and optimiser; the constructor calls it unless _init_setup_model is False."""
        spec = self._spaces.env_spec(self.device) if self._connection is None else self._connection.env.spec
        parts: dict[str, Any] = {}
        if self._extractor is not None:
            space, extractor = self._spaces.network_space(), self._extractor
            parts["own_features"] = lambda: extractor.make(space, orthogonal=self.cfg.orthogonal_init)
        self.learner = loops.make_learner(self.cfg, spec, **parts)
        self.policy = PolicyView(self.learner, self._spaces, self.device)
        self._quick = judging.quick(self.learner)

    # acting ----------------------------------------------------------------------------------------------------------

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Array | None = None,
        deterministic: bool = False,
        *,
        preference: Any = None,
    ) -> tuple[Array, Any]:
        """Action for one observation or a batch of them, in the units of `action_space`, clipped to its bounds.

        preference: [M] shares of the objectives, of a model that learned several; it holds until learning goes on.
        """
        if preference is not None:
            judging.prefer(self.learner, preference)
        act = judging.acting(self.learner, deterministic=deterministic, memory=state, begun=episode_start)
        return self._spaces.predict(act, observation, self.device, self._quick if deterministic else None), act.memory

    # environment -----------------------------------------------------------------------------------------------------

    @property
    def n_envs(self) -> int:
        return self._n_envs

    @property
    def n_steps(self) -> int:
        return self.cfg.n_steps

    @property
    def normalize_advantage(self) -> bool:
        return self.cfg.normalize_advantage != "none"

    @property
    def env(self) -> Any:
        return self.get_env()

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """Go on with another environment of the same spaces and number of lanes; the next `learn` resets it."""
        connection = connect(env, max(1, self._n_envs), seed=None, device=self.device)
        n = connection.env.spec.n_envs
        if self._n_envs not in (0, n):
            raise ValueError(
                f"set_env: this model has {self._n_envs} environments, the new one {n}. Another number goes with "
                f"{type(self).__name__}.load(path, env)."
            )
        self._spaces.same(connection.spaces, "set_env")
        self._use(connection)

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed Python, NumPy, torch, the action space, and the environment at its next reset."""
        seed_generators(seed)
        if seed is not None:
            self._env_seed = seed
            self.action_space.seed(seed)

    # files -----------------------------------------------------------------------------------------------------------

    def get_parameters(self) -> dict[str, dict[str, torch.Tensor]]:
        return {"policy": dict(self.policy.state_dict()), "policy.optimizer": self.learner.training_state()}

    def set_parameters(
        self, load_path_or_dict: File | dict[str, Any], exact_match: bool = True, device: str = "auto"
    ) -> None:
        """Take over the tensors of a model file or of `get_parameters`; exact_match=False takes what is there."""
        if isinstance(load_path_or_dict, dict):
            given = load_path_or_dict
        else:
            checkpoint = build.read_zip(load_path_or_dict)
            given = {"policy": checkpoint.model, "policy.optimizer": checkpoint.training}
        known = {"policy", "policy.optimizer"}
        if set(given) - known or (exact_match and set(given) != known):
            raise ValueError(f"set_parameters: expected {sorted(known)}, got {sorted(given)}")
        learner = self.learner
        try:
            if "policy" in given:
                own = {} if exact_match else learner.model_state()
                taken = {k: v for k, v in given["policy"].items() if exact_match or k in own}
                learner.load_model_state(own | taken)
            if "policy.optimizer" in given:
                learner.resume(given["policy.optimizer"])
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"set_parameters: not of a model like this one ({str(error).splitlines()[0]})") from None

    def save(self, path: File, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None) -> None:
        """Write path.zip: weights, normalisers and optimiser as safetensors, the rest as JSON; no pickle.

        exclude, include: taken for SB3's sake; every file holds the same.
        """
        build.write_zip(path, build.agent_checkpoint(self.learner, saved.facts(self)))

    def export(self, path: str | PathLike[str], format: str | None = None) -> Path:
        """Write the deterministic policy as one ONNX or TorchScript file; see `ctrlrl.export`."""
        from ctrlrl.deploy import export

        return export(self, path, format)

    @classmethod
    def load(
        cls,
        path: File,
        env: Any = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        *,
        n_envs: int = 1,
        **changes: Any,
    ) -> Self:
        """A saved model; `env` to go on training (the next `learn` resets it), `changes` overwrite its settings.

        custom_objects: what SB3 puts here replaces a pickled function; only the schedules and policy_kwargs are read.
        """
        checkpoint = saved.read(path)
        facts, where = checkpoint.state, str(path)
        if facts["algo"] != cls.algo:
            raise ValueError(f"{where} holds a model of {facts['algo']}, not of {cls.algo}; use ctrlrl.load(path)")
        if print_system_info:
            sys.stdout.write(saved.versions_text(facts))
        given = saved.arguments(facts, saved.custom(custom_objects) | changes, where)
        model = saved.made(cls, where, env=None, device=device, **given)
        spaces = build.Spaces.from_json(facts["spaces"], where)
        if env is not None:
            model._meet(env, n_envs)
            spaces.same(model._spaces, where)
        else:
            model._spaces, (model.observation_space, model.action_space) = spaces, spaces
            model._n_envs = facts.get("n_envs", 0)
        with saved.filled_by(checkpoint.model, where):
            model._setup_model()
        build.restore_agent(model.learner, checkpoint, where)
        model.num_timesteps, model._n_updates = facts["num_timesteps"], facts.get("n_updates", 0)
        return model

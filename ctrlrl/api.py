"""The SB3-style face: PPO("MlpPolicy", env).learn(n), predict, save, load. `build` does the work for both faces."""

from __future__ import annotations

import math
import os
import time
from dataclasses import asdict, fields
from typing import Any, BinaryIO, ClassVar, Self

import numpy as np
import torch

from ctrlrl import build
from ctrlrl.config import EnvConfig
from ctrlrl.registry import ALGORITHMS, GYMNASIUM_IDS, SIMULATORS, lookup, unknown

Array = np.ndarray[Any, Any]
POLICIES = ("MlpPolicy",)
POLICY_KWARGS = ("net_arch", "activation_fn", "ortho_init", "log_std_init")


def make_env(name: str, n_envs: int = 1, *, seed: int | None = None, device: str = "cpu", **options: Any) -> Any:
    """A ctrlrl VecEnv by name ("pendulum", "halfcheetah") or Gymnasium id; options are the fields of EnvConfig."""
    return build.make_env(_env_config(name, **options), n_envs, seed=seed, device=device)


def _env_config(name: str, **options: Any) -> EnvConfig:
    """Known Gymnasium ids run on the library's own simulators, which follow the same rules; others on Gymnasium."""
    native = {gym_id: own for own, gym_id in GYMNASIUM_IDS.items()}.get(name, name)
    if native in SIMULATORS or native in GYMNASIUM_IDS:
        return EnvConfig(name=native, **options)
    return EnvConfig(name="gym", id=name, **options)


class Agent:
    """What all algorithm classes share; parameters and defaults are Stable-Baselines3's where it has them.

    policy: "MlpPolicy".
    env:    a Gymnasium id or ctrlrl name, a Gymnasium environment or vector environment, or a ctrlrl VecEnv; None only
            for `load`.
    n_envs: number of parallel environments made from an id; an environment object keeps its own number.
    batch_size: rows of a minibatch; rounded so that minibatches are of one size.
    Further keyword arguments are the fields of the algorithm's config, e.g. `normalize_obs=True`.
    """

    algo: ClassVar[str]

    def __init__(
        self,
        policy: str,
        env: Any,
        learning_rate: float | None = None,
        n_steps: int | None = None,
        batch_size: int = 64,
        n_epochs: int | None = None,
        gamma: float | None = None,
        gae_lambda: float | None = None,
        *,
        n_envs: int = 1,
        normalize_advantage: bool | str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: str = "auto",
        **hyper_parameters: Any,
    ):
        if policy not in POLICIES:
            raise ValueError(f"{type(self).__name__}: policy must be one of {', '.join(POLICIES)}, got {policy!r}")
        if batch_size < 1:
            raise ValueError(f"{type(self).__name__}: batch_size must be at least 1, got {batch_size}")
        named = {
            "learning_rate": learning_rate,
            "n_steps": n_steps,
            "n_epochs": n_epochs,
            "gamma": gamma,
            "gae_lambda": gae_lambda,
            "normalize_advantage": _advantage_kind(normalize_advantage),
        }
        values = {k: v for k, v in named.items() if v is not None} | hyper_parameters | _network(policy_kwargs or {})
        self.cfg = self._config(values)
        self.batch_size, self.seed, self.verbose = batch_size, seed, verbose
        self.device = build.resolve_device(device)
        self.num_timesteps = 0
        self.env: Any = None
        self._loop: Any = None
        if seed is not None:
            torch.manual_seed(seed)
        if env is not None:
            self._connect(env, n_envs)

    @classmethod
    def _config(cls, values: dict[str, Any]) -> Any:
        kind = lookup(ALGORITHMS, cls.algo, "algorithm").config
        known = {f.name for f in fields(kind)} - {"name", "n_minibatches"}
        for name in values:
            if name not in known:
                raise TypeError(f"{cls.__name__}: {unknown('argument', name, sorted(known))}")
        return kind(**values)

    def _connect(self, env: Any, n_envs: int) -> None:
        if isinstance(env, str):
            cfg = _env_config(env)
            device = self.device if build.backend_of(cfg) == "torch" else "cpu"
            vec_env = build.make_env(cfg, n_envs, seed=self.seed, device=device, stagger=n_envs > 1)
            self._staggered = n_envs > 1 and build.backend_of(cfg) != "gymnasium"
            self.observation_space, self.action_space = build.spaces(cfg, vec_env.spec)
        else:
            vec_env = build.as_vec_env(env, seed=self.seed)
            self._staggered = False
            self.observation_space, self.action_space = build.spaces_of(env, vec_env.spec)
        rows = self.cfg.n_steps * vec_env.spec.n_envs
        self.cfg.n_minibatches = max(1, math.ceil(rows / self.batch_size))
        self.device = vec_env.spec.device
        self.env = vec_env
        self.learner = build.make_learner(self.cfg, vec_env.spec)

    @property
    def n_envs(self) -> int:
        return 0 if self.env is None else self.env.spec.n_envs

    def learn(
        self,
        total_timesteps: int,
        *,
        log_interval: int = 1,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Train for `total_timesteps` environment steps (rounded up to whole rollouts); more with each call."""
        if self.env is None:
            raise ValueError(f"{type(self).__name__}.learn needs an environment; give one to load(path, env=...)")
        from ctrlrl.train.log import Progress

        start = 0 if reset_num_timesteps else self.num_timesteps
        if self._loop is None:
            self._loop = build.on_policy_loop(
                self.learner, self.env, total_steps=1, seed=self.seed, staggered=self._staggered
            )
        loop = self._loop
        loop.env_steps, loop.total_steps = start, start + total_timesteps
        title = f"{self.algo} {total_timesteps:,} steps"
        begin = time.perf_counter()
        n_iterations = 0
        with Progress(title, loop.total_steps, enabled=progress_bar or self.verbose > 0) as progress:
            while not loop.done:
                metrics = loop.iterate()
                n_iterations += 1
                self.num_timesteps = loop.env_steps
                if (progress_bar or self.verbose) and n_iterations % log_interval == 0:
                    speed = (loop.env_steps - start) / (time.perf_counter() - begin)
                    row = {"time/steps_per_s": speed, **loop.episode_metrics()}
                    progress.update(loop.env_steps, row | {k: float(v) for k, v in metrics.items()})
        return self

    def predict(
        self,
        observation: Array,
        state: Any = None,
        episode_start: Array | None = None,
        deterministic: bool = False,
    ) -> tuple[Array, Any]:
        """Action for one observation or a batch of them, in the units of `action_space`, clipped to its bounds."""
        act = build.acting(self.learner, deterministic=deterministic)
        return self._spaces.predict(act, observation, self.device), state

    @property
    def _spaces(self) -> build.Spaces:
        return build.Spaces(self.observation_space, self.action_space)

    def save(self, path: str | os.PathLike[str] | BinaryIO) -> None:
        """Write path.zip: weights, normalisers and optimiser as safetensors, the rest as JSON; no pickle."""
        facts = {
            "algo": self.algo,
            "config": asdict(self.cfg),
            "batch_size": self.batch_size,
            "num_timesteps": self.num_timesteps,
            "seed": self.seed,
            "spaces": self._spaces.to_json(),
            "versions": build.versions(),
        }
        build.write_zip(path, build.agent_checkpoint(self.learner, facts))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | BinaryIO,
        env: Any = None,
        device: str = "auto",
        *,
        n_envs: int = 1,
        **changes: Any,
    ) -> Self:
        """A saved model; `env` to go on training, `changes` overwrite its hyper-parameters."""
        checkpoint = build.read_zip(path)
        facts = checkpoint.state
        if facts["algo"] != cls.algo:
            raise ValueError(f"{path} holds a model of {facts['algo']}, not of {cls.algo}; use ctrlrl.load(path)")
        values = {k: v for k, v in facts["config"].items() if k not in ("name", "n_minibatches")}
        model = cls(
            "MlpPolicy", None, batch_size=facts["batch_size"], seed=facts["seed"], device=device, **values | changes
        )
        spaces = build.Spaces.from_json(facts["spaces"])
        if env is not None:
            model._connect(env, n_envs)
            spaces.same(model._spaces, str(path))
        else:
            model.observation_space, model.action_space = spaces
            model.learner = build.make_learner(model.cfg, spaces.env_spec(model.device))
        build.restore_agent(model.learner, checkpoint, str(path))
        model.num_timesteps = facts["num_timesteps"]
        return model


class PPO(Agent):
    """Proximal policy optimisation, arXiv:1707.06347."""

    algo = "ppo"


class BPO(Agent):
    """Bounded policy optimisation, arXiv:2604.18578."""

    algo = "bpo"


CLASSES: dict[str, type[Agent]] = {"ppo": PPO, "bpo": BPO}


def load(path: str | os.PathLike[str], env: Any = None, device: str = "auto") -> Agent:
    """A saved model of whatever algorithm made it."""
    algo = build.read_zip(path).state["algo"]
    if algo not in CLASSES:
        raise ValueError(f"{path}: {unknown('algorithm', algo, CLASSES)}")
    return CLASSES[algo].load(path, env=env, device=device)


def evaluate_policy(
    model: Agent,
    env: Any,
    n_eval_episodes: int = 10,
    deterministic: bool = True,
    return_episode_rewards: bool = False,
    *,
    seed: int = 0,
) -> tuple[Any, Any]:
    """(mean, std) of the undiscounted returns, or (list of returns, list of lengths). Episodes are split evenly."""
    if isinstance(env, str):
        vec_env = build.make_env(_env_config(env), min(n_eval_episodes, 64), stagger=False)
    else:
        vec_env = build.as_vec_env(env)
    act = build.acting(model.learner, deterministic=deterministic)
    returns, lengths, _ = build.evaluate(act, vec_env, episodes=n_eval_episodes, seed=seed)
    if return_episode_rewards:
        return returns.tolist(), lengths.tolist()
    return returns.mean().item(), returns.std(unbiased=False).item()


def _advantage_kind(value: bool | str | None) -> str | None:
    """SB3's flag as the config's word."""
    if isinstance(value, bool):
        return "minibatch" if value else "none"
    return value


def _network(policy_kwargs: dict[str, Any]) -> dict[str, Any]:
    """SB3's policy_kwargs as config fields."""
    for name in policy_kwargs:
        if name not in POLICY_KWARGS:
            raise TypeError(unknown("policy_kwargs key", name, POLICY_KWARGS))
    values: dict[str, Any] = {}
    arch = policy_kwargs.get("net_arch")
    if isinstance(arch, dict):
        values |= {"hidden": list(arch["pi"]), "vf_hidden": list(arch["vf"])}
    elif arch is not None:
        values["hidden"] = list(arch)
    if "activation_fn" in policy_kwargs:
        values["activation"] = policy_kwargs["activation_fn"].__name__.lower()
    if "ortho_init" in policy_kwargs:
        values["orthogonal_init"] = policy_kwargs["ortho_init"]
    if "log_std_init" in policy_kwargs:
        values["log_std_init"] = policy_kwargs["log_std_init"]
    return values

"""A model that learns from replayed steps: SB3's SAC and TD3 with their callbacks, logs and replay buffers."""

from __future__ import annotations

import warnings
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch

from ctrlrl import build, judging, loops, tasks
from ctrlrl.config import TrainConfig
from ctrlrl.core.random import seed_generators
from ctrlrl.face import saved
from ctrlrl.face.agent import Agent
from ctrlrl.face.arguments import start_value
from ctrlrl.face.data import data_settings, episodes_of, refuse_without_data
from ctrlrl.face.environments import Connection, check_data
from ctrlrl.face.model import Setting
from ctrlrl.face.numbers import item, whole
from ctrlrl.face.policy_view import ReplayedPolicyView
from ctrlrl.face.records import progress_row, record_replay
from ctrlrl.face.replay_arguments import frequency, network, noise_of, policy_name, refuse, refuse_foreign
from ctrlrl.face.reporting import while_learning
from ctrlrl.face.sb3_import import replayed_from_sb3
from ctrlrl.face.watch import ReplayWatch
from ctrlrl.registry import ALGORITHMS, lookup
from ctrlrl.train.log import Progress
from ctrlrl.train.off_policy import Means


class ReplayAgent(Agent):
    """Parameters, defaults and methods are Stable-Baselines3's where it has them; docs/sb3.md says what differs.

    policy: "MlpPolicy", or "MultiInputPolicy" for a Dict of vectors. env, n_envs, learning_rate: as with PPO.
    train_freq: vector steps between updates, or (n, "episode") with one environment.
    gradient_steps: updates then; -1 = as many as environment steps were taken.
    action_noise: SB3's NormalActionNoise, or its standard deviation.
    dataset: a file or `Episodes` whose rows are `offline_share` of every batch. `reward_shift=-1.0`,
        `return_range=True`, `clip_actions=0.99999` and the like transform it, and the environment's rewards with it.
    Other keywords: fields of the config.
    """

    tau, learning_starts, target_update_interval = Setting(), Setting(), Setting()
    policy_delay, target_policy_noise, target_noise_clip = Setting(), Setting(), Setting()
    had_data: bool = False  # it has learned from a data set, be it before it was saved
    _episodes: Any = None
    _kept: Any = None  # the replay buffer of an environment before
    _loop: Any = None

    def __init__(
        self,
        policy: Any,
        env: Any,
        learning_rate: Any = None,
        *,
        train_freq: Any = 1,
        gradient_steps: int = 1,
        action_noise: Any = None,
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
        n_envs: int = 1,
        dataset: Any = None,
        **settings: Any,
    ):
        where = type(self).__name__
        learning_rate, n_envs, self.seed = (
            item(learning_rate),
            whole(where, "n_envs", n_envs),
            whole(where, "seed", seed),
        )
        asked = ("replay_buffer_class", "replay_buffer_kwargs", "optimize_memory_usage", "use_sde", "use_sde_at_warmup")
        refuse(where, **{name: settings.pop(name, None) for name in asked})
        settings.pop("sde_sample_freq", None)
        self._policy_name, self.policy_kwargs = policy_name(policy, where), dict(policy_kwargs or {})
        self._extractor = self.clip_range = self.clip_range_vf = None
        begin = start_value(learning_rate)
        rate = None if callable(learning_rate) and begin == 0.0 else begin  # a warm-up; the schedule alone counts
        named = {"learning_rate": rate, "action_noise": noise_of(action_noise, where)}
        given = {k: v for k, v in named.items() if v is not None}
        self._data, settings = data_settings(settings)
        nets = network(self.policy_kwargs)
        refuse_foreign(nets, {f.name for f in fields(lookup(ALGORITHMS, self.algo, "algorithm").config)}, where)
        self.cfg = self._config(nets | given | settings)
        if self.cfg.utd != type(self.cfg).utd:
            raise ValueError(f"{where}: utd={self.cfg.utd:g} is a word of the command line; give gradient_steps here")
        self.learning_rate = self.cfg.learning_rate if learning_rate is None else learning_rate
        self._setup_lr_schedule()
        self.train_freq, self.gradient_steps = (
            frequency(train_freq, where),
            whole(where, "gradient_steps", gradient_steps),
        )
        if self.gradient_steps < -1:
            raise ValueError(f"{where}: gradient_steps must be -1 or at least 0, got {gradient_steps}")
        self.batch_size = self.cfg.batch_size
        self.device = tasks.resolve_device(str(device))
        self._setup_reporting(verbose, tensorboard_log, whole(where, "stats_window_size", stats_window_size))
        self._total_timesteps = self._n_updates = self._episode_num = 0
        self._current_progress_remaining = 1.0
        self._connection = self._loop = None
        self._means = Means()
        self._env_seed, self._n_envs = self.seed, 0
        seed_generators(self.seed)
        if env is not None:
            self._meet(env, n_envs)
            if _init_setup_model:
                self._setup_model()
        if dataset is not None:
            self.set_dataset(dataset)

    def _check_numbers(self) -> None:
        if whole(type(self).__name__, "batch_size", self.batch_size) < 1:
            raise ValueError(f"{type(self).__name__}: batch_size must be at least 1, got {self.batch_size}")
        if self.train_freq[1] == "episode" and self._n_envs > 1:
            raise ValueError(f"{type(self).__name__}: train_freq in episodes is for one environment, as in SB3")

    def _count_minibatches(self) -> None:
        self._check_numbers()

    def _check_policy(self) -> None:
        super()._check_policy()
        if any(part.image for part in self._spaces.env_spec(self.device).obs_parts):
            raise ValueError(f"{type(self).__name__}: images are not taken; use PPO, or an environment of vectors")

    def _use(self, connection: Connection) -> None:
        if connection is self._connection and self._loop is not None:
            self._loop.reset(None)  # somebody else stepped it
            return
        before = self.replay_buffer
        super()._use(connection)
        self._kept = before

    def _setup_model(self) -> None:
        if self._connection is not None:
            spec = self._connection.env.spec
        else:  # a file does not count the objectives; the reference has an entry for each
            m = len(getattr(self.cfg, "reference", ())) or 1
            spec = self._spaces.env_spec(self.device)._replace(reward_dim=m)
        self.learner = loops.make_learner(self.cfg, spec)
        self.policy: Any = ReplayedPolicyView(self.learner, self._spaces, self.device)
        self._quick = judging.quick(self.learner)

    def set_dataset(self, dataset: Any) -> None:
        """Let `offline_share` of every batch be rows of this one."""
        episodes = episodes_of(dataset, type(self).__name__)
        if self._data.return_range and self.replay_buffer is not None:
            raise ValueError(
                f"{type(self).__name__}: return_range=True scales rewards by the data set's returns, and the replay "
                "buffer holds those of another. Make a new model."
            )
        if self.cfg.offline_share is None and self.replay_buffer is not None:
            raise ValueError(
                f"{type(self).__name__}: offline_share=None puts the data set into a new replay buffer, this one has "
                "begun. Give dataset to the constructor, or a share."
            )
        for line in check_data(episodes, self._spaces, self._connection):
            warnings.warn(line, stacklevel=3)
        self._episodes, self._kept, self._loop = episodes, self.replay_buffer, None

    # learning --------------------------------------------------------------------------------------------------------

    @while_learning
    def learn(
        self,
        total_timesteps: int,
        callback: Any = None,
        log_interval: int | None = 4,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Take `total_timesteps` environment steps; log_interval: episodes between two dumps of the logger."""
        total_timesteps = self._start(total_timesteps, reset_num_timesteps, tb_log_name or type(self).__name__)
        self._tell_of_lost_data()
        self._episode_num = 0 if reset_num_timesteps else self._episode_num
        callback, loop = self._called(callback), self._loop
        self.cfg.batch_size = loop.batch_size = self.batch_size  # which may have been set since
        watch = ReplayWatch(self, loop, callback, self._spaces, log_interval)
        loop.on_step, loop.env_steps = watch, self.num_timesteps
        callback.on_training_start(locals(), globals())
        with Progress(f"{self.algo} {total_timesteps:,} steps", total_timesteps, enabled=progress_bar) as progress:
            while self.num_timesteps < total_timesteps and self._gather(callback, watch):
                if self.num_timesteps > self.cfg.learning_starts and len(loop.buffer):
                    taken = watch.n_steps * self.n_envs
                    self._improve(taken if self.gradient_steps < 0 else self.gradient_steps)
                if progress_bar:
                    progress.update(self.num_timesteps, progress_row(self))
        watch.hand_back()
        loop.check()
        callback.on_training_end()
        return self

    def _tell_of_lost_data(self) -> None:
        held = self.cfg.offline_share is None and self.replay_buffer is not None and len(self.replay_buffer)
        if self.had_data and self._episodes is None and not held:
            warnings.warn(
                f"{type(self).__name__}: it learned with a data set, which a model file does not hold, and now learns "
                "without. Give it again: load(path, dataset=FILE) or set_dataset(FILE).",
                stacklevel=4,
            )

    def _reset_env(self) -> None:
        assert self._connection is not None
        if self._loop is None:
            data: Any = None
            if self._episodes is None:
                refuse_without_data(self._data, type(self).__name__)
            else:
                cfg = TrainConfig(algo=self.cfg, data=self._data, seed=self.seed or 0, n_envs=self._n_envs)
                data = loops.dataset(cfg, self._episodes, type(self.learner), self.learner.device)
                self.learner.prefit(data.all())
                self.had_data = True
            env, staggered = self._connection.env, self._connection.staggered
            for line in getattr(env, "notices", ()):
                warnings.warn(line, stacklevel=4)
            self._loop = loops.online_loop(
                self.learner,
                env,
                env_steps=0,
                seed=self._env_seed,
                staggered=staggered,
                data=data,
                skilled=getattr(self.learner, "cloned", False),
                buffer=self._kept,
            )
        else:
            self._loop.reset(self._env_seed)
        self._env_seed = None

    def _gather(self, callback: Any, watch: ReplayWatch) -> bool:
        """Steps until updates are due; False where a callback ended training."""
        count, unit = self.train_freq
        watch.n_steps = watch.n_episodes = 0
        callback.on_rollout_start()
        while (watch.n_steps if unit == "step" else watch.n_episodes) < count:
            if self._loop.step() is None:
                return False
        callback.on_rollout_end()
        self._current_progress_remaining = max(0.0, 1.0 - self.num_timesteps / self._total_timesteps)
        return True

    def _improve(self, updates: int) -> None:
        rate = float(self.lr_schedule(self._current_progress_remaining))
        for step in self.learner.opt.values():
            step.learning_rate.fill_(rate)
        for _ in range(updates):
            self._means.add(self._loop.learn())
        self._n_updates += updates

    def dump_logs(self, iteration: int = 0) -> None:
        """Write what the logger has, with the means of episodes and of the updates since the last time."""
        record_replay(self, self._means.read(f"step {self.num_timesteps}"))
        self._means = Means()
        self.logger.dump(step=self.num_timesteps)

    # replay buffer ---------------------------------------------------------------------------------------------------

    @property
    def replay_buffer(self) -> Any:
        """The kept transitions; None before the first `learn`."""
        return self._kept if self._loop is None else self._loop.buffer

    def save_replay_buffer(self, path: str | PathLike[str]) -> None:
        """Write the replay buffer as a folder of safetensors chunks; no pickle."""
        if self.replay_buffer is None:
            raise ValueError(f"{type(self).__name__}.save_replay_buffer: there is none before learn")
        build.save_buffer(self.replay_buffer, Path(path))

    def load_replay_buffer(self, path: str | PathLike[str], truncate_last_traj: bool = True) -> None:
        """Take over a saved buffer of the same capacity and columns; the next `learn` goes on with it.

        truncate_last_traj: taken for SB3's sake; rows are whole transitions, so no trajectory is left open.
        """
        if self._connection is None:
            raise ValueError(f"{type(self).__name__}.load_replay_buffer needs an environment; give one to load")
        if self._loop is None:
            self._reset_env()
        build.load_buffer(self._loop.buffer, Path(path))

    # parts, as SB3 names them ----------------------------------------------------------------------------------------

    @property
    def n_steps(self) -> int:
        return self.cfg.n_steps

    @property
    def buffer_size(self) -> int:
        return self.cfg.buffer_size

    @property
    def action_noise(self) -> float:
        """Standard deviation of what is added to the actions tried; takes what the constructor takes."""
        return float(self.cfg.action_noise)

    @action_noise.setter
    def action_noise(self, noise: Any) -> None:
        self.learner.set_hyper("action_noise", noise_of(noise, type(self).__name__))

    @property
    def target_entropy(self) -> float:
        """That a learned temperature aims at, nats; it is given to the constructor."""
        return float(self.learner.target_entropy)

    @property
    def actor(self) -> Any:
        return self.learner.nets.policy

    @property
    def critic(self) -> Any:
        return self.learner.nets.critic

    @property
    def _last_obs(self) -> Any:
        return None if self._loop is None else self._spaces.observations(self._loop.obs)

    # files -----------------------------------------------------------------------------------------------------------

    def save(self, path: saved.File, exclude: Any = None, include: Any = None) -> None:
        """Write path.zip: weights and optimisers as safetensors, the rest as JSON; no pickle, and no replay buffer.

        exclude, include: taken for SB3's sake; every file holds the same.
        """
        build.write_zip(path, build.agent_checkpoint(self.learner, saved.replay_facts(self)))

    @classmethod
    def from_sb3(
        cls, path: saved.File, env: Any = None, device: torch.device | str = "auto", *, n_envs: int = 1, **changes: Any
    ) -> Self:
        """A SAC or TD3 saved by Stable-Baselines3 2.x, Adam's states included; nothing in the file is run.

        changes: settings of its own. Its replay buffer is a pickle, which is not opened.
        """
        if cls.algo not in ("sac", "td3"):
            raise ValueError(f"{cls.__name__}.from_sb3: Stable-Baselines3 has no {cls.__name__}")
        return replayed_from_sb3(cls, path, env, device, n_envs=n_envs, changes=changes)

    @classmethod
    def load(
        cls,
        path: saved.File,
        env: Any = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        *,
        n_envs: int = 1,
        **changes: Any,
    ) -> Self:
        """A saved model; `env` to go on training (the next `learn` resets it), `changes` overwrite its settings."""
        changes = saved.custom(custom_objects, ("learning_rate",)) | changes
        return saved.load_replayed(cls, path, env, device, n_envs=n_envs, changes=changes, told=print_system_info)

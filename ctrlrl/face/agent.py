"""A model that learns on-policy: `learn` calls callbacks and writes logs at the moments SB3 does."""

from __future__ import annotations

import time
import warnings
from typing import Any, Self

from ctrlrl import loops
from ctrlrl.face.arguments import as_schedule
from ctrlrl.face.environments import tells_episodes
from ctrlrl.face.model import Model
from ctrlrl.face.numbers import count
from ctrlrl.face.records import progress_row, record_progress, record_update
from ctrlrl.face.reporting import while_learning
from ctrlrl.face.watch import EpisodeLog, RolloutView, Watch
from ctrlrl.train.log import Progress
from ctrlrl.types import Rollout


class Agent(Model):
    __doc__ = Model.__doc__

    _rollout: Rollout | None = None

    @while_learning
    def learn(
        self,
        total_timesteps: int,
        callback: Any = None,
        log_interval: int | None = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Train for `total_timesteps` environment steps, rounded up to whole rollouts; reset_num_timesteps=False adds.

        callback: callback objects (SB3's or ctrlrl's), functions of (locals, globals), or a list of them; False from
        one ends training at once. log_interval: rollouts between two dumps of the logger.
        """
        tb_log_name = tb_log_name or type(self).__name__
        watched = callback is not None
        total_timesteps = self._start(total_timesteps, reset_num_timesteps, tb_log_name)
        callback = self._called(callback)
        loop, watch = self._loop, None
        if watched or tells_episodes(loop.env):
            watch = Watch(self, loop.env, loop.episodes, callback if watched else None, self._spaces)
        loop.collector.on_step = watch
        self.learner.detailed = self.clip_range is not None and (watched or bool(self.logger.output_formats))
        iteration = 0
        callback.on_training_start(locals(), globals())
        with Progress(f"{self.algo} {total_timesteps:,} steps", total_timesteps, enabled=progress_bar) as progress:
            while self.num_timesteps < total_timesteps:
                rollout = self._collect(callback, watch)
                if rollout is None:
                    break
                iteration += 1
                self._current_progress_remaining = max(0.0, 1.0 - self.num_timesteps / total_timesteps)
                if log_interval and iteration % log_interval == 0:
                    self.dump_logs(iteration)
                self._train(rollout)
                if progress_bar:
                    progress.update(self.num_timesteps, progress_row(self))
        callback.on_training_end()
        return self

    def _start(self, total_timesteps: int, reset: bool, tb_log_name: str) -> int:
        """Counters, buffers, logger and loop of one `learn`; returns the step number it ends at."""
        if self._connection is None:
            raise ValueError(f"{type(self).__name__}.learn needs an environment; give one to load(path, env=...)")
        total_timesteps = count(type(self).__name__, "total_timesteps", total_timesteps)
        self._check_numbers()
        self._count_minibatches()  # batch_size may have been set since
        self.num_timesteps = 0 if reset else self.num_timesteps
        self._start_clock(continues=not reset)
        self._total_timesteps = self.num_timesteps + total_timesteps
        if reset or self._loop is None:
            self._reset_env()
        self._loop.total_steps = self._total_timesteps
        self._open_logger(tb_log_name, continues=not reset)
        return self._total_timesteps

    def _reset_env(self) -> None:
        assert self._connection is not None
        env, staggered = self._connection.env, self._connection.staggered
        if self._loop is None:
            for line in getattr(env, "notices", ()):
                warnings.warn(line, stacklevel=4)
            self._loop = loops.on_policy_loop(
                self.learner, env, total_steps=1, seed=self._env_seed, staggered=staggered
            )
        else:
            self._loop.collector.reset(self._env_seed)
        self._env_seed = None
        self.learner.forget_episodes()
        self._loop.recent.clear()
        self._loop.episodes = EpisodeLog(
            env.spec.n_envs, env.spec.device, skip_first=staggered, window=self._stats_window_size
        )

    def _collect(self, callback: Any, watch: Watch | None) -> Rollout | None:
        loop = self._loop
        loop.env_steps = self.num_timesteps
        if watch is not None:
            watch.n_steps = 0
        callback.on_rollout_start()
        self._rollout = loop.collect()
        if self._rollout is None:
            assert watch is not None
            watch.hand_back()
            self.learner.forget_episodes()  # they have gone on without being kept
            return None
        if watch is None:
            assert self.ep_info_buffer is not None
            assert self.ep_success_buffer is not None
            self.num_timesteps += loop.steps_per_iteration
            seconds = round((time.time_ns() - self.start_time) / 1e9, 6)
            self.ep_info_buffer.extend({"r": r, "l": n, "t": seconds} for r, n in loop.episodes.last)
            self.ep_success_buffer.extend(loop.episodes.success)
        elif watch.callback is not None:
            callback.update_locals({"rollout_buffer": self.rollout_buffer})
        callback.on_rollout_end()
        return self._rollout

    def _train(self, rollout: Rollout) -> None:
        cfg, learner, loop, progress = self.cfg, self.learner, self._loop, self._current_progress_remaining
        if cfg.lr_schedule == "constant" and cfg.desired_kl is None:
            learner.set_hyper("learning_rate", float(self.lr_schedule(progress)))
        for name in ("clip_range", "clip_range_vf"):
            if getattr(self, name) is not None:
                learner.set_hyper(name, float(as_schedule(getattr(self, name))(progress)))
        before, full = loop.gradient_steps, cfg.n_epochs * cfg.n_minibatches
        self.policy.set_training_mode(True)
        metrics = loop.learn(rollout)
        self.policy.set_training_mode(False)
        done = loop.gradient_steps - before
        self._n_updates += cfg.n_epochs if done >= full else done // cfg.n_minibatches + 1
        record_update(self, metrics)

    def dump_logs(self, iteration: int = 0) -> None:
        """Write what the logger has, with the episodes' means and the speed so far."""
        record_progress(self, iteration)
        self.logger.dump(step=self.num_timesteps)

    @property
    def rollout_buffer(self) -> RolloutView:
        """The last whole rollout, read-only, under the names of SB3's RolloutBuffer."""
        if self._rollout is None:
            raise AttributeError(f"{type(self).__name__}.rollout_buffer is there after the first rollout")
        return RolloutView(self._rollout, self.learner, self._spaces)

    @property
    def _last_obs(self) -> Any:
        return None if self._loop is None else self._spaces.observations(self._loop.collector.obs)

"""Gymnasium's MuJoCo robots, B at a time on CPU threads, as a VecEnv."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from ctrlrl.envs import lane_random
from ctrlrl.envs.action_form import check_action
from ctrlrl.envs.dynamics import Dynamics, JointNoise
from ctrlrl.envs.mjcf import Physics
from ctrlrl.envs.mjcf_tasks import get_task
from ctrlrl.envs.mujoco_engine import Engine, RolloutEngine, WorldEngine, import_mujoco, load_model
from ctrlrl.types import TimeStep

_DRAW_SIZE = 16_384  # numbers


class MujocoPool:
    """B copies of one robot task; a lane's random numbers depend on (seed, lane, episode) alone, not on n_envs.

    first_lane: the number of its first lane; only random numbers depend on it.
    task: a name of `mjcf_tasks.TASKS`, such as "halfcheetah" (Gymnasium's v5 rules) or "halfcheetah-v4".
    exact: keep the solver's warm start, so that trajectories equal Gymnasium's to the last bit; about a third slower on
        the planar robots. Tasks that read more than positions and velocities (Ant, Humanoid, Reacher, ...) always are.
    stagger: start the first episodes' clocks at a random step, so that time limits do not end all lanes at once. A
        reset with a seed starts afresh; a reset without one goes on to each lane's next episode, its clock at zero.
    episode_length: steps until truncation; None is the task's own limit, 0 none.
    dynamics: what differs from the task's own robot. Noise on the joints is part of the control that the task charges
        for, as it is when Gymnasium's environment gets an action with noise.
    dtype: of observations and rewards; rewards and observations are computed in float64 before.

    Where the simulation breaks down, final_obs and reward of the step are NaN and the lane is truncated.
    """

    def __init__(
        self,
        task: str,
        n_envs: int,
        *,
        first_lane: int = 0,
        seed: int | None = None,
        n_threads: int | None = None,
        exact: bool = False,
        stagger: bool = True,
        episode_length: int | None = None,
        dtype: torch.dtype = torch.float32,
        dynamics: Dynamics | None = None,
    ) -> None:
        self.task = get_task(task)
        if n_envs < 1:
            raise ValueError(f"MujocoPool: n_envs must be at least 1, got {n_envs}")
        limit = self.task.episode_length if episode_length is None else episode_length
        self.spec = self.task.spec(n_envs, limit, torch.device("cpu"))
        self.model = load_model(self.task.model, dynamics, task, len(self.task.targets))
        threads = min(n_envs, n_threads or os.cpu_count() or 1)
        self.exact = exact or bool(self.task.needs)
        self._engine: Engine
        if self.exact:
            self._engine = WorldEngine(self.model, n_envs, threads, self.task.frame_skip, self.task.needs)
        else:
            self._engine = RolloutEngine(self.model, n_envs, threads, self.task.frame_skip)
        low, high = torch.from_numpy(self.model.actuator_ctrlrange.copy()).T
        self._center, self._half = (low + high) / 2, (high - low) / 2
        self._scale = not (bool((low == -1).all()) and bool((high == 1).all()))
        self._qpos0 = torch.from_numpy(self.model.qpos0.copy())
        self._qvel0 = torch.zeros(self.model.nv, dtype=torch.float64)
        mass = torch.from_numpy(self.model.body_mass.copy())
        e = self._engine
        before = torch.zeros(n_envs, *self.task.progress_shape, dtype=torch.float64)
        self.physics = Physics(e.qpos, e.qvel, e.control, before, e.fields, mass)
        self._choices = torch.tensor(self.task.choices, dtype=torch.float64)
        self._seed, self.stagger, self._dtype = seed, stagger, dtype
        self._lanes = torch.arange(n_envs)
        self._numbers = self._lanes + first_lane  # their numbers among those of all processes
        std = 0.0 if dynamics is None else dynamics.joint_noise
        self._noise = JointNoise(std, self._numbers, self.model.nu) if std else None
        self._steps = 0  # since the last reset with a seed
        self._clock = torch.zeros(n_envs, dtype=torch.int64)
        self._episode = torch.full((n_envs,), -1, dtype=torch.int64)
        width = self.model.nq + self.model.nv
        # beginnings of the next episodes, drawn ahead: a draw of a few lanes costs as much as one of thousands
        self._ahead = torch.zeros(n_envs, max(1, _DRAW_SIZE // (n_envs * width)), width, dtype=torch.float64)
        self._ahead_from = torch.zeros(n_envs, dtype=torch.int64)  # the episode that column 0 belongs to
        self._started = False
        self._renderer: Any = None

    def reset(self, seed: int | None = None) -> Tensor:
        fresh = seed is not None or not self._started
        if seed is not None:
            self._seed = seed
        elif self._seed is None:
            self._seed = int(torch.randint(2**62, ()))  # from the default generator, which the run seeds
        if fresh:
            self._steps = 0
            self._episode.fill_(-1)
            self._draw(self._episode + 1)
        self._begin(self._lanes)
        self.physics.before.copy_(self.task.progress(self.physics))
        if fresh and self.stagger:
            u = lane_random.uniform(self._key(), self._numbers, torch.full_like(self._lanes, -1), 1)
            self._clock.copy_((u[:, 0] * self.spec.episode_length).long())
        self._started = True
        return self._observe()

    def step(self, action: Tensor) -> TimeStep:
        """action [B, A] in [-1, 1]; scaled to the actuators' control range, clipped. Or [B] int64, of discrete ones."""
        if not self._started:
            raise RuntimeError("MujocoPool.step: call reset() first")
        check_action("MujocoPool", self.spec, action)
        p, task = self.physics, self.task
        if task.choices:
            action = self._choices[action.clamp(0, len(task.choices) - 1)]
        p.control.copy_(action).clamp_(-1.0, 1.0)
        if self._noise is not None:
            p.control.add_(self._noise(self._key(), self._steps))
        self._steps += 1
        if self._scale:
            p.control.mul_(self._half).add_(self._center)
        fine = self._engine.advance()
        terminated = task.terminated(p)
        pay = task.vector_reward if task.objectives else task.reward
        reward = pay(p, terminated).to(self._dtype)
        final_obs = obs = self._observe()
        self._clock += 1
        truncated = ~fine if self.spec.episode_length == 0 else (self._clock >= self.spec.episode_length) | ~fine
        done = terminated | truncated
        if done.any():  # a host check is free on the CPU
            if not fine.all():
                reward[~fine], final_obs[~fine] = torch.nan, torch.nan
                terminated = terminated & fine
            truncated = truncated & ~terminated
            self._begin(done.nonzero().squeeze(1))
            obs = self._observe()  # the other lanes have not moved
        p.before.copy_(task.progress(p))
        return TimeStep(obs, final_obs, reward, terminated, truncated, {})

    def set_state(self, qpos: Tensor, qvel: Tensor) -> Tensor:
        """Put every lane into positions [B, nq] and velocities [B, nv]; clocks go on. Returns the observation."""
        if not self._started:
            self.reset()
        self._engine.place(self._lanes, torch.cat((qpos, qvel), 1).double())
        self.physics.before.copy_(self.task.progress(self.physics))
        return self._observe()

    def state_dict(self) -> dict[str, Tensor]:
        if not self._started:
            return {}
        own = {"before": self.physics.before, "clock": self._clock, "episode": self._episode}
        if self._noise is not None:
            own["steps"] = torch.tensor(self._steps)
        state = {k: v.clone() for k, v in own.items()}
        return {**state, "seed": torch.tensor(self._key()), **self._engine.state_dict()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if not state:
            self._started = False
            return
        rows = state["clock"].shape[0]
        if rows != self.spec.n_envs:
            raise ValueError(f"MujocoPool: the state is of {rows} lanes, this pool has {self.spec.n_envs}")
        self._engine.load_state_dict(state)
        self.physics.before.copy_(state["before"])
        self._clock.copy_(state["clock"])
        self._episode.copy_(state["episode"])
        self._seed, self._started = int(state["seed"]), True
        self._steps = int(state.get("steps", 0))
        self._draw(self._episode + 1)

    @property
    def frames_per_second(self) -> float:
        """Control steps in a second of the simulated time: at this rate a film runs in real time."""
        return 1.0 / (self.task.frame_skip * self.model.opt.timestep)

    def render(self, lane: int = 0, height: int = 480, width: int = 480) -> Any:
        """uint8 [height, width, 3], a numpy array, of one lane."""
        mujoco = import_mujoco()
        if self._renderer is None or (self._renderer.height, self._renderer.width) != (height, width):
            vis = self.model.vis.global_
            vis.offwidth, vis.offheight = max(vis.offwidth, width), max(vis.offheight, height)
            try:
                self._renderer = mujoco.Renderer(self.model, height, width)
            except Exception as error:
                raise RuntimeError(f"MujocoPool.render: nothing to draw with ({error}); try MUJOCO_GL=egl") from error
        data = mujoco.MjData(self.model)
        data.qpos[:], data.qvel[:] = self.physics.qpos[lane].numpy(), self.physics.qvel[lane].numpy()
        mujoco.mj_forward(self.model, data)
        self._renderer.update_scene(data, camera="track" if self.model.ncam else -1)
        return self._renderer.render()

    def close(self) -> None:
        self._engine.close()
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _key(self) -> int:
        assert self._seed is not None
        return self._seed

    def _observe(self) -> Tensor:
        return self.task.observation(self.physics).to(self._dtype)

    def _begin(self, lanes: Tensor) -> None:
        """Start the next episode of some lanes."""
        self._episode[lanes] += 1
        self._clock[lanes] = 0
        column = (self._episode - self._ahead_from)[lanes]
        if column.max() >= self._ahead.shape[1]:
            self._draw(self._episode)
            column = torch.zeros_like(column)
        self._engine.place(lanes, self._ahead[lanes, column])

    def _draw(self, first: Tensor) -> None:
        """Draw each lane's beginnings of the episodes from `first` [B] on."""
        n, ahead, _ = self._ahead.shape
        lanes = self._numbers.repeat_interleave(ahead)
        episodes = (first.unsqueeze(1) + torch.arange(ahead)).flatten()
        uniform = lane_random.uniform(self._key(), lanes, episodes, self.task.n_uniform(self.model.nq, self.model.nv))
        normal = lane_random.normal(self._key(), lanes, episodes, self.task.n_normal(self.model.nv))
        rows = torch.cat(self.task.reset(uniform, normal, self._qpos0, self._qvel0), 1)
        self._ahead.copy_(rows.view(n, ahead, -1))
        self._ahead_from.copy_(first)

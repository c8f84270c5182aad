"""Gymnasium's MuJoCo robots on MuJoCo Warp: thousands at a time on a GPU, or a few on the CPU, as a VecEnv."""

from __future__ import annotations

import torch
from torch import Tensor

from ctrlrl.envs import lane_random
from ctrlrl.envs.action_form import check_action
from ctrlrl.envs.dynamics import Dynamics, JointNoise
from ctrlrl.envs.mjcf import Physics
from ctrlrl.envs.mjcf_tasks import get_task
from ctrlrl.envs.mujoco_engine import load_model
from ctrlrl.envs.warp_engine import WarpEngine, adapt_model, import_warp
from ctrlrl.types import TimeStep


class MujocoWarp:
    """B copies of one robot task, with the tasks, seeds, lanes, clocks and resets of `mujoco_cpu.MujocoPool`.

    The physics is float32: one control step equals the CPU's to about 1e-5, and trajectories part where the motion is
    chaotic. A step reads nothing back from the device. On a GPU contacts are found in any order, so the last bits of a
    run may differ from those of the next.

    task, stagger, episode_length, dynamics: as for MujocoPool. Where the simulation breaks down, final_obs and reward
    of the step are NaN and the lane is truncated.
    room: times the memory for contacts that is reckoned from the model; `check` tells when it was too small.
    notices: what differs from the CPU's simulation, a line each; a run prints them when it starts.
    """

    def __init__(
        self,
        task: str,
        n_envs: int,
        *,
        seed: int | None = None,
        device: torch.device | str = "cpu",
        stagger: bool = True,
        episode_length: int | None = None,
        room: float = 1.0,
        dynamics: Dynamics | None = None,
    ) -> None:
        import_warp()
        self.task = get_task(task)
        if n_envs < 1:
            raise ValueError(f"MujocoWarp: n_envs must be at least 1, got {n_envs}")
        device = torch.device(device)
        limit = self.task.episode_length if episode_length is None else episode_length
        self.spec = self.task.spec(n_envs, limit, device)
        model = load_model(self.task.model, dynamics, task, len(self.task.targets))
        self.notices = tuple(f"env={task}: {change}" for change in adapt_model(model))
        try:
            self.engine = e = WarpEngine(model, n_envs, self.task.frame_skip, self.task.needs, device, room)
        except NotImplementedError as error:
            raise ValueError(
                f"env.backend=mujoco_warp cannot run env={task}: {error} Use env.backend=mujoco."
            ) from None
        self._nq, self._nv = model.nq, model.nv
        low, high = torch.from_numpy(model.actuator_ctrlrange.copy()).float().to(device).T
        self._center, self._half = (low + high) / 2, (high - low) / 2
        self._qpos0 = torch.from_numpy(model.qpos0.copy()).to(device)
        self._qvel0 = torch.zeros(model.nv, dtype=torch.float64, device=device)
        mass = torch.from_numpy(model.body_mass.copy()).float().to(device)
        before = torch.zeros(n_envs, *self.task.progress_shape, device=device)
        self.physics = Physics(e.qpos, e.qvel, e.control, before, e.fields, mass)
        self._choices = torch.tensor(self.task.choices, device=device)
        self._seed, self.stagger, self._room = seed, stagger, room
        self._lanes = torch.arange(n_envs, device=device)
        std = 0.0 if dynamics is None else dynamics.joint_noise
        self._noise = JointNoise(std, self._lanes, model.nu) if std else None
        self._steps = 0  # since the last reset with a seed
        self._all = torch.ones(n_envs, dtype=torch.bool, device=device)
        self._clock = torch.zeros(n_envs, dtype=torch.int64, device=device)
        self._episode = torch.full((n_envs,), -1, dtype=torch.int64, device=device)
        self._started = False

    @torch.no_grad()
    def reset(self, seed: int | None = None) -> Tensor:
        fresh = seed is not None or not self._started
        if seed is not None:
            self._seed = seed
        elif self._seed is None:
            self._seed = int(torch.randint(2**62, ()))  # from the default generator, which the run seeds
        if fresh:
            self._steps = 0
            self._episode.fill_(-1)
        self._begin(self._all)
        self.physics.before.copy_(self.task.progress(self.physics))
        if fresh and self.stagger:
            u = lane_random.uniform(self._key(), self._lanes, torch.full_like(self._lanes, -1), 1)
            self._clock.copy_((u[:, 0] * self.spec.episode_length).long())
        self._started = True
        return self.task.observation(self.physics)

    @torch.no_grad()
    def step(self, action: Tensor) -> TimeStep:
        """action [B, A] in [-1, 1]; scaled to the actuators' control range, clipped. Or [B] int64, of discrete ones."""
        if not self._started:
            raise RuntimeError("MujocoWarp.step: call reset() first")
        check_action("MujocoWarp", self.spec, action)
        p, task, limit = self.physics, self.task, self.spec.episode_length
        if task.choices:
            action = self._choices[action.clamp(0, len(task.choices) - 1)]
        p.control.copy_(action).clamp_(-1.0, 1.0)
        if self._noise is not None:
            p.control.add_(self._noise(self._key(), self._steps))
        p.control.mul_(self._half).add_(self._center)
        self._steps += 1
        broken = ~self.engine.advance()
        terminated = task.terminated(p)
        pay = task.vector_reward if task.objectives else task.reward
        reward = pay(p, terminated)
        reward = reward.masked_fill(_rows(broken, reward), torch.nan)
        final_obs = task.observation(p).masked_fill(broken.unsqueeze(1), torch.nan)
        terminated = terminated & ~broken
        self._clock += 1
        truncated = (broken if limit == 0 else (self._clock >= limit) | broken) & ~terminated
        done = terminated | truncated
        moved_to = task.progress(p).clone()  # may be a view of what `_begin` overwrites
        self._begin(done)
        obs = torch.where(done.unsqueeze(1), task.observation(p), final_obs)
        p.before.copy_(torch.where(_rows(done, moved_to), task.progress(p), moved_to))
        return TimeStep(obs, final_obs, reward, terminated, truncated, {})

    def check(self) -> None:
        """RuntimeError where contacts were lost since the environment was made; reads the device."""
        n = self.engine.overflowed()
        if n:
            contacts, rows = self.engine.room
            raise RuntimeError(
                f"env={self.task.name} on mujoco_warp: {n} of {self.spec.n_envs} robots made more contacts than the "
                f"memory for {contacts} contacts and {rows} constraint rows each can hold, so the physics is wrong. "
                f"Raise env.contact_room, now {self._room:g}."
            )

    def set_state(self, qpos: Tensor, qvel: Tensor) -> Tensor:
        """Put every lane into positions [B, nq] and velocities [B, nv]; clocks go on. Returns the observation."""
        if not self._started:
            self.reset()
        self.engine.place(self._all, qpos.to(self.spec.device), qvel.to(self.spec.device))
        self.physics.before.copy_(self.task.progress(self.physics))
        return self.task.observation(self.physics)

    def state_dict(self) -> dict[str, Tensor]:
        if not self._started:
            return {}
        own = {"before": self.physics.before, "clock": self._clock, "episode": self._episode}
        if self._noise is not None:
            own["steps"] = torch.tensor(self._steps)
        state = {k: v.clone() for k, v in own.items()}
        return {**state, "seed": torch.tensor(self._key()), **self.engine.state_dict()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if not state:
            self._started = False
            return
        rows = state["clock"].shape[0]
        if rows != self.spec.n_envs:
            raise ValueError(f"MujocoWarp: the state is of {rows} lanes, this environment has {self.spec.n_envs}")
        self.engine.load_state_dict(state)
        self.physics.before.copy_(state["before"])
        self._clock.copy_(state["clock"])
        self._episode.copy_(state["episode"])
        self._seed, self._started = int(state["seed"]), True
        self._steps = int(state.get("steps", 0))

    def close(self) -> None:
        pass

    def _key(self) -> int:
        assert self._seed is not None
        return self._seed

    def _begin(self, lanes: Tensor) -> None:
        """Start the next episode of the lanes [B] that are True. All lanes draw: to ask which would read the device."""
        self._episode += lanes
        self._clock.masked_fill_(lanes, 0)
        uniform = lane_random.uniform(self._key(), self._lanes, self._episode, self.task.n_uniform(self._nq, self._nv))
        normal = lane_random.normal(self._key(), self._lanes, self._episode, self.task.n_normal(self._nv))
        self.engine.place(lanes, *self.task.reset(uniform, normal, self._qpos0, self._qvel0))


def _rows(flag: Tensor, like: Tensor) -> Tensor:
    """[B] with as many axes as `like`."""
    return flag.view(-1, *(1,) * (like.ndim - 1))

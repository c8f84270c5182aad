"""Stand-ins for simulators that no test machine has: their reset timing, shapes, dtypes and reused buffers, around one
small task whose every number is known."""

from types import SimpleNamespace

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from torch.utils._python_dispatch import _disable_current_modes

LIMIT = 6  # steps of an episode that does not fail
OBS = 4


class Plant:
    """x' = 0.9 x + 0.5 a; reward -x'^2; fails where |x'| > 0.6. Lane i starts its episode k at a place of its own."""

    def __init__(self, lanes):
        self.lane = torch.as_tensor(lanes, dtype=torch.float32)
        self.episode = torch.full_like(self.lane, -1.0)
        self.x = torch.zeros_like(self.lane)
        self.clock = torch.zeros_like(self.lane)
        self.begin(torch.ones_like(self.lane, dtype=torch.bool))

    def begin(self, where):
        """A new episode in the lanes of a mask."""
        self.episode = self.episode + where
        start = 0.25 * (torch.remainder(self.lane + 2.0 * self.episode, 5.0) - 2.0)
        self.x, self.clock = torch.where(where, start, self.x), torch.where(where, 0.0, self.clock)

    def advance(self, action):
        self.x, self.clock = 0.9 * self.x + 0.5 * action[:, 0], self.clock + 1.0

    def reward(self):
        return -self.x.square()

    def failed(self):
        return self.x.abs() > 0.6

    def late(self):
        return self.clock >= LIMIT

    def obs(self):
        return torch.stack((self.x, self.clock / 8.0, self.episode, self.lane), 1)


def policy(obs):
    """A fixed action in [-1, 1] for every (step, episode, lane); exact in float32."""
    step, episode, lane = obs[:, 1] * 8.0, obs[:, 2], obs[:, 3]
    return (torch.remainder(3.0 * step + 5.0 * episode + 7.0 * lane, 11.0) / 5.0 - 1.0).unsqueeze(1)


def truth(lane, n, *, both="terminated", same_start=False, first_episode=0):
    """The first n transitions of one lane, stepped without any automatic reset."""
    plant = Plant([lane])
    everywhere = torch.ones(1, dtype=torch.bool)
    plant.episode += first_episode - 1
    plant.begin(everywhere)
    rows = []
    while len(rows) < n:
        obs = plant.obs()
        plant.advance(policy(obs))
        failed, late = bool(plant.failed()), bool(plant.late())
        truncated = late and (not failed or both == "truncated")
        rows.append(
            {
                "obs": obs[0].tolist(),
                "reward": plant.reward().item(),
                "final_obs": plant.obs()[0].tolist(),
                "terminated": failed and not truncated,
                "truncated": truncated,
            }
        )
        if failed or late:
            plant.episode -= float(same_start)
            plant.begin(everywhere)
    return rows


class VecTask:
    """IsaacGymEnvs' base class: long flags in buffers that are written in place, observations only after a step."""

    def __init__(self, n, clip_actions=1.0):
        self.num_envs, self.num_obs, self.num_states, self.num_actions = n, OBS, 0, 1
        self.num_acts, self.clip_actions, self.clip_obs = 1, clip_actions, 5.0
        self.device = self.rl_device = "cpu"
        self.max_episode_length = LIMIT + 1  # a task ends at progress >= max_episode_length - 1
        self.observation_space = self.action_space = SimpleNamespace(shape=(1,))  # of the old gym, not Gymnasium's
        self.plant = Plant(range(n))
        self.obs_buf, self.rew_buf = torch.zeros(n, OBS), torch.zeros(n)
        self.reset_buf = torch.ones(n, dtype=torch.long)
        self.progress_buf = torch.zeros(n, dtype=torch.long)
        self.extras, self.received = {}, []

    def reset(self):
        return {"obs": self.obs_buf.clone()}

    def reset_idx(self, ids):
        self._reset_where(torch.isin(torch.arange(self.num_envs), ids))

    def _reset_where(self, where):
        self.plant.begin(where)
        self.progress_buf.masked_fill_(where, 0)
        self.reset_buf.masked_fill_(where, 0)

    def step(self, actions):
        actions = actions.clamp(-self.clip_actions, self.clip_actions)
        self.received.append(actions)
        self.plant.advance(actions)
        self.progress_buf += 1
        self.post_physics_step()
        time_outs = (self.progress_buf >= self.max_episode_length - 1) & (self.reset_buf != 0)
        self.extras["time_outs"] = time_outs.long()
        return {"obs": self.obs_buf.clone()}, self.rew_buf, self.reset_buf, self.extras

    def ends(self):
        return self.plant.failed() | (self.progress_buf >= self.max_episode_length - 1)


class Ant(VecTask):
    """Resets what the step before flagged, then looks: the reward of such a step is that of a reset state."""

    def post_physics_step(self):
        self._reset_where(self.reset_buf != 0)
        self.obs_buf[:] = self.plant.obs()
        self.rew_buf[:] = self.plant.reward()
        self.reset_buf[:] = self.ends().long()


class AnymalTerrain(VecTask):
    """Flags, rewards, resets, then looks; the reset clears the clock, so time_outs never come."""

    def post_physics_step(self):
        ends = self.ends()
        self.rew_buf[:] = self.plant.reward()
        self._reset_where(ends)
        self.reset_buf[:] = ends.long()
        self.obs_buf[:] = self.plant.obs()


class Terrain(AnymalTerrain):
    """A user's task derived from it."""


class DirectRLEnv:
    """Isaac Lab: two flags in buffers, groups of observations, a reset before them."""

    physics_dt = step_dt = 0.01

    def __init__(self, n, *, low=-np.inf, critic=True, is_finite_horizon=False):
        self.num_envs, self.device, self.critic = n, "cpu", critic
        self.max_episode_length = LIMIT
        self.cfg = SimpleNamespace(is_finite_horizon=is_finite_horizon)
        self.single_action_space = spaces.Box(low, -low, (1,), np.float32)
        self.single_observation_space = spaces.Dict({"policy": spaces.Box(-np.inf, np.inf, (OBS,), np.float32)})
        self.plant = Plant(range(n))
        self.episode_length_buf = torch.zeros(n, dtype=torch.long)
        self.reset_terminated, self.reset_time_outs = (torch.zeros(n, dtype=torch.bool) for _ in range(2))
        self.reward_buf, self.obs_buf = torch.zeros(n), torch.zeros(n, OBS)
        self.seeds, self.received, self.fault = [], [], None

    @property
    def unwrapped(self):
        return self

    def _observe(self):
        self.obs_buf[:] = self.plant.obs()
        return {"policy": self.obs_buf} | ({"critic": torch.zeros(self.num_envs, 9)} if self.critic else {})

    def reset(self, seed=None, options=None):
        self.seeds.append(seed)
        self._reset_idx(torch.ones(self.num_envs, dtype=torch.bool))
        return self._observe(), {}

    def _reset_idx(self, where):
        self.plant.begin(where)
        self.episode_length_buf = self.episode_length_buf.masked_fill(where, 0)

    def step(self, action):
        if self.fault is not None:
            raise self.fault
        self.received.append(action)
        self.plant.advance(action)
        self.episode_length_buf += 1
        self.reset_terminated[:] = self.plant.failed()
        self.reset_time_outs[:] = self.episode_length_buf >= self.max_episode_length
        self.reward_buf = self.plant.reward()
        self._reset_idx(self.reset_terminated | self.reset_time_outs)
        return self._observe(), self.reward_buf, self.reset_terminated, self.reset_time_outs, {"log": {}}


class Groups:
    """What a TensorDict offers a reader; it is no dict."""

    def __init__(self, groups):
        self.groups = groups

    def keys(self):
        return self.groups.keys()

    def __getitem__(self, name):
        return self.groups[name]


class RslRl5:
    """Isaac Lab's wrapper for rsl_rl 5: groups, long dones, time_outs, no reset() of its own."""

    def __init__(self, env, *, make_groups=Groups):
        self.env, self.num_actions, self.make_groups = env, 1, make_groups
        self.num_envs, self.device, self.cfg = env.num_envs, env.device, env.cfg
        self.max_episode_length = torch.full((env.num_envs,), env.max_episode_length)

    @property
    def unwrapped(self):
        return self.env

    @property
    def episode_length_buf(self):
        return self.env.episode_length_buf

    @episode_length_buf.setter
    def episode_length_buf(self, value):
        self.env.episode_length_buf = value

    def seed(self, seed):
        self.env.seeds.append(seed)

    def get_observations(self):
        return self.make_groups(self.env._observe())

    def step(self, actions):
        obs, reward, terminated, truncated, extras = self.env.step(actions)
        if not self.cfg.is_finite_horizon:
            extras["time_outs"] = truncated
        return self.make_groups(obs), reward, (terminated | truncated).long(), extras


class RslRl2:
    """Release 2: plain tensors, the critic's in extras, pairs from reset and get_observations."""

    def __init__(self, n):
        self.inner = DirectRLEnv(n)
        self.num_envs, self.num_actions, self.max_episode_length, self.device = n, 1, LIMIT, "cpu"

    episode_length_buf = property(lambda self: self.inner.episode_length_buf)

    def reset(self):
        return self._pair(self.inner.reset()[0])

    def get_observations(self):
        return self._pair(self.inner._observe())

    def step(self, actions):
        obs, reward, terminated, truncated, extras = self.inner.step(actions)
        obs, pair = self._pair(obs)
        return obs, reward, (terminated | truncated).long(), extras | pair | {"time_outs": truncated}

    def _pair(self, obs):
        return obs["policy"], {"observations": {"critic": obs["critic"]}}


class LeggedRobot:
    """legged_gym: five values a step; time_outs stay in extras from the last step in which any lane was reset."""

    def __init__(self, n, clip_actions=100.0):
        self.num_envs, self.num_obs, self.num_actions, self.device = n, OBS, 1, "cpu"
        self.max_episode_length, self.clip_actions = LIMIT, clip_actions
        self.plant = Plant(range(n))
        self.episode_length_buf = torch.zeros(n, dtype=torch.long)
        self.extras, self.received = {}, []
        self.obs_buf = self.plant.obs()

    def get_observations(self):
        return self.obs_buf

    def reset(self):
        self._reset_where(torch.ones(self.num_envs, dtype=torch.bool), torch.zeros(self.num_envs, dtype=torch.bool))
        self.obs_buf = self.plant.obs()
        return self.obs_buf, None

    def _reset_where(self, where, time_outs):
        self.plant.begin(where)
        self.episode_length_buf = self.episode_length_buf.masked_fill(where, 0)
        with _disable_current_modes():  # the simulator's own read
            if where.any():
                self.extras["time_outs"] = time_outs

    def step(self, actions):
        actions = actions.clamp(-self.clip_actions, self.clip_actions)
        self.received.append(actions)
        self.plant.advance(actions)
        self.episode_length_buf += 1
        time_outs = self.episode_length_buf >= self.max_episode_length
        reset, reward = self.plant.failed() | time_outs, self.plant.reward()
        self._reset_where(reset, time_outs)
        self.obs_buf = self.plant.obs()
        return self.obs_buf, None, reward, reset, self.extras


class ManiSkillBase:
    """What lies inside ManiSkill's vector wrapper."""

    reconfiguration_freq, device = 0, "cpu"

    def __init__(self, n):
        self.num_envs, self.plant = n, Plant(range(n))
        self.elapsed_steps = torch.zeros(n, dtype=torch.int32)
        self.single_action_space = spaces.Box(-2.0, 2.0, (1,), np.float32)
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (OBS,), np.float32)

    @property
    def unwrapped(self):
        return self


class ManiSkillVectorEnv(VectorEnv):
    """Same step, with the last observations of all lanes in infos of a step in which one ended."""

    def __init__(self, n, *, key="final_observation"):
        self.base_env, self.num_envs, self.auto_reset, self.ignore_terminations = ManiSkillBase(n), n, True, False
        self.single_action_space = self.base_env.single_action_space
        self.single_observation_space = self.base_env.single_observation_space
        self.spec, self.key, self.seeds = SimpleNamespace(id="Push-v1", max_episode_steps=LIMIT), key, []

    @property
    def unwrapped(self):
        return self.base_env

    def reset(self, *, seed=None, options=None):
        base, everywhere = self.base_env, torch.ones(self.num_envs, dtype=torch.bool)
        where = everywhere if options is None else torch.isin(torch.arange(self.num_envs), options["env_idx"])
        self.seeds.append(seed)
        base.plant.begin(where)
        base.elapsed_steps.masked_fill_(where, 0)
        return base.plant.obs(), {}

    def step(self, actions):
        plant = self.base_env.plant
        plant.advance(actions / 2.0)
        self.base_env.elapsed_steps += 1
        obs, reward, failed = plant.obs(), plant.reward(), plant.failed()
        truncated, infos = self.base_env.elapsed_steps >= LIMIT, {"success": plant.x.abs() < 0.4}
        done = failed | truncated
        with _disable_current_modes():  # the simulator's own read
            if done.any():
                last, final_info = obs.clone(), infos
                obs, infos = self.reset(options={"env_idx": torch.arange(self.num_envs)[done]})
                infos |= {self.key: last, f"_{self.key}": done, "final_info": final_info, "_final_info": done}
        return obs, reward, failed, truncated, infos


class BraxLike:
    """Brax's Episode, Vmap and AutoReset wrappers around one functional task, in torch instead of JAX."""

    action_size = 1

    def __init__(self, n, *, batch_size=None, truncation=True, auto_reset=True, groups=False):
        self.n, self.truncation, self.auto_reset, self.groups = n, truncation, auto_reset, groups
        self.keys, self.received = [], []
        if batch_size is not None:
            self.batch_size = batch_size

    @property
    def observation_size(self):
        raise AssertionError("Brax resets to find this out: nobody may ask")

    def reset(self, key):
        self.keys.append(key)
        plant, zero = Plant(range(self.n)), torch.zeros(self.n)
        info = {"steps": zero} | ({"truncation": zero} if self.truncation else {})
        info |= {"first_obs": plant.obs(), "first_pipeline_state": plant.x} if self.auto_reset else {}
        return SimpleNamespace(pipeline_state=plant, obs=self._obs(plant), reward=zero, done=zero, info=info)

    def step(self, state, action):
        self.received.append(action)
        old, plant = state.pipeline_state, Plant(range(self.n))
        plant.episode, plant.x, plant.clock = old.episode, old.x, old.clock
        plant.advance(action)
        failed, late, reward = plant.failed().float(), plant.late().float(), plant.reward()
        done = torch.maximum(failed, late)
        plant.x = torch.where(done > 0, state.info["first_pipeline_state"], plant.x)
        plant.clock = torch.where(done > 0, 0.0, plant.clock)
        info = state.info | ({"truncation": late * (1.0 - failed)} if self.truncation else {})
        return SimpleNamespace(pipeline_state=plant, obs=self._obs(plant), reward=reward, done=done, info=info)

    def _obs(self, plant):
        return {"state": plant.obs(), "privileged_state": plant.obs()[:, :1]} if self.groups else plant.obs()


class SkrlWrapper:
    """skrl's wrapper: forwards attributes, and gives rewards and flags a second axis."""

    def __init__(self, env):
        self._env = env

    def __getattr__(self, name):
        return getattr(self._env, name)

    def reset(self, seed=None):
        obs, extras = self._env.reset(seed=seed)
        return obs["policy"], extras

    def step(self, action):
        obs, reward, terminated, truncated, extras = self._env.step(action)
        return obs["policy"], reward.view(-1, 1), terminated.view(-1, 1), truncated.view(-1, 1), extras


class SB3VecEnv:
    """The names that Stable-Baselines3's VecEnv has."""

    num_envs = 2

    def __init__(self, env=None):
        self.env = env

    @property
    def unwrapped(self):
        return self if self.env is None else self.env

    def reset(self):
        return np.zeros((2, 3), np.float32)

    def step_async(self, actions):
        self.actions = actions

    def step_wait(self):
        return np.zeros((2, 3), np.float32), np.zeros(2), np.zeros(2, bool), [{}, {}]

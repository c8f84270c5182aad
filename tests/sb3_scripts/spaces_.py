import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import SimpleMultiObsEnv


class Switches(gym.Env):
    def __init__(self, action_space):
        self.observation_space = spaces.Box(-1, 1, (3,), np.float32)
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.t += 1
        return self.observation_space.sample(), 1.0, False, self.t == 8, {"is_success": True}


kwargs = dict(n_steps=32, batch_size=32, n_epochs=1)
for action_space in (spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(4), spaces.Box(-2, 3, (2, 2))):
    model = PPO("MlpPolicy", Switches(action_space), **kwargs).learn(64)
    action, _ = model.predict(np.zeros(3, dtype=np.float32))
    assert action.shape == action_space.shape
    assert model.ep_success_buffer[-1]
    assert len(model.ep_info_buffer) == 8

vec_env = make_vec_env(lambda: SimpleMultiObsEnv(random_start=False), n_envs=2)
model = PPO("MultiInputPolicy", vec_env, **kwargs).learn(64)
obs = vec_env.reset()
actions, _ = model.predict(obs, deterministic=True)
assert actions.shape == (2,)
one, _ = model.predict({key: value[0] for key, value in obs.items()}, deterministic=True)
assert one == actions[0]
try:
    PPO("MlpPolicy", vec_env)
except ValueError as error:
    assert "MultiInputPolicy" in str(error)
else:
    raise AssertionError("MlpPolicy took a Dict")

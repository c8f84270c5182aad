import gymnasium as gym
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.results_plotter import ts2xy
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv


def make_env(env_id, rank, seed=0):
    def _init():
        env = gym.make(env_id, render_mode="rgb_array")
        env.reset(seed=seed + rank)
        return env

    set_random_seed(seed)
    return _init


vec_env = make_vec_env("CartPole-v1", n_envs=3, seed=0, monitor_dir="logs")
model = PPO("MlpPolicy", vec_env, n_steps=64, batch_size=48, n_epochs=1, seed=0)
model.learn(total_timesteps=500)
assert model.n_envs == 3
assert model.num_timesteps == 576
x, y = ts2xy(load_results("logs"), "timesteps")
assert len(x) == len(y) > 3
assert model.ep_info_buffer[-1]["r"] == y[-1]

model.set_env(DummyVecEnv([make_env("CartPole-v1", i) for i in range(3)]))
model.learn(total_timesteps=192, reset_num_timesteps=False)
assert model.num_timesteps == 768

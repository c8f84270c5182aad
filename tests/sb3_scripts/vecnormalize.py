import os

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

vec_env = make_vec_env("Pendulum-v1", n_envs=2, seed=1)
vec_env = VecNormalize(vec_env, norm_obs=True, norm_reward=True, clip_obs=10.0)
eval_env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=1), training=False, norm_reward=False)

model = PPO("MlpPolicy", vec_env, n_steps=110, batch_size=55, n_epochs=1, seed=1)
model.learn(
    total_timesteps=440,
    callback=[
        EvalCallback(eval_env, eval_freq=150, n_eval_episodes=1),
        CheckpointCallback(200, ".", save_vecnormalize=True),
    ],
)
assert model.get_vec_normalize_env() is vec_env
assert model.get_env() is vec_env
assert np.allclose(vec_env.obs_rms.mean, eval_env.obs_rms.mean, atol=0.2)
assert os.path.exists("rl_model_vecnormalize_400_steps.pkl")
returns = [info["r"] for info in model.ep_info_buffer]
assert len(returns) == 2
assert all(-2000 < r < -100 for r in returns)  # the Monitor's, not the normalized ones

model.save("ppo_pendulum")
vec_env.save("vec_normalize.pkl")
del model, vec_env

vec_env = VecNormalize.load("vec_normalize.pkl", make_vec_env("Pendulum-v1", n_envs=2))
vec_env.training = False
vec_env.norm_reward = False
model = PPO.load("ppo_pendulum", env=vec_env)
obs = vec_env.reset()
action, _ = model.predict(obs)
obs, reward, dones, infos = vec_env.step(action)
assert np.abs(action).max() <= 2.0

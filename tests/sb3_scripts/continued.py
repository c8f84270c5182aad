import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.ppo import MlpPolicy

vec_env = make_vec_env("CartPole-v1", n_envs=2, seed=0)
model = PPO(MlpPolicy, vec_env, n_steps=32, batch_size=32, n_epochs=2, policy_kwargs=dict(net_arch=[16]), seed=0)
model.learn(64)
model.save("ppo_cartpole")
params = model.get_parameters()
obs = vec_env.reset()
expected, _ = model.predict(obs, deterministic=True)
del model

model = PPO.load("ppo_cartpole", env=vec_env, learning_rate=1e-4, custom_objects={"clip_range": 0.1})
assert (model.predict(obs, deterministic=True)[0] == expected).all()
assert model.learning_rate == 1e-4
assert model.clip_range(1.0) == 0.1
model.learn(64, reset_num_timesteps=False)
assert model.num_timesteps == 128
model.set_parameters(params)
for name, tensor in model.get_parameters()["policy"].items():
    assert th.equal(tensor, params["policy"][name])
model.set_parameters("ppo_cartpole.zip", exact_match=True)
model.set_random_seed(3)

obs_tensor, vectorized = model.policy.obs_to_tensor(obs)
assert vectorized
actions, values, log_prob = model.policy(obs_tensor)
values_again, log_prob_again, entropy = model.policy.evaluate_actions(obs_tensor, actions)
assert th.allclose(values, values_again)
assert th.allclose(log_prob, log_prob_again)
assert values.shape == (2, 1)
distribution = model.policy.get_distribution(obs_tensor)
probs = distribution.distribution.probs
assert th.allclose(entropy, -(probs * probs.log()).sum(-1))
assert th.allclose(distribution.log_prob(actions), log_prob)
assert (distribution.mode() == probs.argmax(-1)).all()
assert np.allclose(model.policy.predict_values(obs_tensor).detach(), values.detach())

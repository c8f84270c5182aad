from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy

model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=32, n_epochs=2, verbose=1)
model.learn(total_timesteps=128, log_interval=1)

vec_env = model.get_env()
obs = vec_env.reset()
for _ in range(20):
    action, _states = model.predict(obs, deterministic=True)
    obs, rewards, dones, infos = vec_env.step(action)
assert obs.shape == (1, 4)
assert rewards.shape == dones.shape == (1,)
assert len(infos) == 1

mean_reward, std_reward = evaluate_policy(model, model.get_env(), n_eval_episodes=3)
assert mean_reward > 0

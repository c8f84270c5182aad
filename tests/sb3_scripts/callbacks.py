import gymnasium as gym
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor


class CustomCallback(BaseCallback):
    def __init__(self, verbose=0):
        super().__init__(verbose)
        self.order = []
        self.rewards = []

    def _on_training_start(self):
        self.order.append("start")
        assert self.locals["total_timesteps"] == 1000
        assert self.training_env.num_envs == 1

    def _on_rollout_start(self):
        self.order.append("rollout")

    def _on_step(self):
        assert self.num_timesteps == self.n_calls == self.model.num_timesteps
        assert self.locals["new_obs"].shape == (1, 4)
        assert self.locals["obs_tensor"].shape == (1, 4)
        assert self.locals["actions"].shape == self.locals["clipped_actions"].shape == (1,)
        assert self.locals["values"].shape == (1, 1)
        assert self.locals["log_probs"].shape == (1,)
        assert self.locals["self"] is self.model
        self.rewards.append(self.locals["rewards"][0])
        if self.locals["dones"][0]:
            info = self.locals["infos"][0]
            assert info["terminal_observation"].shape == (4,)
            assert info["TimeLimit.truncated"] is False
            assert info["episode"]["r"] == info["episode"]["l"]
        self.logger.record("custom/reward", float(np.mean(self.rewards)))
        return True

    def _on_rollout_end(self):
        self.order.append("end of rollout")
        assert self.locals["rollout_buffer"].rewards.shape == (64, 1)

    def _on_training_end(self):
        self.order.append("end")


kwargs = dict(n_steps=64, batch_size=32, n_epochs=1, seed=0)
eval_env = Monitor(gym.make("CartPole-v1"))
stop = StopTrainingOnRewardThreshold(reward_threshold=1, verbose=1)
custom = CustomCallback()
model = PPO("MlpPolicy", "CartPole-v1", **kwargs)
model.learn(
    1000,
    callback=CallbackList(
        [
            custom,
            CheckpointCallback(save_freq=50, save_path="./logs/", name_prefix="rl_model"),
            EvalCallback(
                eval_env,
                callback_on_new_best=stop,
                best_model_save_path="./logs/best",
                log_path="./logs/results",
                eval_freq=100,
                n_eval_episodes=3,
                deterministic=True,
            ),
        ]
    ),
)
assert model.num_timesteps == 100
assert custom.order == ["start", "rollout", "end of rollout", "rollout", "end"]
assert custom.rewards == [1.0] * 100
found = np.load("logs/results/evaluations.npz")
assert found["timesteps"].tolist() == [100]
assert found["results"].shape == found["ep_lengths"].shape == (1, 3)
for path in ("logs/rl_model_50_steps", "logs/rl_model_100_steps.zip", "logs/best/best_model"):
    again = PPO.load(path)
assert again.num_timesteps == 100
obs = np.zeros(4, dtype=np.float32)
assert again.predict(obs, deterministic=True)[0] == model.predict(obs, deterministic=True)[0]

seen = []
every = EveryNTimesteps(n_steps=40, callback=CheckpointCallback(1, "./logs/every"))
model = PPO("MlpPolicy", make_vec_env("CartPole-v1", n_envs=2), **kwargs)
model.learn(200, callback=[every, StopTrainingOnMaxEpisodes(max_episodes=4)])
assert model.num_timesteps < 384
assert model.num_timesteps % 2 == 0


def function(locals_, globals_):
    seen.append(locals_["self"].num_timesteps)
    return len(seen) < 10


model.learn(200, callback=function)
assert seen == list(range(2, 22, 2))

from collections.abc import Callable

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback


def linear_schedule(initial_value: float) -> Callable[[float], float]:
    def func(progress_remaining: float) -> float:
        return progress_remaining * initial_value

    return func


class Watch(BaseCallback):
    def __init__(self):
        super().__init__()
        self.rates = []
        self.clips = []

    def _on_step(self):
        return True

    def _on_rollout_start(self):
        values = self.model.logger.name_to_value
        if "train/learning_rate" in values:
            self.rates.append(round(values["train/learning_rate"], 6))
            self.clips.append(round(values["train/clip_range"], 6))


watch = Watch()
model = PPO(
    "MlpPolicy",
    "CartPole-v1",
    learning_rate=linear_schedule(0.001),
    clip_range=linear_schedule(0.2),
    clip_range_vf=0.5,
    n_steps=50,
    batch_size=50,
    n_epochs=1,
)
model.learn(total_timesteps=250, callback=watch)
assert watch.rates == [0.0008, 0.0006, 0.0004, 0.0002]
assert watch.clips == [0.16, 0.12, 0.08, 0.04]
assert model.lr_schedule(0.5) == 0.0005
assert model.clip_range(0.5) == 0.1

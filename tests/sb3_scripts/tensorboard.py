import os

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HParam, TensorBoardOutputFormat, configure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


class HParamCallback(BaseCallback):
    def _on_training_start(self):
        hparam_dict = {"algorithm": self.model.__class__.__name__, "learning rate": self.model.learning_rate}
        metric_dict = {"rollout/ep_len_mean": 0.0, "train/value_loss": 0.0}
        self.logger.record("hparams", HParam(hparam_dict, metric_dict), exclude=("stdout", "log", "json", "csv"))
        formats = self.logger.output_formats
        self.formatter = next(one for one in formats if isinstance(one, TensorBoardOutputFormat))

    def _on_step(self):
        self.logger.record_mean("custom/value", self.num_timesteps)
        if self.n_calls == 1:
            self.formatter.writer.add_text("direct", "a text", self.num_timesteps)
        return True


kwargs = dict(n_steps=64, batch_size=32, n_epochs=2, seed=0)
model = PPO("MlpPolicy", "CartPole-v1", tensorboard_log="./tb/", **kwargs)
model.learn(total_timesteps=128, tb_log_name="first_run", callback=HParamCallback())
model.learn(total_timesteps=64, tb_log_name="first_run", reset_num_timesteps=False)
model.learn(total_timesteps=64, tb_log_name="first_run")
assert sorted(os.listdir("tb")) == ["first_run_1", "first_run_2"]
events = EventAccumulator("tb/first_run_1").Reload()
tags = set(events.Tags()["scalars"])
assert {"rollout/ep_rew_mean", "time/fps", "train/loss", "train/clip_fraction", "custom/value"} <= tags
assert "time/iterations" not in tags
assert [event.step for event in events.Scalars("rollout/ep_rew_mean")] == [64, 128, 192]
assert events.Scalars("custom/value")[0].value == 32.5

new_logger = configure("./sb3_log", ["stdout", "csv", "json", "tensorboard"])
model = PPO("MlpPolicy", "CartPole-v1", **kwargs)
model.set_logger(new_logger)
model.learn(128)
assert model.logger is new_logger
with open("sb3_log/progress.csv") as file:
    rows = file.read().splitlines()
assert "train/policy_gradient_loss" in rows[0].split(",")
assert len(rows) == 3

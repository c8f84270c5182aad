import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn


class CustomCNN(BaseFeaturesExtractor):
    def __init__(self, observation_space: spaces.Box, features_dim: int = 256):
        super().__init__(observation_space, features_dim)
        n_input_channels = observation_space.shape[0]
        assert n_input_channels == 3
        self.cnn = nn.Sequential(nn.Conv2d(n_input_channels, 4, 3, stride=2), nn.ReLU(), nn.Flatten())
        with th.no_grad():
            n_flatten = self.cnn(th.as_tensor(observation_space.sample()[None]).float()).shape[1]
        self.linear = nn.Sequential(nn.Linear(n_flatten, features_dim), nn.ReLU())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        assert observations.max() <= 1.0
        return self.linear(self.cnn(observations))


class Pictures(gym.Env):
    observation_space = spaces.Box(0, 255, (12, 10, 3), np.uint8)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.t += 1
        return self.observation_space.sample(), float(action), False, self.t == 10, {}


policy_kwargs = dict(
    features_extractor_class=CustomCNN,
    features_extractor_kwargs=dict(features_dim=16),
    net_arch=dict(pi=[8], vf=[8]),
    activation_fn=nn.ReLU,
)
model = PPO("CnnPolicy", Pictures(), policy_kwargs=policy_kwargs, n_steps=64, batch_size=32, n_epochs=1, seed=0)
weight = next(p for p in model.policy.parameters() if p.shape == (4, 3, 3, 3)).detach().clone()
model.learn(64)
changed = next(p for p in model.policy.parameters() if p.shape == (4, 3, 3, 3))
assert not th.equal(weight, changed)
obs, _ = Pictures().reset()
action, _ = model.predict(obs, deterministic=True)
batch, _ = model.predict(np.stack([obs, obs]), deterministic=True)
assert action == batch[0] == batch[1]
model.save("pictures")

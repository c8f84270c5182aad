"""Run an exported plan without ctrlrl and torch: python examples/deploy_chunks_onnx.py policy.onnx HalfCheetah-v5"""

import sys
from collections import deque

import gymnasium as gym
import numpy as np
import onnxruntime

policy = onnxruntime.InferenceSession(sys.argv[1])
about = policy.get_modelmeta().custom_metadata_map
shapes = {i.name: i.shape[1:] for i in policy.get_inputs()}
names = [name for name in shapes if name not in ("noise", "draws")]
env, random = gym.make(sys.argv[2]), np.random.default_rng(0)
(obs, _), total, over = env.reset(seed=0), 0.0, False
history = deque([obs] * int(about["n_obs_steps"]), maxlen=int(about["n_obs_steps"]))
queue: deque = deque()
while not over:
    if not queue:
        feed = {n: np.stack([o[n] if isinstance(o, dict) else o for o in history])[None] for n in names}
        feed |= {n: random.standard_normal((1, *s), np.float32) for n, s in shapes.items() if n not in names}
        queue.extend(policy.run(None, feed)[0][0])
    obs, reward, terminated, truncated, _ = env.step(queue.popleft())
    history.append(obs)
    total, over = total + float(reward), terminated or truncated
print(f"return {total:.1f}")

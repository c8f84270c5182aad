"""Run an exported policy without ctrlrl and torch: python examples/deploy_onnx.py policy.onnx HalfCheetah-v5"""

import sys

import gymnasium as gym
import onnxruntime

policy = onnxruntime.InferenceSession(sys.argv[1])
names = [i.name for i in policy.get_inputs()]
env = gym.make(sys.argv[2])
(obs, _), total, over = env.reset(seed=0), 0.0, False
while not over:
    feed = {name: (obs[name] if isinstance(obs, dict) else obs)[None] for name in names}  # a batch of one
    action = policy.run(None, feed)[0][0]
    obs, reward, terminated, truncated, _ = env.step(action)
    total, over = total + float(reward), terminated or truncated
print(f"return {total:.1f}")

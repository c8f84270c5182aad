"""The SB3-style face: PPO("MlpPolicy", env).learn(n), predict, save, load. `build` does the work for both faces."""

"""The other side: Stable-Baselines3 with rl-baselines3-zoo's tuned settings, rsl_rl, Gymnasium, raw MuJoCo.

The settings are theirs and stay as they are; the source of each stands beside it.
"""

from __future__ import annotations

import contextlib
import io
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from ctrlrl.bench.ours import EVAL_EPISODES, Clock, Deciding
from ctrlrl.bench.rows import Lap, rate
from ctrlrl.config import EnvConfig
from ctrlrl.envs.spec import action_codec
from ctrlrl.registry import GYMNASIUM_IDS, ROBOTS
from ctrlrl.tasks import make_env
from ctrlrl.train.evaluate import evaluate
from ctrlrl.types import VecEnv

# rl-baselines3-zoo, hyperparams/ppo.yml; `lin` = linear schedule to 0. HalfCheetah's entry is of the v4 id.
ZOO_PPO: dict[str, dict[str, Any]] = {
    "cartpole": {
        "n_envs": 8, "total": 100_000, "n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98,
        "n_epochs": 20, "ent_coef": 0.0, "learning_rate": ("lin", 1e-3), "clip_range": ("lin", 0.2),
    },
    "pendulum": {
        "n_envs": 4, "total": 100_000, "n_steps": 1024, "gae_lambda": 0.95, "gamma": 0.9, "n_epochs": 10,
        "ent_coef": 0.0, "learning_rate": 1e-3, "clip_range": 0.2, "use_sde": True, "sde_sample_freq": 4,
    },
    "halfcheetah": {
        "n_envs": 1, "total": 1_000_000, "normalize": True, "n_steps": 512, "batch_size": 64, "gamma": 0.98,
        "learning_rate": 2.0633e-05, "ent_coef": 0.000401762, "clip_range": 0.1, "n_epochs": 20, "gae_lambda": 0.92,
        "max_grad_norm": 0.8, "vf_coef": 0.58096,
        "policy_kwargs": {"log_std_init": -2, "ortho_init": False, "activation_fn": torch.nn.ReLU,
                          "net_arch": {"pi": [256, 256], "vf": [256, 256]}},
    },
}  # fmt: skip


class SB3:
    """One SB3 PPO and its vector environment, made as its users make them."""

    def __init__(self, env: str, seed: int):
        try:
            from stable_baselines3 import PPO
            from stable_baselines3.common.env_util import make_vec_env
            from stable_baselines3.common.vec_env import VecNormalize
        except ImportError:
            raise ValueError("vs=sb3 needs Stable-Baselines3: pip install 'ctrlrl[sb3]'") from None
        if env not in ZOO_PPO:
            raise ValueError(f"vs=sb3 has tuned settings for {', '.join(ZOO_PPO)}; got env={env}")
        settings = dict(ZOO_PPO[env])
        n_envs, self.total, normalize = settings.pop("n_envs"), settings.pop("total"), settings.pop("normalize", False)
        for name in ("learning_rate", "clip_range"):
            if isinstance(settings[name], tuple):
                settings[name] = linear(settings[name][1])
        venv = make_vec_env(GYMNASIUM_IDS[env], n_envs=n_envs, seed=seed)
        self.normalizer = VecNormalize(venv, gamma=settings["gamma"]) if normalize else None
        self.model = PPO("MlpPolicy", self.normalizer or venv, seed=seed, device="cpu", verbose=0, **settings)

    def act(self, obs: torch.Tensor) -> torch.Tensor:
        """The deterministic action in ctrlrl's units."""
        array = obs.numpy() if self.normalizer is None else self.normalizer.normalize_obs(obs.numpy())
        action, _ = self.model.predict(array, deterministic=True)
        space: Any = self.model.action_space
        if hasattr(space, "n"):
            return torch.from_numpy(action)
        return torch.from_numpy(((action - space.low) / (space.high - space.low) * 2 - 1).astype(np.float32))


def linear(initial: float) -> Any:
    return lambda remaining: remaining * initial


class SB3Training:
    def __init__(self, env: str, seconds: float):
        self.name, self.seconds = f"stable-baselines3 {version('stable-baselines3')}, PPO, zoo settings", seconds
        self.peer = SB3(env, seed=0)
        self.chunk = self.peer.model.n_steps * self.peer.model.n_envs
        self._work()

    def _work(self) -> int:
        before = self.peer.model.num_timesteps
        self.peer.model.learn(self.chunk, reset_num_timesteps=False)
        return self.peer.model.num_timesteps - before

    def lap(self) -> Lap:
        return rate(self._work, self.seconds)


class SB3ToScore:
    """As `ours.ToScore`, by the same two definitions."""

    def __init__(self, env: str, target: float, by: str, eval_seconds: float, seed: int, budget: int):
        self.name = f"stable-baselines3 {version('stable-baselines3')}, PPO, zoo settings"
        self.env, self.target, self.by, self.eval_seconds = env, target, by, eval_seconds
        self.seed, self.budget = seed, budget
        self.history: list[dict[str, float]] = []

    def lap(self) -> Lap:
        from stable_baselines3.common.callbacks import BaseCallback

        clock, target, by, every = Clock(), self.target, self.by, self.eval_seconds
        peer = SB3(self.env, self.seed)
        self.seed += 1
        test_env = make_env(EnvConfig(name=self.env), EVAL_EPISODES, seed=0, stagger=False)

        class Watch(BaseCallback):
            next_look, score = every, float("-inf")

            def look(self) -> None:
                self.score = evaluate(peer.act, test_env, episodes=EVAL_EPISODES, seed=1000).returns.mean().item()

            def _on_rollout_start(self) -> None:
                if by == "training" or self.num_timesteps == 0 or clock.now() < self.next_look:
                    return
                clock.halt()
                self.next_look = clock.wall + every
                self.look()
                clock.go()

            def _on_step(self) -> bool:
                recent = self.model.ep_info_buffer
                if by == "training" and recent is not None and len(recent) == 100 and any(self.locals["dones"]):
                    self.score = float(np.mean([episode["r"] for episode in recent]))
                return self.score < target

        watch = Watch()
        peer.model.learn(self.budget or peer.total, callback=watch)
        clock.halt()
        if by == "evaluation" and watch.score < target:
            watch.look()  # what the last update made of it
        seconds = clock.wall if watch.score >= target else float("inf")
        self.history.append({"seconds": seconds, "env_steps": peer.model.num_timesteps, "score": watch.score})
        return Lap(seconds, clock.wall, clock.cpu)


def sb3_deciding(ours: Any, algo: Any, obs: Any, seconds: float) -> Deciding:
    """SB3's PPO with the spaces and the network of our agent. VecNormalize, which it would need too, is left out."""
    try:
        import gymnasium as gym
        from stable_baselines3 import PPO
    except ImportError:
        raise ValueError("vs=sb3 needs Stable-Baselines3: pip install 'ctrlrl[sb3]'") from None
    activation = {"relu": "ReLU", "silu": "SiLU", "elu": "ELU", "tanh": "Tanh", "gelu": "GELU"}[algo.activation]
    hidden = {"pi": list(algo.hidden), "vf": list(algo.hidden if algo.vf_hidden is None else algo.vf_hidden)}
    kwargs = {"net_arch": hidden, "activation_fn": getattr(torch.nn, activation)}

    class Spaces(gym.Env[Any, Any]):
        observation_space, action_space = ours.observation_space, ours.action_space

    model = PPO("MlpPolicy", Spaces(), policy_kwargs=kwargs, device="cpu", seed=0)
    name = f"stable-baselines3 {version('stable-baselines3')}, PPO, same network, without VecNormalize"
    return Deciding(name, lambda: model.predict(obs, deterministic=True), seconds)


class RslRlTraining:
    """rsl_rl's PPO on ctrlrl's own simulator, with the network and update sizes of our configuration."""

    def __init__(self, env: VecEnv, algo: Any, seconds: float):
        try:
            from rsl_rl.runners import OnPolicyRunner
        except ImportError:
            raise ValueError("vs=rsl_rl needs rsl_rl: pip install 'ctrlrl[rsl]'") from None
        self.name, self.seconds = f"rsl-rl-lib {version('rsl-rl-lib')}, same sizes", seconds
        self.steps = algo.n_steps * env.spec.n_envs
        network = {
            "class_name": "rsl_rl.models.MLPModel", "hidden_dims": list(algo.hidden), "activation": algo.activation,
            "obs_normalization": algo.normalize_obs,
        }  # fmt: skip
        actor = network | {
            "distribution_cfg": {"class_name": "GaussianDistribution", "init_std": 1.0, "std_type": "scalar"}
        }
        config = {
            "num_steps_per_env": algo.n_steps,
            "save_interval": 10**9,
            "obs_groups": {"actor": ["policy"], "critic": ["policy"]},
            "actor": actor, "critic": network, "multi_gpu": None,
            "algorithm": {
                "class_name": "rsl_rl.algorithms.PPO", "num_learning_epochs": algo.n_epochs,
                "num_mini_batches": algo.n_minibatches, "learning_rate": algo.learning_rate, "gamma": algo.gamma,
                "lam": algo.gae_lambda, "entropy_coef": algo.ent_coef, "value_loss_coef": algo.vf_coef,
                "clip_param": algo.clip_range, "max_grad_norm": algo.max_grad_norm, "schedule": "adaptive",
                "desired_kl": algo.desired_kl, "use_clipped_value_loss": algo.clip_range_vf is not None,
            },
        }  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()):
            self.runner = OnPolicyRunner(_RslEnv(env), config, log_dir=None, device=str(env.spec.device))
            self._work()

    def _work(self) -> int:
        with contextlib.redirect_stdout(io.StringIO()):
            self.runner.learn(1)
        return self.steps

    def lap(self) -> Lap:
        return rate(self._work, self.seconds)


class _RslEnv:
    """A ctrlrl VecEnv with rsl_rl's method names."""

    def __init__(self, env: VecEnv):
        from tensordict import TensorDict

        self._env, self._dict = env, TensorDict
        self.num_envs, self.num_actions, self.device = env.spec.n_envs, env.spec.action_dim, env.spec.device
        self.max_episode_length = env.spec.episode_length
        self.cfg: dict[str, Any] = {}
        self.episode_length_buf = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
        self._obs = env.reset(0)

    def get_observations(self) -> Any:
        return self._dict({"policy": self._obs.contiguous()}, batch_size=[self.num_envs])

    def step(self, action: torch.Tensor) -> tuple[Any, torch.Tensor, torch.Tensor, dict[str, Any]]:
        step = self._env.step(action)
        self._obs = step.obs
        done = step.terminated | step.truncated
        return self.get_observations(), step.reward, done.long(), {"time_outs": step.truncated}


PLAIN_CHUNK = 200  # vector steps between two looks at the clock


class PlainStepping:
    """A vector environment stepped as it is, against the same one behind our adapter: what the adapter costs.

    actions: of the adapter, turned into the environment's units beforehand.
    """

    def __init__(self, venv: Any, name: str, actions: list[torch.Tensor], seconds: float):
        self.venv, self.name, self.seconds = venv, name, seconds
        space = venv.single_action_space if hasattr(venv, "single_action_space") else venv.action_space
        codec = action_codec(space, name)
        self.actions = [codec.decode(action) for action in actions]
        venv.reset()
        self._work()

    def _work(self) -> int:
        for i in range(PLAIN_CHUNK):
            self.venv.step(self.actions[i % len(self.actions)])
        return PLAIN_CHUNK * self.venv.num_envs

    def lap(self) -> Lap:
        return rate(self._work, self.seconds)


def plain_gymnasium(gym_id: str, n_envs: int) -> Any:
    """The SyncVectorEnv that GymnasiumEnv makes of an id, in the same autoreset mode."""
    import gymnasium as gym

    mode = gym.vector.AutoresetMode.SAME_STEP
    return gym.make_vec(gym_id, n_envs, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode})


def plain_sb3(gym_id: str, n_envs: int) -> Any:
    """A DummyVecEnv without Monitor."""
    try:
        from stable_baselines3.common.vec_env import DummyVecEnv
    except ImportError:
        raise ValueError("vs=sb3 needs Stable-Baselines3: pip install 'ctrlrl[sb3]'") from None
    import gymnasium as gym

    return DummyVecEnv([lambda: gym.make(gym_id)] * n_envs)


def gymnasium_id(env: str, vs: str) -> str:
    """ValueError for a task that Gymnasium does not have."""
    if env not in GYMNASIUM_IDS:
        raise ValueError(f"vs={vs} needs a task that Gymnasium has too, e.g. env=pendulum, got env={env}")
    return GYMNASIUM_IDS[env]


class GymnasiumStepping:
    """gymnasium.vector.SyncVectorEnv under random actions."""

    def __init__(self, env: str, n_envs: int, seconds: float):
        import gymnasium as gym

        n = min(n_envs, 8)  # its rate does not grow with more
        self.name, self.seconds = f"gymnasium {version('gymnasium')}, SyncVectorEnv of {n}", seconds
        self.env = gym.make_vec(gymnasium_id(env, "gymnasium"), num_envs=n, vectorization_mode="sync")
        self.env.reset(seed=0)
        self.actions = [self.env.action_space.sample() for _ in range(8)]
        self.n = n

    def _work(self) -> int:
        for i in range(200):
            self.env.step(self.actions[i % 8])
        return 200 * self.n

    def lap(self) -> Lap:
        return rate(self._work, self.seconds)


class RawMujoco:
    """mj_step on one core, times the number of threads: what physics alone could do. For tasks that never terminate."""

    def __init__(self, env: str, threads: int, seconds: float):
        if env not in ROBOTS:
            raise ValueError(f"vs=mj_step needs a task of MuJoCo, e.g. env=halfcheetah, got env={env}")
        import gymnasium as gym
        import mujoco

        task: Any = gym.make(GYMNASIUM_IDS[env]).unwrapped
        self.model, self.skip, self.threads, self.seconds = task.model, task.frame_skip, threads, seconds
        self.name = f"mujoco {version('mujoco')}, mj_step on one core x {threads}"
        self.step, self.reset = mujoco.mj_step, mujoco.mj_resetData
        self.worlds = [mujoco.MjData(self.model) for _ in range(16)]
        self.controls = np.random.default_rng(0).uniform(-1, 1, (64, self.model.nu))
        self.count = 0

    def _work(self) -> int:
        for _ in range(64):
            self.count += 1
            for i, world in enumerate(self.worlds):
                if self.count % 1000 == 0:
                    self.reset(self.model, world)
                world.ctrl[:] = self.controls[(self.count + i) % 64]
                self.step(self.model, world, nstep=self.skip)
        return 64 * len(self.worlds)

    def lap(self) -> Lap:
        lap = rate(self._work, self.seconds)
        return lap._replace(value=lap.value * self.threads)

"""The protocol of the published reference runs: data, settings, both sides of a comparison, and what is measured.

Batch 256, indices uniform with replacement over all rows, states standardised with the file's own statistics, raw
rewards (IQL: times 1000 / (max - min episode return)). Of the authors' side only loading and evaluation are ours.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections import deque
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch

from ctrlrl.bench.offline_ours import SHARED
from ctrlrl.bench.offline_peers import Columns, Peer
from ctrlrl.loops import training_loop
from ctrlrl.settings import train_config, typed
from ctrlrl.train.off_policy import CHUNK

QUARTERS = (12_500, 25_000, 37_500, 50_000)
POINTS = {
    "iql": QUARTERS,
    "td3bc": QUARTERS,
    "prdc": (5_000, 10_000, 15_000, 20_000, 23_450),
    "a2pr": (1_000, 2_000, 3_000, 4_000, 5_000, 5_900),
}
REPOSITORY = {"iql": "corl", "td3bc": "corl", "prdc": "prdc", "a2pr": "a2pr"}
SCORES = {
    "Hopper-v4": (-20.272305, 3234.3),
    "HalfCheetah-v4": (-280.178953, 12135.0),
    "Walker2d-v4": (1.629008, 4592.3),
}
AVERAGED, ROWS, EPISODES, FIRST_SEED = 500, 20_000, 10, 100


class Side(Protocol):
    name: str

    def advance(self, n: int) -> dict[str, float]: ...  # n updates; the averaged losses at their end
    def policy(self, obs: np.ndarray) -> torch.Tensor: ...
    def q(self, obs: np.ndarray, action: torch.Tensor) -> torch.Tensor: ...
    def act(self, obs: np.ndarray) -> np.ndarray: ...


def settings(algo: str, data: str) -> dict[str, Any]:
    """Of the authors' configuration or README for a file, in the words of `ctrlrl.bench.offline_peers.DEFAULTS`."""
    task = data.partition("-")[0]
    if algo == "iql":
        policy = {"deterministic": True, "tau": 0.001} if task == "hopper" else {"deterministic": False, "tau": 0.005}
        return policy | {"max_steps": POINTS["iql"][-1]}
    alpha = 40.0 if task == "halfcheetah" and algo != "td3bc" else 2.5
    if algo == "a2pr":
        own = {"hopper": {"mask": 0.4, "discount": 0.995}, "walker2d": {"mask": 1.0, "vae_weight": 1.5}}
        return {"alpha": alpha, **own.get(task, {"mask": 1.0})}
    return {"alpha": alpha}


def load(path: Path, algo: str) -> tuple[Columns, str]:
    """All rows of a rollout file, next observations from inside the episode or its true end; the Gymnasium id."""
    file = np.load(path)
    obs, ends = file["observations"], file["episode_ends"]
    following = np.concatenate((obs[1:], obs[-1:]))
    following[ends - 1] = file["final_observations"]
    rewards = file["rewards"]
    if algo == "iql":
        rewards = rewards * reward_scale(rewards, ends)
    columns = {
        "observations": obs, "actions": file["actions"], "rewards": rewards, "next_observations": following,
        "terminals": file["terminals"],
    }  # fmt: skip
    return {name: np.asarray(column, dtype=np.float32) for name, column in columns.items()}, str(file["env_id"])


def reward_scale(rewards: np.ndarray, ends: np.ndarray) -> float:
    returns = np.add.reduceat(rewards.astype(np.float64), np.concatenate(([0], ends[:-1])))
    return 1000.0 / (returns.max() - returns.min())


class PeerSide(Peer):
    def __init__(self, *words: Any, **settings: Any):
        super().__init__(*words, **settings)
        self.recent: deque[dict[str, float]] = deque(maxlen=AVERAGED)
        self.updates = 0

    def advance(self, n: int) -> dict[str, float]:
        for _ in range(n):
            logged = self.update()
            self.updates += 1
            if self.updates % 2 == 0:
                self.recent.append({name: float(value) for name, value in logged.items()})
        return {name: statistics.fmean(row[name] for row in self.recent) for name in self.recent[-1]}


OURS = {  # what makes ours the authors' code, where the default is the paper's
    "iql": [
        "algo.joint=true",
        "algo.init=torch",
        "algo.log_std_min=-20",
        "algo.normalize_obs=true",
        "data.return_range=true",
    ],
    "td3bc": [],
    "prdc": [],
    "a2pr": [],
}
LOSSES = {  # the authors' name -> ours and a factor: CORL halves IQL's critic loss
    "iql": {"value_loss": ("loss/value", 1.0), "q_loss": ("loss/critic", 0.5), "actor_loss": ("loss/policy", 1.0)},
    "td3bc": {"critic_loss": ("loss/critic", 1.0), "actor_loss": ("loss/policy", 1.0)},
    "prdc": {
        "critic_loss": ("loss/critic", 1.0),
        "dc_loss": ("loss/constraint", 1.0),
        "combined_loss": ("loss/policy", 1.0),
    },
    "a2pr": {
        "critic_loss": ("loss/critic", 1.0),
        "vae_loss": ("loss/vae", 1.0),
        "recon_loss": ("loss/reconstruction", 1.0),
        "KL_loss": ("loss/kl", 1.0),
        "bc_loss": ("loss/pull", 1.0),
        "combined_loss": ("loss/policy", 1.0),
    },
}


class OursSide:
    """Losses are averaged over the last 1,000 updates: the loop keeps means over its chunks."""

    name = "ctrlrl"

    def __init__(self, algo: str, path: Path, env_id: str, seed: int, dtype: str):
        own = {name: value for name, value in settings(algo, path.stem).items() if name != "max_steps"}
        words = [f"algo={algo}", "data=file", f"data.path={path}", f"env={env_id.lower()}", f"seed={seed}"]
        words += ["experiment=none", "device=cpu", f"dtype={dtype}", f"gradient_steps={POINTS[algo][-1]}", *OURS[algo]]
        words += [f"algo.{SHARED[name]}={str(value).lower()}" for name, value in own.items()]
        self.loop: Any = training_loop(typed(train_config(words)))
        self.algo, self.learner, self.recent = algo, self.loop.learner, deque(maxlen=2 * AVERAGED // CHUNK)

    def advance(self, n: int) -> dict[str, float]:
        end = self.loop.gradient_steps + n
        while self.loop.gradient_steps < end:
            self.recent.append({name: value.item() for name, value in self.loop.iterate().items()})
        return {
            name: factor * statistics.fmean(chunk[ours] for chunk in self.recent)
            for name, (ours, factor) in LOSSES[self.algo].items()
        }

    def policy(self, obs: np.ndarray) -> torch.Tensor:
        return self.learner.act(torch.from_numpy(obs), deterministic=True).action

    @torch.no_grad()
    def q(self, obs: np.ndarray, action: torch.Tensor) -> torch.Tensor:
        nets = self.learner.nets
        with self.learner.precision():
            return nets.critic(nets.normalizer(torch.from_numpy(obs)), action).amin(0)

    def act(self, obs: np.ndarray) -> np.ndarray:
        one = torch.as_tensor(obs[None], dtype=torch.float32)
        return self.learner.act(one, deterministic=True).action[0].numpy()


def measure(side: Side, columns: Columns, env_id: str) -> dict[str, Any]:
    n = len(columns["rewards"])
    fixed = np.sort(np.random.default_rng(0).choice(n, min(ROWS, n), replace=False))
    obs, action = columns["observations"][fixed], torch.from_numpy(columns["actions"][fixed])
    policy = side.policy(obs)
    returns, lengths = episodes(side, env_id)
    low, high = SCORES.get(env_id, (math.nan, math.nan))
    return {
        "q_data": side.q(obs, action).mean().item(),
        "q_policy": side.q(obs, policy).mean().item(),
        "action_mse": (policy - action).square().mean().item(),
        "return_mean": float(np.mean(returns)),
        "return_std": float(np.std(returns)),
        "score": float(100.0 * (np.mean(returns) - low) / (high - low)),
        "length_mean": float(np.mean(lengths)),
        "returns": returns,
    }


def episodes(side: Side, env_id: str) -> tuple[list[float], list[int]]:
    """Undiscounted returns and lengths, one episode after another as the reference runs did."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the -v4 rules are what the files were made with
        env = gym.make(env_id)
    returns, lengths = [], []
    for k in range(EPISODES):
        obs, _ = env.reset(seed=FIRST_SEED + k)
        total, length, over = 0.0, 0, False
        while not over:
            obs, reward, terminated, truncated, _ = env.step(side.act(obs))
            total, length, over = total + float(reward), length + 1, terminated or truncated
        returns.append(total)
        lengths.append(length)
    env.close()
    return returns, lengths

"""Published returns to read ours against, each with its source. Rules and budgets differ."""

from __future__ import annotations

import re
from typing import NamedTuple

from ctrlrl.report.results import Result, is_offline


class Published(NamedTuple):
    """One number of the literature."""

    algo: str
    task: str  # as the source names it
    value: float  # mean undiscounted return
    std: float | None  # over the episodes of one evaluation, where the source gives them
    env_steps: int | None
    source: str  # key of SOURCES
    note: str = ""


SOURCES = {
    "SB3 zoo": "DLR-RM/rl-trained-agents @ cd35bde610f4045bf2e0731c8f4c88d22df8fc85, evaluations.npz: last "
    "evaluation of one trained agent, mean and standard deviation over its episodes; MuJoCo v3 rules",
    "BPO paper": "Ao et al., Bounded Ratio Reinforcement Learning, arXiv:2604.18578: final value, mean over seeds, "
    "read off the released figures to about 3 %; MuJoCo v4 rules",
}

# algo, task, mean, std, environment steps, episodes
_SB3_ZOO = (
    ("ppo", "Ant-v3", 1251.9, 426.5, 1_000_000, 20),
    ("ppo", "BipedalWalker-v3", 272.0, 95.1, 5_010_000, 10),
    ("ppo", "HalfCheetah-v3", 5728.1, 712.0, 1_000_000, 20),
    ("ppo", "Hopper-v3", 2334.9, 13.6, 1_000_000, 20),
    ("ppo", "LunarLanderContinuous-v2", 274.2, 20.2, 1_010_000, 10),
    ("ppo", "MountainCarContinuous-v0", 86.7, 3.1, 20_000, 10),
    ("ppo", "Pendulum-v1", -165.7, 99.4, 100_000, 20),
    ("ppo", "Swimmer-v3", 263.9, 5.9, 1_000_000, 20),
    ("ppo", "Walker2d-v3", 2580.7, 1559.7, 1_000_000, 20),
    ("sac", "Ant-v3", 4839.1, 707.4, 1_000_000, 20),
    ("sac", "BipedalWalker-v3", 297.2, 1.4, 500_000, 10),
    ("sac", "HalfCheetah-v3", 9537.0, 81.5, 1_000_000, 20),
    ("sac", "Hopper-v3", 2279.0, 1097.6, 1_000_000, 20),
    ("sac", "Humanoid-v3", 6246.7, 20.8, 2_000_000, 20),
    ("sac", "LunarLanderContinuous-v2", 279.6, 22.2, 170_000, 10),
    ("sac", "MountainCarContinuous-v0", 94.8, 1.0, 50_000, 10),
    ("sac", "Pendulum-v1", -98.0, 88.3, 20_000, 5),
    ("sac", "Swimmer-v3", 345.8, 3.3, 1_000_000, 20),
    ("sac", "Walker2d-v3", 3913.9, 59.2, 1_000_000, 20),
    ("td3", "Ant-v3", 5945.3, 80.6, 1_000_000, 20),
    ("td3", "BipedalWalker-v3", 320.1, 0.6, 1_000_000, 10),
    ("td3", "HalfCheetah-v3", 10384.7, 1477.4, 1_000_000, 20),
    ("td3", "Hopper-v3", 3606.8, 3.8, 1_000_000, 20),
    ("td3", "Humanoid-v3", 5567.9, 11.9, 2_000_000, 20),
    ("td3", "LunarLanderContinuous-v2", 211.2, 75.6, 300_000, 10),
    ("td3", "MountainCarContinuous-v0", 93.5, 0.1, 300_000, 10),
    ("td3", "Pendulum-v1", -164.2, 61.2, 20_000, 10),
    ("td3", "Swimmer-v3", 360.3, 0.5, 1_000_000, 5),
    ("td3", "Walker2d-v3", 4006.4, 1294.5, 1_000_000, 20),
)

# task, BPO, PPO, environment steps plotted
_BPO_PAPER = (
    ("Swimmer-v4", 356.0, 362.0, 20_000_000, ""),
    ("Hopper-v4", 3520.0, 2400.0, 20_000_000, ""),
    ("Ant-v4", 5000.0, 4200.0, 20_000_000, "BPO peaks at 5250"),
    ("Humanoid-v4", 1700.0, 720.0, 35_000_000, ""),
)

PUBLISHED: tuple[Published, ...] = (
    *(Published(a, task, m, s, n, "SB3 zoo", f"{k} episodes") for a, task, m, s, n, k in _SB3_ZOO),
    *(Published("bpo", task, bpo, None, n, "BPO paper", note) for task, bpo, _, n, note in _BPO_PAPER),
    *(Published("ppo", task, ppo, None, n, "BPO paper") for task, _, ppo, n, _ in _BPO_PAPER),
)


def task_key(env: str) -> str:
    """One key for "halfcheetah", "halfcheetah-v4", "HalfCheetah-v5" and "ns/HalfCheetah-v3"."""
    return re.sub(r"-v\d+$", "", env.rpartition("/")[2]).replace("_", "").lower()


def published(algo: str, env: str) -> list[Published]:
    """What the literature reports for this algorithm on this task, under whichever version of its rules."""
    return [p for p in PUBLISHED if p.algo == algo.lower() and task_key(p.task) == task_key(env)]


def published_beside(r: Result) -> list[Published]:
    """What may stand beside a result: nothing where it learned from a data set or the robot's dynamics were changed."""
    return [] if is_offline(r) or r.get("dynamics") else published(str(r["algo"]), str(r["env"]))

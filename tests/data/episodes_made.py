"""A small clean data set to start from: random walks that begin anew far away, some terminated, some timed out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ctrlrl.data.episodes import Episodes, Facts

LENGTHS = (10, 6, 10, 3, 10, 8)  # 10 is the time limit, the others terminate


def made(lengths: Sequence[int] = LENGTHS, *, limit: int = 10, seed: int = 0, **changes: Any) -> Episodes:
    rng = np.random.default_rng(seed)
    n, e = sum(lengths), len(lengths)
    ends = np.cumsum(lengths).astype(np.int64)
    walks = [10.0 * rng.normal(size=3) + np.cumsum(0.1 * rng.normal(size=(k + 1, 3)), 0) for k in lengths]
    terminated = np.zeros(n, dtype=bool)
    terminated[ends - 1] = np.array(lengths) < limit
    fields: dict[str, Any] = {
        "obs": np.concatenate([w[:-1] for w in walks]).astype(np.float32),
        "action": rng.uniform(-1, 1, (n, 2)).astype(np.float32),
        "reward": rng.normal(size=n).astype(np.float32),
        "terminated": terminated,
        "ends": ends,
        "final_obs": np.stack([w[-1] for w in walks]).astype(np.float32),
        "has_final": np.ones(e, dtype=bool),
        "usable": np.ones(n, dtype=bool),
        "extras": {},
        "episode_extras": {},
        "facts": Facts(format="rollouts", path="made.npz"),
    }
    return Episodes(**fields | changes)

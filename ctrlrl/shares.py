"""What each of several ranks has of a run: its environments, its rows of a batch, its device and random numbers."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ctrlrl.config import TrainConfig
from ctrlrl.core.learner import Learner
from ctrlrl.core.ranks import Ranks


def share(cfg: TrainConfig, ranks: Ranks, *, cuda: bool) -> TrainConfig:
    """The configuration of one rank; ValueError where the run cannot be divided evenly.

    cuda: whether it computes on GPUs, of which each rank of a host then gets one.
    """
    n = ranks.size
    if n == 1:
        return cfg
    if cfg.seeds > 1:
        raise ValueError(f"seeds={cfg.seeds}: several processes train one seed together. Use seeds=1.")
    if cfg.compile == "graph":
        raise ValueError(f"compile=graph is for one process, here are {n}. Use compile=compile or compile=eager.")
    algo: Any = cfg.algo
    if why := getattr(algo, "one_process", ""):
        raise ValueError(f"{why}: it trains in one process, here are {n}")
    own: dict[str, Any] = {}
    if hasattr(algo, "batch_size"):  # of a learner of a data set
        algo = replace(algo, batch_size=_part("algo.batch_size", algo.batch_size, n))
    else:
        own["n_envs"] = _part("n_envs", cfg.n_envs, n)
        algo = algo.for_envs(cfg.n_envs) if hasattr(algo, "for_envs") else algo
        if getattr(algo, "minibatch_size", None) is not None:
            algo = replace(algo, minibatch_size=_part("algo.minibatch_size", algo.minibatch_size, n))
    if cuda and cfg.compile == "auto":
        own["compile"] = "eager"  # the exchange between ranks is not captured in a graph
    if cuda and ":" not in cfg.device:
        own["device"] = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return replace(cfg, algo=algo, **own)


def _part(name: str, total: int, n: int) -> int:
    if total % n:
        raise ValueError(f"{name}={total} cannot be divided among {n} processes; make it a multiple of {n}")
    return total // n


def start_together(learner: Learner, seed: int, ranks: Ranks) -> None:
    """The same networks on all ranks, and other random numbers on each."""
    if ranks.size == 1:
        return
    learner.set_ranks(ranks)
    if ranks.index:
        torch.manual_seed(int(np.random.SeedSequence((seed, ranks.index)).generate_state(1, np.uint64)[0] >> 1))

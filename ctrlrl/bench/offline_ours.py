"""`bench updates`: gradient steps a second of an offline learner, sampling included, and what they are held against."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctrlrl.bench.offline_peers import Columns, Peer, PeerUpdating
from ctrlrl.bench.ours import FOREVER, synchronise
from ctrlrl.bench.rows import Lap, compare, rate
from ctrlrl.config import TrainConfig
from ctrlrl.loops import training_loop

SHARED = {  # setting of the authors' learners -> our configuration's key
    "batch_size": "batch_size",
    "discount": "gamma",
    "tau": "tau",
    "expectile": "expectile",
    "deterministic": "deterministic_policy",
    "alpha": "alpha",
    "mask": "pull_coef",
    "vae_weight": "vae_weight",
}


class Updating:
    """Updates through the training loop. Those of stacked seeds count each."""

    name = "ctrlrl"

    def __init__(self, cfg: TrainConfig, seconds: float, device: torch.device, *, warm: int = 0):
        if cfg.total_steps is not None:
            raise ValueError("bench updates measures updates from a data set; leave total_steps out")
        self.loop: Any = training_loop(cfg)
        self.loop.total_steps = FOREVER
        self.seconds, self.device, self.seeds = seconds, device, cfg.seeds
        self.metrics: dict[str, float] = {}
        while self.loop.gradient_steps < max(warm, 1):
            self._work()

    def _work(self) -> int:
        before = self.loop.gradient_steps
        metrics = self.loop.iterate()
        synchronise(self.device)
        self.metrics = {name: value.mean().item() for name, value in metrics.items()}
        return (self.loop.gradient_steps - before) * self.seeds

    def lap(self) -> Lap:
        return rate(self._work, self.seconds)


class BareProducts:
    """The matrix products of one IQL update on ready buffers, and nothing else: what arithmetic alone could do.

    Target critics and V(s') forward; V(s), both critics and the policy forward and backward: to the weights, and to the
    inputs of every layer but the first.
    """

    name = "bare matrix products of the update"

    def __init__(self, batch: int, obs_dim: int, action_dim: int, hidden: Sequence[int], dtype: str, seconds: float):
        self.seconds, kind = seconds, torch.bfloat16 if dtype == "bfloat16" else torch.float32
        state, both = torch.randn(batch, obs_dim, dtype=kind), torch.randn(batch, obs_dim + action_dim, dtype=kind)

        def net(x: Tensor, n_out: int) -> tuple[Tensor, list[Tensor]]:
            sizes = (x.shape[1], *hidden, n_out)
            return x, [torch.randn(a, b, dtype=kind) for a, b in pairwise(sizes)]

        value = net(state, 1)
        self.forward = [net(both, 1), net(both, 1), value]
        self.trained = [value, net(both, 1), net(both, 1), net(state, action_dim)]
        self._work()

    def _work(self) -> int:
        for _ in range(10):
            for x, weights in self.forward:
                for w in weights:
                    x = x @ w
            for x, weights in self.trained:
                self._there_and_back(x, weights)
        return 10

    @staticmethod
    def _there_and_back(x: Tensor, weights: list[Tensor]) -> None:
        layers = [x]
        for w in weights:
            layers.append(layers[-1] @ w)
        grad = layers.pop()
        for i, w in reversed(list(enumerate(weights))):
            layers[i].T @ grad
            if i:
                grad = grad @ w.T

    def lap(self) -> Lap:
        return rate(self._work, self.seconds)


class OneAfterAnother:
    """The single runs of the seeds that a stacked run trains together."""

    def __init__(self, cfg: TrainConfig, seconds: float, device: torch.device, *, warm: int):
        if cfg.seeds < 2:
            raise ValueError("vs=single compares seeds that are trained together with single runs: give seeds=8")
        self.name = f"{cfg.seeds} single runs one after the other"
        singles = [replace(cfg, seed=cfg.seed + place, seeds=1) for place in range(cfg.seeds)]
        self.runs = [Updating(single, seconds / cfg.seeds, device, warm=warm) for single in singles]

    def lap(self) -> Lap:
        laps = [run.lap() for run in self.runs]
        updates, wall = sum(lap.value * lap.wall_seconds for lap in laps), sum(lap.wall_seconds for lap in laps)
        return Lap(updates / wall, wall, sum(lap.cpu_seconds for lap in laps))


def updates(
    cfg: TrainConfig,
    device: torch.device,
    *,
    vs: str | None,
    peer_dir: str | None,
    pairs: int,
    seconds: float,
    warm: int,
    note: Callable[[str], None],
) -> dict[str, Any]:
    """The measured fields of a row, and what data they were measured on.

    warm: updates of either side before the first lap: the cost of PRDC's neighbours depends on how near the policy is.
    """
    with _one_core() if vs == "prdc" and torch.get_num_threads() == 1 else contextlib.nullcontext():
        ours = Updating(cfg, seconds, device, warm=warm)
        data = ours.loop.source.all()
        n, obs_dim, action_dim = len(data.reward), data.obs.shape[1], data.action.shape[1]
        peer: Any = None
        if vs == "floor":
            if cfg.algo.name != "iql":
                raise ValueError(f"vs=floor knows the products of algo=iql, got algo={cfg.algo.name}")
            peer = BareProducts(cfg.algo.batch_size, obs_dim, action_dim, cfg.algo.hidden, cfg.dtype, seconds)
        elif vs == "single":
            peer = OneAfterAnother(cfg, seconds, device, warm=warm)
        elif vs is not None:
            peer = PeerUpdating(_peer(cfg, ours.loop, vs, peer_dir, device), seconds, warm=warm)
        fields = compare(ours, peer, pairs, note=note)
    facts = ours.loop.facts
    return fields | {
        "cpu_ratio": None if peer is None else _per_cpu_second(fields, "") / _per_cpu_second(fields, "peer_"),
        "n_envs": None,
        "data": facts.data_id or Path(facts.path).name,
        "data_checksum": facts.checksum,
        "rows": n,
        "obs_dim": obs_dim,
        "action_dim": action_dim,
        "batch_size": cfg.algo.batch_size,
        "seeds": cfg.seeds,
        "warm": warm,
        "metrics": ours.metrics,
    }


def _per_cpu_second(fields: dict[str, Any], side: str) -> float:
    """Medians over the laps; on a machine that others use too, it moves less than updates by the wall clock."""
    return (
        fields["peer_value" if side else "value"]
        * fields[f"{side}wall_seconds"]
        / max(fields[f"{side}cpu_seconds"], 1e-3)
    )


def _peer(cfg: TrainConfig, loop: Any, vs: str, peer_dir: str | None, device: torch.device) -> Peer:
    """The authors' learner on the rows and with the settings of ours."""
    algo, data = cfg.algo, loop.source.all()
    named = {
        "observations": data.obs,
        "actions": data.action,
        "rewards": data.reward,
        "next_observations": data.next_obs,
        "terminals": data.terminated,
    }
    columns: Columns = {name: x.float().cpu().contiguous().numpy() for name, x in named.items()}
    settings = {word: getattr(algo, key) for word, key in SHARED.items() if hasattr(algo, key)}
    for key in ("beta", "inverse_temperature"):  # of PRDC and of IQL
        if hasattr(algo, key):
            settings["beta"] = getattr(algo, key)
    peer = Peer(vs, algo.name, peer_dir, columns, seed=cfg.seed, device=device, **settings)
    mine = sum(step.flat.numel() for step in loop.learner.opt.values())
    if mine != peer.n_parameters:
        raise ValueError(
            f"vs={vs} trains {peer.n_parameters:,} parameters, algo={algo.name} as configured {mine:,}: "
            "keep the authors' network sizes for a comparison"
        )
    return peer


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
    """PRDC's neighbour query takes as many threads as there are cores; a row of one thread leaves it one core."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)

"""Lot sizing against the authors' code (github.com/leokan92/pdppo), on the same plant: steps/s and, first, equality.

python benchmarks/lotsizing_peer.py PEER/code/Lot-sizing [--size 15x5] [--n-envs 4096] [--pairs 5] [--out FILE]

kind=throughput: their environment with random actions against ours with --n-envs lanes. kind=train: their loop, select,
step and update, against `experiment=pdppo/lotsizing`, both 400 steps an update and 40 epochs, once six rollouts are
kept; their policy learns in its last layer alone, and so does ours here. One thread, in turn, JSON lines. Nothing is
timed before 400 random steps of ours have given what their environment gives for the same demand.

Their code wants the old package gym; Gymnasium takes its place here, and what they import without using it is left out.
"""

from __future__ import annotations

import argparse
import copy
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
import torch

from ctrlrl.bench.rows import append, compare, identity, rate
from ctrlrl.disk import strict_json
from ctrlrl.envs.inventory import (
    HOLDING_COST,
    HORIZON,
    MAX_INVENTORY,
    SIZES,
    LotSizing,
    LotSizingSettings,
    LotSizingState,
)
from ctrlrl.envs.sim import BatchedSim
from ctrlrl.loops import make_learner, on_policy_loop
from ctrlrl.settings import train_config, typed

NAME = "leokan92/pdppo"
UPDATE, KEPT, EPOCHS = 400, 5, 40


def plant(size: str) -> dict[str, Any]:
    """Our plant as their settings file."""
    sim = LotSizing(LotSizingSettings(size=size))
    tables = {name: np.asarray(x).tolist() for name, x in sim.instance._asdict().items()}
    return {
        "time_horizon": HORIZON,
        "n_items": sim.n_items,
        "n_machines": sim.n_machines,
        "initial_setup": [0] * sim.n_machines,
        "machine_production": tables["production"],
        "max_inventory_level": [MAX_INVENTORY] * sim.n_items,
        "initial_inventory": [0] * sim.n_items,
        "holding_costs": [HOLDING_COST] * sim.n_items,
        "lost_sales_costs": tables["lost_sales_cost"],
        "demand_distribution": {"name": "binomial", "n": 20, "p": 0.4},
        "setup_costs": tables["setup_cost"],
        "setup_loss": tables["setup_loss"],
        "dict_obs": False,
    }


def theirs(folder: Path) -> tuple[Any, Any, Any]:
    """Their environment, demand model and learner."""
    if not (folder / "agents" / "PDPPO.py").is_file():
        raise SystemExit(f"{folder} is not the folder code/Lot-sizing of {NAME}")
    stand_ins = {"gym": gymnasium, "sklearn": ModuleType("sklearn"), "sklearn.cluster": ModuleType("sklearn.cluster")}
    stand_ins["sklearn.cluster"].KMeans = None  # type: ignore[attr-defined]
    found = {name: sys.modules.get(name) for name in stand_ins}
    sys.modules.update(stand_ins)
    for name in ("agents", "envs", "scenarioManager"):  # without their __init__, which want a solver's licence
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [str(folder / name)]  # type: ignore[attr-defined]
    from scenarioManager.stochasticDemandModel import StochasticDemandModel  # type: ignore[import-not-found]

    sys.modules["scenarioManager"].StochasticDemandModel = StochasticDemandModel  # type: ignore[attr-defined]
    from envs.simplePlant import SimplePlant  # type: ignore[import-not-found]

    sys.modules["envs"].SimplePlant = SimplePlant  # type: ignore[attr-defined]
    from agents.PDPPO import PDPPO  # type: ignore[import-not-found]
    from agents.PDPPOAgent import SimplePlantSB  # type: ignore[import-not-found]

    for name, module in found.items():
        if module is None:
            del sys.modules[name]
        else:
            sys.modules[name] = module
    return SimplePlantSB, StochasticDemandModel, PDPPO


def make_theirs(folder: Path, size: str) -> tuple[Any, Any]:
    env_kind, demand_kind, learner_kind = theirs(folder)
    settings = plant(size)
    env = env_kind(settings, demand_kind(settings))
    env.reset()
    n = settings["n_items"]
    learner = learner_kind(n, env.action_space, 5.5e-4, 1e-3, 0.9, EPOCHS, 0.2, copy.copy(env), False, 1, 0.6)
    return env, learner


def same_steps(env: Any, size: str) -> float:
    """Largest difference of reward or stock over 400 steps from their state, actions and demand."""

    class Given(LotSizing):
        def demand(self, state: Any) -> Any:
            return self.now

    sim = Given(LotSizingSettings(size=size))
    rng, worst = np.random.default_rng(0), 0.0
    for _ in range(4):
        env.reset()
        for _ in range(HORIZON):
            key = torch.zeros(1, dtype=torch.int64)
            both = (env.inventory_level, env.machine_setup)
            state = LotSizingState(*(torch.tensor(x, dtype=torch.float64).unsqueeze(1) for x in both), key, key)
            change = rng.random(sim.n_machines) < 0.5
            action = np.where(change, rng.integers(0, sim.n_items + 1, sim.n_machines), env.machine_setup)
            sim.now = torch.tensor(env.demand, dtype=torch.float64).unsqueeze(1)
            after, reward, _, _ = sim.step(state, torch.tensor(action).unsqueeze(0))
            obs, paid, _, _ = env.step(action)
            worst = max(worst, abs(float(reward) - paid), float(np.abs(after.inventory[:, 0].numpy() - obs).max()))
    return worst


class TheirEnv:
    name = f"{NAME} environment"

    def __init__(self, env: Any, seconds: float):
        self.env, self.seconds = env, seconds

    def lap(self) -> Any:
        actions = np.random.default_rng(0).integers(0, self.env.n_items + 1, (HORIZON, self.env.n_machines))

        def work() -> int:
            self.env.reset()
            for action in actions:
                self.env.step(action)
            return HORIZON

        return rate(work, self.seconds)


class OurEnv:
    name = "ctrlrl environment"

    def __init__(self, size: str, n_envs: int, seconds: float):
        self.env, self.seconds = BatchedSim(LotSizing(LotSizingSettings(size=size)), n_envs, seed=0), seconds
        self.env.reset(0)

    def lap(self) -> Any:
        spec = self.env.spec
        actions = (torch.rand(16, spec.n_envs, len(spec.nvec)) * spec.nvec[0]).long()

        def work() -> int:
            for action in actions:
                self.env.step(action)
            return len(actions) * spec.n_envs

        return rate(work, self.seconds)


class TheirTraining:
    name = f"{NAME} training"

    def __init__(self, env: Any, learner: Any, seconds: float):
        self.env, self.learner, self.seconds, self.t = env, learner, seconds, 0
        for _ in range(KEPT + 1):
            self.work()

    def work(self) -> int:
        """Their loop from update to update, without its log."""
        buffer = self.learner.buffer
        for _ in range(UPDATE // HORIZON):
            state = self.env.reset()
            for _ in range(HORIZON):
                action, post_reward = self.learner.select_action(state, 1)
                state, reward, done, _ = self.env.step(action)
                buffer.rewards.append(reward - post_reward.item())
                buffer.is_terminals.append(done)
                self.t += 1
        self.learner.update()
        if self.t > UPDATE * KEPT:
            buffer.clear(UPDATE)
        return UPDATE

    def lap(self) -> Any:
        return rate(self.work, self.seconds)


class OurTraining:
    name = "ctrlrl training"

    def __init__(self, size: str, seconds: float):
        words = ["algo=pdppo", "env=lotsizing", f"env.size={size}", "algo.train_trunk=false"]
        cfg = typed(train_config(words))
        env = BatchedSim(LotSizing(LotSizingSettings(size=size)), cfg.n_envs, seed=0)
        self.loop = on_policy_loop(
            make_learner(cfg.algo, env.spec), env, total_steps=cfg.total_steps, seed=0, staggered=False
        )
        self.seconds = seconds
        for _ in range(KEPT + 1):
            self.work()

    def work(self) -> int:
        self.loop.iterate()
        return self.loop.steps_per_iteration

    def lap(self) -> Any:
        return rate(self.work, self.seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", type=Path)
    parser.add_argument("--size", choices=SIZES, default="15x5")
    parser.add_argument("--n-envs", type=int, default=4096)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--kinds", nargs="+", default=["throughput", "train"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    env, learner = make_theirs(options.peer, options.size)
    difference = same_steps(env, options.size)
    if difference > 1e-9:
        raise SystemExit(f"the two environments differ by {difference}; nothing is timed")
    for kind in options.kinds:
        if kind == "throughput":
            pair: Any = (OurEnv(options.size, options.n_envs, options.seconds), TheirEnv(env, options.seconds))
        else:
            pair = OurTraining(options.size, options.seconds), TheirTraining(env, learner, options.seconds)
        n_envs = options.n_envs if kind == "throughput" else 4
        row = {"kind": kind, "env": "lotsizing", "size": options.size, "algo": "pdppo" if kind == "train" else None}
        row |= {"n_envs": n_envs, "threads": 1, "device": "cpu", "unit": "env steps/s", "difference": difference}
        row |= compare(*pair, options.pairs, note=lambda line: print(line, file=sys.stderr))
        row |= identity()
        print(strict_json(row))
        if options.out is not None:
            append([row], options.out)


if __name__ == "__main__":
    main()

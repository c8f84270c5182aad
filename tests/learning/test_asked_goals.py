"""Demonstrations that lead to several goals, unlabelled: the goal asked for is reached, and without one all of them."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ctrlrl.algos.beso import BESOConfig
from ctrlrl.data.dataset import Dataset
from ctrlrl.data.windows import Windows
from ctrlrl.envs.multigoal import MultiGoal
from ctrlrl.envs.sim import BatchedSim
from ctrlrl.judging import acting
from ctrlrl.loops import make_learner
from ctrlrl.train.trials import run_trials
from ctrlrl.types import EnvSpec, Transition

N_GOALS, NOISE = 5, 0.05
JUMP = EnvSpec(2, 2, 0, 1, 1, 2, torch.device("cpu"))
HEADS: dict[str, dict[str, Any]] = {
    "mlp": {"head": "mlp", "hidden": [128, 128, 128]},
    "gpt": {"head": "gpt", "hidden": [64, 64], "dropout": 0.0, "attention_dropout": 0.0},
}


def places() -> Tensor:
    angle = 2.0 * math.pi * torch.arange(N_GOALS) / N_GOALS
    return 0.7 * torch.stack((angle.cos(), angle.sin()), 1)


def jumps(n: int) -> Dataset:
    """Episodes of two rows: from the origin to one of the places at once, and there it stays."""
    to = places()[torch.randint(N_GOALS, (n,))] + NOISE * torch.randn(n, 2)
    still = torch.zeros_like(to)
    return episodes(torch.stack((still, to), 1), torch.stack((to, still), 1))


def episodes(obs: Tensor, action: Tensor) -> Dataset:
    """[E, T, ...] each."""
    n_episodes, length = obs.shape[:2]
    flat, action, n = obs.flatten(0, 1), action.flatten(0, 1), n_episodes * length
    data = Dataset.of(Transition(flat, action, torch.zeros(n), flat, torch.zeros(n, dtype=torch.bool), {}))
    data.ends = length * torch.arange(1, n_episodes + 1)
    return data


def trained(data: Dataset, spec: EnvSpec, n_updates: int, **settings: Any) -> Any:
    """A function that makes the learner with other settings of the same weights."""

    def made(**changes: Any) -> Any:
        torch.manual_seed(0)
        return make_learner(BESOConfig(**{"learning_rate": 1e-3, **settings, **changes}), spec)

    learner = made()
    learner.prefit(data.all())
    windows = Windows(data, learner.cfg.window, learner.cfg.goals)
    for update in range(n_updates):
        learner.set_progress(update / n_updates)
        learner.update(windows.sample(256))

    def again(**changes: Any) -> Any:
        other = made(**changes)
        other.load_model_state(learner.model_state())
        return other

    return again


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_the_place_asked_for_is_jumped_to_in_three_steps_and_without_one_all_of_them(head, record_property):
    torch.manual_seed(0)
    window = {"horizon": 1, "n_obs_steps": 1, "goal_dropout": 0.5}
    again = trained(jumps(4000), JUMP, 3000 if head == "mlp" else 1500, **window, **HEADS[head])
    origin = torch.zeros(1000, 2)
    for number, goal in enumerate(places()):
        action = again(goal=goal.tolist()).act(origin).action
        share = float(((action - goal).norm(dim=1) < 5 * NOISE).float().mean())
        record_property(f"asked_{number}", share)
        assert share >= 0.9
    for free in (again(sampling_steps=10), again(goal=[0.7, 0.0], guidance=0.0, sampling_steps=10)):
        away = torch.cdist(free.act(origin).action, places())
        shares = torch.bincount(away.argmin(1)[away.amin(1) < 5 * NOISE], minlength=N_GOALS) / 1000.0
        record_property("free", shares.tolist())
        assert shares.sum() > 0.75
        assert shares.min() > 0.5 / N_GOALS
        assert shares.max() < 2.0 / N_GOALS


@pytest.mark.slow
def test_the_goal_asked_for_is_reached_in_a_closed_loop(record_property):
    """Point mass among six goals; PD controllers show the way to each from the origin."""
    torch.manual_seed(0)
    sim, n = MultiGoal(), 300
    goals = sim.goals.float()[torch.arange(n) % 6]
    env = BatchedSim(sim.trial(), n, seed=0, stagger=False)
    seen, acted = [env.reset(0).clone()], []
    for _ in range(50):
        push = 1.5 * (goals - seen[-1][:, :2]) - 2.2 * seen[-1][:, 2:] + 0.3 * torch.randn(n, 2)
        acted.append((push / 5.0).clamp(-1.0, 1.0))
        seen.append(env.step(acted[-1]).final_obs.clone())
    data = episodes(torch.stack(seen[:-1], 1), torch.stack(acted, 1))
    window = {"horizon": 2, "n_obs_steps": 2, "goal_columns": [0, 1], "goal_from": "end"}
    again = trained(data, env.spec, 2000, **window, **HEADS["mlp"])
    for number, goal in enumerate(sim.goals.tolist()):
        trial = BatchedSim(sim.trial(), 100, seed=1, stagger=False)
        reached = run_trials(acting(again(goal=goal), deterministic=False), trial, sim.scene, seed=1).reached
        share = float((reached == number).float().mean())
        record_property(f"asked_{number}", share)
        assert share >= 0.9

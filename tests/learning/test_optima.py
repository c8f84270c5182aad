"""Learning where the optimum is known: a one-step Gaussian bandit, the linear-quadratic regulator, CartPole's limit."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ctrlrl.envs.classic import LQR
from ctrlrl.envs.sim import BatchedSim, Sim
from ctrlrl.judging import acting
from ctrlrl.loops import make_learner, on_policy_loop
from ctrlrl.registry import ALGORITHMS, lookup
from ctrlrl.settings import train_config, typed
from ctrlrl.tasks import make_env
from ctrlrl.train.evaluate import evaluate


class BanditState(NamedTuple):
    x: Tensor  # [B]


class Bandit(Sim):
    """See x in [-1, 1], pay (action - x / 2)^2 once. Optimal mean: x / 2."""

    obs_dim, action_dim, episode_length, n_random = 1, 1, 0, 1

    def init(self, noise: Tensor) -> BanditState:
        return BanditState(2.0 * noise[:, 0] - 1.0)

    def step(self, state: BanditState, action: Tensor) -> tuple[BanditState, Tensor, Tensor]:
        cost = (action[:, 0] - 0.5 * state.x).square()
        return state, -cost, torch.ones_like(cost, dtype=torch.bool)

    def observe(self, state: BanditState) -> Tensor:
        return state.x.unsqueeze(1)


def learn(algo: str, env: BatchedSim, n_iterations: int, **settings: Any) -> Any:
    torch.manual_seed(0)
    learner = make_learner(lookup(ALGORITHMS, algo, "algorithm").config(**settings), env.spec)
    total = n_iterations * settings["n_steps"] * env.spec.n_envs
    loop = on_policy_loop(learner, env, total_steps=total, seed=0, staggered=False)
    while not loop.done:
        loop.iterate()
    return learner


BANDIT: dict[str, Any] = {
    "n_steps": 4,
    "n_minibatches": 2,
    "n_epochs": 4,
    "learning_rate": 3e-3,
    "lr_schedule": "linear",
    "hidden": [],
    "vf_hidden": [16],
    "log_std_init": -1.0,
}


@pytest.mark.parametrize("algo", ["ppo", "bpo"])
def test_a_gaussian_bandit_learns_the_optimal_mean(algo):
    own = {"temperature": 1e-3, "max_grad_norm": 0.5} if algo == "bpo" else {}
    learner = learn(algo, BatchedSim(Bandit(), 128, seed=0), 150, **BANDIT, **own)
    x = torch.linspace(-1, 1, 21).unsqueeze(1)
    action = learner.act(x, deterministic=True).action
    assert float((action - 0.5 * x).abs().max()) < 0.05
    assert float(learner.policy.log_std.detach().exp()) < 0.3


def test_the_entropy_bonus_keeps_the_deviation_of_the_closed_form():
    """max over s of -s^2 + c log s is at s^2 = c / 2: c = 0.045 gives 0.15."""
    settings = {
        **BANDIT,
        "normalize_advantage": "none",
        "ent_coef": 0.045,
        "max_grad_norm": 10.0,
        "learning_rate": 5e-3,
    }
    learner = learn("ppo", BatchedSim(Bandit(), 256, seed=0), 250, **settings)
    assert float(learner.policy.log_std.detach().exp()) == pytest.approx(0.15, rel=0.1)


def riccati(sim: LQR) -> tuple[Tensor, Tensor]:
    """Feedback K (u = -K x) and cost matrix P of the infinite horizon, by iterating the Riccati equation."""
    p = sim.Q
    for _ in range(2000):
        k = torch.linalg.solve(sim.R + sim.B.T @ p @ sim.B, sim.B.T @ p @ sim.A)
        p = sim.Q + sim.A.T @ p @ (sim.A - sim.B @ k)
    return k, p


def cost_of(sim: LQR, k: Tensor, n_steps: int = 100) -> Tensor:
    """Mean over starts uniform in [-1, 1]^S of the cost of u = -K x: tr(M) / 3, M the cost matrix."""
    m, closed = torch.zeros_like(sim.Q), sim.A - sim.B @ k
    for _ in range(n_steps):
        m = sim.Q + k.T @ sim.R @ k + closed.T @ m @ closed
    return m.trace() / 3.0


@pytest.mark.parametrize("algo", ["ppo", pytest.param("bpo", marks=pytest.mark.slow)])
def test_a_linear_policy_learns_the_riccati_feedback(algo):
    sim = LQR(episode_length=20)  # truncation bootstraps: the optimum stays that of the infinite horizon
    settings: dict[str, Any] = {
        "n_steps": 20,
        "n_minibatches": 4,
        "n_epochs": 6,
        "learning_rate": 1e-2,
        "lr_schedule": "linear",
        "gamma": 0.99,
        "gae_lambda": 0.95,
        "hidden": [],
        "vf_hidden": [32, 32],
        "activation": "tanh",
        "log_std_init": -2.5,
        "normalize_reward": True,
    }
    learner = learn(algo, BatchedSim(sim, 256, seed=0), 120, **settings)
    k, p = riccati(sim)
    best = float(p.trace() / 3.0)
    assert float(cost_of(sim, k)) == pytest.approx(best, rel=1e-3)
    found = -sim.action_scale * learner.policy.mean[0].weight.detach().double()
    zero = torch.zeros_like(k)
    assert float(cost_of(sim, found)) < 1.02 * best, (found, k)
    assert float(cost_of(sim, zero)) > 3.0 * best, "the task must need control"


def test_cartpole_reaches_475_with_its_preset():
    cfg = typed(train_config(["algo=ppo", "env=cartpole"]))
    torch.manual_seed(0)
    env = make_env(cfg.env, cfg.n_envs, seed=0)
    learner = make_learner(cfg.algo, env.spec)
    loop = on_policy_loop(learner, env, total_steps=cfg.total_steps, seed=0, staggered=True)
    test_env = make_env(cfg.env, 20, seed=1, stagger=False)
    score = 0.0
    while not loop.done and score < 475.0:
        for _ in range(10):
            loop.iterate()
        score = evaluate(acting(learner), test_env, episodes=20, seed=1).returns.mean().item()
    assert score >= 475.0

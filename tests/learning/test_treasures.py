"""The treasures that weighted sums prefer: by tabular Q-learning for one weight after another, and by C-MORL."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ctrlrl.envs.morl import DeepSeaTreasure, DeepSeaTreasureConcave
from ctrlrl.functional.pareto import expected_utility, hypervolume, simplex_grid
from ctrlrl.loops import training_loop
from ctrlrl.settings import train_config, typed

F64 = torch.float64
STEPS = 40  # of an episode: twice the longest way


def greedy_returns(sim: DeepSeaTreasure, weights: Tensor, *, sweeps: int = 60, seed: int = 0) -> Tensor:
    """[W, 2] undiscounted returns of the greedy policy of Q-learning with each of the weights [W, 2], all at once.

    Every state and action once a sweep, in random order; step size 1 (the task is deterministic), gamma 1. A weight of
    0 on time leaves a policy free to dawdle for ever, so it counts for a millionth.
    """
    n, side, weights = len(weights), sim.side, weights.clamp(min=1e-6)
    cells = torch.arange(side * side)
    free = cells[(cells % side >= len(sim.depth)) | (cells // side <= torch.tensor((*sim.depth, side))[cells % side])]
    free = free[sim.value[free] == 0.0]
    q = torch.zeros(n, side * side, 4, dtype=F64)
    g = torch.Generator().manual_seed(seed)
    for _ in range(sweeps):
        start = free[torch.randperm(len(free), generator=g)]
        for action in torch.randperm(4, generator=g).tolist():
            state = type(sim.init(torch.zeros(1, 0)))(start)
            after, reward, terminated = sim.step(state, torch.full_like(start, action))
            value = q[:, after.cell].amax(2) * ~terminated
            q[:, start, action] = weights @ reward.T + value
    state, total = sim.init(torch.zeros(n, 0, dtype=F64)), torch.zeros(n, 2, dtype=F64)
    alive = torch.ones(n, 1, dtype=torch.bool)
    for _ in range(STEPS):
        action = q[torch.arange(n), state.cell].argmax(1)
        state, reward, terminated = sim.step(state, action)
        total += reward * alive
        alive &= ~terminated.unsqueeze(1)
    return total


def test_eleven_weights_recover_the_convex_treasures_and_their_expected_utility():
    sim, weights = DeepSeaTreasure(), simplex_grid(2, 10)
    returns = greedy_returns(sim, weights)
    treasures = [sim.treasure.index(round(float(x), 1)) for x in returns[:, 0]]
    assert treasures == [0, 0, 0, 1, 2, 5, 8, 9, 9, 9, 9]
    assert (weights * returns).sum(1).tolist() == pytest.approx(
        [-1, -0.83, -0.66, 0.36, 1.6, 3.55, 6.64, 10.89, 15.16, 19.43, 23.7], abs=1e-9
    )
    assert float(expected_utility(returns, weights)) == pytest.approx(7.167273, abs=5e-7)


def test_weighted_sums_find_only_the_ends_of_the_concave_front():
    sim = DeepSeaTreasureConcave()
    returns = greedy_returns(sim, simplex_grid(2, 10))
    assert {tuple(row) for row in returns.tolist()} == {(1.0, -1.0), (124.0, -19.0)}
    reference = torch.tensor([0.0, -25.0], dtype=F64)
    assert float(hypervolume(returns, reference)) == pytest.approx(762.0, abs=1e-9)
    assert float(hypervolume(sim.pareto_front(1.0), reference)) == pytest.approx(1155.0, abs=1e-9)


@pytest.mark.slow
def test_cmorl_finds_all_ten_treasures_of_the_convex_sea():
    loop: Any = training_loop(typed(train_config(["experiment=cmorl/deep_sea_treasure", "device=cpu", "seed=1"])))
    while not loop.done:
        loop.iterate()
    found = loop.learner.archive.returns
    torch.testing.assert_close(found[found[:, 0].argsort()], DeepSeaTreasure().pareto_front(1.0), rtol=1e-6, atol=0)
    assert float(loop.learner.front["front/expected_utility"]) == pytest.approx(7.167273, abs=1e-5)

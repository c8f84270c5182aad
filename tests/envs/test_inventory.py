"""Lot sizing: the paper's numbers by hand, a slow step beside the batched one, and the laws of its randomness."""

import math
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ctrlrl.config import EnvConfig, env_config_with
from ctrlrl.envs.inventory import (
    SIZES,
    Instance,
    LotSizing,
    LotSizingSettings,
    LotSizingState,
    generated,
)
from ctrlrl.envs.sim import BatchedSim
from ctrlrl.registry import env_settings
from ctrlrl.tasks import make_env

F64 = torch.float64


class Fixed(LotSizing):
    """With a demand of one's own."""

    given: Tensor

    def demand(self, state: LotSizingState) -> Tensor:
        return self.given


def one_item(*, production: int = 12, lost: float = 0.1) -> Fixed:
    return Fixed(instance=Instance([[production]], [[15]], [[1]], [lost]))


def at(inventory: Any, setup: Any, dtype: torch.dtype = F64) -> LotSizingState:
    """State of lanes from rows [B, N] and [B, M]."""
    rows = torch.tensor(inventory, dtype=dtype)
    zero = torch.zeros(len(rows), dtype=torch.int64)
    return LotSizingState(rows.T, torch.tensor(setup, dtype=dtype).T, zero, zero)


def step(sim: Fixed, state: LotSizingState, action: Any, demand: Any) -> Any:
    sim.given = torch.tensor(demand, dtype=state.inventory.dtype).T
    return sim.step(state, torch.tensor(action))


def test_the_paper_s_first_machine_and_item_by_hand():
    sim = one_item()
    state, reward, _, extras = step(sim, at([[8.0]], [[0.0]]), [[1]], [[10.0]])
    assert extras["post_obs"].item() == 19.0
    assert state.inventory.item() == 9.0
    assert reward.item() == pytest.approx(-15.09, abs=1e-12)
    assert extras["reward_split"].tolist() == [pytest.approx([-15.0, -0.09], abs=1e-12)]
    state, reward, _, extras = step(sim, state, [[1]], [[8.0]])  # already set up: no cost, no loss
    assert extras["post_obs"].item() == 21.0
    assert state.inventory.item() == 13.0
    assert reward.item() == pytest.approx(-0.13, abs=1e-12)


def test_demand_that_is_not_met_is_lost_and_the_stock_is_bounded():
    state, reward, _, _ = step(one_item(lost=1.1), at([[3.0]], [[0.0]]), [[0]], [[10.0]])
    assert state.inventory.item() == 0.0
    assert reward.item() == pytest.approx(-7.7, abs=1e-12)
    sim = one_item(production=20)
    state, reward, _, extras = step(sim, at([[95.0]], [[1.0]]), [[1]], [[0.0]])
    assert extras["post_obs"].item() == 115.0, "the bound holds after demand"
    assert state.inventory.item() == 100.0
    assert reward.item() == pytest.approx(-1.0, abs=1e-12)


def test_an_impossible_item_takes_the_loss_from_the_stock_and_idling_forgets_the_setup():
    sim = one_item(production=0, lost=1.1)
    state, reward, _, extras = step(sim, at([[0.0]], [[0.0]]), [[1]], [[2.0]])
    assert extras["post_obs"].item() == -1.0
    assert reward.item() == pytest.approx(-15.0 - 3 * 1.1, abs=1e-12)
    state, reward, _, _ = step(sim, state, [[0]], [[0.0]])
    assert (state.setup.item(), reward.item()) == (0.0, 0.0)
    _, reward, _, _ = step(sim, state, [[1]], [[0.0]])
    assert reward.item() == pytest.approx(-15.0 - 1.1, abs=1e-12), "set up anew"


def slow_step(plant: Any, inventory: Any, setup: Any, action: Any, demand: Any) -> dict[str, Any]:
    """One lane, written out as the specification writes it."""
    inventory, setup = list(inventory), list(setup)
    setup_cost = lost_cost = hold_cost = 0.0
    for j, a in enumerate(action):
        if a == 0:
            setup[j] = 0
            continue
        loss = 0
        if setup[j] != a:
            setup_cost += plant.setup_cost[j][a - 1]
            loss = plant.setup_loss[j][a - 1]
        inventory[a - 1] += plant.production[j][a - 1] - loss
        setup[j] = a
    post = list(inventory)
    for i, d in enumerate(demand):
        inventory[i] -= d
        if inventory[i] < 0:
            lost_cost += -inventory[i] * plant.lost_sales_cost[i]
            inventory[i] = 0
        elif inventory[i] > 100:
            inventory[i] = 100
        hold_cost += inventory[i] * 0.01
    return {"inventory": inventory, "setup": setup, "post": post, "r_x": -setup_cost, "r_pre": -lost_cost - hold_cost}


@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("size", ["15x5", "30x15"])
def test_every_step_equals_the_specification_s_loops(size, dtype, tolerance):
    rng = np.random.default_rng(0)
    chosen = Fixed(LotSizingSettings(size=size, observe_setups=True))
    sim: Any = chosen.to(torch.device("cpu"), dtype)
    n, m, b = sim.n_items, sim.n_machines, 40
    state = at(rng.integers(0, 100, (b, n)), rng.integers(0, n + 1, (b, m)), dtype)
    for _ in range(25):
        # machines that keep their item, idle and change; stocks that run out, overflow and stay between
        keep = rng.random((b, m)) < 0.5
        action = np.where(keep, state.setup.T.long().numpy(), rng.integers(0, n + 1, (b, m)))
        demand = rng.binomial(20, 0.4, (b, n)) * (rng.random((b, n)) < 0.7) * rng.integers(1, 3, (b, 1))
        before = (state.inventory.T.long().tolist(), state.setup.T.long().tolist())
        state, reward, _, extras = step(sim, state, action.tolist(), demand.tolist())
        for lane in range(b):
            want = slow_step(chosen.instance, before[0][lane], before[1][lane], action[lane], demand[lane])
            assert state.inventory[:, lane].tolist() == want["inventory"]
            assert state.setup[:, lane].tolist() == want["setup"]
            assert extras["post_obs"][lane].tolist() == [*want["post"], *want["setup"]]
            split = extras["reward_split"][lane].tolist()
            assert split == pytest.approx([want["r_x"], want["r_pre"]], rel=tolerance)
            assert reward[lane].item() == pytest.approx(want["r_x"] + want["r_pre"], rel=tolerance)


def test_the_horizon_terminates_after_100_steps_with_nothing_to_bootstrap():
    env = BatchedSim(LotSizing(), 3, seed=0)
    assert env.spec.episode_length == 0
    env.reset(0)
    for t in range(1, 251):
        out = env.step(torch.zeros(3, 5, dtype=torch.int64))
        assert bool(out.terminated.all()) == bool(out.terminated.any()) == (t % 100 == 0)
        assert not out.truncated.any()


def test_demand_is_binomial_and_independent_by_item_step_and_lane():
    sim = LotSizing()
    n = 2000
    key = sim.init(torch.rand(n, sim.n_random, dtype=F64, generator=torch.Generator().manual_seed(0))).key
    steps = [
        sim.demand(LotSizingState(torch.zeros(15, n), torch.zeros(5, n), key, torch.full_like(key, t)))
        for t in range(6)
    ]
    drawn = torch.stack(steps)  # [T, N, B]
    counts = torch.bincount(drawn.flatten().long(), minlength=21).double()
    want = torch.tensor([math.comb(20, k) * 0.4**k * 0.6 ** (20 - k) for k in range(21)], dtype=F64) * drawn.numel()
    few = want < 5
    pairs = [(counts[~few], want[~few]), (counts[few].sum(), want[few].sum())]
    chi2 = sum(float(((c - w) ** 2 / w).sum()) for c, w in pairs)
    assert chi2 < 50.0  # 16 degrees of freedom: P = 2e-5
    flat = drawn.double() - 8.0
    n_products = flat[1:].numel()
    for a, b in ((flat[1:], flat[:-1]), (flat[:, 1:], flat[:, :-1]), (flat[..., 1:], flat[..., :-1])):
        assert abs(float((a * b).mean()) / 4.8) < 5 / math.sqrt(n_products)


def test_a_lane_s_demand_does_not_depend_on_the_number_of_lanes():
    few, many = (BatchedSim(LotSizing(), n, seed=3) for n in (2, 50))
    few.reset(3)
    many.reset(3)
    for _ in range(130):
        a, b = few.step(torch.ones(2, 5, dtype=torch.int64)), many.step(torch.ones(50, 5, dtype=torch.int64))
        assert torch.equal(a.obs, b.obs[:2])


def test_a_reset_draws_stocks_below_the_bound_and_setups_that_the_machine_can_make():
    sim = LotSizing()
    noise = torch.rand(4000, sim.n_random, dtype=F64, generator=torch.Generator().manual_seed(1))
    noise[0], noise[1] = 0.0, 1.0 - 2.0**-53
    state = sim.init(noise)
    assert (state.inventory.min().item(), state.inventory.max().item()) == (0.0, 99.0)
    assert torch.equal(state.inventory, state.inventory.round())
    for machine, row in enumerate(sim.instance.production):
        able = {i + 1.0 for i, p in enumerate(row) if p > 0}
        assert set(state.setup[machine].tolist()) == able, "all of them, and never idle"


def test_the_15x5_plant_is_the_printed_one():
    """Checksums of the printed tables, row after row, a byte an entry."""
    plant = LotSizing().instance
    assert plant.production[1] == [20, 32, 0, 0, 23, 37, 27, 0, 25, 25, 34, 21, 28, 3, 0]
    assert plant.lost_sales_cost == [0.1] * 4 + [1.1, 0.1, 1.1, 0.1, 0.1, 1.1, 1.1, 1.1, 0.1, 1.1, 0.1]
    sums = [zlib.crc32(np.array(x, dtype=np.int8).tobytes()) for x in plant[:3]]
    assert sums == [1795934277, 3975030137, 2047678445]


@pytest.mark.parametrize("size", SIZES[1:])
def test_generated_plants_follow_the_generator_s_rules_and_never_change(size):
    n, m = (int(x) for x in size.split("x"))
    plant = generated(n, m)
    assert all(np.array_equal(a, b) for a, b in zip(plant, generated(n, m), strict=True))
    assert plant.production.shape == plant.setup_cost.shape == plant.setup_loss.shape == (m, n)
    assert set(np.unique(plant.production)) <= set(range(41))
    assert set(np.unique(plant.setup_cost)) <= set(range(15, 31))
    assert set(np.unique(plant.setup_loss)) <= {1, 2, 3}
    assert set(np.unique(plant.lost_sales_cost)) <= {0.1, 1.1}
    for table, least, share in ((plant.production, 0, 0.4), (plant.setup_cost, 15, 0.2), (plant.setup_loss, 1, 0.7)):
        assert abs((table == least).mean() - share) < 4 * math.sqrt(share * (1 - share) / (n * m))
    assert (plant.production > 0).any(0).all(), "every item can be made"
    assert (plant.production > 0).any(1).all(), "every machine can make something"


def test_the_20x10_plant_is_pinned():
    """A change of the generator would change every result on it."""
    plant = generated(20, 10)
    assert [int(x.sum()) for x in plant[:3]] == [2684, 4307, 284]
    assert plant.production[0].tolist() == [4, 0, 14, 0, 33, 13, 21, 0, 0, 22, 19, 23, 40, 0, 30, 0, 36, 21, 9, 10]


def test_settings_reach_the_task_and_wrong_ones_are_refused_by_name():
    config = env_config_with(env_settings("lotsizing"))
    assert make_env(config(name="lotsizing", size="25x15", observe_setups=True), 2).spec.obs_dim == 40
    assert make_env(EnvConfig(name="lotsizing"), 2).spec.obs_dim == 15
    with pytest.raises(ValueError, match=r"env\.size must be one of 15x5, .*got '10x10'"):
        config(name="lotsizing", size="10x10")
    with pytest.raises(ValueError, match=r"env\.backend must be"):
        config(name="lotsizing", backend="paper")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lotsizing", "slippery_lake"])
def test_the_compiled_step_equals_the_eager_one_extras_included(name):
    eager, fused = (make_env(EnvConfig(name=name), 6, seed=0, compile=c) for c in (False, True))
    eager.reset(0)
    fused.reset(0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(120):
        if eager.spec.nvec:
            action = (torch.rand(6, 5, generator=generator) * 16).long()
        else:
            action = torch.randint(4, (6,), generator=generator)
        a, b = eager.step(action), fused.step(action)
        for field in ("obs", "final_obs", "reward", "terminated", "truncated"):
            torch.testing.assert_close(getattr(a, field), getattr(b, field), rtol=1e-6, atol=1e-5)
        for key in ("post_obs", "reward_split"):
            torch.testing.assert_close(a.extras[key], b.extras[key], rtol=1e-6, atol=1e-5)

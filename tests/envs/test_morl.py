"""The multi-objective simulators: mo-gymnasium's numbers step for step, and the fronts that are known."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ctrlrl.envs.morl import DeepSeaTreasure, DeepSeaTreasureConcave, FruitTree, ResourceGathering
from ctrlrl.envs.morl_motion import Irrigation, Minecart, MOMountainCar, MOPendulum, QuadraticBandit
from ctrlrl.envs.sim import BatchedSim, Sim
from ctrlrl.functional.pareto import hypervolume
from ctrlrl.registry import SIMULATORS, load

F64 = torch.float64
VECTOR = [name for name, path in SIMULATORS.items() if load(path).objectives]
LONG_TO_COMPILE = ("minecart", "resource_gathering")  # half a minute and a quarter; the others take seconds
GYM = {
    DeepSeaTreasure: "deep-sea-treasure-v0",
    DeepSeaTreasureConcave: "deep-sea-treasure-concave-v0",
    ResourceGathering: "resource-gathering-v0",
    FruitTree: "fruit-tree-v0",
    MOMountainCar: "mo-mountaincar-v0",
    Minecart: "minecart-v0",
}


def reference(kind: type[Sim]) -> Any:
    made = pytest.importorskip("mo_gymnasium").make
    with warnings.catch_warnings():  # of spaces whose bounds are float64
        warnings.simplefilter("ignore")
        return made(GYM[kind]).unwrapped


def actions(sim: Sim, n_steps: int, seed: int = 0) -> Tensor:
    return torch.randint(sim.n_actions, (n_steps,), generator=torch.Generator().manual_seed(seed))


def same_step(sim: Sim, moved: Any, want: Any) -> bool:
    """Whether the episode ended; fails where a step of one lane differs from mo-gymnasium's."""
    state, reward, terminated = moved
    obs, vector, ended, _, _ = want
    assert reward.shape == (1, len(sim.objectives))
    np.testing.assert_allclose(reward[0].numpy(), vector, rtol=1e-7, atol=2e-7)  # theirs are float32
    np.testing.assert_allclose(sim.observe(state)[0].numpy(), obs, rtol=0, atol=2e-7)
    assert bool(terminated) == ended
    return ended


@pytest.mark.parametrize("kind", [DeepSeaTreasure, DeepSeaTreasureConcave, FruitTree, MOMountainCar])
def test_random_episodes_equal_mo_gymnasium_step_for_step(kind):
    env, sim = reference(kind), kind()
    state, ended, found = None, True, set()
    for action in actions(sim, 3000):
        if ended:
            obs, _ = env.reset(seed=len(found))
            state = sim.init(torch.zeros(1, sim.n_random, dtype=F64))
            if kind is MOMountainCar:
                env.state = np.array([0.45 - 0.1 * (len(found) % 9), 0.03])  # near enough to reach the goal by chance
                state = type(state)(*torch.tensor(env.state, dtype=F64).unsqueeze(1))
            else:
                np.testing.assert_array_equal(sim.observe(state)[0].numpy(), obs)
        want = env.step(int(action))
        moved = sim.step(state, action.reshape(1))
        ended, state = same_step(sim, moved, want), moved[0]
        found |= {tuple(want[1])} if ended else set()
    assert len(found) >= {FruitTree: 60, MOMountainCar: 2}.get(kind, 4), "the walk must have seen several ends"


class Told:
    """In the place of mo-gymnasium's generator: the next fight's number."""

    def __init__(self) -> None:
        self.value = 0.0

    def random(self) -> float:
        return self.value


def test_resource_gathering_equals_mo_gymnasium_step_for_step():
    env, sim, told = reference(ResourceGathering), ResourceGathering(), Told()
    rng, state, ended, found = np.random.default_rng(0), None, True, set()
    for action in actions(sim, 4000):
        if ended:
            env.reset(seed=0)
            env.np_random = told
            state = sim.init(torch.zeros(1, 1, dtype=F64))
        told.value = float(rng.random())
        want = env.step(int(action))
        moved = sim.move(state, action.reshape(1), torch.tensor([told.value], dtype=F64))
        ended, state = same_step(sim, moved, want), moved[0]
        found |= {tuple(want[1])} if ended else set()
    assert {(-1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)} <= {tuple(int(x) for x in end) for end in found}


class Yields:
    """In the place of a mine's distribution of one ore: a mean and the deviation that comes next."""

    def __init__(self, mean: float, noise: list[float]) -> None:
        self.mean, self.noise = mean, noise

    def rvs(self) -> float:
        return self.mean + 0.05 * self.noise.pop(0)


def minecart_pair(seed: int) -> tuple[Any, Minecart, np.random.Generator]:
    return reference(Minecart), Minecart(), np.random.default_rng(seed)


def drive(env: Any, sim: Minecart, state: Any, action: int, normal: np.ndarray) -> tuple[Any, Any]:
    """normal: [4, 2], what comes in either; mo-gymnasium draws only where a cart mines, ore by ore, frame by frame."""
    queues = [list(normal[:, ore]) for ore in range(2)]
    for mine in env.mines:
        mine.distributions = [Yields(float(d.mean), q) for d, q in zip(mine.distributions, queues, strict=True)]
    return sim.drive(state, torch.tensor([action]), torch.tensor(normal).unsqueeze(2)), env.step(action)


def known_yields(env: Any, sim: Minecart) -> None:
    for i, mine in enumerate(env.mines):
        assert [d.args for d in mine.distributions] == [(float(m), 0.05) for m in sim.yields[:, i]]
        np.testing.assert_array_equal(mine.pos, sim.mines[:, i].numpy())
        mine.distributions = [Yields(float(m), []) for m in sim.yields[:, i]]


def test_minecart_equals_mo_gymnasium_step_for_step_on_walks_along_the_borders():
    env, sim, rng = minecart_pair(0)
    known_yields(env, sim)
    ends, slid, state, ended = 0, 0, None, True
    for _ in range(1000):
        if ended:
            env.reset()
            state = sim.init(torch.zeros(1, 1, dtype=F64))
        action = int(rng.choice(6, p=[0.02, 0.06, 0.06, 0.4, 0.01, 0.45]))
        moved, want = drive(env, sim, state, action, rng.standard_normal((4, 2)))
        ended, state = same_step(sim, moved, want), moved[0]
        ends += ended
        slid += bool(((state.place == 0.0) | (state.place == 1.0)).any())
    assert ends >= 2
    assert slid > 150


def test_minecart_mines_and_sells_as_mo_gymnasium_does():
    """Carts put at rest near every mine dig until they are full, and drive home from beside the base."""
    env, sim, rng = minecart_pair(1)
    known_yields(env, sim)
    sales = set()
    for i in range(40):
        env.reset()
        state = sim.init(torch.zeros(1, 1, dtype=F64))._replace(departed=torch.tensor([True]))
        env.cart.departed = True
        at = sim.mines[:, i % 5].numpy() + rng.uniform(-0.15, 0.15, 2)
        for _ in range(1 + i % 4):
            env.cart.pos, env.cart.speed = at.copy(), 0
            state = state._replace(place=torch.tensor(at).unsqueeze(1), speed=torch.zeros(1, dtype=F64))
            moved, want = drive(env, sim, state, sim.MINE, rng.standard_normal((4, 2)))
            same_step(sim, moved, want)
            state = moved[0]
            np.testing.assert_allclose(state.content[:, 0].numpy(), env.cart.content, rtol=0, atol=1e-12)
        assert float(state.content.sum()) <= sim.capacity + 1e-12
        for start in (0.151, 0.2):  # home in the first frame, and in a later one
            env.end, env.cart.pos, env.cart.speed, env.cart.angle = False, np.array([start, 0.0]), 0.03, 180.0
            state = state._replace(
                place=torch.tensor([[start], [0.0]], dtype=F64),
                speed=torch.full((1,), 0.03, dtype=F64),
                angle=torch.full((1,), 180.0, dtype=F64),
            )
            moved, want = drive(env, sim, state, int(rng.integers(1, 6)), rng.standard_normal((4, 2)))
            sales.add((same_step(sim, moved, want), float(want[1][:2].sum()) > 0.0))
            state = moved[0]
    assert (True, True) in sales


def test_a_mine_yields_normal_amounts_that_are_never_negative():
    sim, n = Minecart(), 20_000
    state = sim.init(torch.rand(n, 1, dtype=F64, generator=torch.Generator().manual_seed(0)))
    state = state._replace(place=sim.mines[:, [1]].expand(2, n))
    amounts = sim.step(state, torch.zeros(n, dtype=torch.int64))[0].content / sim.frames
    assert float(amounts.min()) >= 0.0
    torch.testing.assert_close(amounts.mean(1), torch.tensor([0.15, 0.1], dtype=F64), rtol=0, atol=2e-3)
    assert amounts.std(1).tolist() == pytest.approx([0.05 / 2, 0.05 / 2], abs=2e-3)  # of means of four


def test_the_weights_one_and_a_thousandth_give_pendulums_reward():
    from ctrlrl.envs.classic import Pendulum

    g = torch.Generator().manual_seed(0)
    state = MOPendulum().init(torch.rand(100, 2, generator=g, dtype=F64))
    action = 2.0 * torch.rand(100, 1, generator=g, dtype=F64) - 1.0
    _, reward, _ = MOPendulum().step(state, action)
    _, scalar, _ = Pendulum().step(state, action)
    torch.testing.assert_close(reward @ torch.tensor([1.0, 1e-3], dtype=F64), scalar, rtol=0, atol=1e-12)


def test_the_bandits_known_policies_have_the_returns_of_its_front():
    sim = QuadraticBandit()
    front = sim.pareto_front(0.9, n=5)
    action = torch.stack((torch.linspace(0.0, 1.0, 5, dtype=F64), torch.zeros(5, dtype=F64)), 1)
    state, reward, terminated = sim.step(sim.init(torch.zeros(5, 0, dtype=F64)), action)
    torch.testing.assert_close(reward, front, rtol=0, atol=1e-15)
    assert bool(terminated.all())
    aside = sim.step(state, action + torch.tensor([0.0, 0.1]))[1]
    assert bool((aside < reward).all()), "off the segment both objectives lose"


def test_steady_irrigation_lies_on_the_ellipsoid_and_no_share_beats_the_known_best():
    sim = Irrigation()
    g = torch.Generator().manual_seed(0)
    action = 2.0 * torch.rand(200, 9, generator=g, dtype=F64) - 1.0
    state = sim.init(torch.rand(200, 9, generator=g, dtype=F64))
    for _ in range(400):
        state, reward, _ = sim.step(state, action)
    loss = torch.tensor(sim.loss, dtype=F64)
    torch.testing.assert_close((loss * reward.square()).sum(1), torch.ones(200, dtype=F64), rtol=0, atol=1e-12)
    weight = torch.distributions.Dirichlet(torch.ones(9, dtype=F64)).sample((50,))
    best = (weight * sim.best_growth(weight)).sum(1)
    assert bool((weight @ reward.T <= best.unsqueeze(1)).all())
    wanted = loss * sim.best_growth(weight).square()  # the shares of the best
    possible = ((wanted.log().amax(1) - wanted.log().amin(1)) < 8.0).nonzero()[0, 0]
    logits = wanted[possible].log()
    action = ((logits - (logits.amax() + logits.amin()) / 2) / 4.0).unsqueeze(0)
    state = sim.init(torch.zeros(1, 9, dtype=F64))
    for _ in range(400):
        state, reward, _ = sim.step(state, action)
    torch.testing.assert_close(reward[0], sim.best_growth(weight[possible]), rtol=0, atol=1e-9)


CONVEX = [(0.7, -1), (8.2, -3), (11.5, -5), (14, -7), (15.1, -8), (16.1, -9), (19.6, -13), (20.3, -14), (22.4, -17),
          (23.7, -19)]  # fmt: skip
CONCAVE = [(1, -1), (2, -3), (3, -5), (5, -7), (8, -8), (16, -9), (24, -13), (50, -14), (74, -17), (124, -19)]
DISCOUNTED = [(0.7, -1), (8.0368, -2.9701), (11.0469, -4.9010), (13.1807, -6.7935), (14.0742, -7.7255),
              (14.8562, -8.6483), (17.3731, -12.2479), (17.8137, -13.1254), (19.0727, -15.7057),
              (19.7780, -17.3831)]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "gamma", "front"),
    [(DeepSeaTreasure, 1.0, CONVEX), (DeepSeaTreasureConcave, 1.0, CONCAVE), (DeepSeaTreasure, 0.99, DISCOUNTED)],
)
def test_the_treasures_fronts_are_the_published_ones(kind, gamma, front):
    torch.testing.assert_close(kind().pareto_front(gamma), torch.tensor(front, dtype=F64), rtol=0, atol=5.1e-5)


@pytest.mark.parametrize("gamma", [0.9, 0.97, 0.99])
@pytest.mark.parametrize("kind", [DeepSeaTreasure, DeepSeaTreasureConcave, ResourceGathering, FruitTree])
def test_known_fronts_are_mo_gymnasiums(kind, gamma):
    env = reference(kind)
    want = {tuple(np.round(point, 9)) for point in env.pareto_front(gamma)}
    assert {tuple(round(x, 9) for x in row) for row in kind().pareto_front(gamma).tolist()} == want


def test_the_known_fronts_dominate_what_their_authors_say():
    pytest.importorskip("pymoo")
    found = {
        "gathering": hypervolume(ResourceGathering().pareto_front(0.99), torch.full((3,), -1.0)),
        "minecart": hypervolume(
            torch.from_numpy(np.array(reference(Minecart).pareto_front(0.99))), torch.tensor([-1.0, -1.0, -200.0])
        ),
        "convex": hypervolume(DeepSeaTreasure().pareto_front(0.99), torch.tensor([0.0, -25.0])),
        "bandit": hypervolume(QuadraticBandit().pareto_front(0.99, n=20_001), torch.tensor([-1.0, -1.0])),
    }
    want = {"gathering": 3.345110, "minecart": 763.519, "convex": 360.400946, "bandit": 5.0 / 6.0}
    for name, tolerance in {"gathering": 1e-6, "minecart": 1e-3, "convex": 1e-6, "bandit": 1e-4}.items():
        assert float(found[name]) == pytest.approx(want[name], abs=tolerance), name


@pytest.mark.parametrize("kind", [DeepSeaTreasure, FruitTree])
def test_every_point_of_a_front_is_the_return_of_a_way_there(kind):
    """Among all ways without detours: every policy's return is on the front or below it."""
    sim, gamma = kind(), 0.9
    n = 2**10
    bits = torch.arange(n).unsqueeze(1) >> torch.arange(10)
    choices = bits & 1 if kind is FruitTree else None
    state, total = sim.init(torch.zeros(n, 0, dtype=F64)), torch.zeros(n, len(sim.objectives), dtype=F64)
    alive = torch.ones(n, dtype=torch.bool)
    g = torch.Generator().manual_seed(0)
    for t in range(6 if kind is FruitTree else 60):
        action = choices[:, t] if choices is not None else torch.randint(0, 2, (n,), generator=g) * 2 + 1
        state, reward, ended = sim.step(state, action)
        total += gamma**t * reward * alive.unsqueeze(1)
        alive &= ~ended
    front = sim.pareto_front(gamma)
    found = total[~alive].unique(dim=0)
    below = (found.unsqueeze(1) <= front.unsqueeze(0) + 1e-9).all(2).any(1)
    assert bool(below.all())
    reached = (found.unsqueeze(1) - front.unsqueeze(0)).abs().amax(2).amin(0) < 1e-9
    assert int(reached.sum()) >= (64 if kind is FruitTree else 8)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG_TO_COMPILE)) for n in VECTOR])
def test_compiled_and_eager_steps_pay_the_same_vectors(name):
    sim = load(SIMULATORS[name])()
    eager, fused = (BatchedSim(sim, 4, seed=0, compile=c) for c in (False, True))
    assert eager.spec.reward_dim == len(eager.spec.objectives) == len(sim.objectives) >= 2
    torch.testing.assert_close(eager.reset(1), fused.reset(1), rtol=0, atol=0)
    g = torch.Generator().manual_seed(0)
    for _ in range(5):
        a = torch.rand(4, sim.action_dim, generator=g) if sim.action_dim else torch.randint(sim.n_actions, (4,))
        one, two = eager.step(a), fused.step(a)
        assert one.reward.shape == two.reward.shape == (4, eager.spec.reward_dim)
        assert two.reward.dtype == torch.float32
        torch.testing.assert_close(two.reward, one.reward, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(two.obs, one.obs, rtol=1e-5, atol=1e-6)

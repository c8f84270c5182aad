"""Physics, rewards and terminations: the numbers of Gymnasium, and answers by hand for the linear tasks."""

import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from ctrlrl.envs.classic import CLASSIC, LQR, LQRState, PointMass, PointMassState
from ctrlrl.envs.sim import BatchedSim, Sim

F64 = torch.float64
N = 3000  # random states per task

# name -> Gymnasium id, its action bound, low and high of the tested states; they reach past every termination and clip
TASKS: dict[str, tuple[str, float, list[float], list[float]]] = {
    "cartpole": ("CartPole-v1", 1.0, [-2.5, -3.0, -0.25, -3.0], [2.5, 3.0, 0.25, 3.0]),
    "pendulum": ("Pendulum-v1", 2.0, [-9.0, -8.0], [9.0, 8.0]),
    "mountaincar": ("MountainCar-v0", 1.0, [-1.2, -0.07], [0.6, 0.07]),
    "mountaincar_continuous": ("MountainCarContinuous-v0", 1.0, [-1.2, -0.07], [0.6, 0.07]),
    "acrobot": ("Acrobot-v1", 1.0, [-math.pi, -math.pi, -6.0, -6.0], [math.pi, math.pi, 6.0, 6.0]),
}


def gym_step(env: Any, state: Any, action: Any) -> tuple[Any, Any, bool]:
    """State, reward, terminated of one Gymnasium step from `state`, without its float32 observations."""
    env.reset(seed=0)  # CartPole warns when it is stepped after its end
    env.state = state
    _, reward, terminated, _, _ = env.step(action)
    return np.asarray(env.state, dtype=np.float64), float(reward), terminated


def random_states(name: str, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    """[N, S] states and their actions, in `dtype` (so that both sides start from the same numbers)."""
    _, _, low, high = TASKS[name]
    generator = torch.Generator().manual_seed(seed)
    lo, hi = torch.tensor(low, dtype=F64), torch.tensor(high, dtype=F64)
    states = lo + (hi - lo) * torch.rand(N, len(low), generator=generator, dtype=F64)
    sim = CLASSIC[name]()
    if sim.n_actions:
        return states.to(dtype), torch.randint(sim.n_actions, (N,), generator=generator)
    return states.to(dtype), (2.0 * torch.rand(N, 1, generator=generator, dtype=F64) - 1.0).to(dtype)


def as_state(sim: Sim, states: Tensor) -> Any:
    return type(sim.init(torch.zeros(1, sim.n_random)))(*states.unbind(1))


def turns_apart(name: str, difference: Tensor) -> Tensor:
    """The pendulum keeps its angle wrapped, Gymnasium does not: compare its angle modulo a turn."""
    if name == "pendulum":
        difference = difference.clone()
        difference[:, 0] -= 2 * math.pi * torch.round(difference[:, 0] / (2 * math.pi))
    return difference


def one_step_errors(name: str, states: Tensor, actions: Tensor) -> tuple[float, float, int]:
    """Largest differences of state (relative above 1) and reward to Gymnasium; how many states terminated, in both."""
    gym_id, bound, _, _ = TASKS[name]
    env: Any = gymnasium.make(gym_id, disable_env_checker=True).unwrapped
    sim = CLASSIC[name]()
    after, reward, terminated = sim.step(as_state(sim, states), actions)
    want = [
        gym_step(env, s.double().numpy(), int(a) if sim.n_actions else a.double().numpy() * bound)
        for s, a in zip(states, actions, strict=True)
    ]
    want_state = torch.tensor(np.stack([w[0] for w in want]))
    got_state = torch.stack(tuple(after), 1)
    assert got_state.dtype == reward.dtype == states.dtype
    if name == "mountaincar_continuous":  # Gymnasium rounds this task's state to float32 after each step
        got_state = got_state.float()
    difference = turns_apart(name, got_state.double() - want_state).abs() / want_state.abs().clamp(min=1.0)
    want_reward = torch.tensor([w[1] for w in want], dtype=F64)
    reward_difference = (reward.double() - want_reward).abs() / want_reward.abs().clamp(min=1.0)
    assert terminated.tolist() == [w[2] for w in want]
    return float(difference.amax()), float(reward_difference.amax()), int(terminated.sum())


@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", TASKS)
def test_one_step_equals_gymnasium(name: str, dtype: torch.dtype, tolerance: float) -> None:
    state_error, reward_error, n_terminated = one_step_errors(name, *random_states(name, dtype))
    assert state_error <= tolerance
    assert reward_error <= tolerance
    # both outcomes must occur, else their agreement says little
    assert n_terminated == 0 if name == "pendulum" else 10 < n_terminated < N - 10


def test_acrobot_at_its_speed_limits() -> None:
    """Steps of 0.2 s at 29 rad/s are far from converged and amplify a rounding 10,000 times: float64 and 1e-11 only."""
    states, actions = random_states("acrobot", F64)
    states[:, 2:] *= torch.tensor([13.0 / 6.0, 29.0 / 6.0], dtype=F64)
    after, _, _ = CLASSIC["acrobot"]().step(as_state(CLASSIC["acrobot"](), states), actions)
    assert (after.speed1.abs() == 4 * math.pi).any()
    assert (after.speed2.abs() == 9 * math.pi).any()
    state_error, reward_error, _ = one_step_errors("acrobot", states, actions)
    assert state_error <= 1e-11
    assert reward_error == 0.0


@pytest.mark.parametrize("name", TASKS)
def test_observation_equals_gymnasium(name: str) -> None:
    env: Any = gymnasium.make(TASKS[name][0], disable_env_checker=True).unwrapped
    sim = CLASSIC[name]()
    states, _ = random_states(name, F64, seed=1)
    got = sim.observe(as_state(sim, states))
    for row, state in zip(got[:200], states[:200], strict=True):
        env.state = state.numpy()
        want = {"pendulum": "_get_obs", "acrobot": "_get_ob"}.get(name)
        wanted = state.numpy() if want is None else getattr(env, want)()
        np.testing.assert_allclose(row.numpy(), wanted, atol=2e-7, rtol=2e-7)  # Gymnasium's are float32
    assert got.shape == (N, sim.obs_dim) == (N, env.observation_space.shape[0])
    limit = gymnasium.spec(TASKS[name][0]).max_episode_steps
    assert sim.episode_length == limit
    space = env.action_space
    assert (sim.n_actions, sim.action_dim) == ((space.n, 0) if hasattr(space, "n") else (0, space.shape[0]))


def test_pendulum_episode_follows_gymnasium() -> None:
    """200 steps of pendulum, actions outside the bounds included, through BatchedSim."""
    env: Any = gymnasium.make("Pendulum-v1", disable_env_checker=True).unwrapped
    sim = BatchedSim(CLASSIC["pendulum"](), 3, seed=0, dtype=F64, stagger=False)
    obs = sim.reset()
    env.reset(seed=0)
    env.state = np.array([math.atan2(obs[1, 1], obs[1, 0]), float(obs[1, 2])])
    actions = 1.5 * torch.randn(200, 3, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    for action in actions:
        out = sim.step(action)
        _, reward, _, _, _ = env.step(2.0 * action[1].numpy())
        theta, speed = env.state
        want = torch.tensor([math.cos(theta), math.sin(theta), speed], dtype=F64)
        torch.testing.assert_close(out.final_obs[1], want, atol=1e-9, rtol=0)
        assert abs(float(out.reward[1]) - reward) < 1e-9
    assert bool(out.truncated[1])


# name -> bounds of every column of the first state, from Gymnasium's reset
RESETS = {
    "cartpole": [(-0.05, 0.05)] * 4,
    "pendulum": [(-math.pi, math.pi), (-1.0, 1.0)],
    "mountaincar": [(-0.6, -0.4), (0.0, 0.0)],
    "mountaincar_continuous": [(-0.6, -0.4), (0.0, 0.0)],
    "acrobot": [(-0.1, 0.1)] * 4,
}


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", RESETS)
def test_first_states_are_distributed_as_in_gymnasium(name: str, dtype: torch.dtype) -> None:
    env: Any = gymnasium.make(TASKS[name][0], disable_env_checker=True).unwrapped
    gym_states = []
    for seed in range(300):
        env.reset(seed=seed)
        gym_states.append(np.asarray(env.state, dtype=np.float64))
    sim = BatchedSim(CLASSIC[name](), 40_000, seed=3, dtype=dtype)
    sim.reset()
    for i, (field, (low, high)) in enumerate(zip(sim._state, RESETS[name], strict=True)):
        theirs = np.stack(gym_states)[:, i]
        assert low - 1e-7 <= theirs.min() <= theirs.max() <= high + 1e-7  # the table is Gymnasium's
        x, width = field.double(), high - low
        assert low - 1e-7 <= float(x.min()) <= float(x.max()) <= high + 1e-7
        # 5 standard errors of the mean (width / sqrt(12 n)) and of the variance (width^2 / sqrt(180 n))
        assert abs(float(x.mean()) - (low + high) / 2) <= 5 * width / math.sqrt(12 * 40_000) + 1e-7
        assert abs(float(x.var()) - width**2 / 12) <= 5 * width**2 / math.sqrt(180 * 40_000) + 1e-7


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", CLASSIC)
def test_sizes_and_dtypes(name: str, dtype: torch.dtype) -> None:
    sim = CLASSIC[name]().to(torch.device("cpu"), dtype)
    state = sim.init(torch.rand(5, sim.n_random, dtype=dtype))
    action = torch.randint(sim.n_actions, (5,)) if sim.n_actions else torch.zeros(5, sim.action_dim, dtype=dtype)
    after, reward, terminated = sim.step(state, action)
    assert all(x.dtype == dtype and x.shape == y.shape for x, y in zip(after, state, strict=True))
    assert (reward.shape, reward.dtype) == ((5,), dtype)
    assert (terminated.shape, terminated.dtype) == ((5,), torch.bool)
    obs = sim.observe(after)
    assert (obs.shape, obs.dtype) == ((5, sim.obs_dim), dtype)


def test_nan_stays_nan() -> None:
    for name in TASKS:
        sim = CLASSIC[name]()
        states = torch.full((2, len(TASKS[name][2])), math.nan)
        action = torch.zeros(2, dtype=torch.int64) if sim.n_actions else torch.zeros(2, 1)
        after, _, terminated = sim.step(as_state(sim, states), action)
        assert not terminated.any()
        assert all(x.isnan().all() for x in after), name


def test_pointmass_against_constant_acceleration() -> None:
    """20 steps of one constant action: x = x0 + v0 t + u t^2 with u in units of 2 m/s^2, and the cost by hand."""
    sim = PointMass()
    x0, v0, u = torch.tensor([[1.0], [-0.5]]).double(), torch.tensor([[0.2], [0.1]]).double(), [-0.5, 0.25]
    state, action, total, expected = PointMassState(x0, v0), torch.tensor([u], dtype=F64), 0.0, 0.0
    for k in range(20):
        t = k * 0.05
        x = [float(x0[i]) + float(v0[i]) * t + u[i] * t * t for i in (0, 1)]
        v = [float(v0[i]) + 2.0 * u[i] * t for i in (0, 1)]
        expected -= 0.05 * sum(x[i] ** 2 + 0.1 * v[i] ** 2 + 0.01 * u[i] ** 2 for i in (0, 1))
        torch.testing.assert_close(sim.observe(state)[0], torch.tensor([*x, *v], dtype=F64), atol=1e-12, rtol=0)
        state, reward, terminated = sim.step(state, action)
        total += float(reward)
        assert not terminated.any()
    assert total == pytest.approx(expected, abs=1e-12)


def riccati(A: Tensor, B: Tensor, Q: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
    """Cost matrix P and gain K (u = -K x) of the infinite horizon, by iterating the Riccati equation."""
    P = Q
    for _ in range(3000):
        K = torch.linalg.solve(R + B.T @ P @ B, B.T @ P @ A)
        P = Q + A.T @ P @ (A - B @ K)
    return P, K


def test_lqr_cost_to_go_is_riccati() -> None:
    """From any start the optimal gain costs x' P x, and in the default task it never reaches the action bound."""
    sim = LQR()
    P, K = riccati(sim.A, sim.B, sim.Q, sim.R)
    x0 = torch.tensor([[1.0, 1.0, -1.0, 0.3], [1.0, -1.0, -1.0, 0.1]], dtype=F64)
    state, total = LQRState(x0), torch.zeros(4, dtype=F64)
    for _ in range(400):
        action = -(K @ state.x).T / sim.action_scale
        assert action.abs().max() < 1.0
        state, reward, _ = sim.step(state, action)
        total += reward
    torch.testing.assert_close(-total, (x0 * (P @ x0)).sum(0), atol=1e-9, rtol=0)


def test_lqr_by_hand() -> None:
    one = torch.eye(1, dtype=F64)
    sim = LQR(2.0 * one, 3.0 * one, 5.0 * one, 7.0 * one, action_scale=4.0)
    action = torch.tensor([[0.5], [-0.25]], dtype=F64)
    state, reward, _ = sim.step(LQRState(torch.tensor([[1.0, -2.0]], dtype=F64)), action)
    assert state.x.tolist() == [[2 * 1 + 3 * 2, 2 * -2 + 3 * -1]]
    assert reward.tolist() == [-(5 * 1 + 7 * 4), -(5 * 4 + 7 * 1)]


def test_lqr_refuses_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"LQR: Q must be \(2, 2\)"):
        LQR(Q=torch.eye(3))

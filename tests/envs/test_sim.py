"""BatchedSim: resets, clocks, random numbers and copies of its state, on tasks whose right answers are known."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ctrlrl.envs import sim as sim_module
from ctrlrl.envs.classic import CLASSIC, CartPole, Pendulum
from ctrlrl.envs.lane_random import stream
from ctrlrl.envs.sim import BatchedSim, Sim
from ctrlrl.types import EnvSpec, TimeStep, VecEnv, tree_map

LIMIT = 20  # steps; short, so that every lane resets several times


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """A second OpenMP thread spins at barriers: these tests took three times as long beside any other process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def actions_for(env: BatchedSim, n_steps: int, *, n_envs: int | None = None, seed: int = 0) -> Tensor:
    """[T, B, A] or [T, B]: lane i's actions do not depend on the number of lanes."""
    generator = torch.Generator().manual_seed(seed)
    pick = torch.rand(n_steps, 8, generator=generator, dtype=torch.float64)
    pick = pick[:, torch.arange(n_envs or env.spec.n_envs) % 8]
    if env.spec.n_actions:
        return (pick * env.spec.n_actions).long()
    return (3.0 * pick - 1.5).to(env.dtype).unsqueeze(2).repeat(1, 1, env.spec.action_dim)


def run(env: BatchedSim, actions: Tensor, first: int | None = None) -> TimeStep:
    """Stacked [T, B, ...] copies of the steps, lanes 0..first only."""
    steps = []
    for action in actions:
        out = env.step(action)
        steps.append(tree_map(lambda x: x[:first].clone(), out))
    return tree_map(lambda *x: torch.stack(x), *steps)


def assert_equal(a: TimeStep, b: TimeStep, atol: float = 0.0) -> None:
    tree_map(lambda x, y: torch.testing.assert_close(x, y, rtol=0, atol=atol, equal_nan=True), a, b)


class CountState(NamedTuple):
    start: Tensor
    age: Tensor


class Count(Sim):
    """Observes the noise it started from and its age; terminates at the age that lane-wise actions name."""

    obs_dim, action_dim, episode_length, n_random = 2, 1, 7, 1

    def init(self, noise: Tensor) -> CountState:
        return CountState(noise[:, 0], torch.zeros_like(noise[:, 0]))

    def step(self, state: CountState, action: Tensor) -> tuple[CountState, Tensor, Tensor]:
        age = state.age + 1
        return CountState(state.start, age), age, action[:, 0] > 0

    def observe(self, state: CountState) -> Tensor:
        return torch.stack(tuple(state), 1)


MODES = pytest.mark.parametrize("n", [6, 5000], ids=["where", "sparse"])  # both ways of resetting


def test_is_a_vec_env() -> None:
    env = BatchedSim(Pendulum(), 3, seed=0)
    assert isinstance(env, VecEnv)
    assert env.spec == EnvSpec(3, 1, 0, 1, 3, 200, torch.device("cpu"))
    env.close()


@MODES
def test_final_obs_is_the_old_episode_and_obs_the_new_one(n: int) -> None:
    """Ages are known: lane i starts with age 0 and ends at age 7 by the clock, or at age 3 by an action in lane 1."""
    env = BatchedSim(Count(), n, seed=0, dtype=torch.float64, stagger=False)
    obs = env.reset().clone()
    start = obs[:, 0]
    assert (obs[:, 1] == 0).all()
    age = torch.zeros(n, dtype=torch.float64)
    for t in range(1, 30):
        stop = age == torch.where(torch.arange(n) == 1, 2.0, torch.where(torch.arange(n) == 2, 6.0, 100.0))
        out = env.step(torch.where(stop, 1.0, -1.0).unsqueeze(1))
        age += 1
        assert torch.equal(out.final_obs, torch.stack((start, age), 1)), t
        assert torch.equal(out.reward, age)
        assert torch.equal(out.terminated, stop)
        assert torch.equal(out.truncated, (age == 7) & ~stop)  # lane 2 terminates in its last step: not truncated
        done = out.terminated | out.truncated
        assert (out.obs[done, 0] != start[done]).all()
        assert torch.equal(out.obs[~done], out.final_obs[~done])
        age = torch.where(done, 0.0, age)
        start = out.obs[:, 0].clone()
        assert torch.equal(out.obs[:, 1], age)
    assert not (out.truncated & out.terminated).any()


@pytest.mark.parametrize("name", CLASSIC)
@MODES
def test_reset_leaves_no_trace_of_the_old_episode(name: str, n: int) -> None:
    """Two environments with the same seed, one of them with NaN and huge states before its clocks end: then equal."""
    a, b = (BatchedSim(CLASSIC[name](), n, seed=5, stagger=False, episode_length=4) for _ in range(2))
    a.reset()
    b.reset()
    for x in b._state:
        x.fill_(math.nan)
        x[..., 1].fill_(1e30)
    actions = actions_for(a, 12)
    a_out, b_out = run(a, actions), run(b, actions)
    done = (b_out.terminated | b_out.truncated)[:4].any(0)
    assert done.all()
    assert b_out.final_obs[0, 0].isnan().all()  # a NaN is passed on, not hidden
    if name in ("pendulum", "pointmass", "lqr"):  # no lane terminates: the episodes are aligned
        assert_equal(tree_map(lambda x: x[4:], a_out), tree_map(lambda x: x[4:], b_out))
    assert b_out.obs[3].isfinite().all()
    assert b_out.obs[4:].isfinite().all()


@pytest.mark.parametrize("name", CLASSIC)
def test_lanes_do_not_depend_on_the_number_of_lanes(name: str) -> None:
    """Bit for bit, over several resets; 8 lanes reset by torch.where, 4096 by index."""
    few, many = (BatchedSim(CLASSIC[name](), n, seed=11, episode_length=LIMIT) for n in (8, 4096))
    assert not few._sparse
    assert many._sparse
    assert torch.equal(few.reset(), many.reset()[:8])
    actions = actions_for(few, 3 * LIMIT, n_envs=4096)
    a, b = run(few, actions[:, :8]), run(many, actions, first=8)
    assert_equal(a, b)
    assert (a.terminated | a.truncated).sum() >= 16


@pytest.mark.parametrize("n", [1, 3, 500])
def test_draws_ahead_change_nothing(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of many steps, as on a CPU, and of one, as in a captured GPU graph, give the same resets."""
    ahead = BatchedSim(CartPole(), n, seed=2, episode_length=LIMIT)
    assert ahead._block > 1
    monkeypatch.setattr(sim_module, "_DRAW_SIZE", 1)
    single = BatchedSim(CartPole(), n, seed=2, episode_length=LIMIT)
    assert single._block == 1
    assert torch.equal(ahead.reset(), single.reset())
    actions = actions_for(ahead, 3 * LIMIT)
    assert_equal(run(ahead, actions), run(single, actions))


@MODES
def test_seeds(n: int) -> None:
    def trajectory(seed: int) -> tuple[Tensor, TimeStep]:
        env = BatchedSim(CartPole(), n, seed=seed, episode_length=LIMIT)
        return env.reset().clone(), run(env, actions_for(env, 3 * LIMIT))

    (obs_a, a), (obs_b, b), (obs_c, _) = trajectory(3), trajectory(3), trajectory(4)
    assert torch.equal(obs_a, obs_b)
    assert_equal(a, b)
    assert (obs_a != obs_c).any(1).all()
    env = BatchedSim(CartPole(), n, seed=9, episode_length=LIMIT)
    env.reset()
    run(env, actions_for(env, 5))
    assert torch.equal(env.reset(seed=3), obs_a)  # a seed starts anew, whatever was before
    assert_equal(run(env, actions_for(env, 3 * LIMIT)), a)
    assert (env.reset() != obs_a).any(1).all()  # none goes on


def test_seed_none_follows_torch() -> None:
    def first() -> Tensor:
        return BatchedSim(CartPole(), 4).reset()

    torch.manual_seed(0)
    a, b = first(), first()
    torch.manual_seed(0)
    assert torch.equal(first(), a)
    assert (a != b).all()


def test_all_resets_differ() -> None:
    """No two episodes of any lane start alike: 50 lanes, 40 resets."""
    env = BatchedSim(Count(), 50, seed=0, dtype=torch.float64, episode_length=1)
    starts = [env.reset()[:, 0].clone()] + [env.step(torch.zeros(50, 1)).obs[:, 0].clone() for _ in range(40)]
    x = torch.stack(starts)
    assert x.unique().numel() == x.numel()
    assert abs(float(x.mean()) - 0.5) < 5 / math.sqrt(12 * x.numel())


def test_staggered_clocks_are_uniform() -> None:
    n, limit = 100_000, 50
    env = BatchedSim(Pendulum(), n, seed=1, episode_length=limit)
    env.reset()
    count = torch.bincount(env._clock, minlength=limit).double()
    assert len(count) == limit
    chi2 = float(((count - n / limit) ** 2 / (n / limit)).sum())
    assert chi2 < 49 + 5 * math.sqrt(2 * 49)
    ended = torch.stack([env.step(torch.zeros(n, 1)).truncated.clone() for _ in range(limit)])
    assert (ended.sum(0) == 1).all()  # every lane once in each span of `limit` steps
    assert torch.equal(ended.sum(1), count.long().flip(0))
    env = BatchedSim(Pendulum(), 10, seed=1, stagger=False)
    env.reset()
    assert (env._clock == 0).all()


@MODES
def test_no_limit(n: int) -> None:
    env = BatchedSim(CartPole(), n, seed=0, episode_length=0)
    env.reset()
    out = run(env, actions_for(env, 300))
    assert env.spec.episode_length == 0
    assert not out.truncated.any()
    assert out.terminated.any(0).all()


@MODES
def test_state_dict_continues_bit_for_bit(n: int) -> None:
    env = BatchedSim(CartPole(), n, seed=8, episode_length=LIMIT)
    env.reset()
    actions = actions_for(env, 100)
    run(env, actions[:33])
    saved = env.state_dict()
    expected = run(env, actions[33:])
    other = BatchedSim(CartPole(), n, seed=123, episode_length=LIMIT)
    other.load_state_dict(saved)  # into one that was never reset, then into one that is elsewhere
    assert_equal(run(other, actions[33:]), expected)
    other.load_state_dict(saved)
    assert_equal(run(other, actions[33:]), expected)
    with pytest.raises(ValueError, match="lanes"):
        BatchedSim(CartPole(), n + 1).load_state_dict(saved)


@pytest.mark.parametrize("n", [1, 1_048_576])
@pytest.mark.parametrize("name", ["pendulum", "cartpole"])
def test_one_and_a_million_lanes(name: str, n: int) -> None:
    env = BatchedSim(CLASSIC[name](), n, seed=0)
    assert env.reset().shape == (n, env.spec.obs_dim)
    action = actions_for(env, 1)[0]
    for _ in range(4):
        out = env.step(action)
    assert out.obs.shape == out.final_obs.shape == (n, env.spec.obs_dim)
    assert out.reward.shape == out.terminated.shape == out.truncated.shape == (n,)
    assert out.obs.isfinite().all()
    if n > 1 and name == "pendulum":
        assert abs(int(out.truncated.sum()) - n / 200) < 5 * math.sqrt(n / 200)


def test_actions_are_clamped() -> None:
    a, b = (BatchedSim(CLASSIC["mountaincar_continuous"](), 4, seed=0) for _ in range(2))
    a.reset()
    b.reset()
    assert_equal(run(a, torch.full((3, 4, 1), 5.0)), run(b, torch.ones(3, 4, 1)))


# torch.compile itself defines script methods when it is imported
@pytest.mark.parametrize(
    ("n", "draw_size"),
    [
        pytest.param(64, 16_384, id="where"),
        pytest.param(65, 1, id="gpu", marks=pytest.mark.slow),  # compiles three times
        pytest.param(3000, 16_384, id="sparse"),
    ],
)
def test_compiled_equals_eager(n: int, draw_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a recompilation, by later steps or by environments compiled before; in the GPU's way of drawing, too."""
    monkeypatch.setattr(sim_module, "_DRAW_SIZE", draw_size)
    make = partial(BatchedSim, Pendulum(), n, seed=4, dtype=torch.float64, episode_length=LIMIT)
    eager, fused = make(), make(compile=True)
    assert (fused._draw is sim_module.draw) == (draw_size > 1)
    actions = actions_for(eager, 3 * LIMIT)
    with torch._dynamo.config.patch(recompile_limit=1):
        torch.testing.assert_close(eager.reset(), fused.reset(), rtol=0, atol=0)
        a, b = run(eager, actions), run(fused, actions)
        assert_equal(a, b, atol=1e-9)  # 20 steps amplify roundings of 1e-16
        assert b.terminated.dtype == b.truncated.dtype == torch.bool
        assert int(b.truncated.sum()) == 3 * n
        fused.load_state_dict(eager.state_dict())
        assert_equal(run(eager, actions[:30]), run(fused, actions[:30]), atol=1e-9)
    assert torch.equal(eager.reset(seed=1), fused.reset(seed=1))  # a constant of a compiled draw: compiles it again
    assert_equal(run(eager, actions[:30]), run(fused, actions[:30]), atol=1e-9)


def test_refuses() -> None:
    with pytest.raises(ValueError, match="n_envs"):
        BatchedSim(Pendulum(), 0)
    with pytest.raises(ValueError, match="episode_length"):
        BatchedSim(Pendulum(), 1, episode_length=-1)
    with pytest.raises(RuntimeError, match="reset"):
        BatchedSim(Pendulum(), 1).step(torch.zeros(1, 1))


class DrawState(NamedTuple):
    key: Tensor  # int64
    t: Tensor


class Draw(Sim):
    """Two choices a step; pays a number hashed of its key and step, and tells both beside."""

    obs_dim, nvec, episode_length, n_random = 1, (2, 3), 5, 1
    extras = ("drawn", "clock")

    def init(self, noise: Tensor) -> DrawState:
        key = (noise[:, 0] * 2.0**53).long()
        return DrawState(key, torch.zeros_like(key))

    def step(self, state: DrawState, action: Tensor) -> tuple[DrawState, Tensor, Tensor, dict[str, Tensor]]:
        drawn = stream(state.key, state.t, 2).float()
        extras = {"drawn": drawn.T, "clock": state.t.float()}
        return DrawState(state.key, state.t + 1), drawn.sum(0), state.t < 0, extras

    def observe(self, state: DrawState) -> Tensor:
        return state.t.float().unsqueeze(1)


@MODES
def test_a_step_s_extras_are_those_of_the_action_and_an_integer_state_keeps_its_bits(n: int) -> None:
    env = BatchedSim(Draw(), n, seed=0, dtype=torch.float32, stagger=False)
    assert (env.spec.nvec, env.spec.extras) == ((2, 3), ("drawn", "clock"))
    env.reset(0)
    state = {name: x.clone() for name, x in env.state_dict().items()}
    seen = []
    for t in range(12):
        out = env.step(torch.zeros(n, 2, dtype=torch.int64))
        assert torch.equal(out.extras["clock"], torch.full((n,), float(t % 5)))  # of the old episode at its end
        assert torch.equal(out.extras["drawn"].sum(1), out.reward)
        seen.append(out.reward.clone())
    assert len({row.sum().item() for row in seen}) == 12
    assert (state["state.key"] > 2**24).all(), "more bits than float32 holds"
    env.load_state_dict(state)
    assert torch.equal(env.step(torch.zeros(n, 2, dtype=torch.int64)).reward, seen[0])


class Teller(Pendulum):
    """Tells the torque and whether the pendulum turns to the left."""

    extras = ("torque", "left")

    def step(self, state: Any, action: Tensor) -> Any:
        after, reward, terminated = super().step(state, action)
        return after, reward, terminated, {"torque": action * 2.0, "left": after.theta_dot > 0.0}


@pytest.mark.parametrize("n", [8, pytest.param(3000, marks=pytest.mark.slow)])
def test_what_a_simulator_tells_comes_out_in_extras_eager_and_compiled(n: int) -> None:
    """Of the action as clamped, and of the state that the step led to, not of the one after a reset."""
    eager, fused = (BatchedSim(Teller(), n, seed=0, episode_length=5, compile=c) for c in (False, True))
    eager.reset(1)
    fused.reset(1)
    for t in range(12):
        action = torch.full((n, 1), 1.5 if t % 2 else -0.5)
        a, b = eager.step(action), fused.step(action)
        assert a.extras["torque"].tolist() == [[2.0 if t % 2 else -1.0]] * n
        assert torch.equal(a.extras["left"], a.final_obs[:, 2] > 0.0)
        assert torch.equal(a.extras["torque"], b.extras["torque"])
        assert torch.equal(a.extras["left"], b.extras["left"])
        assert a.extras["left"].dtype == b.extras["left"].dtype == torch.bool


class WrongReward(Count):
    def step(self, state: Any, action: Tensor) -> Any:
        after, reward, terminated = super().step(state, action)
        return after, reward.unsqueeze(1), terminated


class WrongFlag(Count):
    def step(self, state: Any, action: Tensor) -> Any:
        after, reward, terminated = super().step(state, action)
        return after, reward, terminated.float()


class LanesLast(Pendulum):
    """Of 3 numbers: with 3 lanes it would look right."""

    def observe(self, state: Any) -> Tensor:
        return super().observe(state).T


class WholeNumbers(Count):
    def observe(self, state: Any) -> Tensor:
        return super().observe(state).long()


class PlainTuple(Count):
    def init(self, noise: Tensor) -> Any:
        return tuple(super().init(noise))


class LanesFirst(Count):
    def init(self, noise: Tensor) -> Any:
        return CountState(noise, torch.zeros_like(noise))


class Grows(Count):
    def step(self, state: Any, action: Tensor) -> Any:
        after, *rest = super().step(state, action)
        return (after._replace(age=after.age.expand(2, -1)), *rest)


class Promises(Count):
    extras = ("speed",)


class TellsRubbish(Count):
    def step(self, state: Any, action: Tensor) -> Any:
        return *super().step(state, action), {"speed": 1.0}


class NoLimit(Sim):
    obs_dim, action_dim, n_random = 1, 1, 1


class NoAction(Count):
    action_dim = 0


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (WrongReward, r"WrongReward.step: reward must be .*\[B\], here \[3\], got torch.float32 \[3, 1\]"),
        (WrongFlag, r"WrongFlag.step: terminated must be a bool tensor \[B\], here \[3\], got torch.float32 \[3\]"),
        (LanesLast, r"LanesLast.observe: obs must be .*\[B, O\], here \[4, 3\], got torch.float32 \[3, 4\]"),
        (WholeNumbers, r"WholeNumbers.observe: obs must be a floating tensor .* got torch.int64 \[3, 2\]"),
        (PlainTuple, "PlainTuple.init: the state must be a NamedTuple of tensors, got a tuple of 2"),
        (LanesFirst, r"LanesFirst.init: state.start must be a tensor with the 3 lanes last, got .*\[3, 1\]"),
        (Grows, r"Grows.step: the state's fields and shapes must stay .* got .*\[2, 3\]"),
        (Promises, "Promises.step: 'speed' is missing in the dict of extras"),
        (TellsRubbish, r"TellsRubbish.step: extras\['speed'\] must be a tensor \[3, ...\], got a float"),
        (NoLimit, "NoLimit.episode_length must be an int of at least 0, it has none"),
        (NoAction, "NoAction: exactly one of action_dim, n_actions and nvec is given"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_simulator_in_another_form_is_refused_when_it_is_made(kind: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        BatchedSim(kind(), 6, seed=0)


def test_looking_at_a_simulator_leaves_the_global_generator_alone() -> None:
    class Draws(Count):
        def observe(self, state: CountState) -> Tensor:
            torch.rand(1)
            return super().observe(state)

    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    BatchedSim(Draws(), 4, seed=0)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("sim", "action", "told"),
    [
        (Pendulum(), torch.zeros(4), r"Pendulum.step: actions must have shape \[4, 1\], got \[4\]"),
        (Pendulum(), torch.zeros(1, 1), r"shape \[4, 1\], got \[1, 1\]"),
        (CartPole(), torch.zeros(4, 1, dtype=torch.int64), r"shape \[4\], got \[4, 1\]"),
        (CartPole(), torch.zeros(4), "CartPole.step: discrete actions must be integers, got torch.float32"),
        (Draw(), torch.zeros(4, dtype=torch.int64), r"shape \[4, 2\], got \[4\]"),
    ],
)
def test_actions_of_another_form_are_refused(sim: Sim, action: Tensor, told: str) -> None:
    env = BatchedSim(sim, 4, seed=0)
    env.reset()
    with pytest.raises(ValueError, match=told):
        env.step(action)

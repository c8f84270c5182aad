"""What every environment promises: the rules of types.TimeStep, whatever backend steps it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ctrlrl.config import EnvConfig
from ctrlrl.registry import SIMULATORS, load
from ctrlrl.tasks import make_env
from ctrlrl.types import EnvSpec, VecEnv

N = 5
ROBOTS = (
    "halfcheetah",
    "hopper",
    "inverted_pendulum",
    "reacher",
    "hopper-v4",
    "mo_hopper",
    "mo_ant_2obj",
    "mo_reacher",
)
TASKS = {
    **{name: EnvConfig(name=name) for name in (*SIMULATORS, *ROBOTS)},
    "gym:CartPole-v1": EnvConfig(name="gym", id="CartPole-v1"),
    "gym:Pendulum-v1": EnvConfig(name="pendulum", backend="gymnasium"),
    "gym:mo-mountaincar-v0": EnvConfig(name="gym", id="mo-mountaincar-v0"),
    "warp:reacher": EnvConfig(name="reacher", backend="mujoco_warp"),
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) if name.startswith("warp") else name for name in TASKS]
LATE_CHANCE = ["resource_gathering", "minecart"]  # every episode begins alike, and long walks stay so
WITHOUT_CHANCE = [name for name, path in SIMULATORS.items() if load(path)().n_random == 0]
EXACT_STATE = [name for name in SLOW if not str(name).startswith("gym")]
Make = Callable[..., VecEnv]


def needs_package(name: str) -> None:
    if name in ROBOTS:
        pytest.importorskip("mujoco")
    elif name == "gym:mo-mountaincar-v0":
        pytest.importorskip("mo_gymnasium")
    elif name.startswith("warp"):
        pytest.importorskip("mujoco_warp")


pytestmark = pytest.mark.filterwarnings("ignore:.*precision lowered by casting")  # of mo-gymnasium's spaces


@pytest.fixture(params=SLOW)
def make(request: pytest.FixtureRequest) -> Make:
    needs_package(request.param)
    return lambda seed=3, n=N, stagger=True: make_env(TASKS[request.param], n, seed=seed, stagger=stagger)


def actions(spec: EnvSpec, n_steps: int, *, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    if spec.n_actions:
        return torch.randint(spec.n_actions, (n_steps, spec.n_envs), generator=g)
    if spec.nvec:
        return (torch.rand(n_steps, spec.n_envs, len(spec.nvec), generator=g) * torch.tensor(spec.nvec)).long()
    return torch.rand(n_steps, spec.n_envs, spec.action_dim, generator=g) * 2.4 - 1.2  # beyond the bounds: it clips


def test_shapes_dtypes_and_flags_are_those_of_the_spec(make):
    env = make()
    spec = env.spec
    assert isinstance(env, VecEnv)
    assert (spec.action_dim > 0) + (spec.n_actions > 0) + (len(spec.nvec) > 0) == 1
    obs = env.reset(3)
    assert (obs.shape, obs.dtype) == ((N, spec.obs_dim), torch.float32)
    for action in actions(spec, 30):
        step = env.step(action)
        assert (step.obs.shape, step.obs.dtype) == ((N, spec.obs_dim), torch.float32)
        assert (step.final_obs.shape, step.final_obs.dtype) == ((N, spec.obs_dim), torch.float32)
        rewards = (N,) if spec.reward_dim == 1 else (N, spec.reward_dim)
        assert (step.reward.shape, step.reward.dtype) == (rewards, torch.float32)
        assert len(spec.objectives) in (0, spec.reward_dim)
        assert (step.terminated.shape, step.terminated.dtype) == ((N,), torch.bool)
        assert (step.truncated.shape, step.truncated.dtype) == ((N,), torch.bool)
        assert torch.isfinite(step.obs).all()
        assert torch.isfinite(step.reward).all()
        assert set(spec.extras) <= set(step.extras)
    env.close()


def walk(env: VecEnv, n_steps: int, seed: int | None = 3) -> Tensor:
    """Everything that happens, [T, B, 2 O + M + 2]."""
    env.reset(seed)
    rows = []
    for action in actions(env.spec, n_steps):
        s = env.step(action)
        flags = torch.stack((s.terminated.float(), s.truncated.float()), 1)
        rows.append(torch.cat((s.obs, s.final_obs, s.reward.view(N, -1), flags), 1).clone())
    return torch.stack(rows)


def test_a_seed_fixes_everything_and_another_seed_changes_it(make, request):
    first, again, other = walk(make(), 25), walk(make(), 25), walk(make(seed=4), 25, seed=4)
    assert torch.equal(first, again)
    if request.node.callspec.params["make"] not in WITHOUT_CHANCE:
        assert not torch.equal(first, other)
    env = make()
    walk(env, 7, seed=9)
    assert torch.equal(walk(env, 25), first), "a seeded reset forgets what was before"


def test_lanes_differ_from_each_other(make, request):
    if request.node.callspec.params["make"] in WITHOUT_CHANCE + LATE_CHANCE:
        pytest.skip("nothing is left to chance in the first steps")
    env = make()
    obs = env.reset(3)
    if (obs == obs[0]).all():  # every episode begins alike: then what one action does differs
        still = torch.ones(N, dtype=torch.int64)
        obs = torch.cat([env.step(still).obs.clone() for _ in range(8)], 1)
    assert len({tuple(row) for row in obs.tolist()}) == N


def test_an_episode_end_shows_its_own_last_observation_and_a_fresh_start(make, request):
    """The flags exclude each other; obs = final_obs except where an episode ended; fresh starts look like resets."""
    env = make(stagger=True)
    env.reset(3)
    # where the reset of a thousand episodes lies
    again = make()
    starts = torch.cat([again.reset(s).clone() for s in range(60)])
    low, high = starts.amin(0) - 0.05, starts.amax(0) + 0.05
    spread = (high - low).clamp(min=0.3)
    limit = env.spec.episode_length
    n_ends, length = 0, torch.full((N,), limit)
    for action in actions(env.spec, min(limit + 5, 260) if limit else 260):
        step = env.step(action)
        length += 1
        assert not (step.terminated & step.truncated).any()
        done = step.terminated | step.truncated
        assert torch.equal(step.obs[~done], step.final_obs[~done])
        if request.node.callspec.params["make"] != "resource_gathering":  # ends where it began
            assert not done.any() or not torch.equal(step.obs[done], step.final_obs[done])
        fresh = step.obs[done]
        assert bool(((fresh > low - spread) & (fresh < high + spread)).all())
        n_ends += int(done.sum())
    assert n_ends > 0 or limit > 500, "the test must have seen an end"


def test_time_limits_truncate_after_exactly_the_limit(make):
    env = make(n=2, stagger=False)
    limit = env.spec.episode_length
    env.reset(3)
    if not limit:
        pytest.skip("the task has no time limit")
    still = torch.zeros(2, dtype=torch.int64) if env.spec.n_actions else torch.zeros(2, env.spec.action_dim)
    clock = torch.zeros(2)
    for _ in range(limit + 3 if limit > 200 else 2 * limit):
        step = env.step(still)
        clock += 1
        assert torch.equal(step.truncated, (clock == limit) & ~step.terminated)
        clock[step.terminated | step.truncated] = 0


@pytest.mark.parametrize("name", EXACT_STATE)
def test_a_restored_state_continues_bit_for_bit(name):
    needs_package(name)

    def fresh() -> VecEnv:
        return make_env(TASKS[name], N, seed=3)

    env = fresh()
    env.reset(3)
    for action in actions(env.spec, 12):
        env.step(action)
    state = {k: v.clone() for k, v in env.state_dict().items()}
    copy = fresh()
    copy.reset(8)
    copy.load_state_dict(state)
    for action in actions(env.spec, 40, seed=1):
        a, b = env.step(action), copy.step(action)
        assert torch.equal(a.obs, b.obs)
        assert torch.equal(a.reward, b.reward)
        assert torch.equal(a.truncated, b.truncated)


def test_evaluation_and_training_environments_do_not_share_state(make):
    env = make()
    expected = walk(env, 10)
    first, second = make(), make()
    first.reset(3)
    walk(second, 5, seed=77)
    rows = []
    for action in actions(first.spec, 10):
        rows.append(first.step(action).obs.clone())
        second.step(action)
    assert torch.equal(torch.stack(rows), expected[:, :, : first.spec.obs_dim])

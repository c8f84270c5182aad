"""The MuJoCo pool against Gymnasium's own environments: states, observations, rewards, terminations, resets."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
import torch

from ctrlrl.envs import lane_random, mujoco_engine
from ctrlrl.envs.mjcf_tasks import TASKS, get_task
from ctrlrl.envs.mujoco_cpu import MujocoPool
from ctrlrl.registry import VECTOR_ROBOTS
from ctrlrl.types import VecEnv

mujoco = pytest.importorskip("mujoco")

CLASSES = {
    "halfcheetah": ("half_cheetah", "HalfCheetahEnv"),
    "hopper": ("hopper", "HopperEnv"),
    "walker2d": ("walker2d", "Walker2dEnv"),
    "ant": ("ant", "AntEnv"),
    "humanoid": ("humanoid", "HumanoidEnv"),
    "humanoid_standup": ("humanoidstandup", "HumanoidStandupEnv"),
    "swimmer": ("swimmer", "SwimmerEnv"),
    "reacher": ("reacher", "ReacherEnv"),
    "pusher": ("pusher", "PusherEnv"),
    "inverted_pendulum": ("inverted_pendulum", "InvertedPendulumEnv"),
    "inverted_double_pendulum": ("inverted_double_pendulum", "InvertedDoublePendulumEnv"),
}
MO_CLASSES = {  # of mo-gymnasium
    "mo_halfcheetah": ("half_cheetah", "MOHalfCheehtahEnv"),
    "mo_hopper": ("hopper", "MOHopperEnv"),
    "mo_walker2d": ("walker2d", "MOWalker2dEnv"),
    "mo_ant": ("ant", "MOAntEnv"),
    "mo_humanoid": ("humanoid", "MOHumanoidEnv"),
    "mo_swimmer": ("swimmer", "MOSwimmerEnv"),
    "mo_reacher": ("reacher", "MOReacherEnv"),
}
SCALAR = [name for name, task in TASKS.items() if not task.objectives]
SPEC_IDS = {
    "halfcheetah": "HalfCheetah", "hopper": "Hopper", "walker2d": "Walker2d", "ant": "Ant", "humanoid": "Humanoid",
    "humanoid_standup": "HumanoidStandup", "swimmer": "Swimmer", "reacher": "Reacher", "pusher": "Pusher",
    "inverted_pendulum": "InvertedPendulum", "inverted_double_pendulum": "InvertedDoublePendulum",
}  # fmt: skip
N = 6


@pytest.fixture(autouse=True)
def _quiet_model_load():
    """Gymnasium's half_cheetah.xml prints a deprecation notice and leaves a log file; the reference loads it too."""
    handler = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    yield
    mujoco.set_mju_user_warning(handler)


def gymnasium_env(name: str):
    if name.startswith("mo_"):
        pytest.importorskip("mo_gymnasium")
        module, cls = MO_CLASSES[name.removesuffix("_2obj")]
        made = getattr(importlib.import_module(f"mo_gymnasium.envs.mujoco.{module}_v5"), cls)
        return made(cost_objective=False) if name.endswith("_2obj") else made()
    base, _, version = name.partition("-")
    module, cls = CLASSES[base]
    return getattr(importlib.import_module(f"gymnasium.envs.mujoco.{module}_{version or 'v5'}"), cls)()


def actions(pool: MujocoPool, steps: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    if pool.spec.n_actions:
        return torch.randint(pool.spec.n_actions, (steps, pool.spec.n_envs), generator=g)
    return torch.rand(steps, pool.spec.n_envs, pool.spec.action_dim, generator=g, dtype=torch.float64) * 2 - 1


def controls(env, action: torch.Tensor) -> np.ndarray:
    if not action.is_floating_point():
        return action.numpy()
    low, high = env.model.actuator_ctrlrange.T
    return (low + high) / 2 + (high - low) / 2 * action.numpy()


def pool_of(name: str, n: int = N, **kwargs) -> MujocoPool:
    return MujocoPool(name, n, **{"seed": 0, "n_threads": 2, "dtype": torch.float64, **kwargs})


def reference_reset(env, qpos: np.ndarray, qvel: np.ndarray, cold: bool) -> np.ndarray:
    mujoco.mj_resetData(env.model, env.data)
    env.set_state(qpos, qvel)
    if cold:
        env.data.qacc_warmstart[:] = 0.0
    return env._get_obs()


def same_reward(got: torch.Tensor, want: float | np.ndarray) -> None:
    """A number in float64; a vector is float32 in mo-gymnasium, summed there entry by entry."""
    if got.ndim == 0:
        assert float(got) == pytest.approx(float(want), rel=0, abs=1e-9)
    else:
        assert isinstance(want, np.ndarray)
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-6, atol=1e-5)


def random_states(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """States of N lanes after 10, 20 and 30 random steps; a third is thrown about, so that clips and falls are seen."""
    with_reset = pool_of(name, episode_length=0)
    with_reset.reset()
    qpos, qvel = [], []
    for t, action in enumerate(actions(with_reset, 30, seed=1)):
        with_reset.step(action)
        if t % 10 == 9:
            qpos.append(with_reset.physics.qpos.clone())
            qvel.append(with_reset.physics.qvel.clone())
    with_reset.close()
    g = torch.Generator().manual_seed(2)
    qpos[1] += torch.rand(qpos[1].shape, generator=g, dtype=torch.float64) - 0.5
    qvel[1] *= 5.0
    return torch.cat(qpos), torch.cat(qvel)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", TASKS)
def test_one_step_from_random_states_equals_gymnasium(name, exact):
    env, (qpos, qvel) = gymnasium_env(name), random_states(name)
    pool = pool_of(name, qpos.shape[0], exact=exact, episode_length=0)
    pool.reset()
    obs = pool.set_state(qpos, qvel)
    action = actions(pool, 1)[0]
    assert pool.task.dt == pytest.approx(env.dt, abs=1e-15)
    want = []
    for i in range(qpos.shape[0]):
        reset_obs = reference_reset(env, qpos[i].numpy(), qvel[i].numpy(), cold=not pool.exact)
        np.testing.assert_allclose(obs[i].numpy(), reset_obs, rtol=0, atol=1e-9)
        final, reward, terminated, _, _ = env.step(controls(env, action[i]))
        want.append((final, reward, terminated, env.data.qpos.copy(), env.data.qvel.copy()))
    physics = []
    place = pool._engine.place  # the states before auto-reset
    pool._engine.place = lambda *a: (physics.append((pool.physics.qpos.clone(), pool.physics.qvel.clone())), place(*a))
    step = pool.step(action)
    got_qpos, got_qvel = physics[0] if physics else (pool.physics.qpos, pool.physics.qvel)
    for i, (final, reward, terminated, q, v) in enumerate(want):
        assert np.array_equal(got_qpos[i].numpy(), q)
        assert np.array_equal(got_qvel[i].numpy(), v)
        np.testing.assert_allclose(step.final_obs[i].numpy(), final, rtol=0, atol=1e-9)
        same_reward(step.reward[i], reward)
        assert bool(step.terminated[i]) == bool(terminated)
    never = ("halfcheetah", "humanoid_standup", "swimmer", "reacher", "pusher")
    assert {w[2] for w in want} == ({False} if name.split("-")[0].removeprefix("mo_") in never else {False, True})
    pool.close()


@pytest.mark.parametrize("name", TASKS)
def test_an_exact_trajectory_of_200_steps_equals_gymnasiums_bit_for_bit(name):
    env, pool = gymnasium_env(name), pool_of(name, 2, exact=True, stagger=False, episode_length=0)
    pool.reset()
    lane, episodes = 1, 1
    reference_reset(env, pool.physics.qpos[lane].numpy(), pool.physics.qvel[lane].numpy(), cold=False)
    for action in actions(pool, 200):
        step = pool.step(action)
        obs, reward, terminated, _, _ = env.step(controls(env, action[lane]))
        np.testing.assert_allclose(step.final_obs[lane].numpy(), obs, rtol=0, atol=1e-9)
        same_reward(step.reward[lane], reward)
        assert bool(step.terminated[lane]) == bool(terminated)
        if terminated:
            reference_reset(env, pool.physics.qpos[lane].numpy(), pool.physics.qvel[lane].numpy(), cold=False)
            episodes += 1
        assert np.array_equal(pool.physics.qpos[lane].numpy(), env.data.qpos)
        assert np.array_equal(pool.physics.qvel[lane].numpy(), env.data.qvel)
    assert episodes > 1 or name.split("-")[0] not in ("hopper", "walker2d", "humanoid", "inverted_pendulum")
    pool.close()


@pytest.mark.parametrize("name", SPEC_IDS)
def test_dimensions_and_time_limits_are_gymnasiums(name):
    import gymnasium

    registered = gymnasium.spec(f"{SPEC_IDS[name]}-v5")
    env, pool = gymnasium_env(name), pool_of(name, 2)
    assert pool.spec.obs_dim == env.observation_space.shape[0] == pool.reset().shape[1]
    assert pool.spec.action_dim == env.action_space.shape[0]
    assert pool.spec.episode_length == registered.max_episode_steps
    assert isinstance(pool, VecEnv)
    pool.close()


@pytest.mark.parametrize("name", SCALAR)
def test_reset_noise_has_gymnasiums_range_and_spread(name):
    """Means and standard deviations over 2 000 resets against the closed forms of Gymnasium's distributions."""
    task, model = get_task(name), mujoco_engine.load_model(get_task(name).model)
    n, lanes = 2000, torch.arange(2000)
    uniform = lane_random.uniform(0, lanes, lanes * 0, task.n_uniform(model.nq, model.nv))
    normal = lane_random.normal(0, lanes, lanes * 0, task.n_normal(model.nv))
    qpos0 = torch.from_numpy(model.qpos0.copy())
    qpos, qvel = task.reset(uniform, normal, qpos0, torch.zeros(model.nv, dtype=torch.float64))
    base = name.split("-")[0]
    if base == "reacher":
        radius = qpos[:, 2:].norm(dim=1)
        assert radius.max() < 0.2
        assert float((radius < 0.1).double().mean()) == pytest.approx(0.25, abs=0.04)  # even over the disc
        assert float((qpos[:, :2] - qpos0[:2]).abs().max()) == pytest.approx(0.1, rel=0.01)
        assert float(qvel[:, :2].abs().max()) == pytest.approx(0.005, rel=0.01)
        assert bool((qvel[:, 2:] == 0).all())
        return
    if base == "pusher":
        spot = qpos[:, -4:-2]
        assert bool((spot.norm(dim=1) > 0.17).all())
        assert bool(((spot[:, 0] >= -0.3) & (spot[:, 0] <= 0) & (spot[:, 1].abs() <= 0.2)).all())
        share = (0.04 - 0.0) * 1.0 / (0.12 - math.pi * 0.17**2 / 2)  # the strip x < -0.2 lies wholly outside the disc
        assert float((spot[:, 0] < -0.2).double().mean()) == pytest.approx(share, abs=0.04)
        assert torch.equal(qpos[:, :7], qpos0[:7].expand(n, 7))
        assert bool((qpos[:, -2:] == 0).all())
        assert bool((qvel[:, -4:] == 0).all())
        assert float(qvel[:, :7].abs().max()) == pytest.approx(0.005, rel=0.01)
        return
    scale = {"halfcheetah": 0.1, "ant": 0.1, "swimmer": 0.1, "inverted_double_pendulum": 0.1, "hopper": 5e-3,
             "walker2d": 5e-3}.get(base, 1e-2)  # fmt: skip
    dq = qpos - qpos0
    assert float(dq.abs().max()) <= scale
    torch.testing.assert_close(dq.std(0), torch.full_like(dq[0], scale / math.sqrt(3)), rtol=0.06, atol=0)
    assert float(dq.mean(0).abs().max()) < 0.06 * scale
    gaussian = base in ("halfcheetah", "ant", "inverted_double_pendulum")
    spread = scale if gaussian else scale / math.sqrt(3)
    torch.testing.assert_close(qvel.std(0), torch.full_like(qvel[0], spread), rtol=0.08, atol=0)
    assert (float(qvel.abs().max()) > scale) == gaussian


@pytest.mark.parametrize("name", VECTOR_ROBOTS)
def test_vector_robots_have_mo_gymnasiums_sizes_and_say_what_their_objectives_are(name):
    env, pool = gymnasium_env(name), pool_of(name, 2)
    import gymnasium

    assert pool.spec.obs_dim == env.observation_space.shape[0] == pool.reset().shape[1]
    space = env.action_space
    assert (pool.spec.n_actions, pool.spec.action_dim) == ((space.n, 0) if space.shape == () else (0, *space.shape))
    assert pool.spec.reward_dim == env.reward_dim == len(pool.spec.objectives)
    assert pool.spec.episode_length == gymnasium.spec(VECTOR_ROBOTS[name]).max_episode_steps
    pool.close()


def test_the_reacher_among_targets_begins_as_mo_gymnasiums():
    env, pool = gymnasium_env("mo_reacher"), pool_of("mo_reacher", 400, stagger=False)
    pool.reset()
    env.reset(seed=0)
    assert torch.equal(pool.physics.qpos, torch.from_numpy(env.data.qpos.copy()).expand(400, -1))
    assert float(pool.physics.qvel[:, :2].abs().max()) == pytest.approx(0.005, rel=0.02)
    assert bool((pool.physics.qvel[:, 2:] == 0).all())
    for field in ("body_mass", "dof_damping", "dof_armature", "jnt_range", "body_pos", "body_inertia", "geom_contype"):
        np.testing.assert_array_equal(getattr(pool.model, field), getattr(env.model, field))


@pytest.mark.parametrize(
    ("name", "weight", "scalar"),
    [
        ("mo_halfcheetah", (1.0, 0.1), "halfcheetah"),
        ("mo_hopper", (1.0, 0.0, 1e-3), "hopper"),
        ("mo_hopper_2obj", (1.0, 0.0), "hopper"),
        ("mo_ant_2obj", (1.0, 0.0), "ant"),
        ("mo_swimmer", (1.0, 1e-4), "swimmer"),
    ],
)
def test_a_weighted_vector_is_the_robots_own_reward(name, weight, scalar):
    """Up to what a robot is paid for its health, which counts in every objective."""
    vector, single = pool_of(name, exact=True, stagger=False), pool_of(scalar, exact=True, stagger=False)
    assert torch.equal(vector.reset(), single.reset())
    w = torch.tensor(weight, dtype=torch.float64)
    for action in actions(single, 30):
        a, b = vector.step(action), single.step(action)
        assert torch.equal(a.final_obs, b.final_obs)
        healthy = single.task.healthy_reward * ~b.terminated
        twice = (w.sum() - 1.0) * healthy
        torch.testing.assert_close(a.reward @ w - twice, b.reward, rtol=0, atol=1e-9)

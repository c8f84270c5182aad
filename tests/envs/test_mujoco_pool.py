"""The MuJoCo pool as a vectorised environment: episodes, clocks, seeds, resume, drawing, errors."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from ctrlrl.envs import mujoco_cpu
from ctrlrl.envs.mujoco_cpu import MujocoPool

pytest.importorskip("mujoco")


def pool_of(name: str, n: int = 6, **kwargs) -> MujocoPool:
    return MujocoPool(name, n, **{"seed": 0, "n_threads": 2, "dtype": torch.float64, **kwargs})


def actions(pool: MujocoPool, steps: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.rand(steps, pool.spec.n_envs, pool.spec.action_dim, generator=g, dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize("exact", [False, True])
def test_truncation_gives_the_true_last_observation_and_the_first_of_the_next_episode(exact):
    cut, free = (pool_of("halfcheetah", 3, exact=exact, stagger=False, episode_length=e) for e in (5, 0))
    assert torch.equal(cut.reset(), free.reset())
    for t, action in enumerate(actions(cut, 7)):
        a, b = cut.step(action), free.step(action)
        if t < 4:
            assert torch.equal(a.obs, a.final_obs)
        if t <= 4:
            assert torch.equal(a.final_obs, b.final_obs)  # cutting an episode changes nothing before the cut
        assert bool((a.truncated == (t == 4)).all())
        assert not a.terminated.any()
        if t == 4:
            assert float((a.obs[:, :8]).abs().max()) <= 0.1  # positions of a reset, none of the old episode's
            fresh = pool_of("halfcheetah", 3, exact=exact, stagger=False, episode_length=5)
            fresh.reset()
            assert torch.equal(fresh.reset(), a.obs)  # the lanes' second episodes
            moved = cut.physics.before
            assert torch.equal(moved, cut.physics.qpos[:, 0])  # no velocity across the reset


def test_a_lane_that_falls_at_the_limit_is_terminated_and_not_truncated():
    pool = pool_of("hopper", 32, stagger=False, episode_length=25)
    pool.reset()
    seen = set()
    for action in actions(pool, 25):
        step = pool.step(action)
        assert not bool((step.terminated & step.truncated).any())
        seen |= {"terminated"} if step.terminated.any() else set()
        seen |= {"truncated"} if step.truncated.any() else set()
        done = step.terminated | step.truncated
        assert torch.equal(step.obs[~done], step.final_obs[~done])
        assert bool((step.obs[done] != step.final_obs[done]).any(1).all())
    assert "terminated" in seen


def test_first_clocks_are_spread_over_the_limit_and_later_ones_start_at_zero():
    pool = pool_of("reacher", 200)
    pool.reset()
    clock = pool._clock.clone()
    assert int(clock.min()) >= 0
    assert int(clock.max()) < 50
    assert float(clock.double().mean()) == pytest.approx(24.5, abs=4)
    pool.reset()
    assert int(pool._clock.max()) == 0
    again = pool_of("reacher", 200, stagger=False)
    again.reset()
    assert int(again._clock.max()) == 0


@pytest.mark.parametrize("exact", [False, True])
def test_a_lane_does_not_know_how_many_there_are_or_how_many_threads(exact, monkeypatch):
    many = pool_of("hopper", 40, exact=exact, n_threads=2, seed=7)
    monkeypatch.setattr(mujoco_cpu, "_DRAW_SIZE", 100)  # beginnings of two episodes at a time
    few = pool_of("hopper", 4, exact=exact, n_threads=1, seed=7)
    assert torch.equal(few.reset(), many.reset()[:4])
    for action in actions(many, 120):
        a, b = few.step(action[:4]), many.step(action)
        for x, y in zip(a[:5], b[:5], strict=True):
            assert torch.equal(x, y[:4])
    assert int(few._episode.min()) >= 1


def test_a_seed_repeats_and_another_one_differs():
    a, b = pool_of("halfcheetah", seed=1), pool_of("halfcheetah", seed=2)
    first = a.reset()
    assert not torch.equal(first, b.reset())
    assert torch.equal(first, b.reset(seed=1))
    assert not torch.equal(first, a.reset())
    assert torch.equal(first, a.reset(seed=1))


@pytest.mark.parametrize(("name", "exact"), [("hopper", False), ("hopper", True), ("ant", True), ("humanoid", True)])
def test_a_state_dict_resumes_bit_for_bit(name, exact):
    pool, other = (pool_of(name, 4, exact=exact, seed=s, episode_length=40) for s in (0, 99))
    pool.reset()
    acts = actions(pool, 80)
    for action in acts[:30]:
        pool.step(action)
    other.load_state_dict({k: v.clone() for k, v in pool.state_dict().items()})
    assert torch.equal(pool.physics.qpos, other.physics.qpos)
    ends = 0
    for action in acts[30:]:
        a, b = pool.step(action), other.step(action)
        for x, y in zip(a[:5], b[:5], strict=True):
            assert torch.equal(x, y)
        ends += int((a.terminated | a.truncated).sum())
    assert ends > 0


def test_a_state_of_another_size_is_refused():
    pool = pool_of("hopper", 4)
    pool.reset()
    with pytest.raises(ValueError, match="4 lanes"):
        pool_of("hopper", 3).load_state_dict(pool.state_dict())


def test_actions_are_scaled_to_the_control_range_and_clipped():
    for name, limit in (("humanoid", 0.4), ("pusher", 2.0), ("inverted_pendulum", 3.0), ("hopper", 1.0)):
        pool = pool_of(name, 2, stagger=False)
        pool.reset()
        pool.step(torch.full((2, pool.spec.action_dim), 5.0))
        torch.testing.assert_close(
            pool.physics.control, torch.full_like(pool.physics.control, limit), rtol=0, atol=1e-12
        )


def test_what_leaves_the_pool_is_float32_by_default():
    pool = MujocoPool("hopper", 2, seed=0)
    assert pool.reset().dtype == torch.float32
    step = pool.step(torch.zeros(2, 3))
    assert (step.obs.dtype, step.reward.dtype, step.terminated.dtype) == (torch.float32, torch.float32, torch.bool)


@pytest.mark.parametrize("exact", [False, True])
def test_a_broken_simulation_shows_as_nan_and_the_lane_recovers(exact, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo logs the instability to a file
    pool = pool_of("halfcheetah", 3, exact=exact, stagger=False)
    pool.reset()
    qpos, qvel = pool.physics.qpos.clone(), pool.physics.qvel.clone()
    qvel[1, 3] = 1e12
    pool.set_state(qpos, qvel)
    step = pool.step(torch.zeros(3, 6))
    broken = torch.tensor([False, True, False])
    assert torch.equal(step.final_obs.isnan().any(1), broken)
    assert torch.equal(step.reward.isnan(), broken)
    assert torch.equal(step.truncated, broken)
    assert bool(torch.isfinite(step.obs).all())
    assert bool(torch.isfinite(pool.step(torch.zeros(3, 6)).reward).all())


_DRAW = """
from ctrlrl.envs.mujoco_cpu import MujocoPool
for task in ("halfcheetah", "reacher"):
    pool = MujocoPool(task, 2, seed=0)
    pool.reset()
    try:
        frame = pool.render(1, height=120, width=160)
    except RuntimeError as error:
        print("cannot draw:", error)
    else:
        print("drew", *frame.shape, frame.dtype, frame.std() > 5)
    pool.close()
"""


def test_a_frame_shows_something():
    """In a process of its own: mujoco chooses how to draw when it is imported, and another test may have been first."""
    env = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "MUJOCO_GL")}
    done = subprocess.run([sys.executable, "-c", _DRAW], env=env, capture_output=True, text=True, check=True)
    if done.stdout.startswith("cannot draw:"):
        pytest.skip(done.stdout.strip())
    assert done.stdout.splitlines() == ["drew 120 160 3 uint8 True"] * 2


@pytest.mark.parametrize(
    ("task", "action", "told"),
    [
        ("hopper", torch.zeros(3), r"MujocoPool.step: actions must have shape \[3, 3\], got \[3\]"),
        ("hopper", torch.zeros(1, 3), r"shape \[3, 3\], got \[1, 3\]"),
        ("mo_reacher", torch.zeros(3, 1, dtype=torch.int64), r"shape \[3\], got \[3, 1\]"),
        ("mo_reacher", torch.zeros(3), "discrete actions must be integers, got torch.float32"),
    ],
)
def test_actions_of_another_shape_are_refused(task, action, told):
    pool = pool_of(task, 3)
    pool.reset()
    with pytest.raises(ValueError, match=told):
        pool.step(action)


def test_a_negative_time_limit_is_refused():
    with pytest.raises(ValueError, match="episode_length must be >= 0"):
        pool_of("hopper", 3, episode_length=-3)


def test_errors_name_the_remedy(monkeypatch):
    with pytest.raises(ValueError, match="halfcheetah"):
        MujocoPool("half_cheetah", 1)
    with pytest.raises(RuntimeError, match=r"reset\(\)"):
        pool_of("hopper").step(torch.zeros(6, 3))
    monkeypatch.setitem(sys.modules, "mujoco", None)  # what an absent package looks like
    with pytest.raises(ImportError, match=r"ctrlrl\[mujoco\]"):
        MujocoPool("halfcheetah", 1)


@pytest.mark.parametrize(("task", "gym_id"), [("halfcheetah", "HalfCheetah-v5"), ("hopper", "Hopper-v5")])
def test_a_film_runs_in_real_time(task, gym_id):
    import gymnasium as gym

    reference = gym.make(gym_id)
    pool = MujocoPool(task, 1, seed=0)
    assert round(pool.frames_per_second) == reference.metadata["render_fps"]
    pool.close()
    reference.close()

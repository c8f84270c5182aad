"""MuJoCo Warp against the CPU pool: the same tasks, seeds, clocks and resets; one captured graph; shared tensors."""

from __future__ import annotations

import sys
from functools import cache

import pytest
import torch
from torch import Tensor

from ctrlrl.algos.ppo import PPOConfig
from ctrlrl.config import EnvConfig, TrainConfig
from ctrlrl.envs import mujoco_cpu, mujoco_warp
from ctrlrl.envs.dynamics import Dynamics
from ctrlrl.envs.mujoco_cpu import MujocoPool
from ctrlrl.envs.mujoco_warp import MujocoWarp
from ctrlrl.envs.warp_engine import adapt_model, contact_room
from ctrlrl.loops import training_loop
from ctrlrl.registry import ROBOTS
from ctrlrl.tasks import backend_of, make_env

mujoco = pytest.importorskip("mujoco")
pytest.importorskip("mujoco_warp", reason="pip install 'ctrlrl[warp]'")

N = 4
CUDA = pytest.mark.gpu


@cache
def warp(name: str, n: int = N, **words) -> MujocoWarp:
    """Kept from test to test, because making one takes a second: begin with reset(seed)."""
    return MujocoWarp(name, n, **{"seed": 0, **words})


def pool(name: str, n: int = N, **words) -> MujocoPool:
    return MujocoPool(name, n, **{"seed": 0, "exact": True, "n_threads": 1, "dtype": torch.float64, **words})


def actions(env, steps: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    if env.spec.n_actions:
        return torch.randint(env.spec.n_actions, (steps, env.spec.n_envs), generator=g).to(env.spec.device)
    shape = (steps, env.spec.n_envs, env.spec.action_dim)
    return (torch.rand(shape, generator=g) * 2.4 - 1.2).to(env.spec.device)


def close(got: Tensor, want: Tensor, atol: float) -> None:
    torch.testing.assert_close(got.double().cpu(), want.double(), rtol=0, atol=atol)


def follow(got, want: MujocoPool, steps: int, *, state: float, reward: float, obs: float) -> int:
    """Step both with the same actions; ends seen. The tolerances are absolute, in the task's units."""
    close(got.reset(0), want.reset(0), 1e-5)
    assert torch.equal(got._clock.cpu(), want._clock)
    ends = 0
    for action in actions(got, steps):
        a, b = got.step(action), want.step(action.cpu())
        assert torch.equal(a.terminated.cpu(), b.terminated)
        assert torch.equal(a.truncated.cpu(), b.truncated)
        close(got.physics.qpos, want.physics.qpos, 0.1 * state)
        close(got.physics.qvel, want.physics.qvel, state)
        close(a.reward, b.reward, reward)
        close(a.final_obs, b.final_obs, obs)
        close(a.obs, b.obs, obs)
        ends += int((b.terminated | b.truncated).sum())
    return ends


def test_hopper_does_what_the_exact_pool_does_over_many_episodes():
    ends = follow(warp("hopper"), pool("hopper"), 150, state=1e-3, reward=1e-4, obs=1e-3)
    assert ends > N


def test_poses_and_time_limits_are_the_pools():
    want = pool("reacher")
    want.reset(0)
    clock = want._clock.clone()
    ends = follow(warp("reacher"), want, 110, state=1e-4, reward=1e-5, obs=1e-4)
    assert ends == int(((clock + 110) // 50).sum())


# a few times what was seen: float32 against float64, grown by the contacts of these steps
STEPS = {"ant": 2, "halfcheetah": 10}  # else 20; the ant's first contact comes in the third, see the next test
SLACK = {
    "halfcheetah": (1e-2, 5e-3, 1e-2),
    "walker2d": (2e-3, 1e-4, 2e-3),
    "ant": (1e-4, 1e-5, 1e-4),
    "humanoid": (1e-3, 5e-3, 2.0),  # observations and reward hold contact forces of hundreds of newtons
    "humanoid_standup": (1e-3, 5e-3, 2.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ROBOTS)
def test_every_robot_begins_and_moves_as_on_the_cpu(name):
    task = name.removesuffix("-v4").removeprefix("mo_").removesuffix("_2obj")
    state, reward, obs = SLACK.get(task, (1e-3, 1e-4, 1e-3))
    if name == "mo_hopper" or name == "mo_hopper_2obj":
        reward *= 10.0  # which is what a height counts
    follow(warp(name), pool(name), STEPS.get(task, 20), state=state, reward=reward, obs=obs)
    warp(name).check()


@pytest.mark.slow
def test_the_ant_parts_from_mujoco_only_by_the_direction_of_the_friction_pyramid(monkeypatch):
    load = mujoco_cpu.load_model

    def round_cone(*words):
        model = load(*words)
        model.opt.cone = mujoco.mjtCone.mjCONE_ELLIPTIC  # has no direction
        return model

    monkeypatch.setattr(mujoco_cpu, "load_model", round_cone)
    monkeypatch.setattr(mujoco_warp, "load_model", round_cone)
    env = MujocoWarp("ant", N, seed=0)
    follow(env, pool("ant"), 8, state=2e-2, reward=1e-2, obs=5e-2)
    assert float(env.physics.fields["cfrc_ext"].abs().max()) > 1.0, "the ant must have touched the ground"


def test_tensors_are_warps_own_memory():
    env = warp("reacher")
    env.reset(0)
    data, p = env.engine._data, env.physics
    for tensor, array in ((p.qpos, data.qpos), (p.qvel, data.qvel), (p.control, data.ctrl),
                          (p.fields["xpos"], data.xpos)):  # fmt: skip
        assert tensor.data_ptr() == array.ptr
    before = [t.data_ptr() for t in (p.qpos, p.qvel, p.control, p.fields["xpos"])]
    for action in actions(env, 60):
        env.step(action)
    env.load_state_dict(env.state_dict())
    assert before == [t.data_ptr() for t in (p.qpos, p.qvel, p.control, p.fields["xpos"])]


@pytest.mark.parametrize(("name", "graphs"), [("hopper", 1), ("reacher", 2)])
def test_graphs_are_captured_when_the_environment_is_made_and_never_again(name, graphs):
    env = warp(name)
    assert env.engine.captures == graphs
    env.reset(0)
    for action in actions(env, 60):
        env.step(action)
    env.reset(3)
    env.load_state_dict(env.state_dict())
    env.step(actions(env, 1)[0])
    assert env.engine.captures == graphs


def test_the_graph_does_what_its_kernels_do_one_by_one():
    env = warp("hopper")
    env.reset(0)
    engine = env.engine
    for action in actions(env, 20):
        env.step(action)  # down to the ground
    for action in actions(env, 3):
        engine.control.copy_(action.clamp(-1, 1))
        state = engine.state_dict()
        engine.advance()
        replayed = engine.state_dict()
        engine.load_state_dict(state)
        engine._physics_steps(env.task.frame_skip)
        for name, value in engine.state_dict().items():
            assert torch.equal(value, replayed[name]), name


def test_a_lane_does_not_know_how_many_there_are():
    many, few = warp("hopper"), warp("hopper", 2)
    assert torch.equal(many.reset(5)[:2], few.reset(5))
    for action in actions(many, 60):
        a, b = many.step(action), few.step(action[:2])
        for x, y in zip(a[:5], b[:5], strict=True):
            assert torch.equal(x[:2], y)


@pytest.mark.parametrize("name", ["hopper", "reacher"])
def test_a_state_dict_resumes_bit_for_bit(name):
    env = warp(name)
    env.reset(0)
    acts = actions(env, 90)
    for action in acts[:30]:
        env.step(action)
    state = env.state_dict()
    first = [env.step(action) for action in acts[30:]]
    assert any((s.terminated | s.truncated).any() for s in first)
    env.reset(9)
    env.step(acts[0])
    env.load_state_dict(state)
    for action, want in zip(acts[30:], first, strict=True):
        got = env.step(action)
        for x, y in zip(got[:5], want[:5], strict=True):
            assert torch.equal(x, y)
    with pytest.raises(ValueError, match="4 lanes"):
        warp("hopper", 2).load_state_dict(state)


def test_clocks_spread_at_a_seeded_reset_and_start_at_zero_at_the_next():
    env, want = warp("reacher"), pool("reacher")
    for seed in (0, None, 7):
        env.reset(seed), want.reset(seed)
        assert torch.equal(env._clock, want._clock)
    assert bool((env._clock > 0).any())


def test_a_broken_simulation_shows_as_nan_and_the_lane_recovers():
    env = warp("hopper")
    env.reset(0)
    qvel = env.physics.qvel.clone()
    qvel[1, 3] = 1e12
    env.set_state(env.physics.qpos.clone(), qvel)
    still = torch.zeros(N, 3)
    step = env.step(still)
    broken = torch.tensor([False, True, False, False])
    assert torch.equal(step.final_obs.isnan().any(1), broken)
    assert torch.equal(step.reward.isnan(), broken)
    assert torch.equal(step.truncated, broken)
    assert torch.equal(env.engine._state["qacc_warmstart"].eq(0).all(1), broken), "an episode begins cold"
    for _ in range(5):
        step = env.step(still)
        assert bool(torch.isfinite(step.obs).all())
        assert bool(torch.isfinite(step.reward).all())


def test_actions_are_scaled_to_the_control_range_and_clipped():
    env = warp("inverted_pendulum")
    env.reset(0)
    env.step(torch.full((N, 1), 5.0))
    assert torch.equal(env.physics.control, torch.full((N, 1), 3.0))


BALLS = """<mujoco><worldbody><geom type="plane" size="9 9 .1"/><body><freejoint/><geom size=".1"/></body>
<body pos="1 0 0"><joint limited="true" range="-1 1"/><geom type="capsule" size=".1 .2" contype="{bits}" conaffinity="{bits}"/>
<body><joint/><geom type="box" size=".1 .1 .1" condim="1"/></body></body></worldbody></mujoco>"""  # noqa: E501


def test_actions_of_another_shape_and_a_negative_time_limit_are_refused():
    env = warp("hopper")
    env.reset(0)
    with pytest.raises(ValueError, match=r"MujocoWarp.step: actions must have shape \[4, 3\], got \[1, 3\]"):
        env.step(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="episode_length must be >= 0"):
        MujocoWarp("hopper", 2, episode_length=-3)


def test_room_is_what_the_shapes_of_a_model_allow():
    # ground: ball 1, capsule 2, box 8, of 4 rows each; ball and capsule 1, ball and box 1; one limit; parent and child
    # do not collide. 13 contacts of 4 rows (condim is the larger of the two) and 1 limit make 53 rows
    model = mujoco.MjModel.from_xml_string(BALLS.format(bits=1))
    assert contact_room(model) == (13, 64)
    assert contact_room(model, 2.0) == (26, 112)
    model = mujoco.MjModel.from_xml_string(BALLS.format(bits=2))  # the capsule touches nothing
    assert contact_room(model) == (10, 48)


def test_running_out_of_room_is_told_once_a_rollout_and_names_the_key():
    env = warp("hopper", room=0.1)
    assert env.engine.room == (1, 16)
    env.reset(0)
    env.check()
    for _ in range(60):
        env.step(torch.zeros(N, 3))
    with pytest.raises(RuntimeError, match=r"env\.contact_room, now 0\.1"):
        env.check()
    cfg = TrainConfig(
        env=EnvConfig(name="hopper", backend="mujoco_warp", contact_room=0.1),
        algo=PPOConfig(n_steps=128),
        n_envs=2,
        total_steps=512,
    )
    with pytest.raises(RuntimeError, match=r"env\.contact_room"):
        training_loop(cfg).iterate()


def test_what_differs_from_mujoco_is_told():
    humanoid, hopper, ant = (mujoco_cpu.load_model(f) for f in ("humanoid.xml", "hopper.xml", "ant.xml"))
    assert any("Newton" in line for line in adapt_model(humanoid))
    assert humanoid.opt.solver == mujoco.mjtSolver.mjSOL_NEWTON
    assert not any("Newton" in line for line in adapt_model(humanoid))
    assert len(adapt_model(ant)) == 1
    assert "friction pyramid" in adapt_model(ant)[0]
    assert adapt_model(hopper) == ()


def test_a_model_that_warp_cannot_run_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(mujoco_warp, "adapt_model", lambda model: ())
    with pytest.raises(ValueError, match=r"cannot run env=humanoid: mjSOL_PGS.*env\.backend=mujoco"):
        MujocoWarp("humanoid", 1)


def test_configurations_that_cannot_be_are_refused(monkeypatch):
    assert backend_of(EnvConfig(name="hopper")) == "mujoco"
    with pytest.raises(ValueError, match="mujoco_warp does not have env=pendulum"):
        backend_of(EnvConfig(name="pendulum", backend="mujoco_warp"))
    with pytest.raises(ValueError, match=r"env\.exact=true"):
        EnvConfig(name="hopper", backend="mujoco_warp", exact=True)
    with pytest.raises(ValueError, match=r"env\.contact_room"):
        EnvConfig(name="hopper", contact_room=0.0)
    with pytest.raises(ValueError, match="n_envs"):
        MujocoWarp("hopper", 0)
    monkeypatch.setitem(sys.modules, "mujoco_warp", None)  # what an absent package looks like
    monkeypatch.setattr(mujoco_warp, "load_model", None)  # nothing is loaded or allocated before
    with pytest.raises(ValueError, match=r"pip install 'ctrlrl\[warp\]'"):
        make_env(EnvConfig(name="hopper", backend="mujoco_warp"), 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reacher", "hopper"])
def test_check_env_finds_nothing(name):
    from ctrlrl.envs.check import check_env

    def make(n_envs, seed, stagger=True, episode_length=40):
        return MujocoWarp(name, n_envs, seed=seed, stagger=stagger, episode_length=episode_length)

    report = check_env(make(3, 0), make=make, steps=90)
    report.raise_if_failed()
    assert not report.names("noted")


@CUDA
@pytest.mark.parametrize("name", ["hopper", "reacher", "humanoid"])
def test_on_a_gpu_no_step_captures_reads_or_leaves_warps_memory(name):
    env = MujocoWarp(name, 256, seed=0, device="cuda")
    env.reset(0)
    acts = actions(env, 80)
    graphs, at = env.engine.captures, env.physics.qpos.data_ptr()
    assert at == env.engine._data.qpos.ptr
    torch.cuda.set_sync_debug_mode("error")
    try:
        for action in acts:
            env.step(action)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    env.reset(1)
    assert (env.engine.captures, env.physics.qpos.data_ptr()) == (graphs, at)
    env.check()


@CUDA
@pytest.mark.parametrize("name", ["hopper", "reacher"])
def test_on_a_gpu_a_robot_does_what_it_does_on_the_cpu(name):
    follow(MujocoWarp(name, N, seed=0, device="cuda"), pool(name), 60, state=1e-3, reward=1e-4, obs=1e-3)


@CUDA
def test_on_a_gpu_another_stream_of_torch_is_followed():
    env = MujocoWarp("hopper", N, seed=0, device="cuda", stagger=False)
    env.reset(0)
    want = [env.step(a).obs.clone() for a in actions(env, 20)]
    with torch.cuda.stream(torch.cuda.Stream()):
        env.reset(0)
        got = [env.step(a).obs.clone() for a in actions(env, 20)]
        torch.cuda.current_stream().synchronize()
    close(torch.stack(got), torch.stack(want).cpu(), 1e-3)


def test_noise_on_the_joints_is_the_pools_and_goes_on_from_a_state():
    noise = Dynamics(joint_noise=1.0)
    env, like = MujocoWarp("hopper", 2, seed=0, dynamics=noise), pool("hopper", 2, dynamics=noise)
    action = torch.zeros(2, 3)
    env.reset(0), like.reset(0)
    for _ in range(3):
        env.step(action), like.step(action)
        close(env.physics.control, like.physics.control, 1e-6)
        assert env.physics.control.abs().min() > 0.0
    state = env.state_dict()
    expected = [env.step(action).reward.clone() for _ in range(3)]
    env.reset(1)
    env.load_state_dict(state)
    assert all(torch.equal(reward, env.step(action).reward) for reward in expected)

"""Simulators with changed dynamics: what a setting does to the motion, to the model, and who refuses it."""

import pytest
import torch

from ctrlrl.config import env_config_with
from ctrlrl.envs.dynamics import Dynamics, JointNoise
from ctrlrl.envs.mujoco_cpu import MujocoPool
from ctrlrl.envs.mujoco_engine import load_model
from ctrlrl.registry import env_settings
from ctrlrl.runs import evaluate_run, load_run, start
from ctrlrl.settings import train_config, typed
from ctrlrl.tasks import eval_env, make_env

mujoco = pytest.importorskip("mujoco")

TINY = ["algo=ppo", "experiment=none", "env=hopper", "n_envs=2", "total_steps=16", "algo.n_steps=8", "device=cpu"]
TINY += ["algo.n_minibatches=1", "algo.n_epochs=1", "algo.hidden=[4]", "eval.episodes=1", "log.progress=false"]


@pytest.fixture(autouse=True)
def _quiet_model_load():
    """Gymnasium's half_cheetah.xml prints a deprecation notice and leaves a log file; the reference loads it too."""
    handler = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    yield
    mujoco.set_mju_user_warning(handler)


def pool(task: str = "halfcheetah", n_envs: int = 2, **settings: float) -> MujocoPool:
    return MujocoPool(task, n_envs, seed=0, n_threads=1, stagger=False, dynamics=Dynamics(**settings))


def sinking(model, qpos: torch.Tensor, qvel: torch.Tensor) -> float:
    """Downward speed of a robot's center of mass, m/s: forces between its own parts do not change it."""
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = qpos.numpy(), qvel.numpy()
    mujoco.mj_forward(model, data)
    mujoco.mj_subtreeVel(model, data)
    return -float(data.subtree_linvel[0, 2])


def fall(scale: float, seconds: float) -> float:
    """The same after a fall from rest at 10 m."""
    env = pool("hopper", 1, gravity_scale=scale)
    env.reset()
    qpos = torch.zeros(1, env.model.nq, dtype=torch.float64)
    qpos[0, 1] = 10.0
    env.set_state(qpos, torch.zeros(1, env.model.nv, dtype=torch.float64))
    for _ in range(round(seconds / env.task.dt)):
        env.step(torch.zeros(1, 3))
    return sinking(env.model, env.physics.qpos[0], env.physics.qvel[0])


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0])
def test_a_robot_falls_with_scale_times_the_acceleration_of_the_earth(scale):
    assert fall(scale, 0.2) == pytest.approx(scale * 9.81 * 0.2, rel=2e-3, abs=1e-9)


def test_one_millisecond_of_double_gravity_is_19_62_millimetres_a_second():
    model = load_model("half_cheetah.xml", Dynamics(gravity_scale=2.0))
    model.opt.timestep = 1e-3
    data = mujoco.MjData(model)
    data.qpos[1] = 10.0
    mujoco.mj_step(model, data)
    assert sinking(model, torch.tensor(data.qpos), torch.tensor(data.qvel)) == pytest.approx(19.62e-3, rel=2e-3)


def test_friction_of_every_geom_is_scaled_and_of_nothing_else():
    own, changed = load_model("half_cheetah.xml"), load_model("half_cheetah.xml", Dynamics(friction_scale=0.3))
    torch.testing.assert_close(torch.tensor(changed.geom_friction), 0.3 * torch.tensor(own.geom_friction))
    assert changed.geom_friction[0].tolist() == pytest.approx([0.12, 0.03, 0.03])
    assert (changed.opt.gravity == own.opt.gravity).all()
    assert (changed.body_mass == own.body_mass).all()


def test_density_scales_masses_and_inertias_and_the_medium():
    own, changed = load_model("swimmer.xml"), load_model("swimmer.xml", Dynamics(density_scale=2.0))
    torch.testing.assert_close(torch.tensor(changed.body_mass), 2.0 * torch.tensor(own.body_mass))
    torch.testing.assert_close(torch.tensor(changed.body_inertia), 2.0 * torch.tensor(own.body_inertia))
    assert (own.opt.density, changed.opt.density) == (4000.0, 8000.0)


def test_joint_noise_is_normal_with_the_stated_deviation_and_differs_by_lane_and_step():
    noise = JointNoise(0.5, torch.arange(200), 6)
    rows = torch.stack([noise(3, step) for step in range(50)])
    assert rows.mean().abs() < 0.01
    assert rows.std() == pytest.approx(0.5, rel=0.01)
    assert (rows.abs() > 1.0).double().mean() == pytest.approx(0.0455, abs=0.005)
    assert len(rows.flatten().unique()) == rows.numel()


def test_a_lanes_noise_is_a_function_of_seed_and_step_alone():
    wide, narrow = JointNoise(1.0, torch.arange(8), 3), JointNoise(1.0, torch.tensor([5]), 3)
    for step in (0, 7000, 3):
        assert torch.equal(wide(1, step)[5:6], narrow(1, step))
    assert not torch.equal(narrow(1, 3), narrow(2, 3))


def test_noise_reaches_the_joints_and_the_reward_but_not_the_action_that_is_kept():
    env, quiet = pool(joint_noise=1.0), pool()
    env.reset(0), quiet.reset(0)
    action = torch.zeros(2, 6)
    for step in range(3):
        before = env.physics.before.clone()
        reward = env.step(action).reward
        control = env.physics.control
        assert torch.equal(action, torch.zeros(2, 6))
        assert torch.equal(control, env._noise(0, step))
        forward = (env.physics.qpos[:, 0] - before) / env.task.dt
        torch.testing.assert_close(reward.double(), forward - 0.1 * control.square().sum(1), rtol=1e-5, atol=1e-5)
    quiet.step(action)
    assert not torch.equal(quiet.physics.qvel, env.physics.qvel)


def test_an_environment_with_noise_goes_on_as_it_would_have():
    env, action = pool(joint_noise=1.0), torch.zeros(2, 6)
    env.reset(0)
    env.step(action)
    state = env.state_dict()
    expected = [env.step(action).reward for _ in range(3)]
    other = pool(joint_noise=1.0)
    other.load_state_dict(state)
    assert all(torch.equal(reward, other.step(action).reward) for reward in expected)


@pytest.mark.parametrize("exact", [False, True])
def test_scales_of_one_are_the_unchanged_robot_to_the_bit(exact):
    plain = MujocoPool("walker2d", 3, seed=1, n_threads=1, exact=exact)
    scaled = MujocoPool("walker2d", 3, seed=1, n_threads=1, exact=exact, dynamics=Dynamics())
    assert torch.equal(plain.reset(), scaled.reset())
    for _ in range(20):
        action = 2.0 * torch.rand(3, 6) - 1.0
        a, b = plain.step(action), scaled.step(action)
        assert torch.equal(a.obs, b.obs)
        assert torch.equal(a.reward, b.reward)


def test_the_motion_is_that_of_gymnasiums_environment_with_the_same_model():
    from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv

    gym_env = HalfCheetahEnv()
    gym_env.model.opt.gravity[:] *= 2.0
    gym_env.model.geom_friction[:] *= 0.3
    env = MujocoPool(
        "halfcheetah", 1, seed=0, exact=True, stagger=False, dynamics=Dynamics(gravity_scale=2.0, friction_scale=0.3)
    )
    env.reset()
    gym_env.reset(seed=0)
    gym_env.set_state(env.physics.qpos[0].numpy(), env.physics.qvel[0].numpy())
    for _ in range(50):
        action = 2.0 * torch.rand(1, 6) - 1.0
        step = env.step(action)
        obs, reward, *_ = gym_env.step(action[0].double().numpy())
        assert torch.equal(step.obs[0], torch.from_numpy(obs).float())
        assert step.reward.item() == pytest.approx(reward, rel=1e-6)


def test_what_a_robot_or_a_backend_cannot_do_is_refused_by_name():
    def made(name: str, **options: object):
        return make_env(env_config_with(env_settings(name))(name=name, **options), 1)

    for name, options, said in (
        ("halfcheetah", {"gravity_scale": 2.0, "backend": "envpool"}, r"env\.gravity_scale=2: env\.backend=envpool"),
        ("hopper", {"joint_noise": 1.0, "backend": "gymnasium"}, r"env\.joint_noise=1: env\.backend=gymnasium"),
        ("halfcheetah", {"density_scale": 2.0}, r"env\.density_scale=2: env=halfcheetah always weighs 14 kg"),
        ("pusher", {"gravity_scale": 2.0}, r"env\.gravity_scale=2: env=pusher has no gravity"),
        ("swimmer", {"gravity_scale": 2.0}, r"env\.gravity_scale=2: env=swimmer lies flat"),
        ("reacher", {"gravity_scale": 2.0}, r"env\.gravity_scale=2: env=reacher lies flat"),
        ("swimmer", {"friction_scale": 2.0}, r"env\.friction_scale=2: env=swimmer touches nothing"),
        ("hopper", {"gravity_scale": None}, r"env\.gravity_scale must lie in \[0, 1000\], got None"),
        ("hopper", {"gravity_scale": float("nan")}, r"env\.gravity_scale must lie in \[0, 1000\], got nan"),
        ("hopper", {"density_scale": 0.0}, r"env\.density_scale must lie in \(0, 1000\], got 0"),
    ):
        with pytest.raises(ValueError, match=said):
            made(name, **options)
    with pytest.raises(ValueError, match=r"unknown key env\.gravity_scale"):
        train_config(["env=pendulum", "env.gravity_scale=2"])


@pytest.mark.parametrize("name", ["inverted_pendulum", "inverted_double_pendulum", "hopper", "humanoid_standup"])
def test_gravity_is_taken_where_it_pulls_at_a_joint_though_the_robot_stands_upright(name):
    model = make_env(env_config_with(env_settings(name))(name=name, gravity_scale=2.0), 1).model
    assert model.opt.gravity[2] == pytest.approx(-19.62)


def test_a_run_is_judged_in_an_environment_of_its_own_and_remembers_it(tmp_path):
    words = [*TINY, "env.gravity_scale=2", "eval.env.gravity_scale=1", f"run.dir={tmp_path / 'run'}"]
    trainer, folder = start(train_config(words), words)
    assert trainer.loop.env.model.opt.gravity[2] == pytest.approx(-19.62)
    trainer.train()
    judged = evaluate_run(folder, episodes=2, seed=3)
    cfg, _ = load_run(folder)
    assert cfg.env.gravity_scale == 2.0  # type: ignore[attr-defined]
    assert eval_env(cfg).gravity_scale == 1.0  # type: ignore[attr-defined]
    own = [*TINY, "env.gravity_scale=2", f"run.dir={tmp_path / 'own'}"]
    trainer, other = start(train_config(own), own)
    trainer.train()
    assert evaluate_run(other, episodes=2, seed=3)["return_mean"] != judged["return_mean"]


def test_settings_of_the_evaluation_are_checked_when_a_run_begins(tmp_path):
    for word, said in (
        ("eval.env.gravty_scale=1", r"eval\.env: unknown key gravty_scale; did you mean gravity_scale"),
        ("eval.env.gravity_scale=-1", r"eval\.env\.gravity_scale must lie in"),
        ("eval.env.gravity_scale=low", r"eval\.env: Value 'low'"),
        ("eval.env.name=walker2d", r"eval\.env: unknown key 'name'"),
        ("eval.env.backend=torch", r"env\.backend=torch does not have env=hopper"),
    ):
        with pytest.raises(ValueError, match=said):
            start(train_config([*TINY, word, f"run.dir={tmp_path / 'run'}"]), [])


def test_an_evaluation_with_other_spaces_is_refused(tmp_path):
    words = ["algo=ppo", "env=lotsizing", "env.size=15x5", "eval.env.size=20x10", "experiment=none"]
    words += [f"run.dir={tmp_path / 'run'}", "n_envs=2", "total_steps=16", "device=cpu"]
    with pytest.raises(ValueError, match=r"eval\.env\.size=20x10: the policy is for obs_dim=15, .* has 20"):
        start(train_config(words), words)


def test_python_takes_the_settings_as_arguments():
    from ctrlrl.face.environments import make_env as by_name

    assert by_name("halfcheetah", 1, gravity_scale=2.0).model.opt.gravity[2] == pytest.approx(-19.62)
    assert typed(train_config(["env=ant", "env.joint_noise=0.1"])).env.joint_noise == 0.1  # type: ignore[attr-defined]

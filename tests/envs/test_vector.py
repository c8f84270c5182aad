"""ctrlrl's environments as Gymnasium vector environments: the registered ids, the infos, Gymnasium's own wrappers."""

import subprocess
import sys
import types

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers import vector as wrappers

import ctrlrl  # noqa: F401  enters the ids
from ctrlrl.config import EnvConfig
from ctrlrl.envs.gymnasium import GymnasiumEnv
from ctrlrl.envs.spaces import Spaces
from ctrlrl.envs.vector import CtrlrlVectorEnv
from ctrlrl.registration import ids, register
from ctrlrl.registry import ROBOTS, SIMULATORS
from ctrlrl.tasks import make_env
from ctrlrl.types import EnvSpec, TimeStep


class Reusing:
    """A ctrlrl VecEnv that writes every step into the same tensors, as compiled ones do; lane 1 ends at every step."""

    def __init__(self, success=None):
        self.spec = EnvSpec(3, 0, 4, 1, 3, 0, torch.device("cpu"))
        flag = torch.tensor([False, True, False])
        self.out = TimeStep(torch.zeros(3, 3).T, torch.zeros(3, 3).T, torch.zeros(3), flag, torch.zeros_like(flag), {})
        if success is not None:
            self.out.extras["success"] = torch.tensor([torch.nan, success, torch.nan])
        self.t, self.seeds, self.actions, self.closed = 0, [], [], 0

    def reset(self, seed=None):
        self.seeds.append(seed)
        return self.out.obs.fill_(0)

    def step(self, action):
        self.actions.append(action.tolist())
        self.t += 1
        self.out.obs.fill_(self.t)
        self.out.final_obs.fill_(self.t + 0.5)
        self.out.reward.fill_(self.t)
        return self.out

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass

    def close(self):
        self.closed += 1


class Drawn(Reusing):
    frames_per_second = 25.0

    def render(self, lane=0):
        return np.full((16, 24, 3), 10 * self.t + lane, np.uint8)


NOTHING = np.zeros(3, np.int64)


# the registered ids ---------------------------------------------------------------------------------------------------


def test_every_simulator_and_robot_has_an_id():
    assert set(ids().values()) == {*SIMULATORS, *ROBOTS}
    assert len(ids()) == len(SIMULATORS) + len(ROBOTS)
    for known in ("Pendulum", "CartPole", "MountainCarContinuous", "LQR", "HalfCheetah", "HalfCheetah-v4", "Humanoid"):
        assert f"ctrlrl/{known}" in ids()
    before = dict(gym.registry)
    register()
    assert dict(gym.registry) == before, "entering twice changes nothing"


@pytest.mark.parametrize("gym_id", ids())
def test_every_id_makes_environments_inside_their_spaces(gym_id):
    if ids()[gym_id] in ROBOTS:
        pytest.importorskip("mujoco")
    env = gym.make_vec(gym_id, num_envs=2)
    assert isinstance(env, VectorEnv)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert (env.num_envs, env.spec.id) == (2, gym_id)
    obs, info = env.reset(seed=1)
    assert info == {}
    assert obs in env.observation_space
    env.action_space.seed(0)
    for _ in range(3):
        action = env.action_space.sample()
        obs, reward, terminated, truncated, _ = env.step(action)
        assert obs in env.observation_space
        assert obs.dtype == env.single_observation_space.dtype
        vector = getattr(env.unwrapped, "reward_space", None)
        shape = (2,) if vector is None else (2, *vector.shape)
        assert (reward.shape, terminated.dtype, truncated.dtype) == (shape, bool, bool)
    np.testing.assert_array_equal(gym.make_vec(gym_id, num_envs=2).reset(seed=1)[0], env.reset(seed=1)[0])
    env.close()
    assert env.closed


@pytest.mark.parametrize(
    ("ours", "theirs"), [("ctrlrl/HalfCheetah", "HalfCheetah-v5"), ("ctrlrl/Pendulum", "Pendulum-v1")]
)
def test_spaces_limits_and_thresholds_are_those_of_gymnasiums_task(ours, theirs):
    if theirs.startswith("Half"):
        pytest.importorskip("mujoco")
    env, single = gym.make_vec(ours, num_envs=3), gym.make(theirs)
    assert env.single_observation_space == single.observation_space
    assert env.single_action_space == single.action_space
    assert env.observation_space.shape == (3, *single.observation_space.shape)
    assert env.spec.max_episode_steps == single.spec.max_episode_steps
    assert env.spec.reward_threshold == single.spec.reward_threshold


def test_the_unversioned_robot_is_v5_and_v4_is_its_own():
    pytest.importorskip("mujoco")
    assert gym.make_vec("ctrlrl/Ant").reset()[0].shape == (1, 105)
    assert gym.make_vec("ctrlrl/Ant-v4").reset()[0].shape == (1, 27)


def test_options_reach_the_environment():
    env = gym.make_vec("ctrlrl/Pendulum", num_envs=3, device="cpu", max_episode_steps=7)
    env.reset(seed=0)
    ended = [env.step(np.zeros((3, 1), np.float32))[3].tolist() for _ in range(7)]
    assert ended == [[False] * 3] * 6 + [[True] * 3], "and the clocks do not start staggered"
    staggered = gym.make_vec("ctrlrl/Pendulum", num_envs=64, stagger=True)
    staggered.reset(seed=0)
    assert sum(staggered.step(np.zeros((64, 1), np.float32))[3].sum() for _ in range(199)) > 32
    pytest.importorskip("mujoco")
    robot = gym.make_vec("ctrlrl/Hopper", num_envs=2, exact=True, threads=1)
    assert robot.unwrapped.vec_env.exact
    with pytest.raises(ValueError, match="threads must be at least 1"):
        gym.make_vec("ctrlrl/Hopper", threads=0)
    with pytest.raises(TypeError, match="gravity"):
        gym.make_vec("ctrlrl/Hopper", gravity=1)
    with pytest.raises(ValueError, match="Pendulum: render_mode must be one of"):
        gym.make_vec("ctrlrl/Pendulum", render_mode="rgb_array")


@pytest.mark.parametrize("order", ["import gymnasium as gym, ctrlrl", "import ctrlrl, gymnasium as gym"])
def test_the_order_of_the_imports_does_not_matter(order):
    code = f"import sys; {order}; assert 'ctrlrl/Pendulum' in gym.registry; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


# the contract ---------------------------------------------------------------------------------------------------------


def test_ends_are_told_in_gymnasiums_words():
    env = CtrlrlVectorEnv(Reusing(success=1.0))
    env.reset()
    obs, reward, terminated, truncated, infos = env.step(NOTHING)
    assert set(infos) == {"final_obs", "_final_obs", "final_info", "_final_info"}
    assert obs.tolist() == [[1.0] * 3] * 3
    assert reward.tolist() == [1.0] * 3
    assert (terminated.tolist(), truncated.tolist()) == ([False, True, False], [False] * 3)
    assert infos["_final_obs"].tolist() == infos["_final_info"].tolist() == [False, True, False]
    assert infos["final_obs"].dtype == object
    assert infos["final_obs"][0] is None
    assert infos["final_obs"][1].tolist() == [1.5] * 3
    assert infos["final_info"]["is_success"].tolist() == [False, True, False]
    assert infos["final_info"]["_is_success"].tolist() == [False, True, False]


def test_an_end_whose_success_is_not_known_tells_none():
    env = CtrlrlVectorEnv(Reusing(success=torch.nan))
    env.reset()
    assert env.step(NOTHING)[4]["final_info"] == {}


def test_infos_are_those_of_a_sync_vector_env_of_the_same_task():
    mode = {"vector_kwargs": {"autoreset_mode": AutoresetMode.SAME_STEP}, "vectorization_mode": "sync"}
    theirs = gym.make_vec("Pendulum-v1", num_envs=2, **mode)
    ours = gym.make_vec("ctrlrl/Pendulum", num_envs=2)
    for env in (theirs, ours):
        env.reset(seed=0)
    for _ in range(200):
        action = np.zeros((2, 1), np.float32)
        a, b = theirs.step(action), ours.step(action)
    for mine, other in zip(b[:4], a[:4], strict=True):
        assert mine.shape == other.shape
    assert {k: np.asarray(v).dtype for k, v in b[4].items()} == {k: np.asarray(v).dtype for k, v in a[4].items()}
    assert b[4]["final_obs"][1].shape == a[4]["final_obs"][1].shape == (3,)
    assert b[4]["final_obs"][1].dtype == a[4]["final_obs"][1].dtype


def test_what_was_returned_is_not_overwritten_by_the_next_step():
    env = CtrlrlVectorEnv(Reusing())
    first, _ = env.reset()
    one, two = env.step(NOTHING), env.step(NOTHING)
    assert first.tolist() == [[0.0] * 3] * 3
    assert one[0].tolist() == [[1.0] * 3] * 3
    assert one[1].tolist() == [1.0] * 3
    assert one[4]["final_obs"][1].tolist() == [1.5] * 3
    assert two[0].flags.c_contiguous


def test_seeds_options_actions_and_close():
    inner = Reusing()
    env = CtrlrlVectorEnv(inner)
    env.reset(seed=np.int64(3))
    env.reset()
    assert inner.seeds == [3, None]
    with pytest.raises(ValueError, match=r"Reusing: reset takes no options, got \['reset_mask'\]"):
        env.reset(options={"reset_mask": np.ones(3, bool)})
    with pytest.raises(TypeError, match="seed must be one int"):
        env.reset(seed=[1, 2, 3])
    env.step(np.array([0, 3, 1]))
    assert inner.actions == [[0, 3, 1]]
    with pytest.raises(ValueError, match=r"Reusing: an action lies outside Discrete\(4\)"):
        env.step(np.array([0, 4, 1]))
    with pytest.raises(ValueError, match=r"Reusing: actions must have shape \(3,\)"):
        env.step(np.array([0, 1]))
    env.close()
    env.close()
    assert inner.closed == 1


def test_there_and_back_is_the_same_environment():
    config = EnvConfig(name="cartpole")
    face = CtrlrlVectorEnv(make_env(config, 3), Spaces.of_id("CartPole-v1"))
    there, own = GymnasiumEnv(face), make_env(config, 3, stagger=False)
    assert there.mode is AutoresetMode.SAME_STEP
    torch.testing.assert_close(there.reset(4), own.reset(4))
    generator, ended = torch.Generator().manual_seed(0), 0
    for _ in range(100):
        action = torch.randint(2, (3,), generator=generator)
        mine, theirs = there.step(action), own.step(action)
        for a, b in zip(mine[:5], theirs[:5], strict=True):
            torch.testing.assert_close(a, b)
        ended += int(mine.terminated.sum())
    assert ended > 5


# Gymnasium's wrappers -------------------------------------------------------------------------------------------------


def test_episode_statistics_and_normalized_rewards():
    plain = gym.make_vec("ctrlrl/Pendulum", num_envs=4, max_episode_steps=10)
    env = wrappers.NormalizeReward(wrappers.RecordEpisodeStatistics(plain))
    same = gym.make_vec("ctrlrl/Pendulum", num_envs=4, max_episode_steps=10)
    env.reset(seed=0)
    same.reset(seed=0)
    total = np.zeros(4)
    for _ in range(10):
        action = env.action_space.sample()
        _, reward, _, truncated, infos = env.step(action)
        raw = same.step(action)[1]
        total += raw
        assert (reward != raw).all()
    assert truncated.all()
    assert infos["episode"]["l"].tolist() == [10] * 4
    np.testing.assert_allclose(infos["episode"]["r"], total, rtol=1e-5)
    assert infos["_episode"].all()


def test_gymnasium_itself_refuses_observation_wrappers_on_same_step_environments():
    """Its rule, not ours: NEXT_STEP would need a lane that waits while the simulator moves the others."""
    mode = {"vector_kwargs": {"autoreset_mode": AutoresetMode.SAME_STEP}, "vectorization_mode": "sync"}
    for env in (gym.make_vec("Pendulum-v1", num_envs=2, **mode), gym.make_vec("ctrlrl/Pendulum", num_envs=2)):
        with pytest.raises(ValueError, match="Expected autoreset_mode to be NEXT_STEP"):
            wrappers.NormalizeObservation(env)


def test_rescaled_actions_and_listed_infos():
    env = gym.make_vec("ctrlrl/Pendulum", num_envs=2, max_episode_steps=3)
    env = wrappers.DictInfoToList(wrappers.RescaleAction(env, np.float32(-1), np.float32(1)))
    env.reset(seed=0)
    same = gym.make_vec("ctrlrl/Pendulum", num_envs=2, max_episode_steps=3)
    same.reset(seed=0)
    for _ in range(3):
        obs, _, _, _, infos = env.step(np.full((2, 1), 0.5, np.float32))
        np.testing.assert_allclose(obs, same.step(np.full((2, 1), 1.0, np.float32))[0], atol=1e-6)
    assert [info["final_obs"].shape for info in infos] == [(3,), (3,)]


def test_record_video_films_the_lanes(tmp_path, monkeypatch):
    clips = []

    class ImageSequenceClip:
        def __init__(self, frames, fps):
            clips.append((np.array(frames), fps))

        def write_videofile(self, *args, **kwargs):
            pass

    module = types.ModuleType("moviepy.video.io.ImageSequenceClip")
    module.ImageSequenceClip = ImageSequenceClip
    for name in ("moviepy", "moviepy.video", "moviepy.video.io"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(ValueError, match="Render mode is None"):
        wrappers.RecordVideo(CtrlrlVectorEnv(Drawn()), str(tmp_path))
    plain = CtrlrlVectorEnv(Drawn(), render_mode="rgb_array")
    assert plain.metadata["render_modes"] == ["rgb_array"]
    with pytest.warns(UserWarning, match="same-step"):
        env = wrappers.RecordVideo(plain, str(tmp_path / "new"), step_trigger=lambda step: step == 0, video_length=3)
    env.reset()
    for _ in range(5):
        env.step(NOTHING)
    env.close()
    ((frames, fps),) = clips
    assert fps == 25
    assert frames.shape in ((4, 48, 24, 3), (4, 16, 72, 3))  # lanes above or beside each other
    assert set(np.unique(frames[1] - frames[0])) == {10}
    assert set(np.unique(frames[0])) == {10, 11, 12}

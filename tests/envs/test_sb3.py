"""SB3's vector environments as ours and ours as SB3's, against environments whose every number is known in advance."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from ctrlrl.config import EnvConfig
from ctrlrl.envs.gymnasium import GymnasiumEnv
from ctrlrl.envs.sb3 import SB3Env, as_sb3, is_sb3
from ctrlrl.envs.spaces import Spaces
from ctrlrl.tasks import as_vec_env, make_env, spaces_of
from ctrlrl.types import EnvSpec, TimeStep, VecEnv

pytest.importorskip("stable_baselines3", reason="pip install 'ctrlrl[sb3]'")
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)
from stable_baselines3.common.vec_env import VecEnv as SB3VecEnv

ENDS = [((5, "terminated"), (7, "truncated")), ((7, "truncated"),), ((1, "both"), (2, "truncated"))]


class Counter(gym.Env):
    """obs = [100 lane + episode, steps in it] in float64, reward = the step number; episodes end as `ends` tells."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 12}  # noqa: RUF012
    action_space = spaces.Discrete(3, start=-1)
    height = 1.5

    def __init__(self, ends=((5, "terminated"),), lane=0, success=None, fault=None, action_space=None):
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.ends, self.lane, self.success, self.fault = ends, lane, success, fault
        if action_space is not None:
            self.action_space = action_space
        self.render_mode, self.episode = "rgb_array", -1
        self.actions, self.seeds = [], []

    def _obs(self):
        return np.array([100 * self.lane + self.episode, self.clock], np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.episode, self.clock = self.episode + 1, 0
        return self._obs(), {}

    def step(self, action):
        self.actions.append(action)
        self.clock += 1
        length, how = self.ends[self.episode % len(self.ends)]
        done = self.clock == length
        info = {} if self.success is None else {self.success: done and how == "terminated"}
        obs, reward = self._obs(), float(self.clock)
        if self.fault == "raise" and self.clock == 3:
            raise FloatingPointError("the arm fell off\nsecond line")
        if self.fault == "shape" and self.clock == 3:
            obs = np.zeros(5)
        if self.fault == "obs" and self.clock == 3:
            obs[1] = np.nan
        if self.fault == "reward" and self.clock == 3:
            reward = np.inf
        return obs, reward, done and how in ("terminated", "both"), done and how in ("truncated", "both"), info

    def render(self):
        return np.full((2, 3, 3), self.lane, np.uint8)

    def say(self, word):
        return f"{word} {self.lane}"


class Structured(gym.Env):
    """Dict observations with an image and discrete parts, several discrete actions; all follow from the clock."""

    observation_space = spaces.Dict(
        picture=spaces.Box(0, 255, (4, 6, 3), np.uint8),
        gear=spaces.Discrete(3, start=5),
        levers=spaces.MultiDiscrete([2, 4]),
        pose=spaces.Tuple([spaces.Box(-1, 1, (2, 2), np.float64), spaces.MultiBinary(2)]),
    )
    action_space = spaces.MultiDiscrete([2, 3], start=[1, -1])

    def _obs(self):
        t = self.clock
        picture = np.arange(72, dtype=np.uint8).reshape(4, 6, 3) + np.uint8(t)
        pose = (np.full((2, 2), t / 8), np.array([t % 2, 1], np.int8))
        return {"picture": picture, "gear": 5 + t % 3, "levers": np.array([t % 2, t % 4]), "pose": pose}

    def reset(self, *, seed=None, options=None):
        self.clock, self.actions = 0, []
        return self._obs(), {}

    def step(self, action):
        self.actions.append(action.tolist())
        self.clock += 1
        return self._obs(), 1.0, self.clock == 4, False, {}


class Picture(Structured):
    observation_space = Structured.observation_space["picture"]

    def _obs(self):
        return super()._obs()["picture"]


class Reusing:
    """A ctrlrl VecEnv that writes every step into the same tensors, as compiled ones do; each step ends lane 1."""

    def __init__(self, mask=False):
        self.spec = EnvSpec(3, 2, 0, 1, 2, 0, torch.device("cpu"))
        obs, flag, self.t, self.mask = torch.zeros(3, 2).T, torch.zeros(2, dtype=torch.bool), 0, mask
        self.out = TimeStep(obs, torch.zeros(3, 2).T, torch.zeros(2), flag, flag.clone(), {})

    def reset(self, seed=None):
        self.t = 0
        return self.out.obs.fill_(0)

    def step(self, action):
        self.t += 1
        self.out.obs.fill_(self.t)
        self.out.final_obs.fill_(self.t + 0.5)
        self.out.reward.fill_(self.t)
        self.out.terminated.copy_(torch.tensor([False, self.t % 2 == 0]))
        self.out.truncated.copy_(torch.tensor([False, self.t % 2 == 1]))
        return self.out._replace(extras={"mask": torch.ones(2, dtype=torch.bool)} if self.mask else {})

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass

    def close(self):
        pass


class Duck:
    """The methods that SB3's contract names, and no class of SB3's: one lane that ends every second step."""

    num_envs = 1
    observation_space = spaces.Box(-9.0, 9.0, (1,))
    action_space = spaces.Box(-2.0, 2.0, (1,))

    def reset(self):
        self.clock, self.actions = 0, []
        return np.zeros((1, 1), np.float32)

    def step_async(self, actions):
        self.actions.append(actions.tolist())

    def step_wait(self):
        self.clock += 1
        done = self.clock % 2 == 0
        info = {"terminal_observation": np.full(1, self.clock, np.float32)} if done else {}
        return np.full((1, 1), 0 if done else self.clock, np.float32), np.ones(1), np.array([done]), (info,)


def counters(kind=DummyVecEnv, ends_of_lane=ENDS, **kwargs):
    fns = [lambda lane=lane, ends=ends: Counter(ends, lane, **kwargs) for lane, ends in enumerate(ends_of_lane)]
    return kind(fns, start_method="fork") if kind is SubprocVecEnv else kind(fns)


def zeros(n):
    return torch.zeros(n, dtype=torch.int64)


def truth(lane, ends, n):
    """The first n transitions of a Counter, written down from its definition."""
    rows, episode = [], 0
    while len(rows) < n:
        length, how = ends[episode % len(ends)]
        name = float(episode + 100 * lane)
        for clock in range(1, length + 1):
            over = clock == length
            flags = (over and how in ("terminated", "both"), over and how == "truncated")
            rows.append(([name, clock - 1.0], float(clock), [name, float(clock)], *flags))
        episode += 1
    return rows[:n]


# an SB3 VecEnv as ours ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [DummyVecEnv, SubprocVecEnv])
def test_rollouts_hold_exactly_the_true_transitions_in_order(kind):
    env = SB3Env(counters(kind))
    assert isinstance(env, VecEnv)
    obs, kept = env.reset(seed=0).clone(), [[] for _ in ENDS]
    for _ in range(25):
        step = env.step(zeros(3))
        for lane, rows in enumerate(kept):
            parts = (obs, step.reward, step.final_obs, step.terminated, step.truncated)
            rows.append(tuple(part[lane].tolist() for part in parts))
        obs = step.obs.clone()
    assert kept == [truth(lane, ends, 25) for lane, ends in enumerate(ENDS)]
    env.close()


def test_final_observations_are_normalized_as_the_wrapper_normalizes_all():
    venv = VecNormalize(counters(ends_of_lane=[((3, "terminated"),), ((4, "truncated"),)]))
    env = SB3Env(venv)
    env.reset()
    for _ in range(8):
        env.step(zeros(2))
    venv.training = False
    env.reset()
    for clock in range(1, 5):
        step = env.step(zeros(2))
        raw = venv.get_original_obs()
        for lane, length in ((0, 3), (1, 4)):
            last = [raw[lane][0] - 1, length] if clock == length else raw[lane]
            expected = torch.from_numpy(venv.normalize_obs(np.array([last, last]))[0]).float()
            torch.testing.assert_close(step.final_obs[lane], expected)
        torch.testing.assert_close(step.obs, torch.from_numpy(venv.normalize_obs(raw)).float())
        np.testing.assert_allclose(step.reward, venv.normalize_reward(venv.get_original_reward()), rtol=1e-6)
        if clock == 3:
            assert (step.final_obs[0] != step.obs[0]).all()


def test_stacked_frames_end_with_the_true_last_observation():
    env = SB3Env(VecFrameStack(counters(ends_of_lane=[((3, "terminated"),)]), 2))
    env.reset()
    steps = [env.step(zeros(1)) for _ in range(3)]
    assert steps[2].final_obs.tolist() == [[0, 2, 0, 3]]
    assert steps[2].obs.tolist() == [[0, 0, 1, 0]]
    assert env.spec.obs_dim == 4


def test_wrappers_infos_are_kept_for_callbacks():
    env = SB3Env(VecMonitor(counters(ends_of_lane=[((2, "truncated"),), ((3, "terminated"),)])))
    env.reset()
    env.step(zeros(2))
    assert [info.get("episode") for info in env.infos] == [None, None]
    env.step(zeros(2))
    assert (env.infos[0]["episode"]["r"], env.infos[0]["episode"]["l"]) == (3.0, 2)
    assert env.infos[0]["TimeLimit.truncated"]
    assert "episode" not in env.infos[1]


@pytest.mark.parametrize("wrap", [lambda v: v, VecTransposeImage], ids=["channels-last", "transposed"])
def test_images_stay_uint8_rows_of_channels_first(wrap):
    env = SB3Env(wrap(DummyVecEnv([Picture])))
    assert [(p.shape, p.image) for p in env.spec.obs_parts] == [((3, 4, 6), True)]
    first = np.arange(72, dtype=np.uint8).reshape(4, 6, 3).transpose(2, 0, 1).reshape(1, -1)
    obs = env.reset()
    assert obs.dtype == torch.uint8
    np.testing.assert_array_equal(obs, first)
    steps = [env.step(torch.zeros(1, 2, dtype=torch.int64)) for _ in range(4)]
    np.testing.assert_array_equal(steps[3].final_obs, first + 4)
    np.testing.assert_array_equal(steps[3].obs, first)


def test_dict_observations_and_several_discrete_actions():
    class Flat(Structured):  # SB3 knows no Tuple inside a Dict
        observation_space = spaces.Dict({k: Structured.observation_space[k] for k in ("gear", "levers")})

        def _obs(self):
            return {k: v for k, v in super()._obs().items() if k in ("gear", "levers")}

    venv = DummyVecEnv([Flat])
    env = SB3Env(venv)
    assert (env.spec.obs_dim, env.spec.nvec) == (9, (2, 3))
    assert env.reset().tolist() == [[1, 0, 0, 1, 0, 1, 0, 0, 0]]
    for _ in range(4):
        step = env.step(torch.tensor([[0, 2]]))
    assert step.final_obs.tolist() == [[0, 1, 0, 1, 0, 1, 0, 0, 0]]  # clock 4: gear 6, levers 0 and 0
    assert step.terminated.tolist() == [True]
    assert venv.envs[0].actions == []  # a new episode began
    env.step(torch.tensor([[1, 0]]))
    assert venv.envs[0].actions == [[2, -1]]


def test_actions_arrive_in_the_units_of_the_space():
    box = spaces.Box(np.array([-2.0, 1.0], np.float32), np.array([2.0, 5.0], np.float32))
    venv = counters(ends_of_lane=[((9, "both"),)], action_space=box)
    env = SB3Env(venv)
    env.reset()
    for action in ([-1.0, -1.0], [1.0, 1.0], [0.5, -7.0]):
        env.step(torch.tensor([action]))
    assert [a.tolist() for a in venv.envs[0].actions] == [[-2, 1], [2, 5], [1, 1]]
    with pytest.raises(ValueError, match="Counter: expected actions of 1 lanes"):
        env.step(torch.zeros(2, 2))


def test_lanes_are_seeded_seed_plus_i_at_the_next_reset_once():
    venv = counters(ends_of_lane=[((1, "terminated"),)] * 3)
    env = SB3Env(venv, seed=40)
    assert [lane.seeds for lane in venv.envs] == [[], [], []]
    env.reset()
    env.step(zeros(3))
    env.reset()
    env.reset(seed=7)
    assert [lane.seeds for lane in venv.envs] == [[40 + i, None, None, 7 + i] for i in range(3)]


@pytest.mark.parametrize("key", ["success", "is_success"])
def test_success_is_told_at_the_end_of_an_episode_only(key):
    env = SB3Env(counters(ends_of_lane=[((2, "terminated"),), ((3, "truncated"),)], success=key))
    env.reset()
    seen = [env.step(zeros(2)).extras.get("success") for _ in range(3)]
    assert seen[0] is None
    torch.testing.assert_close(seen[1], torch.tensor([1.0, torch.nan]), equal_nan=True)
    torch.testing.assert_close(seen[2], torch.tensor([torch.nan, 0.0]), equal_nan=True)


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("obs", ValueError, r"^Counter: observation of lane 1 at step 3 is nan \(entry 1\)"),
        ("reward", ValueError, r"^Counter: reward of lane 1 at step 3 is inf"),
        ("shape", RuntimeError, r"^Counter: environment raised ValueError: .*\(5,\).*\(2,\).*\(in step, step 3\)$"),
        (
            "raise",
            RuntimeError,
            r"^Counter: environment raised FloatingPointError: the arm fell off \(in step, step 3\)$",
        ),
    ],
)
def test_faults_of_the_environment_name_it_and_the_step_in_one_line(fault, error, words):
    fns = [lambda: Counter(((9, "truncated"),)), lambda: Counter(((9, "truncated"),), fault=fault)]
    env = SB3Env(DummyVecEnv(fns))
    env.reset()
    env.step(zeros(2))
    env.step(zeros(2))
    with pytest.raises(error, match=words) as raised:
        env.step(zeros(2))
    assert len(str(raised.value).splitlines()) == 1


def test_a_dead_worker_is_named():
    env = SB3Env(counters(SubprocVecEnv, [((9, "both"),)], fault="raise"))
    env.reset()
    env.step(zeros(1))
    env.step(zeros(1))
    with pytest.raises(RuntimeError, match=r"^SubprocVecEnv: environment raised \w+: a worker process ended"):
        env.step(zeros(1))


def test_an_end_without_its_last_observation_is_refused():
    class Silent(DummyVecEnv):
        def step_wait(self):
            obs, reward, done, infos = super().step_wait()
            return obs, reward, done, [{k: v for k, v in i.items() if k != "terminal_observation"} for i in infos]

    env = SB3Env(counters(Silent, [((1, "terminated"),)]))
    env.reset()
    with pytest.raises(ValueError, match=r"Counter: .* without infos\[i\]\['terminal_observation'\]"):
        env.step(zeros(1))
    with pytest.raises(ValueError, match="step came before reset"):
        SB3Env(counters()).step(zeros(3))


def test_objects_with_sb3s_methods_will_do():
    duck = Duck()
    env = as_vec_env(duck, seed=3)
    assert isinstance(env, SB3Env)
    env.reset()
    first, second = (env.step(torch.tensor([[0.5]])) for _ in range(2))
    assert duck.actions == [[[1.0]], [[1.0]]]
    assert (first.obs.tolist(), first.terminated.tolist()) == ([[1]], [False])
    assert (second.final_obs.tolist(), second.obs.tolist()) == ([[2]], [[0]])
    assert (second.terminated.tolist(), second.truncated.tolist()) == ([True], [False])


def test_every_kind_of_environment_finds_its_adapter_and_its_spaces():
    native = make_env(EnvConfig(name="pendulum"), 2, seed=0)
    sync = gym.vector.SyncVectorEnv([Counter])
    asynchronous = gym.make_vec("CartPole-v1", 1, vectorization_mode="async")
    for env, kind in (
        (native, type(native)),
        (counters(), SB3Env),
        (VecNormalize(counters()), SB3Env),
        (as_sb3(native), SB3Env),
        (sync, GymnasiumEnv),
        (asynchronous, GymnasiumEnv),
        (Counter(), GymnasiumEnv),
    ):
        found = as_vec_env(env)
        assert type(found) is kind
        shown, again = spaces_of(env, found.spec), spaces_of(found, found.spec)
        single = getattr(env, "single_action_space", getattr(env, "action_space", None))
        assert shown.action == (spaces.Box(-1, 1, (1,)) if env is native else single)
        assert shown == again
    asynchronous.close()
    assert not is_sb3(asynchronous)


def test_pictures_of_one_lane():
    env = SB3Env(VecMonitor(counters()))
    assert env.render(2).tolist() == np.full((2, 3, 3), 2).tolist()
    with pytest.raises(ValueError, match="lane must lie in"):
        env.render(3)


# ours as an SB3 VecEnv ------------------------------------------------------------------------------------------------


def pendulum(n=3, **options):
    return make_env(EnvConfig(name="pendulum"), n, seed=0, **options)


def gymnasium_pendulum():
    return Spaces.of_id("Pendulum-v1")


def test_the_face_shows_the_environments_own_transitions_in_the_units_of_its_spaces():
    env = as_sb3(pendulum(), gymnasium_pendulum(), seed=5)
    assert isinstance(env, SB3VecEnv)
    own = pendulum(stagger=False)
    np.testing.assert_array_equal(env.reset(), own.reset(5))
    generator, ended = np.random.default_rng(0), 0
    for _ in range(205):
        torque = generator.uniform(-2, 2, (3, 1)).astype(np.float32)
        step, (obs, reward, done, infos) = own.step(torch.from_numpy(torque / 2)), env.step(torque)
        assert (obs.dtype, reward.dtype, done.dtype) == (np.float32, np.float32, bool)
        np.testing.assert_allclose(obs, step.obs, atol=1e-6)
        np.testing.assert_allclose(reward, step.reward, atol=1e-5)
        np.testing.assert_array_equal(done, step.truncated)
        for lane in range(3):
            assert ("terminal_observation" in infos[lane]) == done[lane]
            if done[lane]:
                ended += 1
                assert infos[lane]["TimeLimit.truncated"] is True
                np.testing.assert_allclose(infos[lane]["terminal_observation"], step.final_obs[lane], atol=1e-5)
    assert ended == 3, "staggered clocks are off: every lane has one whole episode"


def test_seeds_wait_for_the_next_reset_and_serve_once():
    env = as_sb3(pendulum())
    assert env.seed(9) == [9, 10, 11]
    first = env.reset()
    goes_on = env.reset()
    env.seed(9)
    np.testing.assert_array_equal(env.reset(), first)
    assert (goes_on != first).all(axis=1).all()
    env.set_options({"x": 1})
    with pytest.raises(ValueError, match="Pendulum: reset takes no options"):
        env.reset()


def test_episodes_are_summed_as_by_vec_monitor(tmp_path):
    ends = [((2, "terminated"),), ((3, "truncated"), (1, "both"))]
    venv = gym.vector.SyncVectorEnv(
        [lambda lane=lane: Counter(ends[lane], lane, success="is_success") for lane in range(2)],
        autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
    )
    env = as_sb3(GymnasiumEnv(venv), monitor_dir=tmp_path / "logs", info_keywords=("is_success",))
    env.reset()
    seen = [env.step(np.zeros(2, np.int64))[3] for _ in range(4)]
    told = [
        [
            (i["episode"]["r"], i["episode"]["l"], i["TimeLimit.truncated"], i["is_success"]) if i else None
            for i in infos
        ]
        for infos in seen
    ]
    first, second = (3.0, 2, False, True), (6.0, 3, True, False)
    assert told == [[None, None], [first, None], [None, second], [first, (1.0, 1, False, False)]]
    env.close()
    lines = (tmp_path / "logs" / "monitor.csv").read_text().splitlines()
    assert lines[1] == "r,l,t,is_success"
    assert [line.split(",")[:2] + line.split(",")[3:] for line in lines[2:]] == [
        ["3.0", "2", "True"],
        ["6.0", "3", "False"],
        ["3.0", "2", "True"],
        ["1.0", "1", "False"],
    ]
    assert '"env_id": "Counter"' in lines[0]
    with pytest.raises(ValueError, match="not both"):
        as_sb3(pendulum(), monitor_dir="a", monitor_path="b")


def test_what_was_returned_is_not_overwritten_by_the_next_step():
    env = as_sb3(Reusing())
    first = env.reset()
    one, two = (env.step(np.zeros((2, 2), np.float32)) for _ in range(2))
    assert first.tolist() == [[0] * 3] * 2
    assert one[0].tolist() == [[1] * 3] * 2
    assert one[1].tolist() == [1, 1]
    assert one[2].tolist() == [False, True]
    assert one[3][1]["terminal_observation"].tolist() == [1.5] * 3
    assert two[0].tolist() == [[2] * 3] * 2
    assert [i.get("TimeLimit.truncated") for _, _, _, infos in (one, two) for i in infos] == [None, True, None, False]


def test_structured_observations_come_back_as_the_environment_gave_them():
    env = as_sb3(GymnasiumEnv(Structured))
    assert env.observation_space == Structured.observation_space
    truth = Structured()
    want, got = truth.reset()[0], env.reset()
    for clock in range(5):
        for key in ("picture", "gear", "levers"):
            assert got[key].dtype == Structured.observation_space[key].dtype
            np.testing.assert_array_equal(got[key][0], want[key])
        for mine, theirs in zip(got["pose"], want["pose"], strict=True):
            np.testing.assert_array_equal(mine[0], theirs)
        action = np.array([[1 + clock % 2, clock % 3 - 1]])
        want, _, done, _, _ = truth.step(action[0])
        got, _, dones, infos = env.step(action)
        assert dones.tolist() == [done]
        if done:
            np.testing.assert_array_equal(infos[0]["terminal_observation"]["picture"], want["picture"])
            np.testing.assert_array_equal(infos[0]["terminal_observation"]["pose"][1], want["pose"][1])
            want = truth.reset()[0]
    assert env.env_method("get_wrapper_attr", "actions")[0] == [[1, 0]]


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (np.zeros((2, 1)), r"Pendulum: actions must have shape \(3, 1\), .* got \(2, 1\)"),
        (np.full((3, 1), np.nan), "Pendulum: an action is not finite"),
    ],
)
def test_wrong_actions_are_refused_by_name(action, words):
    env = as_sb3(pendulum())
    env.reset()
    with pytest.raises(ValueError, match=words):
        env.step(action)


def test_what_the_face_cannot_show_is_refused():
    env = as_sb3(Reusing(mask=True))
    env.reset()
    with pytest.raises(ValueError, match=r"Reusing: its resets take a step of their own.*autoreset_mode='SameStep'"):
        env.step(np.zeros((2, 2), np.float32))
    with pytest.raises(ValueError, match=r"Pendulum: .* cannot show an environment of"):
        as_sb3(pendulum(), Spaces.of_id("CartPole-v1"))
    cartpole = as_sb3(make_env(EnvConfig(name="cartpole"), 1))
    cartpole.reset()
    with pytest.raises(ValueError, match=r"CartPole: an action lies outside Discrete\(2\)"):
        cartpole.step(np.array([2]))


def test_attributes_of_a_simulator_are_one_for_all_lanes():
    env = as_sb3(pendulum())
    assert env.get_attr("max_torque") == [2.0] * 3
    env.set_attr("max_torque", 1.0)
    assert env.get_attr("max_torque", indices=[0, 2]) == [1.0, 1.0]
    assert env.env.sim.max_torque == 1.0
    with pytest.raises(ValueError, match=r"Pendulum: set_attr\('max_torque'\) is for all lanes at once"):
        env.set_attr("max_torque", 3.0, indices=0)
    with pytest.raises(AttributeError, match="Pendulum: the environment has no attribute 'wings'"):
        env.get_attr("wings")
    assert not env.has_attr("wings")
    env.reset()
    assert len(env.env_method("state_dict")) == 3
    assert env.render_mode is None


def test_attributes_of_gymnasium_lanes_are_the_lanes_own():
    make = [lambda lane=lane: gym.wrappers.TimeLimit(Counter(((9, "both"),), lane), 5) for lane in range(3)]
    venv = gym.vector.SyncVectorEnv(make, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
    env = as_sb3(GymnasiumEnv(venv))
    assert env.get_attr("lane") == [0, 1, 2]
    assert env.env_method("say", "lane", indices=[2, 0]) == ["lane 2", "lane 0"]
    env.set_attr("height", 2.0, indices=1)
    assert [lane.unwrapped.height for lane in venv.envs] == [1.5, 2.0, 1.5]
    assert env.env_is_wrapped(gym.wrappers.TimeLimit) == [True] * 3
    assert env.env_is_wrapped(gym.wrappers.ClipReward, indices=0) == [False]
    assert env.env_is_wrapped(Monitor) == [True] * 3
    assert (env.render_mode, env.metadata["render_fps"]) == ("rgb_array", 30)
    assert [image[0, 0, 0] for image in env.get_images()] == [0, 1, 2]
    assert env.render().shape == (4, 6, 3)  # tiled


def test_sb3s_wrappers_run_on_it_and_keep_the_contract():
    venv = VecFrameStack(VecNormalize(as_sb3(pendulum(4), gymnasium_pendulum())), 2)
    obs = venv.reset()
    assert obs.shape == (4, 6)
    for _ in range(200):
        obs, _, done, infos = venv.step(np.zeros((4, 1), np.float32))
    assert done.all()
    assert all(info["terminal_observation"].shape == (6,) for info in infos)
    np.testing.assert_array_equal(obs[:, :3], 0)  # stacks begin anew
    with pytest.warns(UserWarning, match="already wrapped with a `Monitor`"):
        monitored = VecMonitor(as_sb3(pendulum(2)))
    monitored.reset()
    for _ in range(200):
        infos = monitored.step(np.zeros((2, 1), np.float32))[3]
    assert [info["episode"]["l"] for info in infos] == [200, 200]


def test_sb3s_ppo_learns_on_it_and_evaluates_whole_episodes():
    env = as_sb3(pendulum(4), gymnasium_pendulum())
    model = SB3PPO("MlpPolicy", env, n_steps=256, batch_size=256, n_epochs=1, seed=0, device="cpu")
    assert model.get_env() is env
    model.learn(1024)
    assert [episode["l"] for episode in model.ep_info_buffer] == [200] * 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # SB3 warns of an environment without a Monitor
        returns, lengths = evaluate_policy(
            model, as_sb3(pendulum(2), gymnasium_pendulum()), n_eval_episodes=4, return_episode_rewards=True
        )
    assert lengths == [200] * 4
    assert all(-2000 < r < 0 for r in returns)


def test_there_and_back_is_the_same_environment():
    there, own = SB3Env(as_sb3(pendulum(), gymnasium_pendulum())), pendulum(stagger=False)
    torch.testing.assert_close(there.reset(4), own.reset(4))
    generator = torch.Generator().manual_seed(0)
    for _ in range(201):
        action = torch.rand(3, 1, generator=generator) * 2 - 1
        for mine, theirs in zip(there.step(action)[:5], own.step(action)[:5], strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)

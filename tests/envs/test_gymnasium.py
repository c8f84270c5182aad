"""The Gymnasium adapter against environments whose every number is known in advance."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from ctrlrl.envs.check import check_env
from ctrlrl.envs.classic import Pendulum
from ctrlrl.envs.gymnasium import GymnasiumEnv
from ctrlrl.envs.spec import action_codec, obs_codec
from ctrlrl.tasks import as_vec_env
from ctrlrl.types import VecEnv

MODES = list(AutoresetMode)


class Counter(gym.Env):
    """obs = [episode, steps in it] in float64, reward = the step number; an episode ends as `ends` tells."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, ends=((5, "terminated"),), lane=0, success=None, action_space=None, fault=None):
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = spaces.Discrete(3, start=-1) if action_space is None else action_space
        self.ends, self.lane, self.success, self.fault = ends, lane, success, fault
        self.render_mode = "rgb_array"
        self.episode = -1
        self.actions, self.seeds = [], []

    def _obs(self):
        return np.array([self.episode + 100 * self.lane, self.clock], np.float64)

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
        if self.fault is not None and self.clock == 3:
            if self.fault == "raise":
                raise FloatingPointError("the arm fell off\nsecond line")
            if self.fault == "shape":
                obs = np.zeros(5)
            if self.fault == "obs":
                obs[1] = np.nan
            if self.fault == "reward":
                reward = np.inf
            if self.fault == "overflow":
                reward = 1e39
        return obs, reward, done and how in ("terminated", "both"), done and how in ("truncated", "both"), info

    def render(self):
        return np.full((2, 3, 3), self.lane, np.uint8)


def counters(mode, ends_of_lane, **kwargs):
    fns = [lambda lane=lane, ends=ends: Counter(ends, lane, **kwargs) for lane, ends in enumerate(ends_of_lane)]
    return SyncVectorEnv(fns, autoreset_mode=mode)


def transitions(env, n_steps, action=None):
    """Per lane, the list of unmasked (obs, reward, final_obs, terminated, truncated), as a rollout would keep them."""
    obs = env.reset(seed=0).clone()
    action = torch.zeros(env.spec.n_envs, dtype=torch.int64) if action is None else action
    kept = [[] for _ in range(env.spec.n_envs)]
    for _ in range(n_steps):
        step = env.step(action)
        mask = step.extras.get("mask", torch.ones(env.spec.n_envs, dtype=torch.bool))
        for lane, lane_kept in enumerate(kept):
            if mask[lane]:
                row = (obs, step.reward, step.final_obs, step.terminated, step.truncated)
                lane_kept.append(tuple(part[lane].tolist() for part in row))
        obs = step.obs.clone()
    return kept


def truth(lane, ends, n):
    """The first n transitions of a Counter, written down from its definition."""
    rows, episode = [], 0
    while len(rows) < n:
        length, how = ends[episode % len(ends)]
        name = float(episode + 100 * lane)
        for clock in range(1, length + 1):
            over = clock == length
            terminated = over and how in ("terminated", "both")
            truncated = over and how == "truncated"
            rows.append(([name, clock - 1.0], float(clock), [name, float(clock)], terminated, truncated))
        episode += 1
    return rows[:n]


@pytest.mark.parametrize("mode", MODES)
def test_rollouts_hold_exactly_the_true_transitions_in_order(mode):
    ends = [((5, "terminated"), (7, "truncated")), ((7, "truncated"),), ((1, "both"), (2, "truncated"))]
    env = GymnasiumEnv(counters(mode, ends))
    kept = transitions(env, 40)
    for lane, lane_ends in enumerate(ends):
        assert kept[lane] == truth(lane, lane_ends, len(kept[lane]))
        assert len(kept[lane]) >= (22 if mode is AutoresetMode.NEXT_STEP else 40)


def test_next_step_masks_only_the_reset_and_gives_it_no_reward_and_no_flags():
    env = GymnasiumEnv(counters(AutoresetMode.NEXT_STEP, [((2, "terminated"),), ((3, "truncated"),)]))
    env.reset()
    masks, rewards, clocks = [], [], []
    for _ in range(7):
        step = env.step(torch.zeros(2, dtype=torch.int64))
        masks.append(step.extras["mask"].tolist())
        rewards.append(step.reward.tolist())
        clocks.append(step.obs[:, 1].tolist())
        assert not (step.terminated | step.truncated)[~step.extras["mask"]].any()
    first, second = zip(*masks, strict=True)
    assert first == (True, True, False, True, True, False, True)
    assert second == (True, True, True, False, True, True, True)
    assert rewards == [[1, 1], [2, 2], [0, 3], [1, 0], [2, 1], [0, 2], [1, 3]]
    assert clocks == [[1, 1], [2, 2], [0, 3], [1, 0], [2, 1], [0, 2], [1, 3]]  # at the end: the true final observation


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_other_modes_give_the_next_episodes_obs_at_once_and_no_mask(mode):
    env = GymnasiumEnv(counters(mode, [((2, "terminated"),), ((9, "truncated"),)]))
    env.reset()
    env.step(torch.zeros(2, dtype=torch.int64))
    step = env.step(torch.zeros(2, dtype=torch.int64))
    assert "mask" not in step.extras
    assert step.obs.tolist() == [[1, 0], [100, 2]]
    assert step.final_obs.tolist() == [[0, 2], [100, 2]]


@pytest.mark.parametrize("mode", MODES)
def test_both_flags_mean_terminated(mode):
    env = GymnasiumEnv(counters(mode, [((1, "both"),)]))
    env.reset()
    step = env.step(torch.tensor([0]))
    assert step.terminated.tolist() == [True]
    assert step.truncated.tolist() == [False]


def test_reset_in_the_middle_forgets_the_pending_mask():
    env = GymnasiumEnv(counters(AutoresetMode.NEXT_STEP, [((1, "terminated"), (4, "terminated"))]))
    env.reset()
    env.step(torch.tensor([0]))
    env.reset()
    assert env.step(torch.tensor([0])).extras["mask"].tolist() == [True]


def test_an_environment_need_not_know_the_word_render_mode():
    class Plain(gym.Env):
        observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (1,))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.zeros(2, np.float32), {}

        def step(self, action):
            return np.zeros(2, np.float32), 0.0, False, False, {}

    class Needy(Plain):
        def __init__(self, size):
            self.size = size

    gym.register("ctrlrl-test/Plain-v0", Plain)
    gym.register("ctrlrl-test/Needy-v0", Needy)
    try:
        assert GymnasiumEnv("ctrlrl-test/Plain-v0", n_envs=2).reset().shape == (2, 2)
        with pytest.raises(ValueError, match=r"env.id 'ctrlrl-test/Needy-v0': Gymnasium cannot make it"):
            GymnasiumEnv("ctrlrl-test/Needy-v0", n_envs=2)
    finally:
        for name in ("Plain", "Needy"):
            del gym.registry[f"ctrlrl-test/{name}-v0"]


def test_discrete_actions_are_shifted_by_start():
    env = GymnasiumEnv(Counter())
    assert (env.spec.n_actions, env.spec.action_dim) == (3, 0)
    env.reset()
    for action in range(3):
        env.step(torch.tensor([action]))
    assert [int(a) for a in env.env.envs[0].actions] == [-1, 0, 1]
    with pytest.raises(ValueError, match=r"Counter: discrete actions must lie in 0\.\.\.2, got 3"):
        env.step(torch.tensor([3]))
    with pytest.raises(ValueError, match="must be integers of shape"):
        env.step(torch.tensor([[1]]))


def test_box_actions_are_scaled_to_the_box_and_clipped():
    box = spaces.Box(np.array([[-2.0], [1.0]], np.float32), np.array([[2.0], [5.0]], np.float32))
    env = GymnasiumEnv(Counter(action_space=box))
    assert (env.spec.n_actions, env.spec.action_dim) == (0, 2)
    env.reset()
    for action in ([-1.0, -1.0], [1.0, 1.0], [0.0, 0.0], [0.5, -7.0]):
        env.step(torch.tensor([action]))
    seen = env.env.envs[0].actions
    assert [a.ravel().tolist() for a in seen] == [[-2, 1], [2, 5], [0, 3], [1, 1]]
    assert all(a.shape == (2, 1) and a.dtype == np.float32 and box.contains(a) for a in seen)
    codec = action_codec(box)
    action = np.array([[-0.25, 0.75]], np.float32)
    np.testing.assert_allclose(codec.encode(codec.decode(action)), action, atol=1e-6)
    with pytest.raises(ValueError, match=r"Counter: actions must have shape \[B, 2\], got \(1, 3\)"):
        env.step(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="action of lane 0 is not finite"):
        env.step(torch.tensor([[0.0, float("nan")]]))


def test_scalar_box_action_and_discrete_observation():
    codec = action_codec(spaces.Box(-3.0, 3.0, ()))
    assert codec.action_dim == 1
    assert codec.decode(torch.tensor([[1.0], [0.0]])).tolist() == [3.0, 0.0]
    obs = obs_codec(spaces.Discrete(3, start=4))
    assert obs.encode(np.array([4, 6])).tolist() == [[1, 0, 0], [0, 0, 1]]
    with pytest.raises(ValueError, match=r"observation 0 lies outside \[3\] options from \[4\]"):
        obs.encode(np.array([0]))
    assert obs_codec(spaces.Box(0, 255, (2, 2), np.uint8)).encode(np.ones((3, 2, 2), np.uint8)).shape == (3, 4)


def test_unsupported_and_unbounded_spaces_are_refused_by_name():
    with pytest.raises(
        ValueError, match=r"Counter: action_space must have finite bounds.*TransformAction.*RescaleAction"
    ):
        GymnasiumEnv(Counter(action_space=spaces.Box(-np.inf, 1.0, (2,))))
    with pytest.raises(ValueError, match=r"Counter: action_space Tuple is not supported; supported are Box, Discrete"):
        GymnasiumEnv(Counter(action_space=spaces.Tuple([spaces.Discrete(2)])))
    with pytest.raises(ValueError, match=r"goal: observation_space 'a' Text is not supported.*FlattenObservation"):
        obs_codec(spaces.Dict(a=spaces.Text(2)), "goal")
    with pytest.raises(ValueError, match="must be a Box of floats"):
        action_codec(spaces.Box(0, 3, (2,), np.int32))


def run_until_fault(fault, mode=AutoresetMode.SAME_STEP):
    fns = [lambda: Counter(((9, "truncated"),)), lambda: Counter(((9, "truncated"),), fault=fault)]
    env = GymnasiumEnv(SyncVectorEnv(fns, autoreset_mode=mode))
    env.reset()
    for _ in range(3):
        env.step(torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("mode", MODES)
def test_faults_of_the_environment_name_it_the_lane_and_the_step(mode):
    with pytest.raises(ValueError, match=r"Counter: observation of lane 1 at step 3 is nan \(entry 1\)"):
        run_until_fault("obs", mode)
    with pytest.raises(ValueError, match="Counter: reward of lane 1 at step 3 is inf"):
        run_until_fault("reward", mode)
    with pytest.raises(ValueError, match="Counter: reward of lane 1 at step 3 is inf"):
        run_until_fault("overflow", mode)
    with pytest.raises(ValueError, match=r"Counter: observation of lane 1 must have shape \(2,\).*got \(5,\)"):
        run_until_fault("shape", mode)
    with pytest.raises(RuntimeError) as raised:
        run_until_fault("raise", mode)
    assert str(raised.value) == ("Counter: environment raised FloatingPointError: the arm fell off (in step, step 3)")
    assert isinstance(raised.value.__cause__, FloatingPointError)


@pytest.mark.parametrize(
    ("method", "answer"), [("step", (np.zeros(1), 0.0, False, {})), ("reset", (np.zeros(1), {}, 1))]
)
def test_what_an_older_gym_returns_is_told_with_what_gymnasium_returns(method, answer, monkeypatch):
    monkeypatch.setattr(Counter, method, lambda self, *args, **kwargs: answer)
    env = GymnasiumEnv(Counter())

    def walk():
        env.reset(0)
        env.step(torch.zeros(1, dtype=torch.int64))

    with pytest.raises(RuntimeError, match=rf"to unpack.*{method} returns \(observation, .*info\)"):
        walk()


@pytest.mark.parametrize("env", [Pendulum(), Pendulum])
def test_a_simulator_is_to_be_wrapped(env):
    with pytest.raises(TypeError, match=r"wrap it: BatchedSim\(Pendulum\(\), n_envs\)"):
        GymnasiumEnv(env)


def test_lanes_are_seeded_seed_plus_i_once():
    env = GymnasiumEnv(counters(AutoresetMode.SAME_STEP, [((1, "terminated"),)] * 3), seed=40)
    env.reset()
    env.step(torch.zeros(3, dtype=torch.int64))
    env.reset()
    env.reset(seed=7)
    assert [lane.seeds for lane in env.env.envs] == [[40 + i, None, None, 7 + i] for i in range(3)]


@pytest.mark.parametrize("key", ["success", "is_success"])
@pytest.mark.parametrize("mode", MODES)
def test_success_is_told_at_the_end_of_an_episode_only(mode, key):
    env = GymnasiumEnv(counters(mode, [((2, "terminated"),), ((3, "truncated"),)], success=key))
    env.reset()
    seen = [env.step(torch.zeros(2, dtype=torch.int64)).extras.get("success") for _ in range(3)]
    assert seen[0] is None
    torch.testing.assert_close(seen[1], torch.tensor([1.0, torch.nan]), equal_nan=True)
    torch.testing.assert_close(seen[2], torch.tensor([torch.nan, 0.0]), equal_nan=True)


def test_no_success_key_where_the_environment_tells_none():
    env = GymnasiumEnv(Counter(((1, "terminated"),)))
    env.reset()
    assert env.step(torch.tensor([0])).extras == {}


def test_single_environment_function_and_wrong_requests():
    env = GymnasiumEnv(Counter(((1, "truncated"), (2, "truncated"))))
    assert isinstance(env, VecEnv)
    assert env.reset().tolist() == [[0, 0]]
    assert env.step(torch.tensor([0])).obs.tolist() == [[1, 0]]
    assert env.state_dict() == {}
    env.load_state_dict({})
    env.close()
    assert GymnasiumEnv(lambda: Counter(), n_envs=3).spec.n_envs == 3
    with pytest.raises(ValueError, match="cannot be copied into n_envs=2"):
        GymnasiumEnv(Counter(), n_envs=2)
    with pytest.raises(ValueError, match="has 2 lanes, not n_envs=3"):
        GymnasiumEnv(counters(MODES[0], [((1, "both"),)] * 2), n_envs=3)
    with pytest.raises(TypeError, match="got int"):
        GymnasiumEnv(3)
    with pytest.raises(ValueError, match=r"env\.id 'Nowhere-v0': Gymnasium cannot make it"):
        GymnasiumEnv("Nowhere-v0")
    with pytest.raises(ValueError, match="step came before reset"):
        GymnasiumEnv(Counter()).step(torch.tensor([0]))
    with pytest.raises(ValueError, match="expected actions of 1 lanes"):
        env.step(torch.tensor([0, 0]))


def test_autoreset_mode_must_be_known():
    vector = counters(AutoresetMode.NEXT_STEP, [((1, "both"),)])
    del vector.metadata["autoreset_mode"]
    with pytest.raises(ValueError, match=r"metadata\['autoreset_mode'\] is missing"):
        GymnasiumEnv(vector)
    with pytest.raises(ValueError, match="autoreset_mode must be one of"):
        GymnasiumEnv(vector, autoreset_mode="sometimes")
    assert GymnasiumEnv(vector, autoreset_mode="NextStep").mode is AutoresetMode.NEXT_STEP
    vector.metadata["autoreset_mode"] = AutoresetMode.SAME_STEP  # a lie: no infos["final_obs"] will come
    env = GymnasiumEnv(vector)
    env.reset()
    with pytest.raises(ValueError, match=r"without infos\['final_obs'\]"):
        env.step(torch.tensor([0]))


def test_stagger_spreads_the_first_time_limits():
    env = GymnasiumEnv(lambda: gym.wrappers.TimeLimit(Counter(((99, "truncated"),)), 8), n_envs=4, stagger=True)
    assert env.spec.episode_length == 8
    env.reset()
    ended = [env.step(torch.zeros(4, dtype=torch.int64)).truncated.tolist() for _ in range(16)]
    first = [next(t + 1 for t, row in enumerate(ended) if row[lane]) for lane in range(4)]
    assert first == [8, 6, 4, 2]
    assert [sum(row[lane] for row in ended) for lane in range(4)] == [2, 2, 2, 2]
    with pytest.raises(ValueError, match="stagger needs environments in this process"):
        GymnasiumEnv(Counter(), stagger=True)


def test_render_gives_the_picture_of_one_lane():
    env = GymnasiumEnv(counters(AutoresetMode.SAME_STEP, [((1, "both"),)] * 3))
    assert env.render(2).tolist() == np.full((2, 3, 3), 2).tolist()
    with pytest.raises(ValueError, match="lane must lie in"):
        env.render(3)
    with pytest.raises(ValueError, match="need render_mode 'rgb_array', got None"):
        GymnasiumEnv("CartPole-v1").render()


def test_native_vector_cartpole_agrees_with_its_single_environments():
    """Same start, same actions: the vector entry point and the in-process lanes see the same transitions."""
    native = GymnasiumEnv(gym.make_vec("CartPole-v1", 3, vectorization_mode="vector_entry_point"))
    assert native.mode is AutoresetMode.NEXT_STEP
    obs, n_resets, generator = native.reset(seed=0), 0, torch.Generator().manual_seed(0)
    ended = torch.zeros(3, dtype=torch.bool)
    for _ in range(200):
        action = torch.randint(2, (3,), generator=generator)
        step = native.step(action)
        assert torch.equal(step.extras["mask"], ~ended)
        assert step.reward.tolist() == step.extras["mask"].float().tolist()
        n_resets += int(ended.sum())
        assert (step.obs[ended].abs() <= 0.05).all()  # fresh starts
        single = gym.make("CartPole-v1").unwrapped
        for lane in torch.argwhere(~ended)[:, 0].tolist():
            single.reset()
            single.state = obs[lane].double().numpy()
            want, _, terminated, _, _ = single.step(int(action[lane]))
            np.testing.assert_allclose(step.final_obs[lane].numpy(), want, rtol=1e-4, atol=1e-5)
            assert terminated == step.terminated[lane].item()
        ended, obs = step.terminated | step.truncated, step.obs.clone()
    assert n_resets > 10


def test_cartpole_by_id_resets_in_the_same_step():
    env = GymnasiumEnv("CartPole-v1", n_envs=2, seed=1)
    assert env.mode is AutoresetMode.SAME_STEP
    assert (env.spec.obs_dim, env.spec.n_actions, env.spec.episode_length) == (4, 2, 500)
    env.reset()
    for _ in range(60):
        step = env.step(torch.ones(2, dtype=torch.int64))
        assert (step.obs[step.terminated].abs() <= 0.05).all()
        assert (step.final_obs[step.terminated, 2] > 0.2).logical_or(step.final_obs[step.terminated, 2] < -0.2).all()


def test_halfcheetah_gives_float32_observations_of_17():
    pytest.importorskip("mujoco")
    env = GymnasiumEnv("HalfCheetah-v5", n_envs=2, seed=3)
    obs = env.reset()
    step = env.step(torch.zeros(2, 6))
    assert (obs.shape, obs.dtype) == ((2, 17), torch.float32)
    assert (step.obs.dtype, step.reward.dtype, step.obs.device.type) == (torch.float32, torch.float32, "cpu")
    assert (env.spec.action_dim, env.spec.episode_length) == (6, 1000)
    assert not torch.equal(obs[0], obs[1])
    again = GymnasiumEnv("HalfCheetah-v5", seed=4).reset()
    assert torch.equal(again[0], obs[1])  # lane i is seeded seed + i
    env.close()


class Careless(gym.vector.VectorWrapper):
    """Repeats an episode's flags at the step that is only a reset, and pays 5 for it."""

    stale = np.zeros(2, dtype=bool)

    def step(self, actions):
        obs, reward, terminated, truncated, infos = super().step(actions)
        stale, self.stale = self.stale, terminated | truncated
        return obs, reward + 5.0 * stale, terminated | stale, truncated, infos


def test_a_reset_counts_for_nothing_even_if_the_vector_environment_pays_for_it():
    env = GymnasiumEnv(Careless(counters(AutoresetMode.NEXT_STEP, [((2, "terminated"),), ((9, "truncated"),)])))
    env.reset()
    steps = [env.step(torch.zeros(2, dtype=torch.int64)) for _ in range(5)]
    assert [s.extras["mask"][0].item() for s in steps] == [True, True, False, True, True]
    assert [s.reward[0].item() for s in steps] == [1, 2, 0, 1, 2]
    assert [s.terminated[0].item() for s in steps] == [False, True, False, False, True]


class Told(Counter):
    """A Counter whose infos, flags and arrays are the caller's."""

    def __init__(self, info=None, flag=bool, **words):
        super().__init__(**words)
        self.told, self.flag = info, flag

    def step(self, action):
        obs, reward, terminated, truncated, _ = super().step(action)
        done = terminated or truncated
        return obs, reward, self.flag(terminated), self.flag(truncated), self.told(self) if done and self.told else {}


class InPlace(gym.Env):
    """Its one array is what step and reset give."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self):
        self.state = np.zeros(1, np.float32)

    def reset(self, *, seed=None, options=None):
        self.state[:] = 0.0
        return self.state, {}

    def step(self, action):
        self.state += 1.0
        return self.state, 0.0, False, bool(self.state[0] == 3.0), {}


def test_a_last_observation_stays_where_the_environment_writes_over_its_array():
    env = GymnasiumEnv(InPlace, n_envs=2)
    env.reset(0)
    for _ in range(3):
        step = env.step(torch.zeros(2, dtype=torch.int64))
    assert step.truncated.all()
    assert (step.final_obs.tolist(), step.obs.tolist()) == ([[3.0], [3.0]], [[0.0], [0.0]])


def test_arrays_of_infos_may_have_other_shapes_in_other_lanes():
    paths = iter((np.zeros((2, 2)), np.ones((4, 2)), np.ones(3)))
    env = GymnasiumEnv(lambda: Told(lambda _: {"path": next(paths)}), n_envs=3)
    env.reset(0)
    for _ in range(5):
        env.step(torch.zeros(3, dtype=torch.int64))
    assert [path.shape for path in env.infos["final_info"]["path"]] == [(2, 2), (4, 2), (3,)]


def test_a_function_that_gives_one_environment_is_refused():
    one = Counter()
    with pytest.raises(ValueError, match="gives the same environment every time"):
        GymnasiumEnv(lambda: one, n_envs=2)


def test_flags_are_one_bool_a_lane():
    env = GymnasiumEnv(lambda: Told(flag=lambda done: np.array([done])), n_envs=3)
    env.reset(0)
    with pytest.raises(ValueError, match=r"terminated of 3 lanes must have shape \(3,\), got \(3, 1\).*bool\(term"):
        env.step(torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize(("value", "told"), [(np.array([True]), 1.0), (None, None), ("yes", ValueError)])
def test_success_is_a_number_an_array_of_one_or_not_told(value, told):
    env = GymnasiumEnv(lambda: Told(lambda _: {"is_success": value}))
    env.reset(0)
    action = torch.zeros(1, dtype=torch.int64)
    for _ in range(4):
        env.step(action)
    if told is ValueError:
        with pytest.raises(ValueError, match="must be a bool, got 'yes'"):
            env.step(action)
    else:
        assert env.step(action).extras.get("success") == (None if told is None else torch.tensor([told]))


def test_a_reward_space_may_be_declared_in_the_class():
    class Pays(Counter):
        reward_space = spaces.Box(-1.0, 1.0, (2,))

    assert GymnasiumEnv(Pays).spec.reward_dim == 2


@pytest.mark.parametrize("single", [False, True])
def test_what_a_constructor_raises_has_the_environments_name(single):
    class Broken(Counter):
        def __init__(self):
            super().__init__()
            raise KeyError("size")

    class NoSpaces(gym.Env):
        pass

    kind, said = (NoSpaces, "NoSpaces") if single else (Broken, "KeyError: 'size'")
    with pytest.raises(ValueError, match=rf"{kind.__name__}: making it raised .*{said}"):
        GymnasiumEnv(NoSpaces() if single else Broken)


def test_names_that_other_kinds_have_too_leave_an_environment_gymnasiums():
    class Sized(Counter):
        observation_size, action_size = 2, 3

    class Kept(Counter):
        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    for kind in (Sized, Kept):
        assert isinstance(as_vec_env(kind()), GymnasiumEnv)
    assert "lanes_differ" not in check_env(Sized, steps=20).names("skipped"), "a class is its own make"

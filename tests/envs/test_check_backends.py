"""check_env passes on every backend there is, with one lane and many; nothing is skipped but what cannot apply."""

import gymnasium as gym
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from ctrlrl.envs import sim as sim_module
from ctrlrl.envs.check import check_env
from ctrlrl.envs.gymnasium import GymnasiumEnv
from ctrlrl.envs.sb3 import SB3Env
from ctrlrl.envs.sim import BatchedSim
from ctrlrl.registry import ROBOTS, SIMULATORS, lookup

NEVER = {"mask", "host_reads"}  # same-step resets, on a CPU
LENGTH = 40  # steps of an episode, so that ends are seen in a short walk
ONE_START = {"lanes_differ", "episodes_differ"}
FIXED_LENGTH = {"stagger", "final_obs_true", "time_limit", "seed_matters", *ONE_START}
ALIKE = {  # tasks with one start, or of one or six steps, and what that leaves untold
    **dict.fromkeys(("slippery_lake", "deep_sea_treasure", "deep_sea_treasure_concave"), ONE_START),
    **dict.fromkeys(("resource_gathering", "minecart"), ONE_START),
    **dict.fromkeys(("fruit_tree", "mo_bandit"), FIXED_LENGTH),
}
CLOCKS = {"stagger", "final_obs_true"}  # need make(..., stagger=...)


def skipped(report):
    return set(report.names("skipped")) - {"clipping", "discrete_range"}  # one of them, by the kind of actions


SLOW = {(name, 3000) for name in SIMULATORS} | {("minecart", 1)}
WALKS = [
    pytest.param(name, n_envs, marks=pytest.mark.slow if (name, n_envs) in SLOW else ())
    for name in SIMULATORS
    for n_envs in (1, 3, 3000)
]


@pytest.mark.parametrize(("name", "n_envs"), WALKS)
def test_torch_native_simulators(name, n_envs, monkeypatch):
    check_simulator(name, n_envs, monkeypatch)


@pytest.mark.parametrize("name", ["pendulum", "cartpole"])
def test_many_lanes_of_torch_native_simulators(name, monkeypatch):
    check_simulator(name, 3000, monkeypatch)


def check_simulator(name, n_envs, monkeypatch):
    monkeypatch.setattr(sim_module, "_DRAW_SIZE", 256)  # what is drawn ahead after a reset costs most of the time
    sim = lookup(SIMULATORS, name, "environment")()

    def make(n_envs, seed, stagger=True, episode_length=LENGTH):
        return BatchedSim(sim, n_envs, seed=seed, stagger=stagger, episode_length=episode_length)

    def make_whole(n_envs, seed):  # a limit of six steps would fall on the end of the task
        return BatchedSim(sim, n_envs, seed=seed)

    own = make_whole if ALIKE.get(name) is FIXED_LENGTH else make
    report = check_env(own(n_envs, 0), make=own, steps=90 if n_envs < 100 else 45)
    report.raise_if_failed()
    assert not report.names("noted")
    if n_envs == 3:
        assert skipped(report) == NEVER | ALIKE.get(name, set()), str(report)


def pool(name, length=None, **words):
    from ctrlrl.envs.mujoco_cpu import MujocoPool

    def make(n_envs, seed, stagger=True, episode_length=length):
        return MujocoPool(name, n_envs, seed=seed, stagger=stagger, episode_length=episode_length, n_threads=1, **words)

    return make


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", ["halfcheetah", "hopper", "reacher", "inverted_pendulum"])
def test_mujoco_pools(name, exact):
    pytest.importorskip("mujoco")
    make = pool(name, LENGTH, exact=exact)
    report = check_env(make(3, 0), make=make, steps=90)
    report.raise_if_failed()
    assert not report.names("noted")
    assert skipped(report) == NEVER, str(report)


@pytest.mark.slow
@pytest.mark.parametrize("n_envs", [1, 16])
@pytest.mark.parametrize("name", ROBOTS)
def test_all_robots(name, n_envs):
    pytest.importorskip("mujoco")
    make = pool(name)
    report = check_env(make(n_envs, 0), make=make)
    report.raise_if_failed()
    assert not report.names("noted")


MODES = {mode.value: mode for mode in AutoresetMode}
LIMITS = {"CartPole-v1": 30, "Pendulum-v1": 20, "Acrobot-v1": 25}


def lanes(gym_id, n):
    return [lambda: gym.make(gym_id, max_episode_steps=LIMITS[gym_id]) for _ in range(n)]


@pytest.mark.parametrize("n_envs", [1, 4])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("gym_id", LIMITS)
def test_gymnasium_in_every_autoreset_mode(gym_id, mode, n_envs):
    def make(n_envs, seed, stagger=False):
        vector = SyncVectorEnv(lanes(gym_id, n_envs), autoreset_mode=MODES[mode])
        return GymnasiumEnv(vector, seed=seed, stagger=stagger)

    report = check_env(make(n_envs, 0), make=make, steps=80)
    report.raise_if_failed()
    assert not report.names("noted")
    assert report.rows["mask"].status == ("passed" if mode == "NextStep" else "skipped")
    if n_envs > 1:
        never = {"host_reads", "state_dict"} | (set() if mode == "NextStep" else {"mask"})
        assert skipped(report) == never, str(report)


def test_an_id_or_a_function_makes_its_own_instances():
    for given in ("Pendulum-v1", lambda: gym.make("Pendulum-v1", max_episode_steps=30)):
        report = check_env(given, steps=100)
        report.raise_if_failed()
        assert report.rows["instances"].status == "passed"
        assert report.rows["lane_count"].status == "passed"
    assert report.rows["stagger"].status == "passed"


def test_a_native_vector_environment_of_gymnasium():
    """Its lanes draw their starts from one generator: noted, not failed."""

    def make(n_envs, seed):
        return GymnasiumEnv(gym.make_vec("CartPole-v1", n_envs, vectorization_mode="vector_entry_point"))

    report = check_env(make(4, 0), make=make, steps=100)
    report.raise_if_failed()
    assert report.names("noted") == ["independence", "lane_count"]


@pytest.mark.parametrize("n_envs", [1, 4])
@pytest.mark.parametrize("gym_id", LIMITS)
def test_stable_baselines3(gym_id, n_envs):
    vec_env = pytest.importorskip("stable_baselines3.common.vec_env")

    def make(n_envs, seed):
        return vec_env.DummyVecEnv(lanes(gym_id, n_envs))

    report = check_env(make(n_envs, 0), make=make, steps=80)  # as it is: check_env adapts it
    report.raise_if_failed()
    assert not report.names("noted")
    if n_envs > 1:
        assert skipped(report) == {*NEVER, *CLOCKS, "state_dict"}, str(report)
    assert isinstance(SB3Env(make(1, 0)), SB3Env)


@pytest.mark.parametrize("gym_id", ["CartPole-v1", "Pendulum-v1"])
def test_envpool(gym_id):
    pytest.importorskip("envpool")
    from ctrlrl.envs.envpool import EnvPoolEnv

    def make(n_envs, seed):
        return EnvPoolEnv(gym_id, n_envs=n_envs, seed=seed, n_threads=1)

    report = check_env(make(4, 0), make=make, steps=450)
    report.raise_if_failed()
    assert report.rows["mask"].status == "passed"


def test_outputs_that_the_next_step_overwrites_are_allowed(monkeypatch):
    monkeypatch.setattr(sim_module, "_DRAW_SIZE", 256)
    sim = lookup(SIMULATORS, "pendulum", "environment")()

    class Reuses(BatchedSim):
        """As the compiled step does it."""

        def step(self, action):
            out = super().step(action)
            if not hasattr(self, "buffers"):
                self.buffers = [x.clone() for x in out[:5]]
            for buffer, x in zip(self.buffers, out[:5], strict=True):
                buffer.copy_(x)
            return out._replace(**dict(zip(out._fields[:5], self.buffers, strict=True)))

    check_env(Reuses(sim, 4, seed=0, episode_length=LENGTH), steps=90).raise_if_failed()


@pytest.mark.gpu
@pytest.mark.parametrize("name", SIMULATORS)
def test_torch_native_simulators_on_a_gpu(name):
    sim = lookup(SIMULATORS, name, "environment")()

    def make(n_envs, seed, stagger=True, episode_length=None):
        return BatchedSim(sim, n_envs, seed=seed, stagger=stagger, episode_length=episode_length, device="cuda")

    report = check_env(make(64, 0), make=make, steps=300)
    report.raise_if_failed()
    assert report.rows["host_reads"].status == "passed"
    assert torch.cuda.get_sync_debug_mode() == 0

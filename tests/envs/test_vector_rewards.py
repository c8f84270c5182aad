"""mo-gymnasium's environments through the adapter: reward vectors, in every way that they can be given."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from ctrlrl.config import EnvConfig
from ctrlrl.envs.gymnasium import GymnasiumEnv
from ctrlrl.envs.morl import DeepSeaTreasure
from ctrlrl.envs.sim import BatchedSim
from ctrlrl.envs.vector import CtrlrlVectorEnv
from ctrlrl.tasks import make_env

mo_gymnasium = pytest.importorskip("mo_gymnasium")
pytestmark = pytest.mark.filterwarnings("ignore:.*precision lowered by casting", "ignore:.*reward returned by `step")

DOWN, RIGHT = 1, 3
WAY = [RIGHT, DOWN, DOWN, RIGHT]  # the second treasure is below the second column


def walk(env: GymnasiumEnv) -> list[torch.Tensor]:
    env.reset(0)
    return [env.step(torch.full((env.spec.n_envs,), a)).reward.clone() for a in WAY]


@pytest.mark.parametrize("gym_id", ["deep-sea-treasure-v0", "mo_gymnasium:deep-sea-treasure-v0"])
def test_an_id_pays_vectors_lane_by_lane(gym_id):
    env = make_env(EnvConfig(name="gym", id=gym_id), 3, seed=0)
    assert (env.spec.reward_dim, env.spec.objectives) == (2, ())
    rewards = walk(env)
    assert rewards[0].dtype == torch.float32
    for got, want in zip(rewards, [(0, -1), (0, -1), (8.2, -1), (0, -1)], strict=True):
        torch.testing.assert_close(got, torch.tensor([want] * 3).float(), rtol=0, atol=1e-6)


def test_the_step_that_only_resets_pays_zeros():
    made = mo_gymnasium.wrappers.vector.MOSyncVectorEnv([lambda: mo_gymnasium.make("deep-sea-treasure-v0")] * 2)
    env = GymnasiumEnv(made, autoreset_mode=AutoresetMode.NEXT_STEP)
    assert env.spec.reward_dim == 2
    rewards = walk(env)
    torch.testing.assert_close(rewards[2], torch.tensor([[8.2, -1.0]] * 2))
    assert torch.equal(rewards[3], torch.zeros(2, 2))


def test_a_weighted_sum_is_one_reward_again():
    weight = np.array([0.5, 0.25])
    env = GymnasiumEnv(mo_gymnasium.wrappers.LinearReward(mo_gymnasium.make("deep-sea-treasure-v0"), weight))
    assert env.spec.reward_dim == 1
    assert [r.tolist() for r in walk(env)[:2]] == [[-0.25], [-0.25]]


def test_wrappers_around_a_vector_leave_it_one():
    inner = mo_gymnasium.make("deep-sea-treasure-v0")
    env = GymnasiumEnv(gym.wrappers.FlattenObservation(mo_gymnasium.wrappers.MOClipReward(inner, 1, -0.5, 0.0)))
    assert env.spec.reward_dim == 2
    assert walk(env)[0].tolist() == [[0.0, -0.5]]


class Silent(gym.Env):
    """Pays vectors and says nothing of it."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (1,)), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), np.zeros(3), False, False, {}


def test_vectors_of_an_environment_that_does_not_announce_them_are_refused():
    env = GymnasiumEnv(Silent())
    env.reset(0)
    with pytest.raises(ValueError, match=r"Silent: rewards of 1 lanes must have shape \(1,\).*reward_space"):
        env.step(torch.zeros(1, dtype=torch.int64))


def test_our_own_simulators_say_it_in_the_same_way_and_come_back_whole():
    face = CtrlrlVectorEnv(BatchedSim(DeepSeaTreasure(), 3, seed=0, stagger=False))
    assert face.reward_space.shape == (2,)
    env = GymnasiumEnv(face)
    assert env.spec.reward_dim == 2
    torch.testing.assert_close(walk(env)[2], torch.tensor([[8.2, -1.0]] * 3))


def test_stable_baselines3_is_not_offered_vectors():
    pytest.importorskip("stable_baselines3")
    from ctrlrl.envs.sb3 import as_sb3

    with pytest.raises(ValueError, match="DeepSeaTreasure: it pays 2 rewards a step"):
        as_sb3(BatchedSim(DeepSeaTreasure(), 1, seed=0))

"""Meta-World through Gymnasium's vector environment: seeds move the goal, the goal is seen, success is ever."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ctrlrl.collect import CollectOptions, collect_data
from ctrlrl.config import EnvConfig
from ctrlrl.data.check import check
from ctrlrl.envs import metaworld
from ctrlrl.envs.gymnasium import GymnasiumEnv
from ctrlrl.tasks import make_env
from ctrlrl.train.evaluate import evaluate

pytest.importorskip("metaworld", reason="pip install --no-deps metaworld (docs/environments.md)")
REACH = "Meta-World/reach-v3"
GOAL = slice(-3, None)


def test_a_reset_with_a_seed_fixes_start_and_goal_and_all_that_follow():
    env, act = make_env(EnvConfig(name="gym", id=REACH), 3, seed=0), metaworld.expert(REACH)
    assert (env.spec.obs_dim, env.spec.action_dim, env.spec.episode_length) == (39, 4, 500)
    first = env.reset(7).clone()
    walk = [env.step(act(first)).obs.clone() for _ in range(3)]
    assert len({tuple(row) for row in first[:, GOAL].tolist()}) == 3
    assert (first[:, GOAL] != 0).all()  # the goal is in the observation
    other = env.reset(8).clone()
    torch.testing.assert_close(other[:2], first[1:], rtol=0, atol=0)  # lane i begins with seed + i
    assert torch.equal(env.reset(7), first)
    assert all(torch.equal(env.step(act(first)).obs, seen) for seen in walk)


def test_an_episode_lasts_to_the_clock_and_was_a_success_if_it_ever_was():
    env, act, steps = make_env(EnvConfig(name="gym", id=REACH), 2, seed=0), metaworld.expert(REACH), 0
    start = env.reset(0).clone()

    def there_and_away(obs: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += 1
        away = torch.tensor([[0.0, -1.0, 1.0, 0.0]]).expand(len(obs), 4)
        return act(obs) if steps <= 100 else away

    found = evaluate(there_and_away, env, episodes=2, seed=0)
    assert found.lengths.tolist() == [500, 500]
    assert found.success is not None
    assert found.success.tolist() == [1.0, 1.0]
    idle = evaluate(lambda obs: torch.zeros(len(obs), 4), env, episodes=2, seed=0)
    assert idle.success is not None
    assert idle.success.tolist() == [0.0, 0.0]
    assert torch.equal(env.reset(0), start)  # as before the episodes


def test_experts_leave_the_box_and_are_clipped_to_it():
    door = "Meta-World/door-open-v3"
    obs = GymnasiumEnv(door, n_envs=2, seed=0).reset(0)
    policy = metaworld._table("metaworld.policies", "ENV_POLICY_MAP")["door-open-v3"]()
    with pytest.warns(UserWarning, match="too high"):
        raw = np.stack([policy.get_action(row) for row in obs.double().numpy()])
    assert np.abs(raw).max() > 1.5
    np.testing.assert_array_equal(metaworld.expert(door)(obs).numpy(), raw.clip(-1.0, 1.0))


@pytest.mark.parametrize(("gym_id", "near"), [("Meta-World/MT1", "reach-v3"), ("Meta-World/reech-v3", "reach-v3")])
def test_an_unknown_task_names_near_ones(gym_id, near):
    with pytest.raises(ValueError, match=f"its own id here: .*{near}"):
        make_env(EnvConfig(name="gym", id=gym_id), 1)


def test_demonstrations_are_whole_successes_of_the_expert_at_every_noise_level():
    words = CollectOptions(
        out="x.npz", env=REACH, policy="expert", episodes=2, successful=True, noise="0.0,0.1", progress=False
    )
    found = collect_data(words)
    assert (found.n_episodes, found.n_rows) == (2, 1000)
    assert found.episode_extras["episode_complete"].all()
    assert found.episode_extras["episode_success"].tolist() == [1.0, 1.0]
    assert found.episode_extras["episode_policy"].tolist() == ["expert", "expert"]
    np.testing.assert_allclose(found.episode_extras["episode_noise_std"], [0.0, 0.1])
    assert np.abs(found.action).max() <= 1.0
    assert not [f for f in check(found) if f.defect]

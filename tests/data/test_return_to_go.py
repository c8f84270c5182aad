import numpy as np
import pytest

from ctrlrl.data.dataset import Dataset
from ctrlrl.data.episodes import Episodes, Facts

GAMMA = 0.99


def episodes(rewards, *, terminated=(), usable=None) -> Episodes:
    """rewards: one list an episode; terminated: rows of the file."""
    flat = np.concatenate([np.asarray(r, dtype=np.float32) for r in rewards])
    n, lengths = len(flat), [len(r) for r in rewards]
    ended = np.zeros(n, dtype=bool)
    ended[list(terminated)] = True
    return Episodes(
        obs=np.arange(n, dtype=np.float32).reshape(n, 1),
        action=np.zeros((n, 1), dtype=np.float32),
        reward=flat,
        terminated=ended,
        ends=np.cumsum(lengths),
        final_obs=np.zeros((len(lengths), 1), dtype=np.float32),
        has_final=np.ones(len(lengths), dtype=bool),
        usable=np.ones(n, dtype=bool) if usable is None else np.asarray(usable),
        extras={},
        episode_extras={},
        facts=Facts("rollouts", "made by a test"),
    )


def returns(data: Episodes, **options) -> list[float]:
    made = Dataset.of_episodes(data, needs={"return_to_go"}, **{"gamma": GAMMA, **options})
    return made.all().extras["return_to_go"].tolist()


def test_the_worked_example_of_a_success():
    found = returns(episodes([[-5, -5, 5]], terminated=[2]))
    assert found == pytest.approx([-5.0495, -0.05, 5.0], abs=1e-5)


def test_an_episode_of_nothing_but_failure_goes_on_failing():
    found = returns(episodes([[-5, -5, -5], [-5, 5]], terminated=[4]))
    assert found == pytest.approx([-500.0] * 3 + [-0.05, 5.0], abs=1e-3)


def test_rewards_are_transformed_first():
    found = returns(episodes([[0, 0, 0], [0, 1]], terminated=[4]), reward_scale=10.0, reward_shift=-5.0)
    assert found == pytest.approx([-500.0] * 3 + [-0.05, 5.0], abs=1e-3)


def test_the_lowest_reward_before_a_termination_is_no_endless_failure():
    found = returns(episodes([[-1, -1, -1]], terminated=[2]))
    assert found == pytest.approx([-1 - GAMMA - GAMMA**2, -1 - GAMMA, -1.0], abs=1e-6)


def test_what_follows_a_success_within_an_episode_is_a_stretch_of_its_own():
    found = returns(episodes([[-1, 0, 0, -1, -1]], terminated=[1, 2]))
    assert found == pytest.approx([-1.0, 0.0, 0.0, -100.0, -100.0], abs=1e-4)


def test_rows_that_learning_does_not_see_add_nothing():
    data = episodes([[1, 2, 4], [0, 3]], usable=[True, True, False, True, True])
    assert returns(data, gamma=0.5) == pytest.approx([2.0, 2.0, 1.5, 3.0])


def test_an_episode_that_varies_ends_with_its_last_reward():
    assert returns(episodes([[3, 2], [1, 2]]), gamma=0.5) == pytest.approx([4.0, 2.0, 2.0, 2.0])


def test_without_discount_nothing_is_endless():
    assert returns(episodes([[-1, -1], [0, -1]]), gamma=1.0) == pytest.approx([-2.0, -1.0, -1.0, -1.0])

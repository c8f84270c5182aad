"""Packed tables: what a data set hands to a learner, the replay ring, and mixtures of both."""

from typing import Any

import numpy as np
import pytest
import torch

from ctrlrl.data import dataset as dataset_module
from ctrlrl.data.dataset import Dataset, return_range
from ctrlrl.data.episodes import Episodes, Facts
from ctrlrl.data.replay import Mixture, Pair, ReplayBuffer
from ctrlrl.types import Transition

F32 = np.float32


def episodes(lengths: list[int], **changes: Any) -> Episodes:
    """Row i has observation (i, -i), action i / 1000, reward i; the last observation of episode e is (-100 - e, 0)."""
    n, row = sum(lengths), np.arange(sum(lengths))
    ends = np.cumsum(lengths)
    fields: dict[str, Any] = {
        "obs": np.stack((row, -row), 1).astype(F32),
        "action": (row[:, None] / 1000).astype(F32),
        "reward": row.astype(F32),
        "terminated": np.zeros(n, dtype=bool),
        "ends": ends,
        "final_obs": np.stack((-100 - np.arange(len(ends)), np.zeros(len(ends))), 1).astype(F32),
        "has_final": np.ones(len(ends), dtype=bool),
        "usable": np.ones(n, dtype=bool),
        "extras": {},
        "episode_extras": {},
        "facts": Facts("rollouts", "made.npz"),
    }
    return Episodes(**(fields | changes))


def flags(n: int, *true: int) -> np.ndarray:
    found = np.zeros(n, dtype=bool)
    found[list(true)] = True
    return found


def transitions(begin: int, end: int, **extras: torch.Tensor) -> Transition:
    """Rows begin ... end - 1, every column a function of the row's number."""
    row = torch.arange(begin, end).float()
    pair = torch.stack((row, -row), 1)
    return Transition(pair, row[:, None] / 1000, 2.0 * row, pair + 0.5, row % 3 == 0, extras)


def assert_rows(data: Transition, row: torch.Tensor) -> None:
    row = row.float()
    assert torch.equal(data.obs, torch.stack((row, -row), 1))
    assert torch.equal(data.action, row[:, None] / 1000)
    assert torch.equal(data.reward, 2.0 * row)
    assert torch.equal(data.next_obs, data.obs + 0.5)
    assert torch.equal(data.terminated, row % 3 == 0)


# data sets


def test_a_time_out_bootstraps_from_its_own_last_observation_and_a_termination_not_at_all():
    data = Dataset.of_episodes(episodes([3, 2], terminated=flags(5, 4))).all()
    assert data.next_obs[:, 0].tolist() == [1.0, 2.0, -100.0, 4.0, -101.0]
    assert data.terminated.tolist() == [False, False, False, False, True]
    assert data.terminated.dtype == torch.bool


def test_rows_that_are_not_usable_are_left_out_and_the_others_stay_in_order():
    data = Dataset.of_episodes(episodes([3, 3], usable=~flags(6, 2, 5)))
    assert data.size == 4
    assert data.all().obs[:, 0].tolist() == [0.0, 1.0, 3.0, 4.0]
    assert data.all().next_obs[:, 0].tolist() == [1.0, 2.0, 4.0, 5.0]


def test_sampled_columns_belong_to_one_row_whose_number_comes_along():
    data = Dataset.of(transitions(10, 60))
    batch = data.sample(500)
    assert_rows(batch, batch.extras["index"] + 10)
    assert batch.extras["index"].dtype == torch.int64
    again = data.take(batch.extras["index"].reshape(5, 100))
    assert again.obs.shape == (5, 100, 2)
    assert torch.equal(again.reward.reshape(-1), batch.reward)


def test_every_row_is_drawn_equally_often_and_with_replacement():
    count = torch.bincount(Dataset.of(transitions(0, 50)).sample(100_000).extras["index"], minlength=50)
    assert (count - 2000).abs().max() < 5 * 2000**0.5
    assert len(set(Dataset.of(transitions(0, 50)).sample(50).extras["index"].tolist())) < 50


def test_all_rows_come_once_and_in_order():
    data = Dataset.of(transitions(0, 7)).all()
    assert_rows(data, data.extras["index"])
    assert data.extras["index"].tolist() == list(range(7))


def test_a_batch_is_a_view_of_one_gather_and_columns_of_the_table_are_views_of_it():
    data = Dataset.of(transitions(0, 7))
    batch = data.sample(4)
    assert batch.obs.untyped_storage().data_ptr() == batch.next_obs.untyped_storage().data_ptr()
    data.table["reward"].fill_(3.0)
    assert (data.all().reward == 3.0).all()


def test_rewards_are_scaled_and_then_shifted_and_actions_clipped():
    raw = episodes([4], action=np.array([[-2.0], [0.5], [0.99], [1.0]], dtype=F32), terminated=flags(4, 3))
    data = Dataset.of_episodes(raw, reward_scale=10.0, reward_shift=-5.0, clip_actions=0.9, needs=["next_action"]).all()
    assert data.reward.tolist() == [-5.0, 5.0, 15.0, 25.0]
    limits = torch.tensor([-0.9, 0.5, 0.9, 0.9])
    assert torch.equal(data.action[:, 0], limits)
    assert torch.equal(data.extras["next_action"][:3, 0], limits[1:])
    assert raw.action.max() == 1.0, "the episodes stay as they are"


def test_the_next_action_is_that_of_the_following_row_of_the_file():
    # rows 2 and 5 are not learned from, yet row 2 is what followed row 1
    data = Dataset.of_episodes(episodes([3, 3], usable=~flags(6, 2, 5)), needs=["next_action"]).all()
    assert data.extras["next_action"].shape == (4, 1)
    torch.testing.assert_close(1000 * data.extras["next_action"][:, 0], torch.tensor([1.0, 2.0, 4.0, 5.0]))


def test_the_best_fraction_keeps_whole_episodes_by_undiscounted_return():
    raw = episodes([2] * 10, reward=np.repeat([0, 9, 1, 8, 2, 7, 3, 6, 4, 5], 2).astype(F32))

    def kept(fraction: float) -> list[float]:
        return Dataset.of_episodes(raw, best_fraction=fraction).all().obs[:, 0].tolist()

    assert kept(0.2) == [2.0, 3.0, 6.0, 7.0]
    assert kept(0.01) == [2.0, 3.0], "at least one episode"
    assert len(kept(1.0)) == 20


def test_of_equally_good_episodes_the_first_is_kept():
    raw = episodes([1] * 4, reward=np.array([0, 1, 1, 1], dtype=F32))
    assert Dataset.of_episodes(raw, best_fraction=0.5).all().obs[:, 0].tolist() == [1.0, 2.0]


def test_the_return_range_scales_returns_of_10_to_510_by_two():
    raw = episodes([2, 2, 2], reward=np.array([5, 5, 500, 10, 100, 0], dtype=F32))
    assert 1000.0 / return_range(raw) == 2.0
    # a dropped time-out row counts in no return
    assert return_range(episodes([2, 2, 2], reward=raw.reward, usable=~flags(6, 3))) == 490.0


def test_an_episode_that_nothing_is_learned_from_is_not_in_the_return_range():
    raw = episodes([2, 2, 1], reward=np.array([20, 20, 10, 10, 7], dtype=F32), usable=~flags(5, 4))
    assert return_range(raw) == 20.0


def test_a_row_without_a_next_action_stays_out_where_next_actions_are_learned_from():
    raw = episodes([3, 2, 2], terminated=flags(7, 4))
    data = Dataset.of_episodes(raw, needs=["next_action"]).all()
    assert data.obs[:, 0].tolist() == [0.0, 1.0, 3.0, 4.0, 5.0]
    assert Dataset.of_episodes(raw).size == 7


def test_actions_of_a_known_box_are_scaled_to_its_bounds():
    facts = Facts("minari", "x", action_low=(-0.4,), action_high=(0.4,))
    raw = episodes([3], action=np.array([[-0.4], [0.1], [0.4]], dtype=F32), facts=facts, terminated=flags(3, 2))
    data = Dataset.of_episodes(raw, needs=["next_action"]).all()
    torch.testing.assert_close(data.action[:, 0], torch.tensor([-1.0, 0.25, 1.0]))
    torch.testing.assert_close(data.extras["next_action"][:2, 0], torch.tensor([0.25, 1.0]))
    assert raw.action[0, 0] == np.float32(-0.4)


def test_equal_returns_have_no_range():
    with pytest.raises(
        ValueError, match=r"made\.npz: data\.return_range needs episodes of different returns, all have 2"
    ):
        return_range(episodes([2, 2], reward=np.ones(4, dtype=F32)))


def test_a_million_halfcheetah_transitions_take_168_megabytes():
    n = 1000
    raw = episodes(
        [n],
        obs=np.zeros((n, 17), dtype=F32),
        action=np.zeros((n, 6), dtype=F32),
        final_obs=np.zeros((1, 17), dtype=F32),
    )
    rows = Dataset.of_episodes(raw).table.rows
    assert rows.untyped_storage().nbytes() == n * 4 * (17 + 6 + 1 + 17 + 1)
    assert rows.untyped_storage().nbytes() * 1000 < 250e6


def test_filling_in_blocks_gives_the_same_table(monkeypatch):
    raw = episodes([7, 5, 9], usable=~flags(21, 3, 11))
    whole = Dataset.of_episodes(raw, needs=["next_action", "return_to_go"]).table.rows
    monkeypatch.setattr(dataset_module, "BLOCK", 4)
    assert torch.equal(Dataset.of_episodes(raw, needs=["next_action", "return_to_go"]).table.rows, whole)


def test_extras_keep_their_shape():
    data = Dataset.of(transitions(0, 5, weight=torch.arange(5.0), goal=torch.ones(5, 3)))
    batch = data.take(torch.tensor([4, 1]))
    assert batch.extras["weight"].tolist() == [4.0, 1.0]
    assert batch.extras["goal"].shape == (2, 3)
    assert Dataset.of(batch).all().extras.keys() == {"weight", "goal", "index"}


def test_what_cannot_be_learned_from_is_refused():
    with pytest.raises(ValueError, match="no transition"):
        Dataset.of_episodes(episodes([3], usable=np.zeros(3, dtype=bool)))
    with pytest.raises(ValueError, match=r"made\.npz: the algorithm reads 'post_obs'"):
        Dataset.of_episodes(episodes([3]), needs=["post_obs"])


@pytest.mark.parametrize(
    ("name", "said"),
    [("obs", "observations"), ("action", "actions"), ("reward", "rewards"), ("final_obs", "next observations")],
)
def test_numbers_that_are_not_finite_are_refused_with_file_column_and_row(monkeypatch, name, said):
    monkeypatch.setattr(dataset_module, "BLOCK", 2)
    e = episodes([3, 3], usable=~flags(6, 0))
    getattr(e, name)[1] = np.nan  # row 1; of the last observations that of episode 1
    row = 5 if name == "final_obs" else 1
    with pytest.raises(ValueError, match=rf"made\.npz: nan or inf in {said}, first at row {row}:"):
        Dataset.of_episodes(e)


def test_a_nan_in_a_row_that_learning_does_not_see_is_no_reason_to_refuse():
    e = episodes([3, 3], usable=~flags(6, 0))
    e.reward[0] = np.nan
    assert Dataset.of_episodes(e).size == 5
    assert return_range(e) > 0.0


def test_the_best_episodes_are_not_picked_by_returns_that_are_no_numbers():
    e = episodes([2] * 10, reward=np.repeat(np.arange(10), 2).astype(F32))
    e.reward[6] = np.nan
    assert np.isnan(e.returns()).tolist() == [i == 3 for i in range(10)]
    with pytest.raises(ValueError, match="nan or inf in rewards, first at row 6"):
        Dataset.of_episodes(e, best_fraction=0.2)


def test_an_action_that_only_the_row_before_it_learns_from_is_looked_at():
    e = episodes([3, 3], usable=~flags(6, 2))
    e.action[2] = np.nan
    assert Dataset.of_episodes(e).size == 5
    with pytest.raises(ValueError, match="nan or inf in next_action, first at row 1"):
        Dataset.of_episodes(e, needs=["next_action"])


def test_a_nan_in_the_return_range_is_named():
    e = episodes([3, 3])
    e.reward[4] = np.nan
    with pytest.raises(ValueError, match="nan or inf in rewards, first at row 4"):
        return_range(e)


# replay


def test_the_ring_keeps_the_newest_rows():
    buffer = ReplayBuffer(7, 2, 1)
    for begin in range(0, 30, 3):
        buffer.add(transitions(begin, begin + 3))
        newest = set(range(max(0, begin + 3 - 7), begin + 3))
        assert len(buffer) == len(newest)
        assert set(buffer.sample(200).obs[:, 0].int().tolist()) == newest
    batch = buffer.sample(50)
    assert_rows(batch, batch.obs[:, 0])


def test_a_full_ring_takes_a_step_of_its_own_size():
    buffer = ReplayBuffer(4, 2, 1)
    buffer.add(transitions(0, 3))
    buffer.add(transitions(3, 7))
    assert set(buffer.sample(100).obs[:, 0].tolist()) == {3.0, 4.0, 5.0, 6.0}


def test_a_saved_ring_goes_on_where_it_stopped():
    one, two = ReplayBuffer(5, 2, 1), ReplayBuffer(5, 2, 1)
    for begin in (0, 3):
        one.add(transitions(begin, begin + 3))
    two.load_state_dict({k: v.clone() for k, v in one.state_dict().items()})
    for buffer in (one, two):
        buffer.add(transitions(6, 8))
    assert torch.equal(one.table.rows, two.table.rows)
    half = ReplayBuffer(5, 2, 1)
    half.add(transitions(0, 2))
    assert len(half.state_dict()["rows"]) == 2


def test_the_ring_stores_declared_extras_alone():
    buffer = ReplayBuffer(4, 2, 1, extras={"goal": 3})
    buffer.add(transitions(0, 2, goal=torch.full((2, 3), 7.0), seen=torch.zeros(2)))
    assert buffer.sample(5).extras.keys() == {"goal"}
    assert (buffer.sample(5).extras["goal"] == 7.0).all()


def test_an_empty_or_too_small_ring_says_so():
    with pytest.raises(ValueError, match="buffer_size must be at least 1, got 0"):
        ReplayBuffer(0, 2, 1)
    with pytest.raises(ValueError, match="the replay buffer is empty"):
        ReplayBuffer(3, 2, 1).sample(1)
    with pytest.raises(ValueError, match="buffer_size=3 is smaller than one step of 4"):
        ReplayBuffer(3, 2, 1).add(transitions(0, 4))


# mixtures


def share(batch: Transition) -> torch.Tensor:
    """Which rows came from the source of rows from 100 on."""
    return batch.obs[:, 0] >= 100


def test_two_equal_halves_alternate():
    mixture = Mixture([(Dataset.of(transitions(0, 9)), 1.0), (Dataset.of(transitions(100, 109)), 1.0)])
    batch = mixture.sample(8)
    assert share(batch).tolist() == [False, True] * 4
    assert_rows(batch, batch.obs[:, 0])


@pytest.mark.parametrize(("shares", "n"), [((3.0, 1.0), 64), ((0.5, 0.25), 60), ((1.0, 9.0), 50)])
def test_any_slice_holds_the_shares(shares, n):
    low, high = Dataset.of(transitions(0, 9)), Dataset.of(transitions(100, 109))
    batch = Mixture([(low, shares[0]), (high, shares[1])]).sample(n)
    assert len(batch.reward) == n
    fraction = shares[1] / sum(shares)
    for begin in range(n):
        for end in range(begin + 1, n + 1):
            assert abs(int(share(batch)[begin:end].sum()) - fraction * (end - begin)) <= 1.5


def test_counts_are_rounded_so_that_they_add_up():
    for n_parts in (3, 10):  # the sum of ten floats 0.1 is less than 1
        parts = [(Dataset.of(transitions(100 * k, 100 * k + 5)), 1.0) for k in range(n_parts)]
        for n in (1, 2, 50, 100):
            batch = Mixture(parts).sample(n)  # type: ignore[arg-type]
            counts = torch.bincount((batch.obs[:, 0] / 100).long(), minlength=n_parts)
            assert counts.sum() == n
            assert counts.max() - counts.min() <= 1


def test_a_source_without_a_share_is_not_asked():
    empty = ReplayBuffer(3, 2, 1)
    batch = Mixture([(Dataset.of(transitions(0, 9)), 1.0), (empty, 0.0)]).sample(5)
    assert len(batch.reward) == 5


def test_only_extras_of_every_source_are_left():
    one = Dataset.of(transitions(0, 5, weight=torch.zeros(5)))
    two = Dataset.of(transitions(100, 105, weight=torch.ones(5), goal=torch.ones(5, 3)))
    batch = Mixture([(one, 0.5), (two, 0.5)]).sample(6)
    assert batch.extras.keys() == {"weight", "index"}
    assert torch.equal(batch.extras["weight"] == 1.0, share(batch))


@pytest.mark.parametrize("shares", [(), (0.0, 0.0), (1.0, -0.5)])
def test_shares_that_mean_nothing_are_refused(shares):
    data = Dataset.of(transitions(0, 3))
    with pytest.raises(ValueError, match="a mixture needs shares"):
        Mixture([(data, s) for s in shares])


def test_a_pair_keeps_its_halves_apart():
    batch = Pair(Dataset.of(transitions(0, 9)), Dataset.of(transitions(100, 109))).sample(7)
    assert (len(batch.real.reward), len(batch.sim.reward)) == (4, 3)
    assert not share(batch.real).any()
    assert share(batch.sim).all()

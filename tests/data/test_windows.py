"""Windows against the rule written out by hand: where they begin, what repeats, and what is refused."""

from dataclasses import replace

import pytest
import torch
from episodes_made import made as made_episodes

from ctrlrl.data.dataset import Dataset
from ctrlrl.data.windows import Windows
from ctrlrl.types import FutureGoals, Transition, Window


def numbered(*lengths: int) -> Dataset:
    """Episodes whose observations are (episode, row in it), and whose actions are the row in it."""
    rows = torch.tensor([(e, t) for e, n in enumerate(lengths) for t in range(n)], dtype=torch.float32)
    n = len(rows)
    data = Transition(rows, rows[:, 1:], torch.arange(n).float(), rows, torch.zeros(n, dtype=torch.bool), {})
    made = Dataset.of(data)
    made.ends = torch.tensor(lengths).cumsum(0)
    return made


def by_hand(length: int, window: Window) -> list[list[int]]:
    """Rows of every window of one episode."""
    n_obs, horizon, n_actions = window
    starts = range(-(n_obs - 1), length - horizon + (n_actions - 1) + 1)
    return [[min(max(i + j, 0), length - 1) for j in range(horizon)] for i in starts]


def test_ten_rows_give_the_nine_windows_of_the_specification():
    windows = Windows(numbered(10), Window(2, 4, 2))
    assert windows.size == 9
    rows = windows.rows(torch.arange(9)).tolist()
    assert rows[0] == [0, 0, 1, 2], "row 0 is repeated once before the episode"
    assert rows[-1] == [7, 8, 9, 9], "and the last one once behind it"
    assert rows == by_hand(10, Window(2, 4, 2))


@pytest.mark.parametrize(
    "window", [Window(2, 16, 8), Window(1, 1, 1), Window(3, 5, 1), Window(2, 4, 3), Window(4, 4, 1)]
)
def test_no_window_crosses_an_end_and_all_there_are_come_once(window):
    lengths = (1, 20, 3, 2, 16, 9, 7)
    windows = Windows(numbered(*lengths), window)
    batch = windows.take(torch.arange(windows.size))
    wanted = [(e, row) for e, n in enumerate(lengths) for row in by_hand(n, window)]
    assert windows.size == len(wanted)
    for got, obs, (e, row) in zip(batch.action, batch.obs, wanted, strict=True):
        assert got.squeeze(1).tolist() == row
        assert obs.tolist() == [[e, t] for t in row[: window.n_obs]]


def test_the_rest_of_a_window_is_of_its_present_row():
    windows = Windows(numbered(10, 10), Window(2, 4, 2))
    batch = windows.take(torch.tensor([[0, 9], [4, 8]]))
    assert batch.obs.shape == (2, 2, 2, 2)
    assert batch.action.shape == (2, 2, 4, 1)
    assert batch.reward.tolist() == [[0.0, 10.0], [4.0, 8.0]]


def test_samples_are_windows_of_all_episodes():
    torch.manual_seed(0)
    windows = Windows(numbered(5, 6), Window(1, 2, 1))
    drawn = windows.sample(2000)
    counts = torch.bincount(drawn.extras["index"], minlength=windows.size)
    assert len(counts) == windows.size
    assert counts.min() > 100
    assert drawn.obs.shape == (2000, 1, 2)


def test_statistics_see_every_row_once():
    windows = Windows(numbered(5, 6), Window(2, 4, 2))
    assert torch.equal(windows.all().obs, windows.data.all().obs)


def test_too_short_episodes_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match="has 7 usable steps, one window needs 8"):
        Windows(numbered(3, 7), Window(2, 16, 8))
    assert Windows(numbered(3, 8), Window(2, 16, 8)).size == 1


def test_rows_without_ends_are_refused():
    data = numbered(5)
    data.ends = None
    with pytest.raises(ValueError, match="does not tell where its episodes end"):
        Windows(data, Window(1, 1, 1))


def test_a_row_that_learning_does_not_see_ends_a_run_of_neighbours():
    whole = made_episodes()
    usable = whole.usable.copy()
    usable[2] = False
    made = Dataset.of_episodes(replace(whole, usable=usable))
    assert made.ends is not None
    ends = [int(e) for e in whole.ends]
    assert made.ends.tolist() == [2, *(e - 1 for e in ends)]
    kept = Dataset.of_episodes(whole)
    assert kept.ends is not None
    assert kept.ends.tolist() == ends


@pytest.mark.parametrize("window", [Window(5, 5, 1), Window(2, 6, 3)])
def test_goals_are_rows_behind_the_window_evenly_drawn_up_to_the_end_of_its_episode(window):
    n_goals, length = 2, 12
    windows = Windows(numbered(3, length, 4), window, FutureGoals(n_goals, at_end=False))
    torch.manual_seed(0)
    index = torch.arange(windows.size).repeat(3000)
    batch = windows.take(index)
    goals = batch.extras["goal"]
    assert goals.shape == (len(index), n_goals, 2)
    for number in range(windows.size):
        episode, row = _where(windows, number)
        drawn = goals[index == number]
        last = (3, length, 4)[episode] - 1
        assert (drawn[..., 0] == episode).all(), "of its own episode"
        first = min(row + window.horizon - window.n_obs + 1, last)
        wanted = [[first, min(first + 1, last)]]
        wanted += [[t, t + 1] for t in range(first + 1, last)]
        found, counts = drawn[..., 1].unique(dim=0, return_counts=True)
        assert found.tolist() == wanted
        assert counts.min() > 0.8 * 3000 / len(wanted)


def _where(windows: Windows, number: int) -> tuple[int, int]:
    """Episode and row of a window's present observation."""
    episode, row = windows.take(torch.tensor(number)).obs[-1].tolist()
    return int(episode), int(row)


def test_goals_at_the_end_are_the_last_rows_of_the_episode():
    windows = Windows(numbered(6, 3), Window(1, 1, 1), FutureGoals(2, at_end=True))
    assert windows.take(torch.tensor([0, 5, 6])).extras["goal"][..., 1].tolist() == [[4, 5], [4, 5], [1, 2]]
    windows = Windows(numbered(6, 1), Window(1, 1, 1), FutureGoals(2, at_end=True))
    assert windows.take(torch.tensor([6])).extras["goal"].tolist() == [[[1, 0], [1, 0]]], "none of another episode"


def test_windows_without_goals_draw_none():
    windows = Windows(numbered(10), Window(2, 4, 2))
    before = torch.get_rng_state()
    assert "goal" not in windows.take(torch.tensor([0, 1])).extras
    assert torch.equal(torch.get_rng_state(), before)

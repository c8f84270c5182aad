"""Rows that wait for their future: sums over several steps, next actions and returns, by hand."""

import numpy as np
import pytest
import torch
from episodes_made import made

from ctrlrl.data.arrivals import Seen, WholeEpisodes, Window, arrivals
from ctrlrl.data.dataset import Dataset
from ctrlrl.functional.returns import n_step_sums

GAMMA = 0.9
NAMES = ("obs", "reward", "next_obs", "terminated")


def steps(rewards, terminated=(), truncated=(), lanes=1, counts=None):
    """One lane's steps, number t acting t + 0.5 and leading to t + 1; the further lanes hold the same plus 100, ..."""
    n, more = len(rewards), 100.0 * torch.arange(lanes)
    flags = [
        torch.tensor([t in marked for t in range(n)]).unsqueeze(1).expand(n, lanes)
        for marked in (terminated, truncated)
    ]
    number = torch.arange(n).unsqueeze(1) + more
    there = None if counts is None else torch.tensor(counts).unsqueeze(1).expand(n, lanes)
    reward = torch.tensor(rewards).float().unsqueeze(1) + more
    for t in range(n):
        yield Seen(
            number[t].unsqueeze(1),
            number[t].unsqueeze(1) + 0.5,
            reward[t],
            number[t].unsqueeze(1) + 1.0,
            flags[0][t],
            flags[1][t],
            None if there is None else there[t],
        )


def out(place, given):
    """(obs, reward, next_obs, terminated) of every row that left, and the batches in which they did."""
    found = [rows for step in given if (rows := place.add(step)) is not None]
    columns = [torch.cat([getattr(rows, name).flatten() for rows in found]).tolist() for name in NAMES]
    return list(zip(*columns, strict=True)), found


def test_three_steps_with_a_time_out_in_the_middle_by_hand():
    """The time-out after step 3 ends the sums; the value there still counts, and nothing of the next episode does."""
    rows, found = out(Window(n_steps=3, gamma=GAMMA, next_action=False), steps([1, 2, 4, 8, 16, 32, 64], truncated=[3]))
    r = [1 + 0.9 * 2 + 0.81 * 4, 2 + 0.9 * 4 + 0.81 * 8, 4 + 0.9 * 8, 8.0, 16 + 0.9 * 32 + 0.81 * 64]
    assert [row[0] for row in rows] == [0, 1, 2, 3, 4]
    assert [row[1] for row in rows] == pytest.approx(r)
    assert [row[2] for row in rows] == [3, 4, 4, 4, 7]
    assert not any(row[3] for row in rows), "a time-out is no end of the task"
    discount = torch.cat([part.extras["discount"] for part in found]).tolist()
    assert discount == pytest.approx([GAMMA**k for k in (3, 3, 2, 1, 3)])


def test_three_steps_into_a_terminal_have_no_value_behind():
    rows, _ = out(Window(n_steps=3, gamma=GAMMA, next_action=False), steps([1, 2, 4, 8, 16, 32], terminated=[3]))
    assert [row[3] for row in rows] == [False, True, True, True]
    assert [row[1] for row in rows][2:] == pytest.approx([4 + 0.9 * 8, 8.0])


def test_lanes_do_not_mix():
    place = Window(n_steps=2, gamma=GAMMA, next_action=False)
    rows, _ = out(place, steps([1, 2, 4], lanes=3))
    for lane in range(3):
        more = 100.0 * lane
        assert rows[lane] == pytest.approx((more, 1 + more + 0.9 * (2 + more), more + 2, False))


def test_the_action_that_followed_and_no_row_where_none_did():
    place = Window(n_steps=1, gamma=GAMMA, next_action=True)
    rows, found = out(place, steps([1, 2, 4, 8, 16, 32], truncated=[1], terminated=[3]))
    assert [row[0] for row in rows] == [0, 2, 3, 4], "the timed-out step 1 was followed by none"
    following = torch.cat([part.extras["next_action"] for part in found]).flatten().tolist()
    assert following[:2] + following[3:] == [1.5, 3.5, 5.5]


def test_a_step_that_was_only_a_reset_is_no_row():
    place = Window(n_steps=2, gamma=GAMMA, next_action=False)
    rows, _ = out(place, steps([1, 2, 4, 8, 16], terminated=[1], counts=[True, True, False, True, True]))
    assert [row[0] for row in rows] == [0, 1, 3]


def test_whole_episodes_leave_with_their_returns_when_they_are_over():
    place = WholeEpisodes(n_steps=1, gamma=GAMMA, next_action=False, failure=None)
    given = list(steps([1, 2, 4, 8, 16], terminated=[1], truncated=[4], lanes=2))
    assert place.add(given[0]) is None
    first = place.add(given[1])
    assert first.extras["return_to_go"].tolist() == pytest.approx([1 + 0.9 * 2, 2, 101 + 0.9 * 102, 102])
    assert [place.add(step) for step in given[2:4]] == [None, None]
    last = place.add(given[4]).extras["return_to_go"]
    assert last[:3].tolist() == pytest.approx([4 + 0.9 * 8 + 0.81 * 16, 8 + 0.9 * 16, 16])
    assert place.steps == []


def test_an_episode_of_nothing_but_failure_fails_for_ever_unless_the_task_ended_it():
    for ended, value in ((False, -5.0 / 0.1), (True, -5.0)):
        place = WholeEpisodes(n_steps=1, gamma=GAMMA, next_action=False, failure=-5.0)
        given = steps([-5, -5], **{"terminated" if ended else "truncated": [1]})
        rows = [place.add(step) for step in given][-1]
        assert rows.extras["return_to_go"][1].item() == pytest.approx(value)


@pytest.mark.parametrize("needs", [set(), {"next_action"}, {"return_to_go"}, {"next_action", "return_to_go"}])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_arrivals_give_the_rows_of_a_data_set_of_the_same_episodes(needs, n_steps):
    """What waits online is what is computed offline."""
    data = made()
    options = {"n_steps": n_steps, "gamma": GAMMA}
    offline = Dataset.of_episodes(data, needs=needs, **options).all()
    place = arrivals(needs, **options, failure=float(data.reward.min()))
    if place is None:
        assert (n_steps, needs) == (1, set())
        return
    following = torch.from_numpy(data.next_obs())
    ends = np.zeros(data.n_rows, dtype=bool)
    ends[data.ends - 1] = True
    columns = [torch.from_numpy(x) for x in (data.obs, data.action, data.reward)]
    flags = [torch.from_numpy(x) for x in (data.terminated, ends & ~data.terminated)]
    found = []
    for t in range(data.n_rows):
        step = Seen(*(c[t : t + 1] for c in columns), following[t : t + 1], *(f[t : t + 1] for f in flags))
        if (rows := place.add(step)) is not None:
            found.append(rows)
    assert set(found[0].extras) == {name for name in offline.extras if name != "index"}
    n = sum(len(rows.reward) for rows in found)
    assert n >= len(offline.reward) - n_steps
    for name in ("obs", "action", "reward", "next_obs", "terminated"):
        torch.testing.assert_close(torch.cat([getattr(rows, name) for rows in found]), getattr(offline, name)[:n])
    alive = ~offline.terminated[:n]  # what follows a terminal is not read
    for name in found[0].extras:
        ours = torch.cat([rows.extras[name] for rows in found])
        torch.testing.assert_close(ours[alive], offline.extras[name][:n][alive], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("place", [Window, WholeEpisodes])
def test_what_waits_can_be_kept_and_goes_on(place):
    kwargs = {"failure": None} if place is WholeEpisodes else {}
    make = lambda: place(n_steps=3, gamma=GAMMA, next_action=False, **kwargs)  # noqa: E731
    given = list(steps([1, 2, 4, 8, 16, 32], truncated=[4], lanes=2))
    first, second = make(), make()
    for step in given[:3]:
        first.add(step)
    second.load_state_dict({k: v.clone() for k, v in first.state_dict().items()})
    assert out(first, given[3:])[0] == out(second, given[3:])[0]
    second.clear()
    assert second.state_dict() == {}


def test_sums_of_one_step_are_the_rewards_and_of_all_the_discounted_returns():
    reward, stop = torch.randn(20, 3, dtype=torch.float64), torch.rand(20, 3) < 0.2
    one, length = n_step_sums(reward, stop, gamma=GAMMA, n=1)
    assert torch.equal(one, reward)
    assert (length == 1).all()
    every, _ = n_step_sums(reward, stop, gamma=GAMMA, n=20)
    for lane in range(3):
        total = 0.0
        for t in range(19, -1, -1):
            total = float(reward[t, lane]) + (0.0 if stop[t, lane] else GAMMA * total)
            assert float(every[t, lane]) == pytest.approx(total)

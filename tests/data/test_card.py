"""The data card: returns by hand, trajectory quality in closed form, coverage against pairs, lines and picture."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from episodes_made import LENGTHS, made

from ctrlrl.data.card import card_text, coverage, data_card, trajectory_quality
from ctrlrl.data.episodes import Episodes, Facts


def pairs(*rows: tuple[int, int]) -> Episodes:
    """A data set of discrete states and actions."""
    states = np.array([[s] for s, _ in rows], dtype=np.int64)
    n = len(rows)
    none = np.zeros(n, dtype=bool)
    return Episodes(
        obs=states,
        action=np.array([a for _, a in rows], dtype=np.int64),
        reward=np.zeros(n, dtype=np.float32),
        terminated=none,
        ends=np.array([n]),
        final_obs=states[:1],
        has_final=none[:1],
        usable=~none,
        extras={},
        episode_extras={},
        facts=Facts(format="rollouts", path="pairs.npz"),
    )


def test_coverage_is_the_ratio_of_different_pairs():
    data, reference = pairs((0, 0), (0, 0), (1, 0)), pairs((0, 0), (1, 0), (0, 1), (1, 1), (1, 1))
    assert coverage(data, reference) == 0.5
    assert coverage(reference, data) == 2.0


def test_a_set_covers_itself_and_part_of_itself_covers_its_share():
    e = made()
    assert coverage(e, e) == 1.0
    half = replace(e, obs=e.obs[:16], action=e.action[:16], reward=e.reward[:16], ends=e.ends[:2])
    assert coverage(half, e) == pytest.approx(16 / 47)  # random rows: all in cells of their own


def test_a_hundredth_of_the_range_is_one_cell():
    """Values in one cell are one, and cells are counted from the smallest value of both sets to the largest."""
    x = np.array([[0.0], [0.9], [1.1], [50.0], [99.5], [100.0]], dtype=np.float32)  # cells 0, 0, 1, 50, 99, 99
    data = replace(made((6,), limit=6), obs=x, action=np.zeros((6, 1), np.float32))
    ends = replace(data, obs=np.array([[0.0], [100.0]] * 3, dtype=np.float32))
    assert coverage(data, ends) == 4 / 2
    assert coverage(replace(data, obs=x[:3].repeat(2, 0)), ends) == 2 / 2
    wide = replace(data, obs=np.array([[-100.0], [100.0]] * 3, dtype=np.float32))  # cells of width 2
    assert coverage(data, wide) == 3 / 2


def test_units_of_the_observations_do_not_change_the_coverage():
    a, b = made(seed=1), made((30, 20), limit=30, seed=2)
    for scale, shift in ((0.01, 0.0), (1000.0, 5.0)):
        scaled = [replace(e, obs=(e.obs * scale + shift).astype(np.float32)) for e in (a, b)]
        assert coverage(*scaled) == pytest.approx(coverage(a, b), rel=0.03)


def test_actions_are_compared_in_units_of_each_files_own_box():
    own = made()
    wide = replace(
        own, action=0.4 * own.action, facts=Facts("minari", "m", action_low=(-0.4,) * 2, action_high=(0.4,) * 2)
    )
    assert coverage(wide, own) == pytest.approx(1.0, abs=0.03)
    shifted = replace(own, obs=np.zeros_like(own.obs), action=np.sign(own.action))
    box = Facts("minari", "m", action_low=(-2.0,) * 2, action_high=(2.0,) * 2)
    assert coverage(replace(shifted, action=2.0 * shifted.action, facts=box), shifted) == 1.0


def test_a_reference_of_another_task_is_refused():
    with pytest.raises(ValueError, match=r"reference=made.npz: its observations have 2 numbers.*3.*same task"):
        coverage(made(), replace(made(), obs=made().obs[:, :2]))
    with pytest.raises(ValueError, match="its actions"):
        coverage(made(action=np.zeros((47, 1), np.float32)), made(action=np.zeros(47, np.int64)))


def test_quality_is_zero_at_the_worst_return_and_one_at_the_experts():
    assert trajectory_quality(-20.0, -20.0, 3000.0) == 0.0
    assert trajectory_quality(3000.0, -20.0, 3000.0) == 1.0
    assert trajectory_quality(1490.0, -20.0, 3000.0) == 0.5


def counted(**changes: object) -> Episodes:
    """Reward 1 a step: an episode's return is its length."""
    return made(reward=np.ones(sum(LENGTHS), np.float32), **changes)  # type: ignore[arg-type]


def test_returns_lengths_and_ends_are_counted():
    card = data_card(counted())
    for spread in (card["returns"], card["lengths"]):
        assert (spread["min"], spread["q50"], spread["max"]) == (3.0, 9.0, 10.0)
        assert spread["mean"] == pytest.approx(47 / 6)
    assert (card["rows"], card["episodes"], card["usable_rows"], card["terminal_rows"]) == (47, 6, 47, 3)
    assert (card["terminated_episodes"], card["timed_out_episodes"], card["complete_episodes"]) == (3, 3, 6)
    assert card["rewards"] == {"min": 1.0, "mean": 1.0, "max": 1.0, "distinct": [1.0]}
    assert (card["observations"]["shape"], card["actions"]["shape"]) == ([3], [2])
    assert "tq" not in card


def test_score_and_quality_take_the_references_given_before_the_files_own():
    facts = Facts(format="d4rl", path="x", ref_min=0.0, ref_max=10.0)
    card = data_card(counted(facts=facts))
    assert card["normalized_score"] == pytest.approx(100 * 47 / 60)
    assert card["tq"] == pytest.approx(47 / 60)
    assert data_card(counted(facts=facts), ref_max=20.0)["normalized_score"] == pytest.approx(50 * 47 / 60)
    with pytest.raises(ValueError, match="ref_max must be greater than ref_min, got 0 and 0"):
        data_card(counted(facts=facts), ref_max=0.0)


def test_an_episode_cut_by_the_end_of_collecting_does_not_count_in_the_quality():
    whole = {"episode_complete": np.array([True, True, True, False, True, True])}
    card = data_card(counted(episode_extras=whole), ref_min=0.0, ref_max=10.0)
    assert card["complete_episodes"] == 5
    assert card["tq"] == pytest.approx((47 - 3) / 5 / 10)
    assert card["normalized_score"] == pytest.approx(100 * 47 / 60)
    none = data_card(counted(episode_extras={"episode_complete": np.zeros(6, bool)}), ref_min=0.0, ref_max=10.0)
    assert none["tq"] is None
    assert "no complete episode" in card_text(none)


@pytest.mark.parametrize(("last", "n_complete"), [(4, 3), (10, 4)])
def test_the_last_episode_counts_as_cut_where_it_is_shorter_than_the_time_limit_and_not_terminated(last, n_complete):
    e = made((10, 10, 10, last))
    e.terminated[:] = False
    assert data_card(e)["complete_episodes"] == n_complete


def test_demonstrations_of_all_lengths_are_all_complete():
    e = made((9, 7, 8))
    e.terminated[:] = False
    assert data_card(e)["complete_episodes"] == 3


def test_the_card_is_json_and_every_fact_is_in_its_lines():
    facts = Facts(
        format="d4rl",
        path="data/hopper.hdf5",
        env_id="Hopper-v4",
        data_id="hopper-medium-v2",
        versions={"mujoco": "4.0.0"},
        ref_min=-20.0,
        ref_max=3234.0,
        checksum="abc123",
        notices=("rows were left out",),
    )
    per_episode = {"episode_policy": np.array(["a", "a", "b", "a", "a", "a"]), "episode_noise_std": np.full(6, 0.1)}
    card = data_card(made(facts=facts, episode_extras=per_episode), reference=made(seed=1))
    assert json.loads(json.dumps(card)) == card
    text = card_text(card)
    said = ["hopper-medium-v2", "data/hopper.hdf5", "Hopper-v4", "mujoco 4.0.0", "47", "abc123", "rows were left out"]
    for word in (*said, "TQ", "SACo", "a (5 episodes), b (1 episodes)", "0.1 (6 episodes)", "100 of 3234"):
        assert word in text, word


def test_a_few_distinct_rewards_are_named_and_many_are_not():
    assert data_card(made())["rewards"]["distinct"] is None
    sparse = made(reward=np.where(np.arange(47) % 9 == 0, 1.0, -1.0).astype(np.float32))
    assert data_card(sparse)["rewards"]["distinct"] == [-1.0, 1.0]
    assert "only the values -1, 1" in card_text(data_card(sparse))


def test_coverage_of_what_is_not_finite_is_not_told():
    broken = made()
    broken.obs[3, 1] = np.nan
    for first, second in ((broken, made()), (made(), broken)):
        card = data_card(first, reference=second)
        assert card["saco"] is None
        assert "none, nan or inf in the data" in card_text(card)


@pytest.mark.parametrize("kind", ["few", "many", "discrete", "one value", "broken"])
def test_the_picture_is_a_png_for_every_kind_of_action(kind):
    from ctrlrl.report.data_picture import data_png

    actions = {
        "few": np.random.default_rng(0).uniform(-1, 1, (50, 3)),
        "many": np.random.default_rng(0).uniform(-2, 2, (50, 30)),
        "discrete": np.arange(50) % 4,
        "one value": np.zeros((50, 1)),
        "broken": np.full((50, 2), np.inf),
    }[kind]
    returns = {"one value": np.full(5, 3.0), "broken": np.full(5, np.nan)}.get(kind, np.arange(5.0))
    assert data_png("hopper", returns, np.arange(5), actions, {"score 100": 3.0}).startswith(b"\x89PNG")

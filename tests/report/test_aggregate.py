"""Aggregates, profiles and probabilities of improvement: by hand, and against rliable's own numbers.

rliable_numbers.json was made once with rliable 1.2.0 on last scores of takuseno/d3rlpy-benchmarks @ 1771c9b2 (MIT):
ten seeds of three algorithms on six data sets. The scores are in it, and the command that made it.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from ctrlrl.report.aggregate import (
    STATISTICS,
    estimate,
    mean_of_tasks,
    median_of_tasks,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
)

KNOWN = json.loads((Path(__file__).parent / "rliable_numbers.json").read_text())
SCORES = {algo: np.array(scores) for algo, scores in KNOWN["scores"].items()}  # [10 seeds, 6 tasks]
PAIRS = [pair.split(" > ") for pair in KNOWN["improvement"]]


@pytest.mark.parametrize("algo", SCORES)
@pytest.mark.parametrize("name", STATISTICS)
def test_point_estimates_are_rliables(algo, name):
    assert STATISTICS[name](SCORES[algo]) == pytest.approx(KNOWN["estimates"][algo][name]["value"], abs=1e-9)


@pytest.mark.parametrize("algo", SCORES)
@pytest.mark.parametrize("name", STATISTICS)
def test_intervals_are_rliables_up_to_the_draws(algo, name):
    """Both ends within 12 % of the width: two of our own runs with 10,000 draws differ by 6 % there."""
    known, found = KNOWN["estimates"][algo][name], estimate(SCORES[algo], STATISTICS[name], n=4000)
    width = known["high"] - known["low"]
    assert found.low == pytest.approx(known["low"], abs=0.12 * width)
    assert found.high == pytest.approx(known["high"], abs=0.12 * width)


@pytest.mark.parametrize("pair", PAIRS, ids=" > ".join)
def test_probability_of_improvement_is_rliables(pair):
    known = KNOWN["improvement"][" > ".join(pair)]
    found = probability_of_improvement(*(SCORES[algo] for algo in pair))
    assert found.value == pytest.approx(known["value"], abs=1e-9)
    assert found.low == pytest.approx(known["low"], abs=0.02)
    assert found.high == pytest.approx(known["high"], abs=0.02)


@pytest.mark.parametrize("algo", SCORES)
def test_profiles_are_rliables(algo):
    found = performance_profile(SCORES[algo], KNOWN["taus"])
    known = KNOWN["profiles"][algo]
    np.testing.assert_allclose(found.share, known["share"], atol=1e-9)
    np.testing.assert_allclose(found.low, known["low"], atol=0.035)  # two runs of 60
    np.testing.assert_allclose(found.high, known["high"], atol=0.035)


def test_statistics_by_hand():
    scores = np.array([[0.0, 10.0, 200.0], [20.0, 30.0, 400.0]])  # two seeds, three tasks
    assert mean_of_tasks(scores) == pytest.approx((10 + 20 + 300) / 3)
    assert median_of_tasks(scores) == 20.0
    assert optimality_gap(scores) == pytest.approx(100 - (0 + 10 + 100 + 20 + 30 + 100) / 6)
    assert STATISTICS["IQM"](scores) == pytest.approx((10 + 20 + 30 + 200) / 4)


def test_seeds_never_cross_tasks():
    """With tasks that are constant over seeds nothing is left to draw: every interval has no width."""
    flat = np.tile([[0.0, 50.0, 90.0]], (4, 1))
    for statistic in STATISTICS.values():
        value, low, high = estimate(flat, statistic, n=50)
        assert low == high == pytest.approx(value)
    profile = performance_profile(flat, [10.0, 60.0], n=50)
    assert profile.share.tolist() == profile.low.tolist() == profile.high.tolist() == [2 / 3, 1 / 3]
    assert probability_of_improvement(flat, flat + 1, n=50) == (0.0, 0.0, 0.0)
    assert probability_of_improvement(flat, flat, n=50) == (0.5, 0.5, 0.5)


def test_probability_of_improvement_counts_pairs_and_draws_half():
    x, y = np.array([[1.0], [3.0]]), np.array([[2.0], [3.0], [0.0]])
    assert probability_of_improvement(x, y).value == pytest.approx((0 + 0 + 1 + 1 + 0.5 + 1) / 6)
    assert probability_of_improvement(y, x).value == pytest.approx(1 - (0 + 0 + 1 + 1 + 0.5 + 1) / 6)


def test_a_profile_falls_from_one_to_zero():
    profile = performance_profile(SCORES["IQL"], [-1e9, 0.0, 40.0, 1e9], n=100)
    assert profile.share[0] == 1.0
    assert profile.share[-1] == 0.0
    assert (np.diff(profile.share) <= 0).all()
    assert (profile.low <= profile.share).all()
    assert (profile.share <= profile.high).all()


def test_ragged_and_empty_scores_are_refused():
    with pytest.raises(ValueError, match=r"estimate: wanted finite scores \[seeds, tasks\], got shape \(3,\)"):
        estimate(np.zeros(3))
    with pytest.raises(ValueError, match="2 tasks against 3"):
        probability_of_improvement(np.zeros((4, 2)), np.zeros((4, 3)))
    with pytest.raises(ValueError, match="performance_profile"):
        performance_profile(np.full((2, 2), np.nan), [0.0])

"""Statistics over seeds against values worked out by hand."""

import math

import numpy as np
import pytest

from ctrlrl.report.stats import bootstrap_interval, iqm, mean_and_interval, on_common_grid, welch


def test_iqm_is_the_mean_of_the_middle_half():
    assert iqm([1, 2, 3, 100]) == 2.5
    assert iqm([-1e9, 4, 5, 6, 7, 1e9, 5, 6]) == 5.5
    assert iqm([[3.0, 1.0], [2.0, -50.0]]) == 1.5  # all entries together, as rliable
    assert iqm([1, 2, 6]) == 3.0  # nothing to cut below four
    with pytest.raises(ValueError, match="iqm: wanted finite scores, got nan or inf"):
        iqm([1.0, np.nan])
    with pytest.raises(ValueError, match="got nothing"):
        iqm([])


def test_bootstrap_is_stratified_over_tasks():
    """Seeds of one task never stand in for another's: constant tasks give an interval of width zero."""
    assert bootstrap_interval(np.tile([[0.0, 10.0, 50.0]], (6, 1)), np.mean) == (20.0, 20.0)
    low, high = bootstrap_interval([0.0, 10.0, 50.0], np.mean)
    assert low < 20.0 < high


def test_bootstrap_interval_of_the_mean_agrees_with_the_normal_one():
    """Var of a bootstrap mean is the population variance / n, which the sample fixes exactly."""
    scores = np.random.default_rng(3).normal(5.0, 2.0, 400)
    half = 1.96 * scores.std() / np.sqrt(scores.size)
    low, high = bootstrap_interval(scores, np.mean, n=4000, seed=1)
    assert low == pytest.approx(scores.mean() - half, abs=0.02)
    assert high == pytest.approx(scores.mean() + half, abs=0.02)
    narrow = bootstrap_interval(scores, np.mean, n=4000, level=0.5, seed=1)
    assert (narrow[1] - narrow[0]) / (2 * half) == pytest.approx(0.6745 / 1.96, abs=0.02)


def test_bootstrap_is_repeatable_and_refuses_nonsense():
    scores = np.random.default_rng(0).normal(size=8)
    assert bootstrap_interval(scores, seed=4) == bootstrap_interval(scores, seed=4)
    assert bootstrap_interval(scores, seed=4) != bootstrap_interval(scores, seed=5)
    with pytest.raises(ValueError, match="level in"):
        bootstrap_interval(scores, level=1.0)
    with pytest.raises(ValueError, match=r"\[seeds\] or \[seeds, tasks\], got shape \(2, 2, 2\)"):
        bootstrap_interval(np.zeros((2, 2, 2)))


def test_band_of_curves_is_the_bootstrap_of_each_point():
    curves = np.random.default_rng(0).normal(size=(6, 3)) * [0.0, 1.0, 100.0] + [7.0, 0.0, 0.0]
    band = mean_and_interval(curves, n=4000)
    np.testing.assert_allclose(band.mean, curves.mean(0))
    assert band.low[0] == pytest.approx(7.0)
    assert band.high[0] == pytest.approx(7.0)
    for i in (1, 2):
        low, high = bootstrap_interval(curves[:, i], np.mean, n=4000)
        width = high - low
        assert band.low[i] == pytest.approx(low, abs=0.05 * width)
        assert band.high[i] == pytest.approx(high, abs=0.05 * width)
    with pytest.raises(ValueError, match=r"curves must be \[seeds, X\]"):
        mean_and_interval([1.0, 2.0])


def test_common_grid_covers_what_all_curves_measured():
    first = (np.array([0.0, 10.0, 20.0]), np.array([0.0, 10.0, 20.0]))
    second = (np.array([5.0, 7.0, 15.0]), np.array([50.0, np.nan, 150.0]))
    grid, values = on_common_grid([first, second], n_points=3)
    assert grid.tolist() == [5.0, 10.0, 15.0]
    assert values.tolist() == [[5.0, 10.0, 15.0], [50.0, 100.0, 150.0]]
    with pytest.raises(ValueError, match="share no range"):
        on_common_grid([first, (np.array([30.0]), np.array([1.0]))])
    with pytest.raises(ValueError, match="no finite point"):
        on_common_grid([(np.array([1.0]), np.array([np.nan]))])


def test_welchs_p_value_has_closed_forms_at_one_and_two_degrees_of_freedom():
    t, p = welch([0.0, 2.0], [3.0, 3.0])  # one spread alone: 1 degree, Cauchy
    assert (t, p) == pytest.approx((-2.0, 1.0 - 2.0 / math.pi * math.atan(2.0)), abs=1e-12)
    t, p = welch([0.0, 2.0], [3.0, 5.0])  # equal spreads: 2 degrees
    assert (t, p) == pytest.approx((-3.0 / math.sqrt(2.0), 1.0 - 3.0 / math.sqrt(13.0)), abs=1e-12)
    assert welch([0.0, 2.0], [2.0, 0.0]) == pytest.approx((0.0, 1.0), abs=1e-12)


def test_welchs_p_value_is_the_published_one():
    """arXiv:2604.13517: five seeds, 90.7 +- 41.8 against 112.9 +- 15.4, p = 0.316."""
    shape = np.array([-2.0, -1.0, 0.0, 1.0, 2.0]) / math.sqrt(2.5)
    assert welch(90.7 + 41.8 * shape, 112.9 + 15.4 * shape)[1] == pytest.approx(0.316, abs=0.002)


@pytest.mark.parametrize("other", [[1.0], [1.0, 1.0]])
def test_welch_refuses_what_has_no_spread(other):
    with pytest.raises(ValueError, match="welch: wanted at least two seeds in each group"):
        welch([1.0, 1.0], other)

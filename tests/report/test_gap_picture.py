"""The picture of where a simulator differs from reality."""

import numpy as np
import pytest

from ctrlrl.report.gap_picture import Axis, cell_means, gap_png, telling_axes


def test_a_cell_shows_the_mean_gap_of_its_rows_and_nothing_where_few_lie():
    x = np.array([0.5, 0.5, 0.5, 1.5, 1.5, 0.5, 0.5, 0.5])
    y = np.array([0.5, 0.5, 0.5, 0.5, 0.5, 1.5, 1.5, 1.5])
    gap = np.array([1.0, 2.0, 3.0, 9.0, 9.0, -1.0, 0.0, 1.0])
    edges = np.array([0.0, 1.0, 2.0])
    found = cell_means(x, y, gap, (edges, edges))
    np.testing.assert_allclose(found, [[2.0, np.nan], [0.0, np.nan]])


def test_the_axes_are_the_coordinates_that_explain_the_gap():
    random = np.random.default_rng(0)
    obs = random.standard_normal((4000, 5))
    obs[:, 2] = 1.0  # tells nothing
    gap = np.abs(obs[:, 3]) + 0.5 * (obs[:, 1] > 0) + 0.1 * random.standard_normal(4000)
    axes = telling_axes(obs, gap)
    assert [axis.column for axis in axes] == [3, 1]
    assert axes[0].label == "observation[3]"
    assert [axis.column for axis in telling_axes(obs[:, 3:4], gap)] == [0, 0]


def test_the_picture_is_a_png_also_where_every_gap_is_zero():
    pytest.importorskip("matplotlib")
    random = np.random.default_rng(0)
    sim, real = random.standard_normal((500, 3)), random.standard_normal((800, 3)) + 1.0
    for gap in (sim[:, 0], np.zeros(500)):
        drawn = gap_png("here", (Axis(0, "speed"), Axis(2, "height")), sim, gap, real)
        assert drawn.startswith(b"\x89PNG")
        assert len(drawn) > 10_000

"""The counting random numbers: moments, independence in every direction, and equality across batch sizes."""

from __future__ import annotations

import pytest
import torch

from ctrlrl.envs.lane_random import normal, stream, uniform

N = 40_000
LANES, ZERO = torch.arange(N), torch.zeros(N, dtype=torch.int64)
TOLERANCE = 5.0 / N**0.5  # five standard errors of a correlation


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack((a, b)))[0, 1])


def test_uniform_numbers_have_the_moments_of_the_unit_interval():
    u = uniform(3, LANES, ZERO, 4)
    assert u.dtype == torch.float64
    assert float(u.min()) >= 0.0
    assert float(u.max()) < 1.0
    torch.testing.assert_close(u.mean(0), torch.full_like(u[0], 0.5), rtol=0, atol=5 * 0.289 / N**0.5)
    torch.testing.assert_close(u.var(0), torch.full_like(u[0], 1 / 12), rtol=0.03, atol=0)
    counts = torch.histc(u.flatten(), 20, 0, 1)
    assert float((counts / counts.mean() - 1).abs().max()) < 0.06


def test_normal_numbers_have_the_moments_of_the_normal_distribution():
    z = normal(3, LANES, ZERO, 5)
    assert bool(torch.isfinite(z).all())
    for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        torch.testing.assert_close(z.pow(power).mean(0), torch.full_like(z[0], moment), rtol=0, atol=0.25)
    torch.testing.assert_close(z.std(0), torch.ones_like(z[0]), rtol=0.02, atol=0)


@pytest.mark.parametrize("draw", [uniform, normal])
def test_lanes_episodes_columns_and_seeds_are_uncorrelated(draw):
    base = draw(0, LANES, ZERO, 6)
    columns = torch.corrcoef(base.T) - torch.eye(6, dtype=torch.float64)
    assert float(columns.abs().max()) < TOLERANCE
    assert abs(correlation(base[1:, 0], base[:-1, 0])) < TOLERANCE  # neighbouring lanes
    assert abs(correlation(base[:, 0], draw(0, LANES, ZERO + 1, 6)[:, 0])) < TOLERANCE  # the next episode
    assert abs(correlation(base[1:, 0], draw(0, LANES, ZERO + 1, 6)[:-1, 0])) < TOLERANCE  # lane + 1 is not episode + 1
    assert abs(correlation(base[:, 0], draw(1, LANES, ZERO, 6)[:, 0])) < TOLERANCE  # the next seed
    episodes = draw(0, ZERO, LANES, 1)[:, 0]
    assert abs(correlation(episodes[1:], episodes[:-1])) < TOLERANCE
    assert abs(correlation(uniform(0, LANES, ZERO, 1)[:, 0], normal(0, LANES, ZERO, 1)[:, 0].abs())) < TOLERANCE


def test_a_lane_gets_the_same_numbers_in_any_company():
    some = torch.tensor([3, 17])
    for draw in (uniform, normal):
        everyone = draw(5, LANES[:50], ZERO[:50] + 2, 4)
        assert torch.equal(draw(5, some, torch.tensor([2, 2]), 4), everyone[some])
    assert torch.equal(uniform(5, some, some, 2), uniform(5, some, some, 4)[:, :2])
    assert uniform(-(2**63), some, -some, 0).shape == (2, 0)
    assert normal(2**63, some, -some, 0).shape == (2, 0)


def test_the_numbers_of_a_stream_are_uniform_and_independent_by_column_step_and_key():
    keys = (uniform(3, LANES, ZERO, 1)[:, 0] * 2.0**53).long()
    now, later = stream(keys, ZERO, 3), stream(keys, ZERO + 1, 3)
    assert (now.shape, now.dtype) == ((3, N), torch.float64)
    assert float(now.min()) >= 0.0
    assert float(now.max()) < 1.0
    torch.testing.assert_close(now.mean(1), torch.full((3,), 0.5, dtype=now.dtype), rtol=0, atol=5 * 0.289 / N**0.5)
    for a, b in ((now[0], now[1]), (now[0], later[0]), (now[0], later[1]), (now[0, 1:], now[0, :-1])):
        assert abs(correlation(a, b)) < TOLERANCE
    neighbors = stream(LANES, ZERO, 1)[0]  # keys 0, 1, 2, ...
    assert abs(correlation(neighbors[1:], neighbors[:-1])) < TOLERANCE
    assert torch.equal(stream(keys[:5], ZERO[:5], 3), now[:, :5])

import math

import pytest
import torch

from ctrlrl.functional.preferences import cone_preferences, positive_preferences, widest_cone

F64 = torch.float64


def test_positive_preferences_are_on_the_simplex_and_keep_the_noises_ratios():
    w = positive_preferences(torch.tensor([[3.0, -1.0], [0.0, 2.0]], dtype=F64))
    assert w.tolist() == [[0.75, 0.25], [0.0, 1.0]]


@pytest.mark.parametrize("m", [2, 3, 9])
def test_a_cone_holds_directions_up_to_its_angle_and_no_further(m):
    g = torch.Generator().manual_seed(0)
    normal, uniform = torch.randn(5000, m, dtype=F64, generator=g), torch.rand(5000, dtype=F64, generator=g)
    angle = widest_cone(m)
    w = cone_preferences(normal, uniform, angle=angle)
    torch.testing.assert_close(w.sum(1), torch.ones(5000, dtype=F64), rtol=0, atol=1e-12)
    assert float(w.min()) >= -1e-12
    cosine = w.sum(1) / (w.norm(dim=1) * math.sqrt(m))
    torch.testing.assert_close(torch.acos(cosine.clamp(max=1.0)), uniform * angle, rtol=0, atol=1e-6)


def test_the_widest_cone_touches_the_faces_of_the_simplex():
    """Towards a face's middle: there one entry is zero and the others are equal."""
    for m in (2, 3, 9):
        away = -torch.eye(m, dtype=F64)[0]
        w = cone_preferences(away, torch.ones((), dtype=F64), angle=widest_cone(m))
        want = torch.full((m,), 1.0 / (m - 1), dtype=F64)
        want[0] = 0.0
        torch.testing.assert_close(w, want, rtol=0, atol=1e-12)

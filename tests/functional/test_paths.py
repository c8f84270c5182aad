import pytest
import torch

from ctrlrl.functional.paths import sample_path


def test_the_path_leads_from_noise_to_data():
    x1, x0 = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    for t, end in ((0.0, x0), (1.0, x1)):
        point, _ = sample_path(x1, x0, torch.full((6, 1), t, dtype=torch.float64))
        assert torch.equal(point, end)


def test_the_velocity_is_the_derivative_of_the_point_in_time():
    x1, x0 = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    t = torch.rand(6, 1, dtype=torch.float64)
    ahead, _ = sample_path(x1, x0, t + 0.5)
    point, velocity = sample_path(x1, x0, t)
    torch.testing.assert_close(velocity, (ahead - point) / 0.5, rtol=0, atol=1e-12)


def test_every_row_stands_at_its_own_time():
    x1, x0 = torch.ones(3, 2), torch.zeros(3, 2)
    point, _ = sample_path(x1, x0, torch.tensor([[0.0], [0.25], [1.0]]))
    assert point.tolist() == [[0.0, 0.0], [0.25, 0.25], [1.0, 1.0]]


def test_noise_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="sample_path: shapes must match"):
        sample_path(torch.zeros(3, 2), torch.zeros(1, 2), torch.zeros(3, 1))

import torch

from ctrlrl.nn.velocity import VelocityField


def test_one_time_for_all_equals_a_column_of_it():
    field = VelocityField(3, 2, [8])
    obs, x = torch.randn(5, 3), torch.randn(5, 2)
    assert torch.equal(field(obs, x, 0.3), field(obs, x, torch.full((5, 1), 0.3)))


def test_the_velocity_depends_on_state_point_and_time():
    field = VelocityField(3, 2, [8])
    obs, x, t = torch.randn(5, 3), torch.randn(5, 2), torch.rand(5, 1)
    here = field(obs, x, t)
    assert here.shape == (5, 2)
    for other in (field(obs + 1, x, t), field(obs, x + 1, t), field(obs, x, t + 1)):
        assert not torch.allclose(here, other)

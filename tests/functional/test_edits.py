"""Edits, choices by value, and climbing: the numbers of the definitions, and closed forms."""

import math

import pytest
import torch

from ctrlrl.functional.distributions import tanh_gaussian_log_prob
from ctrlrl.functional.edits import climbed, edited, edited_log_prob, picked


def test_the_best_of_base_and_edited_actions_is_the_definitions_example():
    base = torch.tensor([[0.0], [0.2]], dtype=torch.float64)
    moved = edited(base, torch.ones_like(base), scale=0.05)
    torch.testing.assert_close(moved, torch.tensor([[0.05], [0.25]], dtype=torch.float64), rtol=0, atol=1e-12)
    action = torch.cat((base, moved)).unsqueeze(1)  # four candidates of one row
    value = -(action - 0.3).square().squeeze(-1)
    assert picked(action, value.argmax(0)).item() == pytest.approx(0.25)


def test_the_correction_of_the_density_is_that_of_the_definition():
    found = edited_log_prob(torch.zeros(3).double(), scale=0.05, action_dim=2)
    torch.testing.assert_close(found, torch.full((3,), 5.991465, dtype=torch.float64), rtol=0, atol=5e-7)


@pytest.mark.parametrize("scale", [0.05, 0.7, 2.0])
def test_the_density_of_the_edited_action_integrates_to_one(scale):
    edit = torch.linspace(-1.0, 1.0, 200_001).double()[1:-1].unsqueeze(-1)
    log_prob = tanh_gaussian_log_prob(edit, torch.tensor([0.3]).double(), torch.tensor([-0.5]).double())
    action = edited(torch.full_like(edit, 0.1), edit, scale=scale).squeeze(-1)
    density = edited_log_prob(log_prob, scale=scale, action_dim=1).exp()
    assert torch.trapezoid(density, action).item() == pytest.approx(1.0, abs=1e-6)


def test_every_row_gets_its_own_choice():
    candidates, index = torch.randn(4, 50, 3), torch.randint(4, (50,))
    wanted = torch.stack([candidates[index[n], n] for n in range(50)])
    assert torch.equal(picked(candidates, index), wanted)
    assert torch.equal(picked(candidates[..., 0], index), wanted[:, 0])
    same = candidates[:1].expand(4, -1, -1)
    assert torch.equal(picked(same, index), candidates[0]), "which of identical candidates does not matter"


def test_on_a_slope_the_climb_is_the_sum_of_its_steps():
    slope = torch.tensor([0.4, -1.0, 0.0], dtype=torch.float64)
    start = torch.zeros(5, 3).double()
    best, value = climbed(start, lambda a: a @ slope, step_size=0.01, n_steps=10)
    torch.testing.assert_close(best, (10 * 0.01 * slope).expand(5, 3), rtol=0, atol=1e-12)
    torch.testing.assert_close(value, best @ slope, rtol=0, atol=1e-12)


def test_a_climb_that_goes_down_gives_its_start_back():
    slope = torch.tensor([0.4, -1.0]).double()
    start = torch.rand(5, 2).double() - 0.5
    best, value = climbed(start, lambda a: a @ slope, step_size=-0.01, n_steps=10)
    assert torch.equal(best, start)
    assert torch.equal(value, start @ slope)


def test_a_climb_reaches_the_top_within_the_box_and_is_never_below_its_start():
    top, start = torch.tensor([0.3, 2.0], dtype=torch.float64), 2.0 * torch.rand(64, 2).double() - 1.0
    best, value = climbed(start, lambda a: -(a - top).square().sum(-1), step_size=0.2, n_steps=60)
    torch.testing.assert_close(best, torch.tensor([0.3, 1.0], dtype=torch.float64).expand(64, 2), rtol=0, atol=1e-7)
    rough = climbed(start, lambda a: (40.0 * a).sin().sum(-1), step_size=0.05, n_steps=7)[1]
    assert (rough >= (40.0 * start).sin().sum(-1)).all()
    assert (rough > (40.0 * start).sin().sum(-1)).any()
    assert not math.isinf(value.min().item())

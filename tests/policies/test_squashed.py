import math

import pytest
import torch

from ctrlrl.functional.distributions import tanh_gaussian_sample
from ctrlrl.policies.squashed import SquashedGaussianPolicy


def policy(**options) -> SquashedGaussianPolicy:
    return SquashedGaussianPolicy(3, 2, [8], **options)


@pytest.mark.parametrize(("std", "noise", "expected"), [(1.0, 0.5, -0.8037098), (2.0, 0.25, -1.4031069)])
def test_a_given_noise_gives_the_known_action_and_density(std, noise, expected):
    mean, log_std = torch.zeros(1, dtype=torch.float64), torch.tensor([math.log(std)], dtype=torch.float64)
    action, log_prob = tanh_gaussian_sample(mean, log_std, torch.tensor([noise], dtype=torch.float64))
    assert action.item() == pytest.approx(math.tanh(0.5), abs=1e-12)
    assert log_prob.item() == pytest.approx(expected, abs=1e-6)


def test_many_samples_a_row_each_have_their_own_density():
    mean, log_std = torch.randn(4, 2), torch.randn(4, 2)
    noise = torch.randn(7, 4, 2)
    action, log_prob = tanh_gaussian_sample(mean.unsqueeze(0), log_std.unsqueeze(0), noise)
    assert (action.shape, log_prob.shape) == ((7, 4, 2), (7, 4))
    one, its = tanh_gaussian_sample(mean, log_std, noise[5])
    assert torch.equal(action[5], one)
    assert torch.equal(log_prob[5], its)


def test_the_density_integrates_to_one_over_the_box():
    one_dim = SquashedGaussianPolicy(3, 1, [8])
    obs = torch.randn(1, 3)
    a = torch.linspace(-1, 1, 20_001)[1:-1].unsqueeze(-1)
    density = one_dim.log_prob(obs.expand(len(a), 3), a).exp().double()
    assert torch.trapezoid(density, a[:, 0].double()).item() == pytest.approx(1.0, abs=1e-3)


def test_sampled_actions_have_the_density_that_they_report():
    acting = policy()
    obs = torch.randn(50, 3)
    out = acting.act(obs)
    torch.testing.assert_close(out.log_prob, acting.log_prob(obs, out.action), rtol=1e-3, atol=1e-3)


def test_the_deterministic_action_is_the_squashed_mean():
    acting, obs = policy(), torch.randn(5, 3)
    out = acting.act(obs, deterministic=True)
    assert out.log_prob is None
    assert torch.equal(out.action, acting(obs)[0].tanh())


def test_the_affine_log_std_starts_one_below_the_networks_output_and_is_learned():
    plain, affine = policy(), policy(affine_log_std=True)
    affine.load_state_dict({**affine.state_dict(), **plain.state_dict()})
    obs = torch.randn(5, 3)
    torch.testing.assert_close(affine(obs)[1], plain(obs)[1] - 1.0)
    affine(obs)[1].sum().backward()
    assert affine.log_std_offset.grad.item() == 10.0
    torch.testing.assert_close(affine.log_std_scale.grad.squeeze(), plain(obs)[1].sum())


def test_the_log_std_stays_in_its_bounds():
    acting = policy(log_std_bounds=(-0.5, 0.25))
    log_std = acting(100.0 * torch.randn(200, 3))[1]
    assert (log_std.min().item(), log_std.max().item()) == (-0.5, 0.25)

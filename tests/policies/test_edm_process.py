"""EDM's preconditioning and BESO's samplers against closed forms: what is taught, where sampling begins and ends."""

import pytest
import torch
from torch import Tensor

from ctrlrl.functional.predictions import edm_scales
from ctrlrl.policies.edm import EDMProcess

LOW, HIGH, STD = 0.05, 1.0, 0.5


def process(sampler: str = "ddim", n_steps: int = 3, levels: str = "linear", **options) -> EDMProcess:
    return EDMProcess(sampler, n_steps, levels, LOW, HIGH, STD, **options)


class Denoiser:
    """What a network says that knows the data: always `data`; it keeps what it was asked."""

    def __init__(self, data: Tensor):
        self.data, self.asked = data, []

    def __call__(self, seen: Tensor, sigma: float) -> Tensor:
        self.asked.append((seen, sigma))
        c_skip, c_out, c_in = edm_scales(sigma, STD)
        return (self.data - c_skip * seen / c_in) / c_out

    @property
    def levels(self) -> list[float]:
        return [sigma for _, sigma in self.asked]


@pytest.mark.parametrize("u", [0.01, 0.5, 0.99])
def test_the_least_squares_answer_for_gaussian_data_is_the_exact_one(u):
    torch.manual_seed(0)
    mean, std, n = 0.3, 0.4, 400_000
    data = mean + std * torch.randn(n, 1, 1)
    seen, level, target = process().lesson(data, torch.randn_like(data), torch.full((n,), u))
    sigma = float(level[0])
    assert torch.equal(level, torch.full((n,), sigma))
    c_skip, c_out, c_in = edm_scales(sigma, STD)
    total = std**2 + sigma**2
    x, y = seen.double().flatten(), target.double().flatten()
    slope = float(((x - x.mean()) * (y - y.mean())).mean() / x.var())
    assert slope == pytest.approx((std**2 / total - c_skip) / (c_out * c_in), abs=0.01)
    assert float(y.mean() - slope * x.mean()) == pytest.approx(sigma**2 * mean / total / c_out, abs=0.02)


@pytest.mark.parametrize("u", [0.0, 0.3, 0.7, 1.0])
def test_inputs_and_targets_of_all_levels_weigh_the_same(u):
    """Of unit variance, if the data have the deviation that the process was told: a unit weight for every level."""
    torch.manual_seed(0)
    data = STD * torch.randn(200_000, 1, 1)
    seen, _, target = process().lesson(data, torch.randn_like(data), torch.full((200_000,), u))
    assert float(seen.var()) == pytest.approx(1.0, abs=0.02)
    assert float(target.var()) == pytest.approx(1.0, abs=0.02)


def test_levels_are_learned_from_the_least_to_the_largest_with_the_data_s_deviation_in_the_middle():
    zeros = torch.zeros(3, 1, 1)
    _, level, _ = EDMProcess("ddim", 3, "linear", 0.05, 5.0, STD).lesson(zeros, zeros, torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(level, torch.tensor([0.05, STD, 5.0]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("clip_steps", [False, True])
@pytest.mark.parametrize("sampler", ["ddim", "euler", "heun", "ancestral"])
def test_every_sampler_ends_at_the_data_without_the_last_level_s_noise(sampler, clip_steps):
    torch.manual_seed(0)
    data = torch.tensor([[0.1, -0.5], [0.9, -1.0]])
    found = process(sampler, clip_steps=clip_steps).sample(Denoiser(data), torch.randn(64, 2, 2), torch.randn_like)
    torch.testing.assert_close(found, data.expand(64, -1, -1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("levels", "low", "printed"),
    [
        ("karras", 0.005, [1.0, 0.138356, 0.005]),
        ("exponential", 0.005, [1.0, 0.0707107, 0.005]),
        ("linear", 0.005, [1.0, 0.5025, 0.005]),
        ("karras", 0.05, [1.0, 0.278933, 0.05]),
    ],
)
def test_three_levels_are_three_questions_at_the_printed_deviations(levels, low, printed):
    net = Denoiser(torch.zeros(1, 1))
    EDMProcess("ddim", 3, levels, low, 1.0, STD).sample(net, torch.randn(2, 1, 1), torch.randn_like)
    assert net.levels == pytest.approx(printed, abs=1e-6)


def test_heun_asks_again_at_the_end_of_every_step_but_the_last():
    net = Denoiser(torch.zeros(1, 1))
    process("heun").sample(net, torch.randn(2, 1, 1), torch.randn_like)
    assert net.levels == pytest.approx([1.0, 0.525, 0.525, 0.05, 0.05])


def test_sampling_begins_at_noise_of_the_largest_deviation():
    net, z = Denoiser(torch.zeros(1, 1)), torch.randn(5, 1, 1)
    EDMProcess("ddim", 3, "linear", 0.05, 4.0, STD).sample(net, z, torch.randn_like)
    seen, sigma = net.asked[0]
    assert sigma == 4.0
    torch.testing.assert_close(seen, 4.0 * z / (16.0 + STD**2) ** 0.5)


def test_euler_is_ddim_to_the_bit_and_heun_and_ancestral_are_not():
    z = torch.randn(5, 1, 1)
    found = {
        name: process(name).sample(lambda x, sigma: torch.sin(3.0 * x), z, torch.randn_like)
        for name in ("ddim", "euler", "heun", "ancestral")
    }
    assert torch.equal(found["ddim"], found["euler"])
    assert not torch.equal(found["ddim"], found["heun"])
    assert not torch.equal(found["ddim"], found["ancestral"])


def test_samples_stay_in_the_data_s_range_at_the_end_or_after_every_step():
    for clip_steps in (False, True):
        net = Denoiser(torch.full((1, 1), 3.0))
        found = process(clip_steps=clip_steps).sample(net, torch.randn(5, 1, 1), torch.randn_like)
        assert torch.equal(found, torch.ones(5, 1, 1))
        seen, sigma = net.asked[1]
        x = seen / edm_scales(sigma, STD)[2]
        assert bool((x <= 1.0 + 1e-6).all()) == clip_steps


def test_a_warm_start_goes_on_from_the_guess_itself():
    net, guess = Denoiser(torch.zeros(1, 1)), torch.full((2, 1, 1), 0.7)
    process(warm=(0.3, 0.1)).resume(net, guess, torch.randn_like)
    assert net.levels == [0.3, 0.1]
    torch.testing.assert_close(net.asked[0][0], guess / (0.09 + STD**2) ** 0.5)

"""What every head of a generative policy must do, and what each of them is."""

import math

import pytest
import torch

from ctrlrl.functional.samplers import ddim
from ctrlrl.functional.schedules import cosine_schedule
from ctrlrl.nn.heads import MLPHead, ResidualHead
from ctrlrl.nn.levels import LearnedFourier, SinusoidalEmbedding
from ctrlrl.nn.transformer import GPTHead, TransformerHead
from ctrlrl.nn.unet1d import UNet1D

HEADS = {
    "mlp": lambda: MLPHead(4, 3, 6, hidden=(16, 16)),
    "residual": lambda: ResidualHead(4, 3, 6, width=16, n_blocks=2),
    "unet": lambda: UNet1D(4, 3, 6, widths=(8, 16), embed_dim=8),
    "transformer": lambda: TransformerHead(4, 3, 6, n_obs_steps=2, width=16, n_layers=2, n_heads=2),
    "gpt": lambda: GPTHead(4, 3, 6, n_goals=2, width=16, n_layers=2, n_heads=2),
}


@pytest.fixture(params=HEADS)
def head(request):
    return HEADS[request.param]().double().eval()


def example(n=6):
    return torch.randn(n, 4, 3).double(), torch.arange(1, n + 1), torch.randn(n, 6).double()


def test_a_row_does_not_see_the_rest_of_its_batch(head):
    x, level, condition = example()
    together = head(x, level, condition)
    assert together.shape == x.shape
    order = torch.randperm(6)
    torch.testing.assert_close(head(x[order], level[order], condition[order]), together[order], rtol=0, atol=1e-12)
    alone = torch.cat([head(x[i : i + 1], level[i : i + 1], condition[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-12)


def test_one_level_for_all_equals_a_column_of_it(head):
    x, _, condition = example()
    torch.testing.assert_close(head(x, 7, condition), head(x, torch.full((6,), 7), condition), rtol=0, atol=1e-12)


def test_the_prediction_depends_on_chunk_level_and_condition_and_has_gradients_to_all_weights(head):
    x, level, condition = example()
    here = head(x, level, condition)
    for other in (head(x + 1, level, condition), head(x, level + 1, condition), head(x, level, condition + 1)):
        assert not torch.allclose(here, other)
    condition.requires_grad_(True)
    head(x, level, condition).square().sum().backward()
    assert (condition.grad.abs().sum(0) > 0).all()
    for name, p in head.named_parameters():
        assert p.grad is not None, name
        assert p.grad.any(), name


def test_a_context_serves_many_levels(head):
    x, level, condition = example()
    context = head.context(condition)
    for k in (level, level + 3):
        torch.testing.assert_close(head.at(x, k, context), head(x, k, condition), rtol=0, atol=1e-12)


# What each of them is -------------------------------------------------------------------------------------------------


def test_the_sinusoidal_embedding_is_the_printed_one():
    """2.1: f_i = exp(-i log(10000) / (half - 1)), [sin(k f), cos(k f)]."""
    level = torch.tensor([0.0, 3.0, 99.0])
    waves = [[w(k * math.exp(-i * math.log(10000) / 3)) for w in (math.sin, math.cos) for i in range(4)] for k in level]
    torch.testing.assert_close(SinusoidalEmbedding(8)(level), torch.tensor(waves), rtol=0, atol=1e-5)


def test_times_and_deviations_are_stretched_before_they_are_embedded():
    steps, times, sigmas = (SinusoidalEmbedding(16, code=code) for code in ("steps", "times", "sigmas"))
    t = torch.tensor([0.0, 0.25, 1.0])
    torch.testing.assert_close(times(t), steps(1000 * t))
    torch.testing.assert_close(sigmas(t.exp()), steps(250 * t), rtol=0, atol=1e-3)
    near, far = steps(torch.tensor([0.0, 1.0])), times(torch.tensor([0.0, 1.0]))
    assert (far[1] - far[0]).norm() > (near[1] - near[0]).norm()
    with pytest.raises(ValueError, match="unknown level code 'step'; known: steps, times, sigmas"):
        SinusoidalEmbedding(16, code="step")
    with pytest.raises(ValueError, match="even and at least 4, got 7"):
        SinusoidalEmbedding(7)


def test_the_fourier_features_are_waves_of_learned_frequencies_and_two_layers():
    net = LearnedFourier()
    level = torch.tensor([0.0, 3.0])
    angle = 2 * math.pi * level.unsqueeze(1) * net.frequencies
    torch.testing.assert_close(net(level), net.net(torch.cat((angle.cos(), angle.sin()), 1)))
    assert net.frequencies.requires_grad
    assert net.frequencies.shape == (32,)


@pytest.mark.parametrize("kind", [MLPHead, ResidualHead])
def test_the_parts_of_a_flat_heads_first_layer_add_up_to_the_whole(kind):
    head = kind(4, 3, 6).eval()
    x, level, condition = torch.randn(7, 4, 3), torch.arange(7), torch.randn(7, 6)
    whole = torch.cat((x.flatten(1), head.embed_level(level.float()), condition), 1)
    plain = head.rest(head.first(whole)).view(7, 4, 3)
    torch.testing.assert_close(head(x, level, condition), plain, rtol=0, atol=1e-5)


def test_diffusion_qls_actor_has_its_layers():
    """256 x 3 Mish, level dimension 16 (two layers, 16 -> 32 -> 16): an action of 6 in a state of 17."""
    count = (16 * 32 + 32) + (32 * 16 + 16) + ((6 + 16 + 17) * 256 + 256) + 2 * (256 * 256 + 256) + (256 * 6 + 6)
    assert sum(p.numel() for p in MLPHead(1, 6, 17).parameters()) == count


def test_a_residual_block_adds_two_layers_of_its_normalized_input():
    head = ResidualHead(1, 3, 6, width=16, n_blocks=1).eval()
    block = head.rest[0]
    _, norm, wide, act, narrow = block.net
    h = torch.randn(7, 16)
    torch.testing.assert_close(block(h), h + narrow(act(wide(norm(h)))))
    assert (wide.out_features, narrow.out_features) == (64, 16)
    head.train()
    torch.manual_seed(0)
    assert not torch.equal(block(h), block(h)), "dropout"


def test_every_head_and_its_sampler_are_one_exported_graph(head):
    """Schedules and levels are constants of the graph; the parity is that of another order of sums."""
    schedule = cosine_schedule(100)

    class Sampling(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = head

        def forward(self, x, condition):
            context = self.head.context(condition)
            return ddim(lambda x, k: self.head.at(x, k, context), x, [80, 40, 1], schedule)

    x, _, condition = example()
    exported = torch.export.export(Sampling(), (x, condition)).module()
    torch.testing.assert_close(exported(x, condition), Sampling()(x, condition), rtol=0, atol=1e-9)

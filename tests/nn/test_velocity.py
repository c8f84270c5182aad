import pytest
import torch

from ctrlrl.nn.mlp import lecun_uniform, xavier_normal
from ctrlrl.nn.velocity import CosineVelocity, FourierTime, FourierVelocity, VelocityField


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


@pytest.mark.parametrize("hidden", [[], [8], [32, 8]])
@pytest.mark.parametrize("obs_dim", [5, 16, 20])  # narrower than the embedding, as wide, and wider
def test_the_parts_of_the_first_layer_add_up_to_the_whole(hidden, obs_dim):
    net = FourierVelocity(obs_dim, 2, hidden, embed_dim=16, activation="mish")
    obs, x, t = torch.randn(7, obs_dim), torch.randn(7, 2), torch.rand(7)

    def whole(time: torch.Tensor) -> torch.Tensor:
        return net.rest(net.first(torch.cat((x, net.embed_obs(obs) + time), -1)))

    torch.testing.assert_close(net.at(net.context(obs) + net.time(t), x), whole(net.embed_time(t)), rtol=0, atol=1e-5)
    one = net.at(net.context(obs), x, net.time(t[:1])[0])
    torch.testing.assert_close(one, whole(net.embed_time(t[:1])), rtol=0, atol=1e-5)
    place = torch.tensor([6, 0, 1, 1, 2, 6, 4])
    torch.testing.assert_close(net.on_grid(obs, x, t, place), whole(net.embed_time(t[place])), rtol=0, atol=1e-5)


def test_the_embedding_of_time_is_cosines_and_sines_of_fixed_frequencies_and_two_layers():
    net = FourierTime(16)
    assert net.frequencies.shape == (2,)
    assert not net.frequencies.requires_grad
    t = torch.tensor([0.0, 0.3])
    waves = torch.stack([torch.cat([torch.cos(net.frequencies * v), torch.sin(net.frequencies * v)]) for v in t])
    torch.testing.assert_close(net(t), net.net(waves))
    assert 80 < FourierTime(4096).frequencies.std() < 120  # 16 x 2 pi = 100.5
    with pytest.raises(ValueError, match="multiple of 8, got 12"):
        FourierTime(12)


def test_the_cosine_velocity_is_the_scaled_network_of_point_state_and_waves():
    net = CosineVelocity(5, 2, [8, 8], n_frequencies=4, scale=0.25, activation="silu", init=lecun_uniform)
    obs, x, t = torch.randn(7, 5), torch.randn(7, 2), torch.rand(7, 1)
    waves = [torch.cos(t * 2**k) for k in range(4)] + [torch.sin(t * 2**k) for k in range(4)]
    plain = net.rest(net.first(torch.cat([x, obs, *waves], -1)))
    found = net.at(net.context(obs) + net.time(t.squeeze(-1)), x)
    torch.testing.assert_close(found, 0.25 * plain, rtol=0, atol=1e-6)


def test_the_starts_have_the_variance_of_their_papers():
    net = CosineVelocity(392, 4, [400], n_frequencies=2, scale=1.0, activation="silu", init=lecun_uniform)
    assert net.first.weight.var().item() == pytest.approx(1 / 400, rel=0.05)
    assert net.first.weight.abs().max().item() <= (3 / 400) ** 0.5
    flow = FourierVelocity(3, 8, [400], embed_dim=392, activation="elu", init=xavier_normal(0.01))
    assert flow.first.weight.std().item() == pytest.approx((2 / 800) ** 0.5, rel=0.05)
    assert flow.rest[-1].weight.std().item() == pytest.approx(0.01 * (2 / 408) ** 0.5, rel=0.1)
    assert not flow.first.bias.any()
    still = FourierVelocity(3, 8, [16], embed_dim=8, activation="elu", init=xavier_normal(0.0))
    assert not still.rest[-1].weight.any(), "gain 0 is the paper's zeroed last layer"

"""The U-Net of Diffusion Policy: parameter counts of the specification, FiLM as its code has it."""

import pytest
import torch

from ctrlrl.nn.unet1d import UNet1D


@pytest.mark.parametrize(
    ("widths", "embed_dim", "condition_dim", "millions"),
    [((256, 512, 1024), 256, 40, 65.783), ((64, 128, 256), 64, 40, 4.232), ((32, 64, 128), 32, 10, 1.044)],
)
def test_the_unet_has_its_printed_number_of_parameters(widths, embed_dim, condition_dim, millions):
    with torch.device("meta"):
        net = UNet1D(16, 2, condition_dim, widths=widths, embed_dim=embed_dim)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=5e-4)


def test_a_unet_block_scales_and_shifts_its_channels_as_they_are():
    """Scale as is, not 1 + scale: scale 0 leaves the shift alone."""
    block = UNet1D(4, 3, 6, widths=(8, 16), embed_dim=8).down[0][0]
    x, shift = torch.randn(5, 3, 4), torch.randn(5, 8, 1)
    found = block(x, torch.cat((torch.zeros(5, 8, 1), shift), 1))
    torch.testing.assert_close(found, block.second(shift.expand(5, 8, 4)) + block.skip(x))
    doubled = block(x, torch.cat((torch.full((5, 8, 1), 2.0), shift), 1))
    torch.testing.assert_close(doubled, block.second(2 * block.first(x) + shift) + block.skip(x))


def test_the_unet_takes_as_many_steps_as_its_resolutions_divide():
    net = UNet1D(8, 3, 6, widths=(8, 16, 8), embed_dim=8)
    assert net(torch.randn(2, 8, 3), 1, torch.randn(2, 6)).shape == (2, 8, 3)
    assert net(torch.randn(2, 12, 3), 1, torch.randn(2, 6)).shape == (2, 12, 3)
    with pytest.raises(ValueError, match="3 resolutions needs a horizon divisible by 4, got 6"):
        UNet1D(6, 3, 6, widths=(8, 16, 8), embed_dim=8)
    for widths in ((8, 12), (8, 0), ()):
        with pytest.raises(
            ValueError, match=rf"divisible by the 8 normalization groups, got \[{str([*widths])[1:-1]}\]"
        ):
            UNet1D(4, 3, 6, widths=widths, embed_dim=8)

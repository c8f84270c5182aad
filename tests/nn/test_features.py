"""Structured observations: what each part of a row becomes before the first layer."""

import pytest
import torch
from torch import nn

from ctrlrl.nn.features import NatureCNN, OwnFeatures, PartFeatures

PARTS = (("camera", (3, 40, 36), True), ("joints", (5,), False), ("height", (), False))
SIZE = 3 * 40 * 36 + 6


def test_the_convolutional_network_has_the_published_size():
    # Mnih et al. 2015 on 84 x 84 x 4: 8x8x4x32, 4x4x32x64, 3x3x64x64 weights, 3136 x 512
    n = sum(p.numel() for p in NatureCNN((4, 84, 84), 512).parameters())
    assert n == 8224 + 32832 + 36928 + 1_606_144


def test_small_images_are_refused_by_name():
    with pytest.raises(ValueError, match="at least 36 x 36 pixels, got 20 x 36"):
        NatureCNN((3, 20, 36), 8)


def test_vectors_pass_and_images_are_flattened_to_the_unit_interval():
    rows = torch.rand(4, SIZE)
    rows[:, :-6] = torch.randint(256, (4, SIZE - 6))
    net = PartFeatures(PARTS, cnn=False, image_dim=8)
    assert net.dim == SIZE
    torch.testing.assert_close(net(rows)[:, -6:], rows[:, -6:])
    torch.testing.assert_close(net(rows)[:, :-6], rows[:, :-6] / 255)
    raw = PartFeatures(PARTS, cnn=False, image_dim=8, normalize_images=False)
    torch.testing.assert_close(raw(rows), rows)


def test_only_the_image_goes_through_the_convolutions():
    net = PartFeatures(PARTS, cnn=True, image_dim=8)
    rows = torch.rand(2, 4, SIZE) * 255  # leading axes stay
    out = net(rows)
    assert out.shape == (2, 4, net.dim) == (2, 4, 14)
    image = rows[..., :-6].view(8, 3, 40, 36) / 255
    torch.testing.assert_close(out[..., :8], net.encoders["0"](image).view(2, 4, 8))
    torch.testing.assert_close(out[..., 8:], rows[..., -6:])


def test_bytes_and_floats_give_the_same_features():
    net = PartFeatures(PARTS[:1], cnn=True, image_dim=8)
    rows = torch.randint(256, (3, 3 * 40 * 36), dtype=torch.uint8)
    assert torch.equal(net(rows), net(rows.float()))


def test_a_users_extractor_gets_a_dict_of_parts_or_the_one_array():
    seen = []

    class Keep(nn.Module):
        def forward(self, given):
            seen.append(given)
            return torch.ones(3, 2)

    OwnFeatures(Keep(), PARTS, dim=2)(torch.zeros(3, SIZE))
    assert {k: tuple(v.shape) for k, v in seen[0].items()} == {
        "camera": (3, 3, 40, 36),
        "joints": (3, 5),
        "height": (3,),
    }
    OwnFeatures(Keep(), (("", (4,), False),), dim=2)(torch.zeros(3, 4))
    assert tuple(seen[1].shape) == (3, 4)
    OwnFeatures(Keep(), (("obs", (4,), False),), dim=2)(torch.zeros(3, 4))
    assert tuple(seen[2]["obs"].shape) == (3, 4)  # a Dict with one key

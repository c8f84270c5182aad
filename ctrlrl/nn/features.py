"""What stands between an observation row [..., O] and the first layer of a network: nothing, or an image encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

Part = tuple[str, tuple[int, ...], bool]  # name, shape, whether it is an image [C, H, W] with values 0 ... 255


class Vector(nn.Module):
    """The row itself."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, obs: Tensor) -> Tensor:
        return obs


class NatureCNN(nn.Module):
    """[N, C, H, W] in [0, 1] to [N, dim]. Mnih et al. 2015, Nature 518; sizes and start of SB3's NatureCNN."""

    def __init__(self, shape: tuple[int, ...], dim: int, *, orthogonal: bool = True):
        super().__init__()
        channels, height, width = shape
        if min(height, width) < 36:
            raise ValueError(
                f"the convolutional network needs images of at least 36 x 36 pixels, got {height} x {width}. "
                "Use MlpPolicy (algo.features_extractor=flatten), or a features_extractor_class of your own."
            )
        self.cnn = nn.Sequential(
            nn.Conv2d(channels, 32, 8, stride=4),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, stride=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        with torch.no_grad():
            n_flat = self.cnn(torch.zeros(1, *shape)).shape[1]
        self.linear = nn.Sequential(nn.Linear(n_flat, dim), nn.ReLU())
        self.dim = dim
        if orthogonal:
            for layer in (*self.cnn, *self.linear):
                if isinstance(layer, (nn.Conv2d, nn.Linear)):
                    nn.init.orthogonal_(layer.weight, math.sqrt(2.0))
                    assert layer.bias is not None
                    nn.init.zeros_(layer.bias)

    def forward(self, image: Tensor) -> Tensor:
        return self.linear(self.cnn(image))


class _Parts(nn.Module):
    """Splits rows into the parts of a structured observation; images become floats, in [0, 1] where asked for."""

    def __init__(self, parts: Sequence[Part], *, normalize_images: bool):
        super().__init__()
        self.parts = tuple(parts)
        self.sizes = [math.prod(shape) for _, shape, _ in self.parts]
        self.image_scale = 1.0 / 255.0 if normalize_images else 1.0

    def split(self, rows: Tensor) -> list[Tensor]:
        """[N, O] -> one [N, *shape] a part."""
        values = []
        for column, (_, shape, image) in zip(rows.split(self.sizes, -1), self.parts, strict=True):
            x = (column.unflatten(-1, shape) if shape else column.squeeze(-1)).float()
            values.append(x * self.image_scale if image else x)
        return values


class PartFeatures(_Parts):
    """[..., O] -> [..., dim]: every image through a NatureCNN of its own (or flattened), all else as it is."""

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        cnn: bool,
        image_dim: int,
        normalize_images: bool = True,
        orthogonal: bool = True,
    ):
        super().__init__(parts, normalize_images=normalize_images)
        self.encoders = nn.ModuleDict(
            {
                str(i): NatureCNN(shape, image_dim, orthogonal=orthogonal)
                for i, (_, shape, image) in enumerate(self.parts)
                if image and cnn
            }
        )
        self.dim = sum(image_dim if str(i) in self.encoders else size for i, size in enumerate(self.sizes))

    def forward(self, obs: Tensor) -> Tensor:
        values = self.split(obs.reshape(-1, obs.shape[-1]))
        out = [
            self.encoders[str(i)](x) if str(i) in self.encoders else x.reshape(x.shape[0], -1)
            for i, x in enumerate(values)
        ]
        return torch.cat(out, -1).view(*obs.shape[:-1], self.dim)


class OwnFeatures(_Parts):
    """A user's extractor as SB3 calls it: a tensor [N, *shape], or a dict of them for a Dict, to [N, dim]."""

    def __init__(self, module: nn.Module, parts: Sequence[Part], *, dim: int, normalize_images: bool = True):
        super().__init__(parts, normalize_images=normalize_images)
        self.module, self.dim = module, dim

    def forward(self, obs: Tensor) -> Tensor:
        values = self.split(obs.reshape(-1, obs.shape[-1]))
        named = {name: x for (name, _, _), x in zip(self.parts, values, strict=True)}
        given = named.get("", named)
        return self.module(given).view(*obs.shape[:-1], self.dim)

"""What a generative network may predict at x = alpha data + sigma noise, and how to turn one prediction into another.

(alpha, sigma) is a diffusion's (sqrt(alpha_bar), sqrt(1 - alpha_bar)), (1, sigma) with exploding variance (EDM), and
(t, 1 - t) on a flow's straight path, whose time here runs from 0, noise, to 1, data.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ctrlrl.functional.checks import same_shape

Scale = Tensor | float  # a tensor broadcasts against x

PREDICTIONS = ("noise", "data", "v", "score", "velocity")
DIFFUSION_PATHS = ("preserving", "exploding", "straight")


def noisy(data: Tensor, noise: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
    """alpha data + sigma noise; the shape of data."""
    same_shape("noisy", data=data, noise=noise)
    return alpha * data + sigma * noise


def prediction(kind: str, data: Tensor, noise: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
    """What a network of this kind is trained to say at noisy(data, noise, alpha, sigma); the shape of data.

    "noise" and "data" themselves; "v" = alpha noise - sigma data; "score" = -noise / sigma, the gradient of the log
    density; "velocity" = data - noise, a straight path's. arXiv:2006.11239, 2202.00512, 2011.13456, 2209.03003.
    """
    same_shape("prediction", data=data, noise=noise)
    if kind == "noise":
        return noise
    if kind == "data":
        return data
    if kind == "v":
        return alpha * noise - sigma * data
    if kind == "score":
        return -noise / sigma
    if kind == "velocity":
        return data - noise
    raise _unknown(kind)


def ends(kind: str, predicted: Tensor, x: Tensor, alpha: Scale, sigma: Scale) -> tuple[Tensor, Tensor]:
    """The data and the noise between which a prediction says that x lies: x = alpha data + sigma noise.

    predicted, x: [...]. A "noise" or "score" tells nothing of the data where alpha = 0, "data" nothing of the noise
    where sigma = 0. The inverse of `prediction`.
    """
    same_shape("ends", predicted=predicted, x=x)
    if kind == "noise":
        return (x - sigma * predicted) / alpha, predicted
    if kind == "data":
        return predicted, (x - alpha * predicted) / sigma
    if kind == "v":
        size = alpha * alpha + sigma * sigma
        return (alpha * x - sigma * predicted) / size, (alpha * predicted + sigma * x) / size
    if kind == "score":
        noise = -sigma * predicted
        return (x - sigma * noise) / alpha, noise
    if kind == "velocity":
        size = alpha + sigma
        return (x + sigma * predicted) / size, (x - alpha * predicted) / size
    raise _unknown(kind)


def on_path(path: str, x: Tensor, alpha: Scale, sigma: Scale) -> tuple[Tensor, Scale, Scale]:
    """x, alpha and sigma on another path at the same signal-to-noise ratio alpha / sigma, where data and noise stay.

    path: "preserving" (alpha^2 + sigma^2 = 1), "exploding" (alpha = 1, needs alpha > 0) or "straight" (alpha = t,
    sigma = 1 - t). A score is divided by what x is multiplied with.
    """
    if path == "preserving":
        square = alpha * alpha + sigma * sigma
        size: Scale = square.sqrt() if isinstance(square, Tensor) else math.sqrt(square)
    elif path == "exploding":
        size = alpha
    elif path == "straight":
        size = alpha + sigma
    else:
        raise ValueError(f"unknown path {path!r}; known: {', '.join(DIFFUSION_PATHS)}")
    return x / size, alpha / size, sigma / size


def reversed_time(velocity: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, float], Tensor]:
    """A flow's field with data at 1 from one with noise at 1 (pi0, FPO), or back: u'(x, t) = -u(x, 1 - t)."""
    return lambda x, t: -velocity(x, 1.0 - t)


# EDM: arXiv:2206.00364, table 1, with BESO's level law, arXiv:2304.02532 and its code -------------------------------


def edm_scales(sigma: Scale, data_std: float) -> tuple[Scale, Scale, Scale]:
    """c_skip, c_out and c_in, of the shape of sigma: the denoised x is c_skip x + c_out F(c_in x).

    They give F inputs and targets of unit variance at every sigma, if the data have standard deviation data_std.
    """
    square = sigma**2 + data_std**2
    size = square**0.5
    return data_std**2 / square, sigma * data_std / size, 1.0 / size


def edm_denoised(raw: Tensor, x: Tensor, sigma: Scale, data_std: float) -> Tensor:
    """The data that F's answer `raw` at c_in x stands for: c_skip x + c_out raw; the shape of x."""
    c_skip, c_out, _ = edm_scales(sigma, data_std)
    return c_skip * x + c_out * raw


def edm_target(data: Tensor, x: Tensor, sigma: Scale, data_std: float) -> Tensor:
    """What F is trained to say at x = data + sigma noise: (data - c_skip x) / c_out; the shape of data."""
    c_skip, c_out, _ = edm_scales(sigma, data_std)
    return (data - c_skip * x) / c_out


def log_logistic_levels(uniform: Tensor, low: float, high: float, *, median: float, scale: float = 0.5) -> Tensor:
    """Noise deviations to train on, from uniform numbers in [0, 1]: log-logistic, truncated to [low, high].

    log sigma is logistic around log median with this scale. BESO takes the data's deviation as the median. The shape
    of uniform.
    """

    def cdf(sigma: float) -> float:
        return 1.0 / (1.0 + math.exp(-(math.log(sigma) - math.log(median)) / scale))

    return median * (scale * torch.logit(cdf(low) + (cdf(high) - cdf(low)) * uniform)).exp()


def _unknown(kind: str) -> ValueError:
    return ValueError(f"unknown prediction {kind!r}; known: {', '.join(PREDICTIONS)}")

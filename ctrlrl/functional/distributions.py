"""Diagonal Gaussian, tanh-Gaussian and categorical policies as functions: no argument checks that read the device.

Gaussians: mean [..., A]; log_std broadcasts against it ([A], [..., A], [..., 1] or 0-dim). Results are [...], in nats,
summed over the action axis. Categoricals: logits [..., n], unnormalised, -inf forbids an action; action [...] int64.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ctrlrl.functional.checks import same_shape

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


def gaussian_sample(mean: Tensor, log_std: Tensor) -> Tensor:
    """mean + std * noise, [..., A]; differentiable in both (reparametrised)."""
    return mean + log_std.exp() * torch.randn_like(mean)


def smoothed_action(action: Tensor, noise: Tensor, *, std: float, clip: float) -> Tensor:
    """clip(action + clip(std * noise, -clip, clip), -1, 1), same shape. Target policy smoothing, TD3, arXiv:1802.09477.

    noise: standard normal.
    """
    return (action + (std * noise).clamp(-clip, clip)).clamp(-1.0, 1.0)


def gaussian_log_prob(action: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log-density of `action` [..., A], summed over A: [...] nats."""
    if action.shape[-1:] != mean.shape[-1:]:
        same_shape("gaussian_log_prob", action=action, mean=mean)
    z = (action - mean) * torch.exp(-log_std)
    constant = _wide(log_std, mean.shape[-1]).sum(-1) + mean.shape[-1] * HALF_LOG_2PI
    return torch.sub(-constant, z.square().sum(-1), alpha=0.5)


def gaussian_entropy(log_std: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    """Entropy, summed over A: [...] nats. `shape`, that of the mean, broadcasts log_std first, e.g. [A] to [N]."""
    if shape is not None:
        return gaussian_entropy(_wide(log_std, shape[-1])).expand(shape[:-1])
    return log_std.sum(-1) + log_std.shape[-1] * (HALF_LOG_2PI + 0.5)


def gaussian_kl(old_mean: Tensor, old_log_std: Tensor, mean: Tensor, log_std: Tensor, *, eps: float = 0.0) -> Tensor:
    """KL(old || new), exact, summed over A: [...] nats.

    eps: inside the logarithm of the ratio of deviations; with rsl_rl's 1e-5 equal policies differ by A * 1e-5.
    """
    log_scale = log_std - old_log_std
    log_term = (log_scale.exp() + eps).log() if eps else log_scale
    distance = ((old_mean - mean) * torch.exp(-log_std)).square()
    return (log_term + 0.5 * (torch.exp(-2.0 * log_scale) + distance - 1.0)).sum(-1)


def tanh_gaussian_sample(mean: Tensor, log_std: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Action tanh(u), u Gaussian, [..., A] in [-1, 1], and its log-density [...]; reparametrised.

    noise: standard normal; broadcasts against the mean, e.g. [M, N, A] for M samples a row. None draws its own.
    The density comes from u itself: exact where the action rounds to 1. Source: SAC, arXiv:1801.01290, appendix C.
    """
    u = gaussian_sample(mean, log_std) if noise is None else mean + log_std.exp() * noise
    return u.tanh(), gaussian_log_prob(u, mean, log_std) - _log_tanh_slope(u).sum(-1)


def tanh_gaussian_log_prob(action: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log-density of a tanh-Gaussian at `action` [..., A] in [-1, 1]: [...] nats. The ends count as one ulp inside."""
    limit = 1.0 - torch.finfo(action.dtype).eps
    u = torch.atanh(action.clamp(-limit, limit))
    return gaussian_log_prob(u, mean, log_std) - _log_tanh_slope(u).sum(-1)


def categorical_sample(logits: Tensor) -> Tensor:
    """A sample [...] int64: argmax of logits plus Gumbel noise, which needs neither normalising nor a host read."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    noise = torch.empty_like(logits, dtype=dtype).exponential_().clamp(min=torch.finfo(dtype).tiny)
    return (logits - noise.log()).argmax(-1)


def categorical_log_prob(logits: Tensor, action: Tensor) -> Tensor:
    """Log-probability of `action` [...] int64: [...] nats."""
    if action.shape != logits.shape[:-1]:
        got = f"action {tuple(action.shape)}, logits {tuple(logits.shape)}"
        raise ValueError(
            f"categorical_log_prob: action must have the shape of logits without its last axis, got {got}."
        )
    return logits.log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)


def categorical_entropy(logits: Tensor) -> Tensor:
    """Entropy [...] in nats; forbidden actions contribute 0."""
    log_p = _finite_log_softmax(logits)
    return -(log_p.exp() * log_p).sum(-1)


def categorical_kl(old_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(old || new) [...] in nats; an action forbidden in both contributes 0, one newly forbidden a huge number."""
    old_log_p = _finite_log_softmax(old_logits)
    return (old_log_p.exp() * (old_log_p - _finite_log_softmax(logits))).sum(-1)


def approx_kl(log_ratio: Tensor) -> Tensor:
    """(rho - 1) - log rho >= 0, whose mean over old samples estimates KL(old || new) without bias; same shape, nats.

    Source: k3 of Schulman's note "Approximating KL divergence"; the stopping rule of Stable-Baselines3.
    """
    return torch.expm1(log_ratio) - log_ratio


def adapt_learning_rate(
    lr: Tensor, kl: Tensor, *, desired_kl: float, low: float = 1e-5, high: float = 1e-2, factor: float = 1.5
) -> Tensor:
    """The next learning rate, 0-dim: lr / factor above 2 * desired_kl, lr * factor below half of it. No host read.

    A KL of exactly 0 (the first minibatch) or NaN changes nothing. Source: rsl_rl, algorithms/ppo.py.
    """
    smaller, larger = (lr / factor).clamp(min=low), (lr * factor).clamp(max=high)
    grows = (kl > 0.0) & (kl < 0.5 * desired_kl)
    return torch.where(kl > 2.0 * desired_kl, smaller, torch.where(grows, larger, lr))


def _wide(log_std: Tensor, n_actions: int) -> Tensor:
    # [..., 1] and 0-dim stand for all A axes: the sum over A must count each of them
    return log_std if log_std.shape[-1:] == (n_actions,) else log_std.expand(*log_std.shape[:-1], n_actions)


def _log_tanh_slope(u: Tensor) -> Tensor:
    # log(1 - tanh(u)^2), which underflows as written from |u| = 10 on in float32
    return 2.0 * (math.log(2.0) - u + F.logsigmoid(2.0 * u))


def _finite_log_softmax(logits: Tensor) -> Tensor:
    # 0 * -inf is NaN, 0 * (most negative number) is 0
    log_p = logits.log_softmax(-1)
    return log_p.clamp(min=torch.finfo(log_p.dtype).min)

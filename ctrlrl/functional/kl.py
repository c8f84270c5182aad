"""Estimates of the divergence from a reference, per element, of samples of the current policy."""

from __future__ import annotations

from torch import Tensor

from ctrlrl.functional.distributions import approx_kl

KINDS = ("k1", "k2", "k3", "k3+")


def kl_estimate(log_prob: Tensor, log_prob_ref: Tensor, *, kind: str, limit: float = 20.0) -> Tensor:
    """An estimate of KL(pi || ref) per token, in nats; same shape. As a loss the kinds differ by their gradient.

    k1: log pi - log ref; its expected gradient is 0, so it serves in a reward only.
    k2: k1^2 / 2; the gradient of the reverse KL(pi || ref).
    k3: exp(-k1) + k1 - 1; the gradient of the forward KL(ref || pi). GRPO's.
    k3+: the value of k3 with the gradient of k2.
    limit: of -k1 inside the exponential. Source: Schulman's note "Approximating KL divergence".
    """
    k1 = log_prob - log_prob_ref
    if kind == "k1":
        return k1
    if kind == "k2":
        return 0.5 * k1.square()
    k3 = approx_kl(-k1.clamp(min=-limit))
    if kind == "k3":
        return k3
    if kind == "k3+":
        k2 = 0.5 * k1.square()
        return k2 + (k3 - k2).detach()
    raise ValueError(f"kl_estimate.kind must be one of {', '.join(KINDS)}, got {kind!r}")

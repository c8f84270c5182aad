"""Maximum-entropy control: the two losses of SAC besides its critic's, per element."""

from __future__ import annotations

from torch import Tensor


def entropy_policy_loss(q: Tensor, log_prob: Tensor, temperature: Tensor | float) -> Tensor:
    """temperature * log pi(a|s) - Q(s, a), return units, [..., N]; both carry the policy's gradient.

    temperature: broadcasts; no gradient. Source: SAC, arXiv:1812.05905, eq. 9.
    """
    return temperature * log_prob - q


def temperature_loss(log_temperature: Tensor, log_prob: Tensor, *, target_entropy: float) -> Tensor:
    """-log_temperature * (log pi(a|s) + target_entropy), [..., N]: it falls where entropy exceeds its target.

    log_temperature: broadcasts; alone carries the gradient.
    log_prob:        [..., N] nats, of the policy's own samples.
    Source: SAC, arXiv:1812.05905, eq. 18, with log temperature for temperature as in the codes of SAC and CQL. Given
    the temperature itself instead it is the equation's own form, RLPD's: the same rest point, other step sizes.
    """
    return -log_temperature * (log_prob.detach() + target_entropy)

"""The running success rate of a prompt, a Beta distribution with forgetting: the baseline of single-stream SPO.

Per prompt: `success`, `failure`, the two counts; their sum is the effective number of responses seen. All elementwise.
Source: Single-stream Policy Optimization, arXiv:2509.13232.
"""

from __future__ import annotations

from torch import Tensor

HALF_LIFE = 0.06  # nats: the change of the policy after which a count has lost half its weight
FORGETTING = (0.875, 0.96)


def tracker_start(n_success: Tensor, n_responses: int | Tensor) -> tuple[Tensor, Tensor]:
    """The counts after n_responses with n_success of them right, weighted as 1 / (1 - 0.875) = 8 responses."""
    weight = 1.0 / (1.0 - FORGETTING[0])
    success = weight * (n_success + 0.5) / (n_responses + 1.0)
    return success, weight - success


def tracker_value(success: Tensor, failure: Tensor) -> Tensor:
    """The success rate to expect."""
    return success / (success + failure)


def tracker_step(success: Tensor, failure: Tensor, reward: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    """The counts after one more response of reward in [0, 1]; to be called once its advantage is taken.

    change: how far the policy moved since the prompt's last response: mean |log-prob change| on that response, nats.
    """
    keep = (-change / HALF_LIFE).exp2().clamp(*FORGETTING)
    return keep * success + reward, keep * failure + 1.0 - reward


def prompt_weight(success: Tensor, failure: Tensor, *, floor: float = 0.05) -> Tensor:
    """How much a prompt is worth sampling, unnormalized: sqrt(v (1 - v)) + floor, v its success rate."""
    value = tracker_value(success, failure)
    return (value * (1.0 - value)).sqrt() + floor

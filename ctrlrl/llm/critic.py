"""Values of the states before tokens: their network and its loss."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ctrlrl.functional.masked import masked_mean
from ctrlrl.functional.regression import clipped_value, soft_median_loss
from ctrlrl.llm.config import TokenConfig
from ctrlrl.llm.language_model import LanguageModel
from ctrlrl.types import Metrics


def value_head(model: LanguageModel, n_heads: int) -> nn.Module:
    """States [..., D] of the model to values [..., n_heads]; the last layer begins at zero."""
    output: Any = model.output
    width = output.weight.shape[1]
    last = nn.Linear(2 * width, n_heads)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), last)


def value_loss(
    config: TokenConfig,
    value: Tensor,
    value_old: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    n_tokens: Tensor | float | None = None,
) -> tuple[Tensor, Metrics]:
    """Half the squared error of the critic, optionally of a clipped change; with two heads also the median's loss.

    value, value_old: [N, L], or [N, L, 2]; returns, mask: [N, L]. T-PPO's mask holds finished responses only.
    """
    mean, old = (value[..., 0], value_old[..., 0]) if value.ndim == 3 else (value, value_old)
    limit = float("inf") if config.clip_range_vf is None else config.clip_range_vf
    error = 0.5 * clipped_value(mean, old, returns, clip_range=limit, take_max=True)
    loss = masked_mean(error, mask, count=n_tokens)
    metrics = {"loss/value": loss.detach()}
    if value.ndim == 3:
        median = soft_median_loss(returns - value[..., 1], temperature=config.median_temperature)
        median_loss = masked_mean(median, mask, count=n_tokens)
        metrics["loss/median"] = median_loss.detach()
        loss = loss + config.median_coef * median_loss
    return loss, metrics

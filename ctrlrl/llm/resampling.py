"""Good answers sampled at another temperature, reinforced to hold the entropy: AEPO's term. arXiv:2510.08141.

A share of the prompts (`positive_share`) is asked again, hotter where the policy's entropy lies below `ent_target`,
colder where it lies above. Of these responses the good ones take the place of some rows of the batch, with advantage 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctrlrl.llm.batches import Rollout, apart, same_width
from ctrlrl.llm.config import TokenConfig
from ctrlrl.llm.estimators import AdvantageOut
from ctrlrl.types import Tree, tree_map


def resampling_temperature(config: TokenConfig, entropy: Tensor) -> Tensor:
    """At which to sample again, 0-dim; entropy: mean over the batch's tokens, nats."""
    colder, hotter = config.positive_temperatures
    return torch.where(_too_sure(config, entropy), hotter, colder)


def _too_sure(config: TokenConfig, entropy: Tensor) -> Tensor:
    assert config.ent_target is not None
    return entropy < config.ent_target


def with_positives(
    config: TokenConfig, batch: Rollout, again: Rollout, judged: tuple[AdvantageOut, AdvantageOut], entropy: Tensor
) -> Rollout:
    """The batch with good responses to prompts asked again in its first rows, and its advantages.

    judged: of the batch and of `again`, each among its own rows.
    """
    out, extra = judged
    if out.keep is not None:
        batch = batch._replace(mask=batch.mask & out.keep.unsqueeze(1))
    first, second = (apart(part) for part in same_width([batch, again]))
    found = extra.advantage
    if extra.keep is not None:
        found = found.masked_fill(~extra.keep, -torch.inf)  # never good
    rows, advantage = overwritten(config, first, out.advantage, second, found, entropy)
    return rows._replace(advantage=advantage, group=batch.group)


def overwritten(
    config: TokenConfig, rows: Tree, advantage: Tensor, extra: Tree, extra_advantage: Tensor, entropy: Tensor
) -> tuple[Tree, Tensor]:
    """The batch with good responses of `extra` in its first rows, and its advantage [N], 1 in them; no host read.

    rows, extra: NamedTuples of tensors [N, ...] and [M, ...], padded to one length.
    extra_advantage: [M], among the responses sampled again. Those above `positive_threshold` are good; of them at most
        `positive_rows` are taken, half as many where entropy is to fall.
    """
    good = extra_advantage > config.positive_threshold
    first = min(config.positive_rows, len(good), len(advantage))
    order = good.long().argsort(descending=True, stable=True)[:first]
    n = good.sum().clamp(max=first)
    n = torch.where(_too_sure(config, entropy), n, n // 2)
    taken = torch.arange(first, device=good.device) < n

    def put(x: Tensor, y: Tensor) -> Tensor:
        wide = taken.view(-1, *(1,) * (x.ndim - 1))
        return torch.cat([torch.where(wide, y[order], x[:first]), x[first:]])

    return tree_map(put, rows, extra), put(advantage, torch.ones_like(extra_advantage))

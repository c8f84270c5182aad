from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from ctrlrl.llm.presets import preset
from ctrlrl.llm.resampling import overwritten, resampling_temperature


class Rows(NamedTuple):
    ids: Tensor  # [N, 2]
    reward: Tensor  # [N]


def rows(n, first):
    number = torch.arange(first, first + n)
    return Rows(number.unsqueeze(1).expand(n, 2), number.float())


EXTRA = torch.tensor([-1.0, 0.9, 0.04, 0.3, 0.06])
LOW, HIGH = torch.tensor(0.3), torch.tensor(0.8)


def test_a_policy_that_is_too_sure_is_asked_hotter():
    config = preset("aepo")
    assert resampling_temperature(config, LOW) == pytest.approx(1.2)
    assert resampling_temperature(config, HIGH) == pytest.approx(0.8)


def put(entropy, **changes):
    return overwritten(preset("aepo", **changes), rows(6, 0), torch.full((6,), -0.5), rows(5, 100), EXTRA, entropy)


def test_good_responses_take_the_first_rows_with_advantage_one():
    batch, advantage = put(LOW)
    assert batch.reward.tolist() == [101, 103, 104, 3, 4, 5]
    assert batch.ids[:, 0].tolist() == [101, 103, 104, 3, 4, 5]
    assert advantage.tolist() == [1, 1, 1, -0.5, -0.5, -0.5]


def test_half_as_many_where_entropy_is_to_fall():
    batch, advantage = put(HIGH)
    assert batch.reward.tolist() == [101, 1, 2, 3, 4, 5]
    assert advantage.tolist() == [1, -0.5, -0.5, -0.5, -0.5, -0.5]


def test_never_more_than_allowed():
    assert put(LOW, positive_rows=2)[0].reward.tolist() == [101, 103, 2, 3, 4, 5]


def test_without_good_responses_the_batch_stays():
    batch, advantage = overwritten(
        preset("aepo"), rows(6, 0), torch.zeros(6), rows(5, 100), torch.zeros(5), torch.tensor(0.1)
    )
    assert torch.equal(batch.ids, rows(6, 0).ids)
    assert not advantage.any()

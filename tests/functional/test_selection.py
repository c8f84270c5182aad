import math

import torch

from ctrlrl.functional.selection import covariance, elastic_width, highest, on_policy_rows, soft_overlong

F64 = torch.float64


def test_the_reward_for_length_falls_over_the_buffer():
    length = torch.tensor([100, 16384, 18432, 20480, 30000])
    got = soft_overlong(length, max_length=20480, buffer=4096)
    torch.testing.assert_close(got, torch.tensor([0.0, 0.0, -0.5, -1.0, -1.0]))


def test_bad_rows_that_became_unlikely_are_left_out():
    mask = torch.tensor([[1, 1, 0]]).bool().expand(4, 3)
    log_ratio = torch.tensor([[-0.5, -0.5, 9.0], [-0.5, -0.5, 9.0], [0.3, -0.5, 9.0], [-0.1, -0.1, -9.0]])
    advantage = torch.tensor([[1.0], [-1.0], [-1.0], [-1.0]])
    assert on_policy_rows(log_ratio, advantage, mask, limit=0.2).squeeze(1).tolist() == [True, False, True, True]


def test_the_highest_are_taken_of_the_counting_elements():
    score = torch.tensor([[5.0, 1.0, 9.0], [2.0, 4.0, 3.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    assert highest(score, mask, n=2).tolist() == [[True, False, False], [False, True, False]]
    assert torch.equal(highest(score, mask, n=torch.tensor(6)), mask)
    assert not highest(score, mask, n=0).any()


def test_equal_scores_do_not_add_to_the_number():
    same = torch.zeros(2, 5)
    assert highest(same, torch.ones(2, 5, dtype=torch.bool), n=3).flatten().tolist() == [True] * 3 + [False] * 7


def test_covariance_sums_to_that_of_the_sample():
    torch.manual_seed(0)
    log_prob, advantage = torch.randn(2, 6, 4, dtype=F64)
    mask = torch.rand(6, 4) < 0.7
    got = covariance(log_prob.requires_grad_(), advantage, mask)
    assert not got.requires_grad
    pairs = torch.stack([log_prob[mask], advantage[mask]]).detach()
    torch.testing.assert_close(got[mask].sum() / (mask.sum() - 1), pairs.cov()[0, 1])


def test_the_elastic_bound_widens_with_the_advantage_and_where_half_the_group_is_right():
    advantage, rate = torch.tensor([0.0, 2.0, 2.0], dtype=F64), torch.tensor([0.5, 0.5, 1.0], dtype=F64)
    got = elastic_width(advantage, rate, width=0.2)
    grown = 0.2 * (1 + 0.5 * math.tanh(2.0))
    torch.testing.assert_close(got, torch.tensor([0.2, grown, 0.5 * grown], dtype=F64))
    stiff = elastic_width(advantage, rate, width=0.2, by_advantage=0.0, by_variance=0.0)
    torch.testing.assert_close(stiff, torch.full((3,), 0.2, dtype=F64))

import pytest
import torch

from ctrlrl.functional.post_decision import post_decision_advantage


def test_the_larger_advantage_counts_element_by_element():
    post, pre = torch.tensor([[1.0, -2.0], [-3.0, 0.0]]), torch.tensor([[0.5, -1.0], [-4.0, -0.0]])
    assert torch.equal(post_decision_advantage(post, pre), torch.tensor([[1.0, -1.0], [-3.0, 0.0]]))


def test_it_is_never_below_either_and_always_one_of_them():
    post, pre = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
    found = post_decision_advantage(post, pre)
    assert (found >= post).all()
    assert (found >= pre).all()
    assert ((found == post) | (found == pre)).all()


def test_shapes_must_match():
    with pytest.raises(ValueError, match="post_decision_advantage: shapes must match"):
        post_decision_advantage(torch.zeros(3), torch.zeros(3, 1))

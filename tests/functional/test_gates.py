import torch
from torch import Tensor

from ctrlrl.functional.gates import advantage_gate, better_action


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_pull_is_towards_the_action_of_larger_advantage_and_ties_go_to_the_proposal():
    proposal, action = torch.full((3, 2), 0.5), torch.full((3, 2), -0.5)
    goal = better_action(proposal, action, numbers(0.5, 2.0, 1.0), numbers(1.0, 1.0, 1.0))
    assert goal.tolist() == [[-0.5, -0.5], [0.5, 0.5], [0.5, 0.5]]


def test_a_proposal_gets_the_gradient_only_where_it_was_chosen():
    proposal = torch.zeros(2, 1, requires_grad=True)
    better_action(proposal, torch.ones(2, 1), numbers(1.0, 0.0), numbers(0.0, 1.0)).sum().backward()
    assert proposal.grad is not None
    assert proposal.grad.tolist() == [[1.0], [0.0]]


def test_the_gate_is_open_where_either_action_beats_the_value():
    """Authors' self-checks: (1, 0.5) open, (-1, -0.5) closed, both positive open once; V = 0."""
    gate = advantage_gate(numbers(0.5, -0.5, 1.0, -1.0, 1.0), numbers(1.0, -1.0, 1.0, 1.0, -1.0), torch.zeros(5))
    assert gate.tolist() == [True, False, True, True, True]


def test_equality_with_the_value_opens_the_gate_for_the_proposal_alone():
    zero = numbers(0.0)
    assert advantage_gate(zero, -1.0 + zero, zero).item()
    assert not advantage_gate(-1.0 + zero, zero, zero).item()

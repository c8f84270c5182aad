import torch

from ctrlrl.policies.one_step_flow import OneStepFlowPolicy


def identity_of_noise() -> OneStepFlowPolicy:
    policy = OneStepFlowPolicy(3, 2, [])
    layer = policy.net[0]
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, 0, 0, 1, 0], [0, 0, 0, 0, 1]]))
        layer.bias.zero_()
    return policy


def test_actions_are_the_clipped_image_of_standard_normal_noise():
    action = identity_of_noise().act(torch.zeros(20_000, 3)).action
    assert action.abs().max() == 1.0
    inside = (action.abs() < 1.0).float().mean().item()
    assert abs(inside - 0.6827) < 0.01  # the mass of N(0, 1) within one deviation


def test_the_deterministic_action_belongs_to_the_most_probable_noise():
    policy, obs = OneStepFlowPolicy(3, 2, [8]), torch.randn(5, 3)
    first = policy.act(obs, deterministic=True).action
    assert torch.equal(first, policy(obs, torch.zeros(5, 2)).clamp(-1, 1))
    assert torch.equal(first, policy.act(obs, deterministic=True).action)

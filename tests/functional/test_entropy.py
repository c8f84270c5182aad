import torch

from ctrlrl.functional.entropy import entropy_policy_loss, temperature_loss


def test_policy_loss_pays_for_certainty_and_earns_value():
    q, log_prob = torch.tensor([2.0, -1.0]), torch.tensor([0.5, -3.0])
    torch.testing.assert_close(entropy_policy_loss(q, log_prob, torch.tensor(0.2)), torch.tensor([-1.9, 0.4]))
    assert torch.equal(entropy_policy_loss(q, log_prob, torch.tensor(0.0)), -q)


def test_temperature_rests_at_the_target_entropy_and_moves_towards_it():
    for entropy, sign in ((3.0, 0.0), (2.0, -1.0), (4.0, 1.0)):  # below the target the gradient is negative: it rises
        log_temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        log_prob = torch.full((5,), -entropy, dtype=torch.float64)
        temperature_loss(log_temperature, log_prob, target_entropy=3.0).mean().backward()
        assert log_temperature.grad.item() == sign


def test_temperature_loss_gives_the_policy_no_gradient():
    log_prob = torch.randn(5, requires_grad=True)
    loss = temperature_loss(torch.tensor(0.3, requires_grad=True), log_prob, target_entropy=-2.0)
    assert torch.autograd.grad(loss.sum(), log_prob, allow_unused=True) == (None,)


def test_stacked_temperatures_meet_their_own_rows():
    log_prob = torch.randn(3, 5)
    log_temperature = torch.tensor([[0.0], [1.0], [2.0]])
    stacked = temperature_loss(log_temperature, log_prob, target_entropy=1.0)
    for s in range(3):
        assert torch.equal(stacked[s], temperature_loss(log_temperature[s], log_prob[s], target_entropy=1.0))

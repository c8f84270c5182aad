import math

import torch

from ctrlrl.functional.preference import direct_advantage, dpo

F64 = torch.float64


def tensor(*values):
    return torch.tensor(values, dtype=F64)


def test_the_loss_of_a_pair():
    got = dpo(tensor(-3.0 + 4.0), tensor(-5.0 + 4.5), beta=0.1)
    torch.testing.assert_close(got, tensor(0.620957), rtol=0, atol=5e-7)
    torch.testing.assert_close(got, tensor(-math.log(1 / (1 + math.exp(-0.15)))), rtol=0, atol=1e-12)


def test_a_pair_that_is_told_apart_well_hardly_pulls():
    chosen = tensor(0.0, 500.0).requires_grad_()
    dpo(chosen, tensor(0.0, -500.0), beta=1.0).sum().backward()
    torch.testing.assert_close(chosen.grad, tensor(-0.5, 0.0))


def test_the_regression_rests_where_the_policy_is_the_tilted_reference():
    """Minimised over the reference's samples, logits free: pi = ref exp((A - log E exp(A / beta)) / beta)."""
    ref = tensor(0.5, 0.3, 0.2).log()
    beta = 2.0
    advantage = beta * tensor(0.4, -0.2, 0.1)
    advantage = advantage - beta * (ref + advantage / beta).logsumexp(0)  # so that the tilted weights sum to one
    logits = (ref + advantage / beta).requires_grad_()
    loss = ref.exp() * direct_advantage(logits.log_softmax(0) - ref, advantage, beta=beta)
    torch.testing.assert_close(loss.sum().detach(), torch.zeros((), dtype=F64), rtol=0, atol=1e-12)
    loss.sum().backward()
    torch.testing.assert_close(logits.grad, torch.zeros(3, dtype=F64), rtol=0, atol=1e-12)


def test_the_regression_pulls_on_log_probs_in_proportion_to_what_is_missing():
    log_ratio = tensor(0.0, 1.0).requires_grad_()
    direct_advantage(log_ratio, tensor(1.0, 1.0), beta=0.5).sum().backward()
    torch.testing.assert_close(log_ratio.grad, tensor(-2.0, -1.0))

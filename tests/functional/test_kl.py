import pytest
import torch

from ctrlrl.functional.kl import kl_estimate

F64 = torch.float64
THETA = torch.tensor([0.3, -0.2, 0.5], dtype=F64)
REF = torch.tensor([0.1, 0.4, -0.3], dtype=F64).log_softmax(0)


def expected(kind):
    """E of the estimate under the policy itself, and the expectation of its gradient in the logits."""
    theta = THETA.clone().requires_grad_()
    log_p = theta.log_softmax(0)
    value = kl_estimate(log_p, REF, kind=kind)
    p = log_p.detach().exp()
    (gradient,) = torch.autograd.grad((p * value).sum(), theta)
    return (p * value).sum().detach(), gradient


def exact(reverse):
    theta = THETA.clone().requires_grad_()
    log_p = theta.log_softmax(0)
    kl = (log_p.exp() * (log_p - REF)).sum() if reverse else (REF.exp() * (REF - log_p)).sum()
    return kl.detach(), torch.autograd.grad(kl, theta)[0]


def close(actual, wanted, atol=1e-12):
    torch.testing.assert_close(actual, torch.as_tensor(wanted, dtype=F64), rtol=0, atol=atol)


def test_k1_and_k3_estimate_the_divergence_without_bias():
    for kind in ("k1", "k3"):
        close(expected(kind)[0], exact(reverse=True)[0])
    close(expected("k1")[0], 0.153331, atol=5e-7)
    close(expected("k2")[0], 0.154298, atol=5e-7)


def test_as_a_loss_k1_does_nothing():
    close(expected("k1")[1], [0.0, 0.0, 0.0])


def test_as_a_loss_k2_follows_the_reverse_divergence():
    close(expected("k2")[1], exact(reverse=True)[1])
    close(expected("k2")[1], [-0.030963, -0.190363, 0.221326], atol=5e-7)


def test_as_a_loss_k3_follows_the_forward_divergence():
    close(expected("k3")[1], exact(reverse=False)[1])
    close(expected("k3")[1], [0.022509, -0.232468, 0.209959], atol=5e-7)


def test_k3_plus_has_the_value_of_k3_and_the_gradient_of_k2():
    close(expected("k3+")[0], expected("k3")[0])
    close(expected("k3+")[1], expected("k2")[1])


def test_the_exponential_is_bounded():
    far = torch.tensor([-1000.0, 1000.0], dtype=F64, requires_grad=True)
    kl = kl_estimate(far, torch.zeros(2, dtype=F64), kind="k3")
    assert bool(kl.isfinite().all())
    (gradient,) = torch.autograd.grad(kl.sum(), far)
    close(gradient[1], 1.0)  # still pulls back a token that the reference finds impossible


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"kl_estimate.kind must be one of k1, k2"):
        kl_estimate(REF, REF, kind="k4")

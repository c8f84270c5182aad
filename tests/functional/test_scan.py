import numpy as np
import pytest
import torch

from ctrlrl.functional.scan import append_axes, linear_recurrence

LENGTHS = (1, 2, 63, 64, 65, 100, 128, 1000, 4096, 4096 + 3)  # 100 and 4096 fill their last chunk, others do not


def by_hand(decay: np.ndarray, x: np.ndarray) -> np.ndarray:
    y = np.zeros(np.broadcast_shapes(decay.shape, x.shape))
    later = np.zeros(y.shape[1:])
    for t in reversed(range(len(y))):
        later = x[t] + decay[t] * later
        y[t] = later
    return y


@pytest.mark.parametrize("steps", LENGTHS)
def test_equals_a_float64_loop(steps):
    generator = torch.Generator().manual_seed(steps)
    decay = torch.rand(steps, 3, dtype=torch.float64, generator=generator) * 1.02
    decay[torch.rand(steps, 3, generator=generator) < 0.1] = 0.0  # episode ends
    x = torch.randn(steps, 3, dtype=torch.float64, generator=generator)
    expected = torch.from_numpy(by_hand(decay.numpy(), x.numpy()))
    torch.testing.assert_close(linear_recurrence(decay, x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 64, 65, 1000])
def test_constant_decay_gives_the_geometric_series(steps):
    decay = torch.full((steps, 2), 0.9, dtype=torch.float64)
    left = torch.arange(steps, 0, -1, dtype=torch.float64)[:, None]
    expected = ((1.0 - 0.9**left) / (1.0 - 0.9)).expand(steps, 2)
    torch.testing.assert_close(linear_recurrence(decay, torch.ones_like(decay)), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 5, 64, 70])
def test_gradients_are_those_of_finite_differences(steps):
    torch.manual_seed(0)
    width = 1 if steps > 5 else 2
    decay = torch.rand(steps, width, dtype=torch.float64, requires_grad=True)
    x = torch.randn(steps, width, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(linear_recurrence, (decay, x))


@pytest.mark.parametrize("steps", LENGTHS)
def test_gradient_in_x_is_the_forward_recurrence_of_the_decays(steps):
    torch.manual_seed(steps)
    decay = torch.rand(steps, 2, dtype=torch.float64)
    x = torch.randn(steps, 2, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(linear_recurrence(decay, x).sum(), x)
    expected = torch.ones_like(gradient)  # d sum(y) / d x[t] = 1 + decay[t-1] * (the same at t-1)
    for t in range(1, steps):
        expected[t] = 1.0 + decay[t - 1] * expected[t - 1]
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [7, 100])
@pytest.mark.parametrize(
    ("decay_shape", "x_shape"), [((4, 1), (4, 3)), ((4, 3), (4, 1)), ((), (4, 3)), ((4,), (4, 3)), ((4, 3), ())]
)
def test_trailing_axes_broadcast_either_way_and_missing_ones_count_as_one(steps, decay_shape, x_shape):
    torch.manual_seed(0)
    decay = torch.rand(steps, *decay_shape, dtype=torch.float64)
    x = torch.randn(steps, *x_shape, dtype=torch.float64)
    full = [append_axes(a, 3).expand(steps, 4, 3) for a in (decay, x)]
    torch.testing.assert_close(linear_recurrence(decay, x), linear_recurrence(*full), rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [64, 4096])
def test_float32_error_stays_within_rounding(steps):
    torch.manual_seed(0)
    decay, x = torch.full((steps, 8), 0.95), torch.randn(steps, 8)
    exact = linear_recurrence(decay.double(), x.double())
    torch.testing.assert_close(linear_recurrence(decay, x).double(), exact, rtol=1e-5, atol=1e-5)


def test_compiled_equals_eager():
    compiled = torch.compile(linear_recurrence, backend="aot_eager", fullgraph=True)
    for steps in (16, 70):
        decay, x = torch.rand(steps, 3, dtype=torch.float64), torch.randn(steps, 3, dtype=torch.float64)
        torch.testing.assert_close(compiled(decay, x), linear_recurrence(decay, x), rtol=0, atol=1e-12)


def test_inputs_are_left_alone():
    for steps in (8, 100):
        decay, x = torch.rand(steps, 2), torch.randn(steps, 2)
        before = decay.clone(), x.clone()
        linear_recurrence(decay, x)
        assert torch.equal(decay, before[0])
        assert torch.equal(x, before[1])


def test_unequal_time_axes_are_refused():
    with pytest.raises(ValueError, match=r"linear_recurrence: .* got decay \(1, 2\), x \(5, 2\)"):
        linear_recurrence(torch.ones(1, 2), torch.ones(5, 2))
    with pytest.raises(ValueError, match="length >= 1"):
        linear_recurrence(torch.ones(0, 2), torch.ones(0, 2))

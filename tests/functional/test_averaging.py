import pytest
import torch

from ctrlrl.functional.averaging import ema_decay


def test_the_decay_has_its_printed_values():
    """Specification of the generative policies, 3.4."""
    steps = torch.tensor([0.0, 1, 9, 99, 999, 9999, 215_442, 215_443, 10**7], dtype=torch.float64)
    printed = torch.tensor([0.0, 0.40540, 0.82217, 0.96838, 0.99438, 0.999, 0.9999, 0.9999, 0.9999]).double()
    torch.testing.assert_close(ema_decay(steps), printed, rtol=0, atol=5e-6)


def test_the_cap_is_reached_at_its_printed_step():
    steps = torch.tensor([215_441.0, 215_442.0, 215_443.0], dtype=torch.float64)
    below = 1 - (1 + steps) ** -0.75
    assert (below < 0.9999).tolist() == [True, True, False]
    assert float(ema_decay(steps)[2]) == 0.9999


def test_the_first_update_copies_the_weights():
    averaged, online = torch.zeros(3), torch.randn(3)
    assert torch.equal(averaged.lerp(online, 1.0 - ema_decay(torch.zeros(()))), online)


def test_other_laws_of_the_family():
    assert float(ema_decay(torch.tensor(3.0), power=0.5)) == pytest.approx(0.5)
    assert float(ema_decay(torch.tensor(3.0), power=0.5, highest=0.3)) == pytest.approx(0.3)

import pytest
import torch

from ctrlrl.functional.adaptive_bounds import bound_ladder, bound_sums, choose_bounds

F64 = torch.float64


def ladder():
    return bound_ladder((0.6, 0.9), (1.2, 3.0), 0.05, like=torch.zeros((), dtype=F64))


def by_loop(ratio, advantage, target):
    """The authors' two loops."""
    low, high = 0.6, 1.2

    def share():
        good, bad = advantage >= 0, advantage < 0
        top = (ratio.clamp(max=high) * advantage)[good].sum()
        return top / (ratio.clamp(min=low) * advantage)[bad].sum().abs()

    while share() < target and low < 0.9 - 1e-9:
        low += 0.05
    while share() < target and high < 3.0 - 1e-9:
        high += 0.05
    return low, high


@pytest.mark.parametrize("target", [0.1, 0.9, 1.0, 1.05, 1.2, 1.6, 5.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_bounds_are_those_of_the_two_loops(target, seed):
    torch.manual_seed(seed)
    advantage, ratio = torch.randn(40, dtype=F64), torch.randn(40, dtype=F64).exp()
    lows, highs = ladder()
    sums = bound_sums(ratio, advantage, torch.ones(40, dtype=torch.bool), lows, highs)
    got = torch.stack(choose_bounds(sums, lows, highs, target=target))
    torch.testing.assert_close(got, torch.tensor(by_loop(ratio, advantage, target), dtype=F64))


def test_the_ladder_first_raises_the_lower_bound_and_then_the_upper_one():
    lows, highs = ladder()
    assert len(lows) == len(highs) == 6 + 36 + 1
    assert (lows[0], highs[0]) == (0.6, 1.2)
    assert (lows[-1], highs[-1]) == (0.9, 3.0)
    assert bool((lows.diff() >= 0).all() and (highs.diff() >= 0).all())


def test_raising_the_lower_bound_never_helps():
    torch.manual_seed(0)
    lows, highs = ladder()
    sums = bound_sums(torch.randn(50).exp(), torch.randn(50), torch.ones(50, dtype=torch.bool), lows, highs)
    share = sums[:, 0] / sums[:, 1]
    assert bool((share[1:7] <= share[:6] + 1e-6).all())


def test_only_counting_elements_weigh_and_parts_add_up():
    ratio, advantage = torch.ones(4), torch.tensor([1.0, -2.0, 3.0, torch.nan])
    mask = torch.tensor([True, True, True, False])
    lows, highs = ladder()
    whole = bound_sums(ratio, advantage, mask, lows, highs)
    parts = [bound_sums(ratio[i], advantage[i], mask[i], lows, highs) for i in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(whole, parts[0] + parts[1])
    torch.testing.assert_close(whole[0], torch.tensor([4.0, 2.0]))

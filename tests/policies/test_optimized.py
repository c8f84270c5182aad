"""Candidates ranked, climbed, chosen by value: never below the base, and the base itself where there is no choice."""

from typing import Any

import pytest
import torch
from torch import nn

from ctrlrl.nn.ensembles import QEnsemble
from ctrlrl.nn.heads import MLPHead
from ctrlrl.policies.diffusion import ChunkPolicy, FlowProcess
from ctrlrl.policies.optimized import OptimizedPolicy, choice
from ctrlrl.types import Window

OBS, ACT = 3, 2
SLOPE = torch.tensor([0.2, -0.1])


class Slope(nn.Module):
    """<g, a> of two critics whose mean it is; the first has twice the slope and the second none."""

    def forward(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return torch.stack((2.0 * action @ SLOPE, 0.0 * action @ SLOPE))


def made(critic: Any = None, **settings: Any) -> OptimizedPolicy:
    torch.manual_seed(0)
    head = MLPHead(1, ACT, OBS, hidden=[16], code="times")
    base = ChunkPolicy(OBS, ACT, head, FlowProcess("euler", 4, ()), Window(1, 1, 1))
    critic = QEnsemble(OBS, ACT, [16], n=5) if critic is None else critic
    few = {"n_samples": 6, "n_kept": 3, "n_climbs": 10, "climb_size": 0.01}
    return OptimizedPolicy(base, critic, **{**few, **settings})  # type: ignore[arg-type]


@torch.no_grad()
def test_one_sample_without_steps_is_the_base_to_the_bit():
    policy, obs = made(n_samples=1, n_kept=1, n_climbs=0), torch.randn(7, OBS)
    torch.manual_seed(1)
    wanted, after = policy.base.act(obs).action, torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(policy.act(obs).action, wanted)
    assert torch.equal(torch.rand(3), after), "nothing else was drawn"


@torch.no_grad()
def test_on_a_linear_value_every_candidate_moves_by_the_sum_of_its_steps():
    policy, obs = made(Slope()), torch.zeros(50, OBS)
    start = 0.9 * (2.0 * torch.rand(4, 50, ACT) - 1.0)
    action, value = policy.climb(obs, start)
    torch.testing.assert_close(action, start + 10 * 0.01 * SLOPE, rtol=0, atol=1e-6)
    torch.testing.assert_close(value, action @ SLOPE, rtol=0, atol=1e-6)


@torch.no_grad()
def test_steps_downhill_give_the_start_back():
    start = 0.9 * (2.0 * torch.rand(4, 50, ACT) - 1.0)
    assert torch.equal(made(Slope(), climb_size=-0.01).climb(torch.zeros(50, OBS), start)[0], start)


@torch.no_grad()
def test_climbing_the_least_critic_ranks_by_the_mean_all_the_same():
    start = 0.5 * torch.rand(4, 50, ACT)
    start[..., 1] = 0.0  # <g, a> is above 0: the least is the flat critic
    action, value = made(Slope(), climb_least=True).climb(torch.zeros(50, OBS), start)
    assert torch.equal(action, start)
    torch.testing.assert_close(value, start @ SLOPE)


@torch.no_grad()
def test_the_best_starts_are_kept_in_their_order_and_no_candidate_is_below_its_own():
    policy, obs = made(n_climbs=0), torch.randn(50, OBS)
    torch.manual_seed(2)
    start = policy.base.draws(obs, 6)
    ranked = policy.values(obs, start).sort(0, descending=True).values
    torch.manual_seed(2)
    action, value = policy.candidates(obs)
    torch.testing.assert_close(value, ranked[:3])
    torch.testing.assert_close(policy.values(obs, action), ranked[:3])
    policy.n_climbs = 10
    torch.manual_seed(2)
    climbed = policy.candidates(obs)[1]
    assert (climbed >= ranked[:3] - 1e-6).all()
    assert (climbed > ranked[:3] + 1e-4).any()


@torch.no_grad()
def test_acting_takes_the_candidate_of_highest_value():
    policy, obs = made(), torch.randn(50, OBS)
    torch.manual_seed(2)
    action, value = policy.candidates(obs)
    torch.manual_seed(2)
    found = policy.act(obs).action
    torch.testing.assert_close(policy.values(obs, found.unsqueeze(0))[0], value.amax(0))
    assert torch.equal(policy.act(obs, deterministic=True).action, policy.act(obs, deterministic=True).action)
    assert not torch.equal(policy.act(obs).action, found)
    assert action.shape == (3, 50, ACT)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_at_a_temperature_a_candidate_is_drawn_by_the_softmax_of_its_value(temperature):
    torch.manual_seed(0)
    value = torch.tensor([0.0, 1.0, -1.0])
    share = choice(value.unsqueeze(1).expand(3, 100_000), temperature).bincount(minlength=3) / 100_000
    torch.testing.assert_close(share, (value / temperature).softmax(0), rtol=0, atol=0.01)
    assert (choice(value.unsqueeze(1).expand(3, 4), 0.0) == 1).all()

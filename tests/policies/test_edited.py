"""The choice among base and edited actions: never worse than the base, and the base itself where edits are nothing."""

from typing import Any

import pytest
import torch
from torch import nn

from ctrlrl.nn.ensembles import QEnsemble
from ctrlrl.nn.heads import MLPHead
from ctrlrl.policies.diffusion import ChunkPolicy, FlowProcess
from ctrlrl.policies.edited import EditedPolicy
from ctrlrl.policies.squashed import SquashedGaussianPolicy
from ctrlrl.types import Window

OBS, ACT, WINDOW = 3, 2, Window(1, 1, 1)


class Quadratic(nn.Module):
    """-(a - 0.3)^2 summed over the action, of every critic."""

    n = 1

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.tensor(0.3))

    def forward(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return -(action - self.place).square().sum(-1).unsqueeze(0)

    def of(self, members: torch.Tensor, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return self(obs, action)


def made(critic: Any = None, **settings: Any) -> EditedPolicy:
    torch.manual_seed(0)
    base = ChunkPolicy(OBS, ACT, MLPHead(1, ACT, OBS, hidden=[16], code="times"), FlowProcess("euler", 4), WINDOW)
    edit = SquashedGaussianPolicy(OBS + ACT, ACT, [16])
    critic = QEnsemble(OBS, ACT, [16], n=5) if critic is None else critic
    return EditedPolicy(base, edit, critic, **{"n_samples": 4, "n_edits": 3, "n_min": 5, "scale": 0.3, **settings})


@torch.no_grad()
def test_the_action_is_never_worse_than_any_of_the_bases():
    policy, obs = made(), torch.randn(200, OBS)
    torch.manual_seed(1)
    action = policy.act(obs).action
    torch.manual_seed(1)
    of_base = policy.base.draws(obs, 4)
    members = torch.arange(5)
    value = policy.values(obs, action.unsqueeze(0), members)[0]
    best = policy.values(obs, of_base, members).amax(0)
    assert (value >= best - 1e-6).all()
    assert (value > best + 1e-6).any(), "no edit was ever better"


@torch.no_grad()
def test_one_sample_without_edits_is_the_base_to_the_bit():
    policy, obs = made(n_samples=1, n_edits=0), torch.randn(7, OBS)
    torch.manual_seed(1)
    wanted, after = policy.base.act(obs).action, torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(policy.act(obs).action, wanted)
    assert torch.equal(torch.rand(3), after), "nothing else was drawn"


@torch.no_grad()
def test_edits_of_no_size_are_the_base_to_the_bit():
    policy, obs = made(scale=0.0), torch.randn(7, OBS)
    found = policy.candidates(obs)
    assert torch.equal(found[4:], found[:3])
    single = made(n_samples=1, n_edits=1, scale=0.0)
    torch.manual_seed(1)
    wanted = single.base.act(obs).action
    torch.manual_seed(1)
    assert torch.equal(single.act(obs).action, wanted)


@torch.no_grad()
def test_of_a_known_value_the_nearest_candidate_to_its_top_is_chosen():
    policy, obs = made(Quadratic(), n_min=1), torch.randn(50, OBS)
    torch.manual_seed(2)
    action = policy.act(obs).action
    torch.manual_seed(2)
    candidates = policy.candidates(obs)
    distance = (candidates - 0.3).square().sum(-1)
    wanted = candidates[distance.argmin(0), torch.arange(50)]
    assert torch.equal(action, wanted)


@torch.no_grad()
def test_edits_begin_at_the_first_samples_and_stay_within_scale_and_box():
    policy, obs = made(scale=0.3), torch.randn(400, OBS)
    for net in policy.edit.modules():
        if isinstance(net, nn.Linear):
            net.weight.mul_(20.0)
    found = policy.candidates(obs)
    assert found.shape == (7, 400, ACT)
    assert found.abs().max() <= 1.0
    assert (found[4:] - found[:3]).abs().max() <= 0.3 + 1e-6
    assert (found[4:] - found[1:4]).abs().max() > 0.31
    assert (found[0] != found[1]).any(-1).all(), "the samples are different draws"


@torch.no_grad()
def test_a_temperature_draws_by_the_softmax_of_the_values():
    policy = made(temperature=0.5)
    value = torch.tensor([0.0, 0.5, -1.0]).unsqueeze(1).expand(3, 40_000)
    torch.manual_seed(3)
    shares = policy.choice(value).bincount(minlength=3) / 40_000
    torch.testing.assert_close(shares, torch.tensor([0.0, 1.0, -2.0]).softmax(0), rtol=0, atol=0.01)
    assert (made().choice(value) == 1).all()


@torch.no_grad()
def test_a_few_critics_drawn_anew_judge():
    policy, obs = made(n_min=2), torch.randn(5, OBS)
    action = torch.rand(3, 5, ACT)
    each = torch.stack([policy.critic(obs, a) for a in action], 1)  # [5 critics, 3, 5]
    drawn = set()
    for _ in range(30):
        members = policy.members()
        assert len(set(members.tolist())) == 2
        drawn.add(tuple(sorted(members.tolist())))
        torch.testing.assert_close(policy.values(obs, action, members), each[members].amin(0))
    assert len(drawn) > 5
    torch.testing.assert_close(policy.values(obs, action, None), each.amin(0))


@torch.no_grad()
def test_acting_takes_a_multiple_of_the_candidates_and_may_ask_the_mean_of_all_critics():
    policy, obs = made(n_min=1, act_multiple=3, act_by_mean=True), torch.randn(50, OBS)
    torch.manual_seed(2)
    action = policy.act(obs).action
    torch.manual_seed(2)
    candidates = policy.candidates(obs, multiple=3)
    assert candidates.shape == (3 * (4 + 3), 50, ACT)
    assert policy.candidates(obs).shape == (4 + 3, 50, ACT), "the target's"
    each = torch.stack([policy.critic(obs, a) for a in candidates], 1)  # [5 critics, 21, 50]
    best = each.mean(0).argmax(0)
    assert torch.equal(action, candidates[best, torch.arange(50)])
    assert (best != each.amin(0).argmax(0)).any(), "the mean and the least agree everywhere"


@torch.no_grad()
@pytest.mark.parametrize("act_by_mean", [False, True])
def test_the_deterministic_action_is_the_better_by_the_mean_where_the_mean_is_asked(act_by_mean):
    policy, obs = made(scale=1.0, act_multiple=3, act_by_mean=act_by_mean), torch.randn(400, OBS)
    both = policy.candidates(obs, multiple=3, deterministic=True)
    each = torch.stack([policy.critic(obs, a) for a in both], 1)
    wanted = each.mean(0).argmax(0) if act_by_mean else each.amin(0).argmax(0)
    assert both.shape == (2, 400, ACT)
    assert (each.mean(0).argmax(0) != each.amin(0).argmax(0)).any(), "the mean and the least agree everywhere"
    assert torch.equal(policy.act(obs, deterministic=True).action, both[wanted, torch.arange(400)])


@torch.no_grad()
def test_the_deterministic_action_is_one_and_the_better_of_two():
    policy, obs = made(), torch.randn(20, OBS)
    action = policy.act(obs, deterministic=True).action
    assert torch.equal(policy.act(obs, deterministic=True).action, action)
    both = policy.candidates(obs, deterministic=True)
    assert both.shape == (2, 20, ACT)
    value = policy.values(obs, both, None)
    wanted = torch.where((value[1] > value[0]).unsqueeze(-1), both[1], both[0])
    assert torch.equal(action, wanted)


@torch.no_grad()
def test_the_deterministic_action_of_the_base_is_that_of_noise_0():
    policy, obs = made(n_edits=0), torch.randn(20, OBS)
    base = policy.base
    flow = base.process.sample(base.predictor(obs.unsqueeze(1)), torch.zeros(20, 1, ACT), torch.zeros_like)
    action = policy.act(obs, deterministic=True).action
    assert torch.equal(action, base.action_normalizer.inverse(flow[:, 0]).clamp(-1.0, 1.0))
    assert not torch.allclose(action, base.act(obs, deterministic=True).action)  # from the chunks' fixed noise


@pytest.mark.parametrize("n_edits", [0, 2])
def test_another_head_draws_other_actions(n_edits):
    policy, obs = made(n_edits=n_edits), torch.randn(6, OBS)
    torch.manual_seed(4)
    other = MLPHead(1, ACT, OBS, hidden=[16], code="times")
    found = []
    for head in (None, policy.base.head, other):
        torch.manual_seed(5)
        found.append(policy.candidates(obs, head=head))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])

from dataclasses import fields

import pytest
import torch

from ctrlrl.algos.cql import CalQLConfig, CalQLLearner, CQLConfig, CQLLearner
from ctrlrl.functional.conservative import conservative_gap
from ctrlrl.types import EnvSpec, Transition

N, SAMPLES = 6, 3
SPEC = EnvSpec(3, 2, 0, 1, 1, 100, torch.device("cpu"))
SMALL = {"hidden": [8, 8], "n_samples": SAMPLES, "learning_rate": 1e-2, "critic_learning_rate": 1e-2}


def learner(**changes) -> CalQLLearner:
    torch.manual_seed(0)
    return CalQLLearner(CalQLConfig(**{**SMALL, **changes}), SPEC)


def batch(return_to_go: float) -> Transition:
    g = torch.Generator().manual_seed(1)
    obs, next_obs = torch.randn(2, N, 3, generator=g)
    action = 2.0 * torch.rand(N, 2, generator=g) - 1.0
    bound = torch.full((N,), return_to_go)
    return Transition(obs, action, torch.randn(N, generator=g), next_obs, torch.arange(N) > 3, {"return_to_go": bound})


@pytest.mark.parametrize("target_gap", [None, 0.8])
def test_without_a_bound_it_is_cql_to_the_bit(target_gap):
    ours = learner(target_gap=target_gap)
    settings = {f.name: getattr(ours.cfg, f.name) for f in fields(CQLConfig) if f.name != "name"}
    torch.manual_seed(0)
    theirs = CQLLearner(CQLConfig(**settings), SPEC)
    for each in (ours, theirs):
        torch.manual_seed(3)
        for _ in range(3):
            each.update(batch(-torch.inf))
    for mine, other in ((ours.model_state(), theirs.model_state()), (ours.training_state(), theirs.training_state())):
        assert mine.keys() == other.keys()
        for key in mine:
            assert torch.equal(mine[key], other[key]), key


def test_the_bound_lifts_the_policys_actions_here_and_at_the_next_state_alone():
    q = torch.randn(2, 3 * SAMPLES, N)
    seen = learner().bounded(q, batch(100.0))
    assert torch.equal(seen[:, :SAMPLES], q[:, :SAMPLES])
    assert (seen[:, SAMPLES:] == 100.0).all()


def test_where_the_return_wins_the_penalty_pulls_on_the_data_alone():
    q = torch.randn(2, 3 * SAMPLES, N, requires_grad=True)
    q_data = torch.randn(2, N, requires_grad=True)
    gap = conservative_gap(learner().bounded(q, batch(1e4)), torch.zeros(3 * SAMPLES, N), q_data)
    gap.sum().backward()
    assert not q.grad.any()
    assert (q_data.grad == -1.0).all()


def test_a_bound_in_reach_changes_what_the_critics_learn():
    found = []
    for bound in (-torch.inf, 1.0):
        ours = learner()
        torch.manual_seed(3)
        ours.update(batch(bound))
        found.append(torch.cat([p.detach().reshape(-1) for p in ours.nets.critic.parameters()]))
    assert not torch.equal(*found)


def test_it_asks_the_data_set_for_returns():
    assert CalQLLearner.needs == {"return_to_go"}
    assert CQLLearner.needs == frozenset()

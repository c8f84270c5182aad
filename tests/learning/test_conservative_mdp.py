"""Conservative and flow-based critics on problems whose values are known."""

import pytest
import torch

from ctrlrl.algos.cql import CalQLConfig, CalQLLearner, CQLConfig, CQLLearner
from ctrlrl.algos.fql import FQLConfig, FQLLearner
from ctrlrl.data.table import Dataset
from ctrlrl.types import EnvSpec, Transition

GAMMA = 0.9
SPEC = EnvSpec(2, 1, 0, 1, 1, 0, torch.device("cpu"))
LINEAR = {"hidden": [], "gamma": GAMMA, "tau": 0.1, "batch_size": 64}
FAST = {"critic_learning_rate": 1e-2, "learning_rate": 1e-3, "conservative_coef": 0.0, "n_samples": 2}


def chain(*, terminated: bool) -> Dataset:
    """State 0 pays 1 and leads to state 1, which pays 0 and leads back, or ends the task; actions are idle."""
    n = 512
    state = torch.arange(n) % 2
    one_hot = torch.eye(2)
    return Dataset.of(
        Transition(
            one_hot[state],
            2.0 * torch.rand(n, 1) - 1.0,
            1.0 - state.float(),
            one_hot[1 - state],
            (state == 1) & terminated,
            {"return_to_go": torch.zeros(n)},
        )
    )


@pytest.mark.parametrize("terminated", [False, True])
@pytest.mark.parametrize("algo", ["cql", "calql", "fql"])
def test_critics_recover_the_values_of_a_two_state_chain(algo, terminated):
    if algo == "fql":
        learner = FQLLearner(FQLConfig(**LINEAR, learning_rate=1e-2, flow_steps=1), SPEC)
    elif algo == "cql":
        learner = CQLLearner(CQLConfig(**LINEAR, **FAST), SPEC)
    else:
        learner = CalQLLearner(CalQLConfig(**LINEAR, **FAST), SPEC)
    data = chain(terminated=terminated)
    for _ in range(2000):
        learner.update(data.sample(64))
    first = 1.0 if terminated else 1.0 / (1.0 - GAMMA**2)
    second = 0.0 if terminated else GAMMA * first
    q = learner.nets.critic(torch.eye(2), torch.zeros(2, 1))
    torch.testing.assert_close(q, torch.tensor([[first, second]] * 2), rtol=0, atol=1e-2)


def bandit(n: int = 2048) -> Dataset:
    """One state; the data hold small actions alone, and their reward grows with the action."""
    action = 0.6 * torch.rand(n, 1) - 0.3
    obs = torch.ones(n, 2)
    over = torch.ones(n, dtype=torch.bool)
    return Dataset.of(Transition(obs, action, action.squeeze(-1), obs, over, {"return_to_go": action.squeeze(-1)}))


def trained(coef: float, **changes) -> CQLLearner:
    torch.manual_seed(0)
    cfg = CQLConfig(
        hidden=[32, 32], learning_rate=1e-3, critic_learning_rate=3e-3, conservative_coef=coef, n_samples=4, **changes
    )
    learner, data = CQLLearner(cfg, SPEC), bandit()
    for _ in range(600):
        learner.update(data.sample(64))
    return learner


def test_the_penalty_values_actions_off_the_data_below_those_on_it_and_the_policy_stays():
    free, bound = trained(0.0), trained(1.0)
    obs = torch.ones(1, 2)

    def value(learner, action):
        return learner.nets.critic(obs, torch.tensor([[action]])).mean().item()

    assert value(free, 1.0) > value(free, 0.0)  # the reward's slope, carried on beyond the data
    assert value(bound, 1.0) < value(bound, 0.0) - 0.5
    assert value(bound, -1.0) < value(bound, 0.0) - 0.5
    assert free.act(obs, deterministic=True).action.item() > 0.7
    assert abs(bound.act(obs, deterministic=True).action.item()) < 0.5


def test_a_learned_weight_brings_the_gap_to_its_target():
    learner, data = trained(1.0, target_gap=2.5), bandit()
    gap = sum(learner.update(data.sample(64))["value/gap"].item() for _ in range(100)) / 100
    assert gap == pytest.approx(2.5, abs=0.3)


def test_fql_keeps_to_the_better_of_two_modes():
    torch.manual_seed(0)
    n = 2048
    side = torch.where(torch.rand(n, 1) < 0.5, -0.6, 0.6)
    action = side + 0.05 * torch.randn(n, 1)
    obs, over = torch.ones(n, 2), torch.ones(n, dtype=torch.bool)
    data = Dataset.of(Transition(obs, action, (action.squeeze(-1) > 0).float(), obs, over, {}))
    learner = FQLLearner(FQLConfig(hidden=[64, 64], learning_rate=1e-3, alpha=1.0, normalize_q=True), SPEC)
    for _ in range(1000):
        learner.update(data.sample(128))
    acted = learner.act(torch.ones(1000, 2)).action
    assert (acted > 0.3).float().mean() > 0.9  # the data's share is 0.5

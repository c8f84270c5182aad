"""Conservative and flow-based critics on problems whose values are known."""

import pytest
import torch

from ctrlrl.algos.cql import CQLConfig, CQLLearner
from ctrlrl.algos.fql import FQLConfig, FQLLearner
from ctrlrl.data.dataset import Dataset
from ctrlrl.types import EnvSpec, Transition

GAMMA = 0.9
CHAINS, SPEC = (EnvSpec(n, 1, 0, 1, 1, 0, torch.device("cpu")) for n in (4, 2))
LINEAR = {"hidden": [], "gamma": GAMMA, "tau": 0.3}


def chains() -> Dataset:
    """The first state pays 1 and leads to the second, which pays 0 and ends the task (0, 1) or leads back (2, 3)."""
    n = 512
    state = torch.arange(n) % 4
    one_hot = torch.eye(4)
    action, reward = 2.0 * torch.rand(n, 1) - 1.0, 1.0 - (state % 2).float()
    return Dataset.of(Transition(one_hot[state], action, reward, one_hot[state ^ 1], state == 1, {}))


@pytest.mark.parametrize("algo", ["cql without its penalty", "fql"])
def test_critics_recover_the_values_of_two_chains(algo):
    learner: CQLLearner | FQLLearner
    if algo == "fql":
        learner = FQLLearner(FQLConfig(**LINEAR, learning_rate=5e-2, flow_steps=1), CHAINS)
    else:
        cfg = CQLConfig(**LINEAR, critic_learning_rate=5e-2, learning_rate=1e-3, conservative_coef=0.0, n_samples=2)
        learner = CQLLearner(cfg, CHAINS)
    data = chains()
    for i in range(600):
        learner.opt["critic"].learning_rate.fill_(0.05 * min(1.0, 2.0 * (1.0 - i / 600)))
        learner.update(data.sample(64))
    endless = 1.0 / (1.0 - GAMMA**2)
    exact = torch.tensor([[1.0, 0.0, endless, GAMMA * endless]] * 2)
    q = learner.nets.critic(torch.eye(4), torch.zeros(4, 1))
    torch.testing.assert_close(q, exact, rtol=0, atol=1e-2)


def test_the_penalty_values_actions_off_the_data_below_those_on_it_and_keeps_the_policy_there():
    action = 0.6 * torch.rand(2048, 1) - 0.3  # small actions alone; the reward is the action
    obs, over = torch.ones(2048, 2), torch.ones(2048, dtype=torch.bool)
    data = Dataset.of(Transition(obs, action, action.squeeze(-1), obs, over, {}))

    def trained(coef: float) -> tuple[list[float], float]:
        torch.manual_seed(0)
        cfg = CQLConfig(hidden=[32], learning_rate=3e-3, critic_learning_rate=1e-2, conservative_coef=coef, n_samples=4)
        learner = CQLLearner(cfg, SPEC)
        for _ in range(200):
            learner.update(data.sample(64))
        q = learner.nets.critic(torch.ones(3, 2), torch.tensor([[-1.0], [0.0], [1.0]])).mean(0)
        return q.tolist(), learner.act(torch.ones(1, 2), deterministic=True).action.item()

    (_, centre, right), acted = trained(0.0)
    assert right > centre + 0.5  # the reward's slope, carried on beyond the data
    assert acted > 0.5
    (left, centre, right), acted = trained(1.0)
    assert max(left, right) < centre - 1.0
    assert abs(acted) < 0.3


def test_fql_clones_both_modes_of_the_data_or_keeps_to_the_better_one():
    n = 2048
    side = torch.where(torch.rand(n, 1) < 0.5, -0.6, 0.6)
    action = side + 0.05 * torch.randn(n, 1)
    obs, over = torch.ones(n, 2), torch.ones(n, dtype=torch.bool)
    data = Dataset.of(Transition(obs, action, (action.squeeze(-1) > 0).float(), obs, over, {}))

    def acted(alpha: float) -> torch.Tensor:
        cfg = FQLConfig(hidden=[32, 32], learning_rate=3e-3, alpha=alpha, normalize_q=True, flow_steps=5)
        learner = FQLLearner(cfg, SPEC)
        for _ in range(200):
            learner.update(data.sample(64))
        return learner.act(torch.ones(1000, 2)).action

    cloned, improved = acted(1000.0), acted(0.3)
    assert min((cloned > 0.3).float().mean(), (cloned < -0.3).float().mean()) > 0.1
    assert (improved > 0.3).float().mean() > 0.9  # the data's share is 0.5

"""`policy_tau`: the policy that acts follows the trained one, which learns as it would alone."""

import pytest
import torch
from by_hand import made, noise_rows, weights
from gymnasium import spaces

from ctrlrl.deployed import Deployed
from ctrlrl.types import Transition

CASES = pytest.mark.parametrize(
    ("algo", "settings"),
    [("iql", {}), ("iql", {"joint": True, "deterministic_policy": True}), ("cql", {}), ("calql", {"n_samples": 2})],
)


def batches(n: int) -> list[Transition]:
    found = [noise_rows(16, 3, 2, seed=i) for i in range(n)]
    return [batch._replace(extras=batch.extras | {"return_to_go": batch.reward}) for batch in found]


def learned(algo: str, n: int, **settings: object):
    """After n updates, and the trained policy's weights before the first and after each."""
    learner = made(algo, 3, 2, hidden=[8], **settings)
    name = "trained" if settings.get("policy_tau") is not None else "policy"
    path = [weights(learner, name)]
    for batch in batches(n):
        learner.update(batch)
        path.append(weights(learner, name))
    return learner, path


@CASES
def test_the_trained_policy_learns_as_it_does_alone_and_the_one_that_acts_follows(algo, settings):
    plain, path = learned(algo, 5, **settings)
    learner, averaged = learned(algo, 5, policy_tau=0.25, **settings)
    assert all(torch.equal(a, b) for a, b in zip(path, averaged, strict=True))
    expected = path[0]
    for after in path[1:]:
        expected = 0.75 * expected + 0.25 * after
    torch.testing.assert_close(weights(learner, "policy"), expected, rtol=1e-6, atol=1e-8)
    assert set(learner.nets.state_dict()) > set(plain.nets.state_dict())


@CASES
def test_acting_is_the_averages(algo, settings):
    learner, path = learned(algo, 3, policy_tau=0.0, **settings)
    fresh = made(algo, 3, 2, hidden=[8], **settings)
    obs = torch.randn(6, 3)
    assert not torch.equal(path[0], path[-1])
    assert torch.equal(learner.act(obs, deterministic=True).action, fresh.act(obs, deterministic=True).action)


@CASES
def test_a_state_put_back_goes_on_bit_for_bit(algo, settings):
    learner, _ = learned(algo, 3, policy_tau=0.1, **settings)
    other = made(algo, 3, 2, hidden=[8], policy_tau=0.1, seed=7, **settings)
    other.load_model_state(learner.model_state())
    other.load_training_state(learner.training_state())
    for each in (learner, other):
        torch.manual_seed(1)
        each.update(batches(4)[3])
    assert all(torch.equal(a, b) for a, b in zip(learner.nets.parameters(), other.nets.parameters(), strict=True))


@pytest.mark.parametrize("algo", ["iql", "calql"])
def test_a_rate_beyond_one_is_refused(algo):
    with pytest.raises(ValueError, match="policy_tau must lie in"):
        made(algo, 3, policy_tau=1.5)


def test_the_rate_changes_and_an_average_neither_begins_nor_ends_between_updates():
    learner, _ = learned("iql", 1, policy_tau=0.1)
    learner.set_hyper("policy_tau", 1.0)
    learner.update(batches(1)[0])
    torch.testing.assert_close(weights(learner, "policy"), weights(learner, "trained"))
    with pytest.raises(ValueError, match="settled at the start"):
        learner.set_hyper("policy_tau", None)
    with pytest.raises(ValueError, match="settled at the start"):
        made("iql", 3).set_hyper("policy_tau", 0.1)


def test_dropout_is_the_trained_policys_whatever_acted_before():
    learner = made("iql", 3, 2, hidden=[8], policy_dropout=0.5, policy_tau=0.1)
    learner.nets.eval()
    learner.update(batches(1)[0])
    assert learner.nets.trained.training
    obs = torch.randn(6, 3)
    assert torch.equal(*(learner.act(obs, deterministic=True).action for _ in range(2)))


def test_the_average_is_what_is_deployed():
    learner, _ = learned("iql", 3, policy_tau=0.1)
    deployed = Deployed(learner, spaces.Box(-9.0, 9.0, (3,)), spaces.Box(-1.0, 1.0, (2,)))
    obs = torch.randn(6, 3)
    torch.testing.assert_close(deployed(obs), learner.act(obs, deterministic=True).action)

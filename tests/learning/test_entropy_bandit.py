"""The soft optimum of a one-step bandit in closed form: with reward c * log p(a), the policy of temperature c is p."""

import math
from typing import Any

import pytest
import torch

from ctrlrl.functional.distributions import tanh_gaussian_log_prob
from ctrlrl.loops import make_learner
from ctrlrl.registry import ALGORITHMS, lookup
from ctrlrl.types import EnvSpec, Transition

MEAN, STD, SCALE = 0.4, 0.5, 0.2
SPEC = EnvSpec(1, 1, 0, 1, 1, 1, torch.device("cpu"))
SMALL: dict[str, Any] = {"hidden": [32], "learning_rate": 3e-3, "batch_size": 128, "tau": 0.05}
OWN: dict[str, dict[str, Any]] = {"sac": {}, "rlpd": {"policy_delay": 1, "n_critics": 3, "initial_temperature": 1.0}}


def density(action: torch.Tensor) -> torch.Tensor:
    mean = torch.full_like(action, MEAN)
    return tanh_gaussian_log_prob(action, mean, torch.full_like(action, math.log(STD)))


def entropy() -> float:
    """Of p, by quadrature."""
    action = torch.linspace(-0.99999, 0.99999, 200_001, dtype=torch.float64).unsqueeze(1)
    log_p = density(action)
    return float(-(log_p.exp() * log_p).mean() * 2.0)


def learned(algo: str, updates: int, **settings: Any) -> Any:
    """From uniform actions alone: what the policy is worth is known everywhere."""
    torch.manual_seed(0)
    kind = lookup(ALGORITHMS, algo, "algorithm")
    learner: Any = make_learner(kind.config(**{**SMALL, **OWN[algo], **settings}), SPEC)
    for _ in range(updates):
        action = 1.998 * torch.rand(128, 1) - 0.999
        obs, ends = torch.ones(128, 1), torch.ones(128, dtype=torch.bool)
        learner.update(Transition(obs, action, SCALE * density(action), obs, ends, {}))
    return learner


@pytest.mark.parametrize("algo", ["sac", pytest.param("rlpd", marks=pytest.mark.slow)])
def test_a_learned_temperature_and_the_policy_find_the_soft_optimum(algo):
    learner = learned(algo, 1500, target_entropy=entropy())
    mean, log_std = (x.detach() for x in learner.nets.policy(torch.ones(1, 1)))
    assert float(mean) == pytest.approx(MEAN, abs=0.08)
    assert float(log_std.exp()) == pytest.approx(STD, abs=0.08)
    assert float(learner.nets.log_temperature().detach().exp()) == pytest.approx(SCALE, abs=0.04)


def test_a_fixed_temperature_of_twice_the_scale_spreads_the_policy():
    """Then p to the power 1/2 is the optimum, which is wider."""
    learner = learned("sac", 800, ent_coef=2.0 * SCALE)
    _, log_std = learner.nets.policy(torch.ones(1, 1))
    assert float(log_std.detach().exp()) > 1.2 * STD

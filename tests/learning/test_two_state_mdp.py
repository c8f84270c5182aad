"""Off-policy methods where the values are known: chains of two states, a reward in each, linear critics on one-hots.

The first state leads to the second and pays 1, the second pays 2. In one chain the task ends there; in the other the
clock does while the state stays: a time-out, after which the same 2 would have come for ever. Actions change nothing,
and data hold all of them.
"""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ctrlrl.registry import ALGORITHMS, lookup
from ctrlrl.types import EnvSpec, HybridBatch, Transition

GAMMA = 0.5
SPEC = EnvSpec(4, 1, 0, 1, 1, 0, torch.device("cpu"))
METHODS: dict[str, dict[str, Any]] = {
    "td3bc": {},
    "iql": {},
    "iql joint": {"joint": True},
    "rebrac": {"critic_bc_coef": 0.0},  # its penalty is part of the value
    "awac": {},
    "prdc": {},
    "a2pr": {"critic_hidden": [], "vae_hidden": [8]},
    "calql": {"conservative_coef": 0.0, "critic_learning_rate": 0.05, "n_samples": 2},
    "sac": {"ent_coef": 0.0},  # an entropy's worth is part of the value
    "td3": {},
    "rlpd": {"backup_entropy": False},
    "h2o": {"conservative_coef": 0.0, "batch_size": 64, "discriminator_batch_size": 64},
    "expo": {"base_hidden": [8], "n_samples": 2, "n_edits": 1},
    "parl": {"base_hidden": [8], "n_samples": 2, "n_kept": 1, "n_uniform": 1, "conservative_coef": 0.0}
    | {"critic_learning_rate": 0.05, "n_climbs": 1, "base_n_levels": 2, "base_sampling_steps": 2},
}
SHARED = {"hidden": [], "gamma": GAMMA, "tau": 0.1, "learning_rate": 0.05, "normalize_obs": False}
UPDATES = 400


def chains(n: int = 16) -> Transition:
    """n rows of each state, 0 and 1 of the chain that ends, 2 and 3 of the other; actions evenly over the box."""
    state = torch.arange(4).repeat(n)
    action = torch.linspace(-1.0, 1.0, n).repeat_interleave(4)[:, None]
    reward = 1.0 + state % 2
    extras = {"next_action": action.flip(0), "index": torch.arange(4 * n), "return_to_go": reward}
    return Transition(one_hot(state), action, reward, one_hot(state | 1), state == 1, extras)


def one_hot(state: torch.Tensor) -> torch.Tensor:
    return F.one_hot(state, 4).float()


def learned(method: str, data: Transition) -> Any:
    torch.manual_seed(0)
    kind = lookup(ALGORITHMS, method.split()[0], "algorithm")
    known = {f.name for f in dataclasses.fields(kind.config)}
    learner = kind(kind.config(**{k: v for k, v in SHARED.items() if k in known}, **METHODS[method]), SPEC)
    learner.prefit(data)
    rows = HybridBatch(data, data) if method == "h2o" else data  # a simulator that is as the data are
    for update in range(UPDATES):
        rate = 0.05 * min(1.0, 2.0 * (1.0 - update / UPDATES))  # Adam at a constant rate would go on trembling
        for name in ("critic", "value"):
            if name in learner.opt:
                learner.opt[name].learning_rate.fill_(rate)
        learner.update(rows)
    return learner


@pytest.mark.parametrize("method", METHODS)
def test_the_values_of_two_chains(method):
    data = chains()
    learner = learned(method, data)
    endless = 2.0 / (1.0 - GAMMA)
    exact = data.obs @ torch.tensor([1.0 + GAMMA * 2.0, 2.0, 1.0 + GAMMA * endless, endless])
    critic = learner.nets.policy.critic if method == "parl" else learner.nets.critic
    with torch.no_grad():
        for q in critic(data.obs, data.action):
            assert (q - exact).abs().max() < 1e-2
        if "value" in learner.opt:
            assert (learner.nets.value(data.obs) - exact).abs().max() < 1e-2


def test_rebracs_penalty_lowers_the_value_by_what_it_says():
    # the data's next action is 0.6; a policy held at 0 pays coef * 0.36 a step, but for the step that ends the task
    data = chains()
    data.extras["next_action"].fill_(0.6)
    kind = lookup(ALGORITHMS, "rebrac", "algorithm")
    torch.manual_seed(0)
    learner = kind(kind.config(**SHARED, critic_bc_coef=0.5, target_noise=0.0), SPEC)
    learner.opt["policy"].learning_rate.fill_(0.0)
    with torch.no_grad():
        for name in ("policy", "target_policy"):
            for p in getattr(learner.nets, name).parameters():
                p.zero_()
    for update in range(UPDATES):
        learner.opt["critic"].learning_rate.fill_(0.05 * min(1.0, 2.0 * (1.0 - update / UPDATES)))
        learner.update(data)
    endless = (2.0 - GAMMA * 0.18) / (1.0 - GAMMA)
    exact = [1.0 + GAMMA * (2.0 - 0.18), 2.0, 1.0 + GAMMA * (endless - 0.18), endless]
    with torch.no_grad():
        q = learner.nets.critic(one_hot(torch.arange(4)), torch.zeros(4, 1)).mean(0)
    assert q.tolist() == pytest.approx(exact, abs=1e-2)

"""Multi-timescale PPO where the values are known: take 1 now, or walk for 3 later. A short horizon takes the 1."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ctrlrl.envs.sim import BatchedSim, Sim
from ctrlrl.loops import make_learner, on_policy_loop
from ctrlrl.registry import ALGORITHMS, lookup

LENGTH, LATE = 5, 3.0


class Place(NamedTuple):
    position: Tensor  # [B], 0 ... LENGTH - 1


class Corridor(Sim):
    """At position 0, action 1 pays 1 and ends; all else moves on, and the last step pays 3."""

    obs_dim, action_dim, n_actions, episode_length, n_random = LENGTH, 0, 2, 0, 1

    def init(self, noise: Tensor) -> Place:
        return Place(torch.zeros_like(noise[:, 0]))

    def step(self, state: Place, action: Tensor) -> tuple[Place, Tensor, Tensor]:
        taken = (state.position == 0) & (action == 1)
        arrived = ~taken & (state.position == LENGTH - 1)
        reward = taken.float() + LATE * arrived.float()
        return Place((state.position + 1).clamp(max=LENGTH - 1)), reward, taken | arrived

    def observe(self, state: Place) -> Tensor:
        return torch.nn.functional.one_hot(state.position.long(), LENGTH).float()


def learned(algo: str, **settings: Any) -> Any:
    shared = {"n_steps": 16, "n_minibatches": 2, "n_epochs": 4, "learning_rate": 0.02, "lr_schedule": "linear"}
    torch.manual_seed(0)
    env = BatchedSim(Corridor(), 64, seed=0)
    kind = lookup(ALGORITHMS, algo, "algorithm")
    learner = make_learner(kind.config(**shared, hidden=[], max_grad_norm=10.0, gae_lambda=1.0, **settings), env.spec)
    loop = on_policy_loop(learner, env, total_steps=60 * 16 * 64, seed=0, staggered=False)
    while not loop.done:
        loop.iterate()
    return learner


def walks(learner: Any) -> bool:
    return int(learner.act(torch.eye(LENGTH)[:1], deterministic=True).action) == 0


def test_the_actor_follows_its_own_discount_and_every_head_learns_its_own_values():
    learner = learned("mtppo", gamma=0.99, aux_gammas=[0.5, 0.9])
    assert walks(learner)
    value = learner.value(torch.eye(LENGTH))
    left = torch.arange(LENGTH - 1, -1, -1)  # steps to the last one
    expected = torch.stack([LATE * gamma**left for gamma in (0.5, 0.9, 0.99)], -1)
    assert torch.allclose(value, expected, atol=0.05)


@pytest.mark.parametrize("algo", ["ppo", "mtppo"])
def test_a_short_horizon_takes_what_there_is_now_whatever_the_other_heads_see(algo):
    """0.5^4 x 3 = 0.19 < 1; the heads of 0.9 and 0.99 say 1.97 and 2.88."""
    assert not walks(learned(algo, gamma=0.5, **({"aux_gammas": [0.9, 0.99]} if algo == "mtppo" else {})))

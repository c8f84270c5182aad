"""The loop's counters, its episode statistics, and what it refuses to learn from."""

import pytest
import torch
from torch import Tensor

from ctrlrl.algos.ppo import PPOConfig, PPOLearner
from ctrlrl.envs.classic import CartPole
from ctrlrl.envs.sim import BatchedSim
from ctrlrl.train.on_policy import OnPolicyLoop
from ctrlrl.types import TimeStep

CONFIG = {"n_steps": 8, "n_minibatches": 2, "n_epochs": 2, "hidden": [8]}


def loop_of(env: BatchedSim, *, staggered: bool = False, total_steps: int = 10_000) -> OnPolicyLoop:
    learner = PPOLearner(PPOConfig(**CONFIG), env.spec)  # type: ignore[arg-type]
    return OnPolicyLoop(learner, env, n_steps=8, total_steps=total_steps, seed=0, staggered=staggered)


class Broken(BatchedSim):
    """Gives one bad number in lane 2 at step `at`."""

    def __init__(self, where: str, value: float, at: int = 12) -> None:
        super().__init__(CartPole(), 4, seed=0, stagger=False, episode_length=5)
        self.where, self.value, self.at, self.steps = where, value, at, 0

    def step(self, action: Tensor) -> TimeStep:
        out = super().step(action)
        self.steps += 1
        if self.where == "final_obs":  # only the last observation of a truncated episode
            if out.truncated[2]:
                bad = out.final_obs.clone()
                bad[2, 0] = self.value
                return out._replace(final_obs=bad)
            return out
        if self.steps == self.at:
            bad = getattr(out, self.where).clone()
            bad[2] = self.value
            return out._replace(**{self.where: bad})
        return out


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("where", "named", "after"), [("obs", "observation", 48), ("reward", "reward", 44)])
def test_a_number_that_is_not_finite_stops_training_before_it_reaches_the_weights(where, named, after, value):
    loop = loop_of(Broken(where, value))
    loop.iterate()  # steps 1 to 8 are fine
    before = loop.learner.opt["actor_critic"].flat.detach().clone()
    with pytest.raises(ValueError, match=rf"non-finite {named} \({value}\) in lane 2 after about {after} ") as info:
        loop.iterate()
    assert "\n" not in str(info.value)
    assert loop.env_steps == 32
    assert torch.equal(loop.learner.opt["actor_critic"].flat, before)


@pytest.mark.parametrize(("where", "at"), [("final_obs", 5), ("obs", 8)])
def test_an_observation_that_only_bootstraps_is_checked_as_well(where, at):
    """That of a truncation, and the one after the last step of a rollout: neither is stored."""
    loop = loop_of(Broken(where, float("nan"), at))
    before = loop.learner.opt["actor_critic"].flat.detach().clone()
    with pytest.raises(ValueError, match=r"non-finite next observation \(nan\) in lane 2"):
        loop.iterate()
    assert torch.equal(loop.learner.opt["actor_critic"].flat, before)


def test_large_finite_numbers_are_no_reason_to_stop():
    env = BatchedSim(CartPole(), 4, seed=0)
    loop = loop_of(env)
    rollout = loop.collector.collect()
    huge = torch.full_like(rollout.reward, 3e38)  # its sum overflows float32
    loop._check_finite(rollout._replace(reward=huge))


def test_an_iteration_counts_its_environment_and_gradient_steps():
    loop = loop_of(BatchedSim(CartPole(), 4, seed=0), total_steps=65)
    n = 0
    while not loop.done:
        loop.iterate()
        n += 1
    assert n == 3  # whole rollouts of 32 steps
    assert loop.env_steps == 96
    assert loop.gradient_steps == 3 * 2 * 2


def test_the_training_return_is_that_of_whole_episodes():
    """CartPole pays 1 a step, so return = length, whatever the policy; a staggered first episode would not be 7."""
    loop = loop_of(BatchedSim(CartPole(), 16, seed=0, episode_length=7), staggered=True)
    assert loop.episode_metrics() == {}
    for _ in range(6):
        loop.iterate()
    found = loop.episode_metrics()
    assert found["rollout/return"] == found["rollout/length"] == 7.0  # no pole falls within 7 steps
    assert found["rollout/episodes"] > 50


def test_the_training_return_forgets_old_episodes():
    loop = loop_of(BatchedSim(CartPole(), 16, seed=0, episode_length=5))
    for _ in range(40):
        loop.iterate()
    assert 100 <= loop.episode_metrics()["rollout/episodes"] <= 100 + 16 * 2


def test_a_diverged_policy_is_not_blamed_on_the_environment():
    env = BatchedSim(CartPole(), 4, seed=0)
    learner = PPOLearner(PPOConfig(n_steps=4, n_minibatches=1, n_epochs=1), env.spec)
    loop = OnPolicyLoop(learner, env, n_steps=4, total_steps=10**6, seed=0, staggered=False)
    learner.opt["actor_critic"].flat.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="training diverged"):
        loop.iterate()

"""Goals in a policy's condition, against a network that repeats what it was told; guidance to the bit."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ctrlrl.policies.edm import EDMProcess
from ctrlrl.policies.goals import GoalPolicy, Goals, goals_of
from ctrlrl.types import EnvSpec, ObsPart, Window

PARTS = (ObsPart("achieved_goal", (2,)), ObsPart("desired_goal", (2,)), ObsPart("observation", (3,)))
SPEC = EnvSpec(7, 2, 0, 1, 1, 100, torch.device("cpu"), obs_parts=PARTS)
FLAT = EnvSpec(7, 2, 0, 1, 1, 100, torch.device("cpu"))
ASKED = Goals([0, 1], [2, 3], 2, [])
TOLD = (2 + 3) * 8  # two goals, three observations, of seven numbers and a flag


class Random(nn.Module):
    """A fixed random function of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.of_told, self.of_x = torch.randn(TOLD, 6), torch.randn(6, 6)

    def context(self, condition: Tensor) -> Tensor:
        return condition @ self.of_told

    def at(self, x: Tensor, level: float, context: Tensor) -> Tensor:
        return torch.sin(x.flatten(1) @ self.of_x + context + level).view_as(x)


def policy(goals: Goals = ASKED, guidance: float = 1.0) -> Any:
    torch.manual_seed(0)
    process = EDMProcess("ddim", 3, "linear", 0.05, 1.0, 0.5)
    return GoalPolicy(7, 2, Random(), process, Window(3, 3, 1), goals=goals, guidance=guidance).eval()


def observations(n: int = 4) -> Tensor:
    return torch.randn(n, 3, 7, generator=torch.Generator().manual_seed(1))


def states(policy: Any, obs: Tensor, goals: Tensor | None = None) -> Tensor:
    """What the network is told, as states [n, G + n_obs, O + 1]."""
    return policy.condition(obs, goals).unflatten(1, (5, 8))


def test_guidance_of_one_is_the_conditional_policy_and_of_zero_the_goal_free_one_to_the_bit():
    obs = observations()
    conditional, free = policy(), policy()
    conditional.predictor = lambda seen, head=None: _under(conditional, seen, conditional.goal_of(seen))
    free.predictor = lambda seen, head=None: _under(free, seen, None)
    for guidance, wanted in ((1.0, conditional), (0.0, free)):
        found = policy(guidance=guidance).sample(obs, deterministic=True)
        assert torch.equal(found, wanted.sample(obs, deterministic=True))
    assert not torch.equal(conditional.sample(obs, deterministic=True), free.sample(obs, deterministic=True))


def _under(policy: Any, obs: Tensor, goals: Tensor | None) -> Any:
    context = policy.head.context(policy.condition(obs, goals))
    return lambda x, level: policy.head.at(x, level, context)


def test_stronger_guidance_goes_as_much_further_along_the_difference_of_the_denoised_data():
    obs, x = observations(), torch.randn(4, 3, 2)
    free, conditional, strong = (policy(guidance=g).predictor(obs)(x, 0.5) for g in (0.0, 1.0, 2.5))
    torch.testing.assert_close(strong, free + 2.5 * (conditional - free))


def test_the_network_is_asked_as_often_as_the_policy_says():
    for goals, guidance in ((ASKED, 0.0), (ASKED, 1.0), (ASKED, 2.0), (Goals([0, 1], [], 2, []), 2.0)):
        made, asked = policy(goals, guidance), []
        at = made.head.at
        made.head.at = lambda x, level, told, at=at, asked=asked: asked.append(level) or at(x, level, told)
        made.predictor(observations())(torch.randn(4, 3, 2), 0.5)
        assert len(asked) == made.n_asked, (goals, guidance)


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_a_network_that_is_not_needed_leaks_nothing(guidance):
    """Not even a NaN."""
    made = policy(guidance=guidance)
    at, bad = made.head.at, made.head.context(made.condition(observations(), _goals_of_other(made, guidance)))
    made.head.at = lambda x, level, told: at(x, level, told) * (float("nan") if torch.equal(told, bad) else 1.0)  # type: ignore[method-assign]
    assert made.sample(observations()).isfinite().all()


def _goals_of_other(made: Any, guidance: float) -> Tensor | None:
    return None if guidance == 1.0 else made.goal_of(observations())


def test_the_task_s_goal_is_told_in_the_columns_of_what_is_achieved_and_hidden_where_it_was_asked():
    made, obs = policy(), observations()
    told = states(made, obs, made.goal_of(obs))
    for g in (0, 1):
        assert torch.equal(told[:, g, :2], obs[:, -1, 2:4]), "the present observation's"
        assert torch.equal(told[:, g, 2:], torch.tensor([0.0, 0, 0, 0, 0, 1]).expand(4, -1))
    assert torch.equal(told[:, 2:, :2], obs[..., :2])
    assert torch.equal(told[:, 2:, 2:4], torch.zeros(4, 3, 2))
    assert torch.equal(told[:, 2:, 4:7], obs[..., 4:])
    assert torch.equal(told[:, 2:, 7], torch.zeros(4, 3))


def test_goals_are_in_the_units_of_what_is_achieved():
    made, obs = policy(), observations()
    made.obs_normalizer.fit(torch.tensor([[0.0, -5, 7, 7, 0, 0, 0], [10.0, 5, 9, 9, 1, 1, 1]]))
    obs[:, -1, 2:4] = torch.tensor([10.0, 0.0])
    torch.testing.assert_close(made.goal_of(obs)[:, 0, :2], torch.tensor([1.0, 0.0]).expand(4, -1))


def test_a_later_observation_becomes_the_goal_that_asking_for_it_makes():
    made, obs, later = policy(), observations(), torch.randn(4, 2, 7)
    later[:, 1] = later[:, 0]
    obs[:, -1, 2:4] = later[:, 0, :2]
    assert torch.equal(made.as_goals(later), made.goal_of(obs))


def test_no_goal_is_all_zeros_and_no_place_is():
    made, obs = policy(), observations()
    assert torch.equal(states(made, obs)[:, :2], torch.zeros(4, 2, 8))
    assert made.as_goals(torch.zeros(4, 2, 7)).abs().sum() == 8.0, "the middle of all ranges is a place like others"


def test_a_goal_that_is_given_takes_the_place_of_the_task_s():
    made, obs = policy(Goals([5, 4], [2, 3], 2, [0.3, -0.2])), observations()
    wanted = torch.tensor([0, 0, 0, 0, -0.2, 0.3, 0, 1.0])
    assert torch.equal(made.goal_of(obs), wanted.expand(4, 2, -1))


def test_without_any_goal_the_goal_free_policy_acts_whatever_the_guidance():
    none = Goals([0, 1], [], 2, [])
    found = [policy(none, g).sample(observations(), deterministic=True) for g in (0.0, 1.0, 2.0)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_only_the_last_action_of_the_window_is_executed():
    made = policy()
    made.sample = lambda obs, deterministic: torch.arange(3.0).view(1, 3, 1).expand(4, 3, 2) / 4.0
    memory = None
    for _ in range(2):
        out, memory = made.act_in_episode(torch.randn(4, 7), memory, None)
        assert torch.equal(out.action, torch.full((4, 2), 0.5))


def test_what_a_goal_is_comes_from_the_task_or_the_settings():
    assert goals_of(SPEC, columns=[], asked=[], n=1, given=[]) == Goals([0, 1], [2, 3], 1, [])
    assert goals_of(SPEC, columns=[6, 4], asked=[], n=2, given=[1.0, 2.0]) == Goals([6, 4], [2, 3], 2, [1.0, 2.0])
    assert goals_of(FLAT, columns=[], asked=[], n=1, given=[]) == Goals(list(range(7)), [], 1, [])
    assert goals_of(FLAT, columns=[3], asked=[5], n=1, given=[]) == Goals([3], [5], 1, [])
    assert goals_of(FLAT, columns=[3], asked=[], n=1, given=[0.5]) == Goals([3], [], 1, [0.5])


def test_numbers_that_clash_are_refused_together():
    with pytest.raises(ValueError, match=r"goal_columns=\[7\]: an observation has the numbers 0 ... 6"):
        goals_of(FLAT, columns=[7], asked=[], n=1, given=[])
    with pytest.raises(ValueError, match=r"asked_columns=\[-1\]: an observation has the numbers 0 ... 6"):
        goals_of(FLAT, columns=[1], asked=[-1], n=1, given=[])
    with pytest.raises(ValueError, match=r"what is asked for has 2 numbers, algo.goal_columns=\[0, 1, 4\] 3"):
        goals_of(SPEC, columns=[0, 1, 4], asked=[], n=1, given=[])
    with pytest.raises(ValueError, match=r"algo.goal has 3 numbers, algo.goal_columns=\[0, 1\] 2"):
        goals_of(SPEC, columns=[], asked=[], n=1, given=[1.0, 2.0, 3.0])

"""GPC: the weights that are tried and which one wins, what a composed learner is, and settings of its parents."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from ctrlrl.algos.bc import BCConfig
from ctrlrl.algos.beso import BESOConfig
from ctrlrl.algos.generative_bc import DiffusionConfig, FlowConfig
from ctrlrl.algos.gpc import GPCConfig, GPCLearner, Score, best
from ctrlrl.loops import make_learner
from ctrlrl.types import EnvSpec, Transition

SPEC = EnvSpec(3, 2, 0, 1, 1, 200, torch.device("cpu"))
SMALL: dict[str, Any] = {"hidden": [16], "horizon": 4, "n_action_steps": 2, "sampling_steps": 3}


def rows(n: int = 64, *, low: float = -0.5) -> Transition:
    obs, action = torch.randn(n, 3), torch.rand(n, 2) - 0.5
    action[0], action[1] = low, 0.5
    return Transition(obs, action, torch.zeros(n), obs, torch.zeros(n, dtype=torch.bool), {})


def parent(kind: Any = DiffusionConfig, spec: EnvSpec = SPEC, data: Transition | None = None, **changes: Any) -> Any:
    learner = make_learner(kind(**{**SMALL, **changes}), spec)
    if data is not None:
        learner.prefit(data)
    return learner


def pair(**changes: Any) -> list[tuple[str, Any]]:
    return [("runs/a", parent()), ("runs/b", parent(FlowConfig))]


# Weights --------------------------------------------------------------------------------------------------------------


def test_a_search_tries_the_tenths_of_two_and_the_simplex_of_three():
    two = GPCConfig(weight="search").tried(2)
    assert two == [[pytest.approx(i / 10), pytest.approx(1 - i / 10)] for i in range(11)]
    assert two[0] == [0.0, 1.0]
    assert two[-1] == [1.0, 0.0]
    three = GPCConfig(weight="search", grid=[0.0, 0.5, 1.0]).tried(3)
    assert three == [[0, 0, 1], [0, 0.5, 0.5], [0, 1, 0], [0.5, 0, 0.5], [0.5, 0.5, 0], [1, 0, 0]]
    assert all(sum(weights) == pytest.approx(1.0, abs=1e-6) for weights in GPCConfig(weight="search").tried(4))


def test_products_are_searched_over_one_common_weight():
    assert GPCConfig(mode="product", weight="search").tried(2)[0] == [0.1, 0.1], "0 is the base alone"
    assert GPCConfig(mode="product", weight="search", grid=[0.5, 1.5]).tried(2) == [[0.5, 0.5], [1.5, 1.5]]


def test_given_weights_are_those_of_all_or_of_the_first_of_two():
    assert GPCConfig(weight=0.3).weights(2) == [0.3, 0.7]
    assert GPCConfig(weight=[0.2, 0.3, 0.5]).weights(3) == [0.2, 0.3, 0.5]
    assert GPCConfig().weights(4) == [0.25] * 4
    assert GPCConfig(mode="product").weights(2) == [1.0, 1.0]
    with pytest.raises(ValueError, match="3 policies need 3 weights, got 1"):
        GPCConfig(weight=0.3).weights(3)
    for mode, wrong in (("convex", "serch"), ("convex", [math.nan, 0.5]), ("product", [math.inf, 1.0])):
        with pytest.raises(ValueError, match="a number, a list of numbers or search, got"):
            GPCConfig(mode=mode, weight=wrong).weights(2)


def test_success_decides_then_returns_then_the_middle():
    assert best([Score(0.5, 9.0), Score(0.7, 1.0), Score(0.6, 2.0)]) == 1
    assert best([Score(0.5, 9.0), Score(0.7, 1.0), Score(0.7, 2.0)]) == 2
    assert best([Score(0.1, 0.0), Score(1.0, 3.0), Score(1.0, 3.0), Score(1.0, 3.0), Score(0.0, 0.0)]) == 2
    assert best([Score(None, -1.0), Score(None, 2.0)]) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"mode": "sum"}, "one of convex, product, or, and"),
        ({"episodes": 0}, "compose.episodes must be at least 1, got 0"),
        ({"n_action_steps": 0}, "compose.n_action_steps must be at least 1, got 0"),
        ({"grid": []}, "compose.grid must hold numbers"),
        ({"grid": [0.5, -0.5]}, r"weights of compose.mode=convex lie in \[0, 1\]"),
        ({"grid": [float("nan")]}, "compose.grid must hold numbers"),
        ({"mode": "and", "weight": "search"}, "finds its own weights"),
    ],
)
def test_impossible_settings_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        GPCConfig(**words)


# The learner ----------------------------------------------------------------------------------------------------------


def test_a_composed_learner_acts_as_its_parent_of_weight_one_and_can_be_weighed_anew():
    torch.manual_seed(0)
    parents = pair()
    made = GPCLearner(GPCConfig(weight=1.0), parents)
    obs = torch.randn(5, 3)
    seen = {}
    for weights in ([1.0, 0.0], [0.0, 1.0], [0.5, 0.5]):
        made.weigh(weights)
        seen[weights[0]] = made.act(obs, deterministic=True).action
    for (_, learner), weight in zip(parents, (1.0, 0.0), strict=True):
        assert torch.equal(seen[weight], learner.act(obs, deterministic=True).action)
        assert not torch.equal(seen[weight], seen[0.5])
    assert not made.nets.training


def test_only_chunk_policies_compose_and_at_least_two():
    with pytest.raises(ValueError, match="x is of algo=bc, which is no policy of chunks; diffusion and flow are"):
        GPCLearner(GPCConfig(), [("a", parent()), ("x", make_learner(BCConfig(), SPEC))])
    goals = make_learner(BESOConfig(hidden=[8, 8], horizon=4, n_obs_steps=4), SPEC)
    with pytest.raises(ValueError, match="y is of algo=beso, whose path from noise does not compose"):
        GPCLearner(GPCConfig(), [("a", parent()), ("y", goals)])
    with pytest.raises(ValueError, match="at least 2 policies, got 1"):
        GPCLearner(GPCConfig(weight=[1.0]), [("a", parent())])


def test_parents_of_other_data_compose_where_their_actions_range_is_the_box():
    torch.manual_seed(0)
    for action_range, fits in (("data", False), ("box", True)):
        parents = [
            (name, parent(data=rows(low=low), action_range=action_range)) for name, low in (("a", -0.5), ("b", -0.6))
        ]
        if fits:
            assert GPCLearner(GPCConfig(), parents).act(torch.randn(2, 3)).action.shape == (2, 2)
        else:
            with pytest.raises(ValueError, match=r"begins at -0.5 in a, at -0.6 in b"):
                GPCLearner(GPCConfig(), parents)


# What parents see -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [DiffusionConfig, FlowConfig])
@pytest.mark.parametrize("columns", [[2, 0], []])
def test_a_policy_sees_its_columns_alone(kind, columns):
    torch.manual_seed(0)
    learner = parent(kind, data=rows(), obs_columns=columns)
    learner.nets.policy.start.mul_(0.1)  # nothing is clipped
    obs = torch.randn(4, 3)
    before = learner.act(obs, deterministic=True).action
    other = obs.clone()
    other[:, 1] = torch.randn(4)
    assert torch.equal(learner.act(other, deterministic=True).action, before)
    other[:, 0] += 1.0
    assert torch.equal(learner.act(other, deterministic=True).action, before) == (columns == [])
    batch = rows()._replace(obs=torch.randn(64, 2, 3), action=torch.rand(64, 4, 2) - 0.5)
    assert float(learner.update(batch)["loss/policy"]) > 0.0
    again = parent(kind, obs_columns=columns)
    again.load_model_state(learner.model_state())
    assert torch.equal(again.act(obs, deterministic=True).action, learner.act(obs, deterministic=True).action)


def test_columns_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match=r"algo.obs_columns has 3; observations have 3 numbers, from 0 on"):
        parent(obs_columns=[0, 3])
    for columns in ([1, 1], [-1]):
        with pytest.raises(ValueError, match="obs_columns must be different numbers from 0 on"):
            DiffusionConfig(obs_columns=columns)
    with pytest.raises(ValueError, match="head=transformer needs something to see"):
        DiffusionConfig(obs_columns=[], head="transformer")


def test_the_box_is_the_range_whatever_the_data_and_holds_them():
    learner = parent(data=rows(), action_range="box")
    assert learner.nets.policy.action_normalizer.scale.tolist() == [1.0, 1.0]
    assert learner.nets.policy.obs_normalizer.scale.tolist() != [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match=r"reaches -1.5, below the -1 at which.* data.clip_actions=1, or"):
        parent(data=rows(low=-1.5), action_range="box")
    with pytest.raises(ValueError, match="action_range must be data or box, got 'sphere'"):
        DiffusionConfig(action_range="sphere")


def test_a_grid_that_leaves_nothing_to_try_is_refused():
    with pytest.raises(ValueError, match=r"search of 3 policies nothing to try: no 2 of its weights add up to 1"):
        GPCConfig(weight="search", grid=[0.6, 0.9]).tried(3)
    with pytest.raises(ValueError, match="nothing to try: 0 is the base alone"):
        GPCConfig(mode="product", weight="search", grid=[0.0]).tried(2)

"""A CUDA graph of an off-policy update gives the numbers of the eager one, also over phases and stacked seeds."""

from typing import Any

import pytest
import torch

from ctrlrl.algos.iql import IQLConfig, IQLLearner
from ctrlrl.algos.td3bc import TD3BCConfig, TD3BCLearner
from ctrlrl.core.compile import Graph, undoing
from ctrlrl.core.off_policy import OffPolicyLearner
from ctrlrl.data.dataset import Dataset
from ctrlrl.seeds import stacked
from ctrlrl.types import EnvSpec, Transition

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
SPEC = EnvSpec(3, 2, 0, 1, 1, 200, CUDA)


def data(n: int = 200) -> Dataset:
    random = torch.Generator().manual_seed(0)
    obs, next_obs = torch.randn(2, n, 3, generator=random).to(CUDA)
    action, reward = torch.rand(n, 2, generator=random).to(CUDA), torch.randn(n, generator=random).to(CUDA)
    return Dataset.of(Transition(obs, action, reward, next_obs, torch.zeros(n, dtype=torch.bool, device=CUDA), {}))


def iql() -> OffPolicyLearner:
    return IQLLearner(IQLConfig(hidden=[8, 8], joint=True, policy_dropout=0.2), SPEC)


def td3bc() -> OffPolicyLearner:
    return TD3BCLearner(TD3BCConfig(hidden=[8, 8], policy_delay=3), SPEC)


def trained(make: Any, mode: str, seeds: tuple[int, ...], updates: int = 12) -> dict[str, torch.Tensor]:
    source: Any = data()
    if len(seeds) > 1:
        learner, source = stacked(make, seeds, source)
    else:
        torch.manual_seed(seeds[0])
        learner = make()
        learner.prefit(source.all())
    learner.set_compile(mode)
    for i in range(updates):
        learner.set_progress(i / updates)
        metrics = learner.update(source.sample(16))
    found = {**learner.model_state(), **learner.training_state(), **metrics}
    return {k: v.detach().cpu().clone() for k, v in found.items()}


@pytest.mark.parametrize("make", [iql, td3bc])
@pytest.mark.parametrize("seeds", [(0,), (4, 1, 2)], ids=["single", "stacked"])
def test_graph_gives_the_eager_updates(make, seeds):
    eager, graph = trained(make, "eager", seeds), trained(make, "graph", seeds)
    assert eager.keys() == graph.keys()
    for key, value in eager.items():
        torch.testing.assert_close(graph[key], value, rtol=1e-4, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


def test_a_graph_goes_on_from_a_state_that_is_put_back():
    source, learner = data(), td3bc()
    learner.set_compile("graph")
    batches = [source.sample(16) for _ in range(6)]
    for batch in batches:
        learner.update(batch)
    state = [{k: v.clone() for k, v in s.items()} for s in (learner.model_state(), learner.training_state())]
    results = []
    for _ in range(2):
        learner.load_model_state(state[0])
        learner.load_training_state(state[1])
        torch.manual_seed(1)
        for batch in batches:
            learner.update(batch)
        results.append({k: v.clone() for k, v in learner.model_state().items()})
    for key, value in results[0].items():
        assert torch.equal(results[1][key], value), key


def test_a_graph_draws_from_a_generator_as_without_one():
    def draws(graph: bool) -> list[torch.Tensor]:
        generator = torch.Generator(CUDA).manual_seed(3)

        def draw() -> torch.Tensor:
            return torch.randn(4, generator=generator, device=CUDA)

        call = Graph(draw, (), undo=undoing([]), generators=[generator]) if graph else draw
        return [call().clone() for _ in range(3)]

    for one, other in zip(draws(False), draws(True), strict=True):
        assert torch.equal(one, other)


def test_updates_read_nothing_from_the_device():
    source, learner = data(), iql()
    learner.set_compile("graph")
    learner.update(source.sample(16))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            learner.update(source.sample(16))
    finally:
        torch.cuda.set_sync_debug_mode("default")

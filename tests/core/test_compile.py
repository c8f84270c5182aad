"""Eager, compile and graph give the same numbers; what `auto` means; clear words where a mode cannot be had."""

from typing import Any

import pytest
import torch

from ctrlrl.algos.ppo import PPOConfig, PPOLearner
from ctrlrl.core.compile import Graph, compiled, resolve, undoing
from ctrlrl.envs.classic import Pendulum
from ctrlrl.envs.sim import BatchedSim
from ctrlrl.registry import ALGORITHMS, lookup
from ctrlrl.train.rollout import Collector
from ctrlrl.types import EnvSpec, Transition

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_auto_is_a_graph_on_cuda_and_compiles_on_a_cpu_only_for_long_runs():
    assert resolve("auto", CUDA, 1) == "graph"
    assert resolve("auto", CUDA, 1, graph=False) == "eager"
    assert resolve("auto", CPU, 1_000_000) == "eager"
    assert resolve("auto", CPU, 100_000_000) == "compile"
    assert resolve("eager", CUDA, 10**9) == "eager"


def test_a_graph_on_a_cpu_is_refused_with_the_mend():
    with pytest.raises(ValueError, match=r"compile=graph needs a CUDA device.*Use compile=compile or compile=eager"):
        resolve("graph", CPU, 1)
    with pytest.raises(ValueError, match="compile must be auto, eager, compile or graph, got 'fast'"):
        resolve("fast", CPU, 1)


def test_eager_is_the_function_itself():
    assert compiled(resolve, "eager") is resolve


def test_undoing_puts_back_values_in_place():
    x = torch.arange(3.0)
    undo = undoing([x])
    address = x.data_ptr()
    x.mul_(7.0)
    undo()
    assert torch.equal(x, torch.arange(3.0))
    assert x.data_ptr() == address


def test_a_kl_stop_and_a_graph_exclude_each_other():
    learner = PPOLearner(PPOConfig(target_kl=0.01), BatchedSim(Pendulum(), 2, seed=0).spec)
    with pytest.raises(ValueError, match="target_kl"):
        learner.set_compile("graph")


def updated(mode: str, device: torch.device) -> torch.Tensor:
    """Weights after two updates on the same two rollouts."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"n_steps": 8, "n_minibatches": 2, "n_epochs": 2, "hidden": [8], "normalize_obs": True}
    env = BatchedSim(Pendulum(), 4, seed=0, device=device)
    learner = PPOLearner(PPOConfig(**settings), env.spec)
    collector = Collector(env, learner, 8)
    collector.reset(0)
    rollouts = []
    for _ in range(2):
        rollout = collector.collect()
        rollouts.append(rollout._replace(**{k: v.clone() for k, v in rollout._asdict().items() if k != "extras"}))
    learner.set_compile(mode)
    for rollout in rollouts:
        torch.manual_seed(1)
        learner.update(rollout)
    learner.act(env.reset(0))  # the compiled sampler runs as well
    return learner.opt["actor_critic"].flat.detach().cpu()


def test_compile_gives_the_eager_update():
    assert torch.allclose(updated("eager", CPU), updated("compile", CPU), atol=1e-5)


@pytest.mark.parametrize(("algo", "dtype"), [("sac", "bfloat16"), ("iql", "float32")])
def test_compile_gives_the_eager_updates_of_a_replayed_batch(algo, dtype):
    kind = lookup(ALGORITHMS, algo, "algorithm")
    settings = {"joint": True, "hidden": [16, 16]} if algo == "iql" else {"hidden": [16, 16]}
    obs, action, reward = torch.randn(2, 32, 3), torch.rand(32, 2) - 0.5, torch.randn(32)
    batch = Transition(obs[0], action, reward, obs[1], torch.arange(32) % 4 == 0, {})
    found = []
    for mode in ("eager", "compile"):
        torch.manual_seed(0)
        learner = kind(kind.config(**settings), EnvSpec(3, 2, 0, 1, 1, 200, CPU))
        learner.set_dtype(dtype)
        learner.set_compile(mode)
        for _ in range(3):
            learner.update(batch)
        found.append(torch.cat([step.state["exp_avg"] for step in learner.opt.values()]))
        assert all(p.requires_grad for step in learner.opt.values() for p in step.params)
    eager, compiled_one = found
    assert (compiled_one - eager).norm() < (1e-4 if dtype == "float32" else 0.02) * eager.norm()


@pytest.mark.gpu
def test_graph_gives_the_eager_update():
    assert torch.allclose(updated("eager", CUDA), updated("graph", CUDA), atol=1e-5)


@pytest.mark.gpu
def test_a_graph_leaves_no_trace_of_its_capture():
    x = torch.zeros(3, device=CUDA)
    one = torch.ones(3, device=CUDA)

    def add(y: torch.Tensor) -> torch.Tensor:
        return x.add_(y)

    graph = Graph(add, (one,), undo=undoing([x]))
    assert not x.any()
    graph(one)
    graph(2 * one)
    assert torch.equal(x, 3 * one)


def one_time(learner: Any) -> Any:
    """Times of the ratio as `_draw_times` gives them, but one for all."""
    grid = learner.policy.grid
    return lambda n: (grid[6].expand(n), lambda net, obs, x: net.on_grid(obs, x, grid, torch.full((n,), 6)))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("algo", ["policyflow", "fpo"])
def test_compile_gives_a_flow_policys_eager_update(algo):
    """Two epochs, so that the second ratio is not 1; at one time for all, since compiled code draws other ones."""
    kind = lookup(ALGORITHMS, algo, "algorithm")
    env = BatchedSim(Pendulum(), 4, seed=0)
    settings: dict[str, Any] = {"n_steps": 8, "n_minibatches": 1, "n_epochs": 2, "hidden": [8], "vf_hidden": [8]}
    found, weights = [], []
    for mode in ("eager", "compile"):
        torch.manual_seed(0)
        learner = kind(kind.config(**settings), env.spec)
        if algo == "policyflow":
            learner._draw_times = one_time(learner)
        collector = Collector(env, learner, 8)
        collector.reset(0)
        torch.manual_seed(0)
        rollout = collector.collect()
        learner.set_compile(mode)
        torch.manual_seed(1)  # the order of the rows
        found.append({k: float(v) for k, v in learner.update(rollout).items()})
        weights.append(learner.opt["actor_critic"].flat.detach().clone())
    assert found[1] == pytest.approx(found[0], rel=1e-4, abs=1e-5)
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-5)

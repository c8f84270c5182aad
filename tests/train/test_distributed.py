"""Two processes that train together do what one does with all of their environments and rows."""

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks_at_work import CASES, config, offline, on_policy

from ctrlrl.algos.mtppo import MTPPOConfig
from ctrlrl.build import build
from ctrlrl.config import EnvConfig, TrainConfig
from ctrlrl.core.ranks import ALONE, Ranks
from ctrlrl.envs.classic import Pendulum
from ctrlrl.envs.sim import BatchedSim
from ctrlrl.shares import share
from ctrlrl.train.checkpoint import read_folder
from ctrlrl.train.distributed import join
from ctrlrl.types import tree_map

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
ROOT = Path(__file__).parents[2]
LIMIT = 240  # seconds; they take about five


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Path]:
    """What both processes found, and the folder they worked in."""
    out = tmp_path_factory.mktemp("ranks")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    words = [sys.executable, str(Path(__file__).with_name("ranks_at_work.py")), str(out)]
    started = []
    for rank in ("0", "1"):
        env = environment(RANK=rank, WORLD_SIZE="2", LOCAL_RANK=rank, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        with open(out / f"errors{rank}", "w") as errors:
            started.append(subprocess.Popen(words, env=env, stderr=errors))
    try:
        for rank, process in enumerate(started):
            code = process.wait(LIMIT)
            assert code == 0, (out / f"errors{rank}").read_text()
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [torch.load(out / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)], out


def test_both_are_there(ranks):
    assert [found["ranks"] for found in ranks[0]] == [(2, 0), (2, 1)]


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_make_the_update_of_one_process_with_all_environments(ranks, case):
    """Weights, optimiser, normaliser and reward scale, after one update and after three; metrics as their means."""
    first, second = (found["on_policy"][case] for found in ranks[0])
    alone = on_policy(case, ALONE)
    assert first.keys() == alone.keys()
    for name, tensor in alone.items():
        assert torch.equal(first[name], second[name]), f"{name}: the ranks drift apart"
        torch.testing.assert_close(first[name], tensor, rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    if case == "kl limit":
        assert first["metric train/gradient_steps"] < 8
    if case == "adaptive rate":
        assert first["2 actor_critic/learning_rate"] != pytest.approx(1e-2)


@pytest.mark.parametrize("joint", [False, True])
def test_two_ranks_make_the_offline_update_of_one_process_with_all_rows(ranks, joint):
    first, second = (found["offline"][str(joint)] for found in ranks[0])
    for name, tensor in offline(joint, ALONE).items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], tensor, rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_a_run_has_one_writer_and_counts_the_steps_of_all(ranks):
    found, out = ranks
    with open(out / "whole" / "progress.csv") as f:
        rows = list(csv.DictReader(f))
    assert [int(row["env_steps"]) for row in rows] == [64 * i for i in range(1, 9)]
    result = json.loads((out / "whole" / "result.json").read_text())
    assert (result["status"], result["env_steps"], result["n_envs"]) == ("finished", 512, 8)
    assert {run["whole"]["status"] for run in found} == {"finished"}
    assert sorted(p.name for p in (out / "whole" / "checkpoints").iterdir()) == ["best", "last"]


def test_the_ranks_share_weights_and_statistics_but_not_environments(ranks):
    first, second = (found["whole"]["state"] for found in ranks[0])
    for name, tensor in first.items():
        own = name.startswith("env/") and name not in ("env/seed", "env/tick")
        own = own or name in ("obs", "discounted_return", "episodes/running", "episodes/counts")
        assert torch.equal(tensor, second[name]) != own or name in ("env/clock", "episodes/counts"), name


def test_every_rank_draws_from_a_generator_of_its_own(ranks):
    training = read_folder(ranks[1] / "whole" / "checkpoints" / "last").training
    assert not torch.equal(training["rng/cpu"], training["rank1/rng/cpu"])


def test_a_signal_to_one_rank_ends_all_after_the_iteration(ranks):
    assert [found["stopped"]["calls"] for found in ranks[0]] == [3, 3]
    assert {found["stopped"]["status"] for found in ranks[0]} == {"interrupted"}


def test_a_stopped_run_goes_on_bit_for_bit_on_every_rank(ranks):
    for found in ranks[0]:
        whole, resumed = found["whole"]["state"], found["resumed"]["state"]
        assert whole.keys() == resumed.keys()
        for name, tensor in whole.items():
            assert torch.equal(tensor, resumed[name]), name


def test_a_checkpoint_of_two_is_not_resumed_by_one(ranks):
    _, out = ranks
    assert read_folder(out / "whole" / "checkpoints" / "last").state["ranks"] == 2
    with pytest.raises(ValueError, match="2 processes trained it together, here are 1"):
        build(config(), out / "whole", resume=True)


def test_what_one_rank_meets_all_hear_of(ranks):
    first, second = ranks[0]
    told = "ValueError: ranks disagree: algo.learning_rate is 0.001 on rank 0 and 0.002 on rank 1"
    assert first["disagree"].startswith(told)
    assert second["disagree"] == first["disagree"]
    assert first["agree"] == second["agree"] == "nothing"
    assert first["error of the first"] == second["error of the first"] == "ValueError: n_envs is wrong"
    assert "another rank met a number that is not finite" in first["non-finite"]
    assert "non-finite reward (nan) in lane 3" in second["non-finite"]


def test_torchrun_trains_and_leaves_one_run_folder(tmp_path):
    words = "algo=ppo env=pendulum experiment=none n_envs=4 total_steps=128 algo.n_steps=16 algo.n_minibatches=2 "
    words += f"algo.n_epochs=1 algo.hidden=[4] eval.episodes=2 run.report=false run.dir={tmp_path}/run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, "-m", "ctrlrl.cli", "train", *words.split()],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("final_return_mean") == 1, "one rank prints the summary"
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["status"], result["env_steps"], result["ranks"]) == ("finished", 128, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


# without a second process --------------------------------------------------------------------------------------------


class Two(Ranks):
    size = 2

    def __init__(self, index: int = 0):
        self.index = index


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"n_envs": 9}, "n_envs=9 cannot be divided among 2 processes"),
        ({"compile": "graph"}, "compile=graph is for one process"),
        ({"seeds": 2}, "several processes train one seed"),
        (
            {"algo": MTPPOConfig(routing="attention")},
            "attention mixes advantages .*: it trains in one process, here are 2",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused_by_name(changes, wanted):
    with pytest.raises(ValueError, match=wanted):
        share(config(**changes), Two(), cuda=False)


def test_a_rank_has_its_part_of_what_is_given_for_all():
    algo = {"n_steps": 16, "minibatch_size": 32, "lr_exponent": 0.5, "lr_base_envs": 2, "learning_rate": 1e-3}
    from ctrlrl.algos.iql import IQLConfig
    from ctrlrl.algos.ppo import PPOConfig

    cfg = TrainConfig(algo=PPOConfig(**algo), env=EnvConfig(name="pendulum"), n_envs=8)
    own = share(cfg, Two(), cuda=False)
    assert (own.n_envs, own.algo.minibatch_size, own.algo.learning_rate) == (4, 16, pytest.approx(2e-3))
    assert own.algo.for_envs(own.n_envs).learning_rate == own.algo.learning_rate, "the rate is that of all 8"
    assert own.algo.minibatches(4 * 16) == cfg.algo.minibatches(8 * 16)
    assert share(TrainConfig(algo=IQLConfig(batch_size=256)), Two(), cuda=False).algo.batch_size == 128
    assert share(cfg, ALONE, cuda=False) is cfg


def test_a_rank_on_a_gpu_takes_the_one_of_its_number_and_captures_no_graph(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    own = share(config(device="cuda"), Two(1), cuda=True)
    assert (own.device, own.compile) == ("cuda:1", "eager")


def test_a_process_that_torchrun_did_not_start_is_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert join(cuda=False) is ALONE
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert join(cuda=False) is ALONE


@pytest.mark.parametrize("n", [4, 3072])  # both ways of drawing resets
def test_two_halves_simulate_the_lanes_of_one_environment(n):
    whole = BatchedSim(Pendulum(), 2 * n, seed=3, episode_length=5)
    halves = [BatchedSim(Pendulum(), n, first_lane=lane, seed=3, episode_length=5) for lane in (0, n)]
    assert torch.equal(whole.reset(3), torch.cat([half.reset(3) for half in halves]))
    for _ in range(8):
        action = torch.rand(2 * n, 1) * 2 - 1
        parts = [half.step(a) for half, a in zip(halves, action.split(n), strict=True)]
        joined = tree_map(lambda *x: torch.cat(x), *parts)
        assert all(torch.equal(a, b) for a, b in zip(whole.step(action)[:5], joined[:5], strict=True))


def test_two_halves_simulate_the_robots_of_one_pool():
    pytest.importorskip("mujoco")
    from ctrlrl.envs.mujoco_cpu import MujocoPool

    whole = MujocoPool("hopper", 4, seed=3, n_threads=1)
    halves = [MujocoPool("hopper", 2, first_lane=lane, seed=3, n_threads=1) for lane in (0, 2)]
    assert torch.equal(whole.reset(3), torch.cat([half.reset(3) for half in halves]))
    for _ in range(60):
        action = torch.rand(4, 3) * 2 - 1
        parts = [half.step(a).obs.clone() for half, a in zip(halves, action.split(2), strict=True)]
        assert torch.equal(whole.step(action).obs, torch.cat(parts))

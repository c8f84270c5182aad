"""What an adapter costs: the same environments with it and without, in turn, under the same actions."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ctrlrl.bench.peers import PlainStepping
from ctrlrl.cli import main


@pytest.mark.parametrize(("vs", "peer"), [("gymnasium", "SyncVectorEnv"), ("sb3", "DummyVecEnv")])
def test_the_row_names_the_plain_backend_and_the_ratio(vs, peer, capsys):
    if vs == "sb3":
        pytest.importorskip("stable_baselines3")
    words = ["env=pendulum", "env.backend=gymnasium", "n_envs=2", f"vs={vs}", "pairs=1", "seconds=0.01"]
    with pytest.raises(SystemExit) as done:
        main(["bench", "throughput", *words])
    assert done.value.code == 0
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (row["env"], row["backend"], row["n_envs"], row["unit"]) == ("pendulum", "gymnasium", 2, "env_steps/s")
    assert row["peer"].endswith(peer)
    assert row["ratio"] == pytest.approx(row["value"] / row["peer_value"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["env=pendulum", "vs=sb3"], "needs env.backend=gymnasium"),
        (["env=pendulum", "env.backend=gymnasium", "vs=mj_step"], "compares with vs=gymnasium or vs=sb3, got mj_step"),
    ],
)
def test_comparisons_that_mean_nothing_are_refused(words, said, capsys):
    with pytest.raises(SystemExit) as done:
        main(["bench", "throughput", "n_envs=2", "pairs=1", "seconds=0.01", *words])
    assert done.value.code == 2
    assert said in capsys.readouterr().err


def test_the_plain_environment_gets_our_actions_in_its_own_units():
    class Recorder:
        num_envs, taken = 2, []

        def __init__(self):
            from gymnasium.spaces import Box

            self.action_space = Box(-3.0, 3.0, (1,), np.float32)

        def reset(self):
            pass

        def step(self, action):
            self.taken.append(action.tolist())

    PlainStepping(Recorder(), "recorder", [torch.tensor([[1.0], [-0.5]])], 0.0)
    assert Recorder.taken[0] == [[3.0], [-1.5]]

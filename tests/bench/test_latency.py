"""`bench latency`: one decision of both libraries on one observation, with one network."""

from __future__ import annotations

import json

import pytest

from ctrlrl import settings
from ctrlrl.bench import peers
from ctrlrl.bench.ours import agent
from ctrlrl.cli import main


def test_the_row_says_how_many_times_faster_one_decision_is(capsys):
    words = ["env=pendulum", "vs=sb3", "pairs=1", "seconds=0.02"]
    with pytest.raises(SystemExit) as done:
        main(["bench", "latency", *words])
    assert done.value.code == 0
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (row["kind"], row["unit"], row["n_envs"], row["device"], row["threads"]) == ("latency", "µs", 1, "cpu", 1)
    assert row["ratio"] == pytest.approx(row["peer_value"] / row["value"])
    assert row["peer"].startswith("stable-baselines3 2.")
    assert 1.0 < row["value"] < 1e5


def test_both_have_the_same_network():
    cfg = settings.typed(
        settings.train_config(["env=cartpole", "algo.hidden=[8,9]", "algo.vf_hidden=[7]", "algo.activation=elu"])
    )
    ours = agent(cfg)
    peer = peers.sb3_deciding(ours, cfg.algo, ours.observation_space.sample(), 0.01)
    theirs = next(c.cell_contents for c in peer.decide.__closure__ if hasattr(c.cell_contents, "policy")).policy
    assert [p.shape for p in ours.learner.policy.parameters()] == [
        p.shape for net in (theirs.mlp_extractor.policy_net, theirs.action_net) for p in net.parameters()
    ]
    assert type(theirs.mlp_extractor.policy_net[1]).__name__ == "ELU"


def test_another_peer_is_refused():
    with pytest.raises(SystemExit) as done:
        main(["bench", "latency", "env=pendulum", "vs=rsl_rl", "pairs=1", "seconds=0.01"])
    assert done.value.code == 2

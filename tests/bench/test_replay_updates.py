"""`bench updates` of learners with a replay buffer: the same rows and network sizes on both sides."""

from __future__ import annotations

import json

import pytest
import torch

from ctrlrl.bench.replay_peers import Replaying, SB3Replaying, sb3_model
from ctrlrl.cli import main
from ctrlrl.settings import train_config, typed

WORDS = ["env=hopper", "n_envs=1", "experiment=none", "algo.hidden=[16,16]", "algo.batch_size=32", "threads=1"]


@pytest.mark.parametrize("algo", ["sac", "td3"])
def test_both_sides_learn_from_the_same_rows_with_as_many_parameters(algo, monkeypatch):
    pytest.importorskip("stable_baselines3", reason="pip install 'ctrlrl[sb3]'")
    monkeypatch.setattr("ctrlrl.bench.replay_peers.ROWS", 200)
    cfg = typed(train_config([f"algo={algo}", *WORDS]))
    ours = Replaying(cfg, 0.01, torch.device("cpu"))
    peer = SB3Replaying(cfg, 0.01, ours.rows)
    kept, model = peer.model.replay_buffer, peer.model
    assert torch.equal(torch.from_numpy(kept.observations[:200, 0]).float(), ours.rows.obs)
    assert torch.equal(torch.from_numpy(kept.actions[:200, 0]), ours.rows.action)
    mine = [ours.loop.learner.nets.policy, ours.loop.learner.nets.critic]
    for net, other in zip(mine, (model.actor, model.critic), strict=True):
        assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in other.parameters())
    assert ours.lap().value > 0
    assert peer.lap().value > 0


def test_a_row_says_what_was_measured(tmp_path, monkeypatch):
    pytest.importorskip("stable_baselines3", reason="pip install 'ctrlrl[sb3]'")
    monkeypatch.setattr("ctrlrl.bench.replay_peers.ROWS", 100)
    out = tmp_path / "rows.jsonl"
    with pytest.raises(SystemExit) as end:
        main(["bench", "updates", "algo=sac", *WORDS, "vs=sb3", "pairs=1", "seconds=0.01", f"out={out}"])
    assert end.value.code == 0
    row = json.loads(out.read_text())
    assert (row["algo"], row["batch_size"], row["obs_dim"], row["action_dim"]) == ("sac", 32, 11, 3)
    assert row["peer"].startswith("stable-baselines3")


def test_peers_that_are_not_there_are_named():
    with pytest.raises(ValueError, match="algo=sac or algo=td3, got rlpd"):
        sb3_model(typed(train_config(["algo=rlpd", "env=hopper", "experiment=none"])), 0)
    with pytest.raises(ValueError, match="needs a task that Gymnasium has too"):
        sb3_model(typed(train_config(["algo=sac", "env=pointmass"])), 0)

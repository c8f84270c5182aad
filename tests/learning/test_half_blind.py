"""Two trained policies that see one half of the goal each: the weight that a search finds beats both. 12.2 of the spec."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")


@pytest.mark.slow
@pytest.mark.parametrize("algos", [("diffusion", "diffusion"), ("flow", "flow"), ("diffusion", "flow")])
def test_a_search_finds_a_weight_above_both_parents(algos, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import half_blind

    half_blind.register()
    half_blind.demonstrations(tmp_path / "goals.npz", 5000)
    for column, algo in enumerate(algos):
        words = ("algo.hidden=[64,64]", "algo.sampling_steps=30", "log.progress=false")
        half_blind.train(tmp_path / "goals.npz", tmp_path / str(column), [column], *words, algo=algo, steps=1500)
    pair = f"compose=[{tmp_path}/0,{tmp_path}/1]"
    half_blind.call("eval", pair, "compose.weight=search", "compose.episodes=400", "episodes=400")
    found = json.loads((tmp_path / "0+1" / "compose.json").read_text())
    alone = [parent["success_rate"] for parent in found["alone"]]
    assert all(0.15 < share < 0.3 for share in alone)
    assert 0.3 <= found["weights"][0] <= 0.7
    assert found["composed"]["success_rate"] > max(alone) + 0.15
    curve = found["search"]["success_rate"]
    assert max(curve[3:8]) > max(curve[0], curve[-1]) + 0.15

"""Trained policies that see one half of the goal each: a search finds a weight above both, as 12.2 of the spec says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("half_blind")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
        import half_blind

        half_blind.register()
        half_blind.demonstrations(folder / "goals.npz")
        for algo in ("diffusion", "flow"):
            for column in (0, 1):
                out = folder / f"{algo}{column}"
                words = ("log.progress=false",)
                half_blind.train(folder / "goals.npz", out, [column], *words, algo=algo, steps=2500)
        yield folder, half_blind.call


@pytest.mark.parametrize("algos", [("diffusion", "diffusion"), ("flow", "flow"), ("diffusion", "flow")])
def test_a_search_finds_a_weight_above_both_parents(algos, trained):
    folder, call = trained
    first, second = (f"{algo}{column}" for column, algo in enumerate(algos))
    pair = f"compose=[{folder}/{first},{folder}/{second}]"
    call("eval", pair, "compose.weight=search", "compose.episodes=400", "episodes=400")
    found = json.loads((folder / f"{first}+{second}" / "compose.json").read_text())
    alone = [parent["success_rate"] for parent in found["alone"]]
    assert all(0.15 < share < 0.3 for share in alone)
    assert 0.3 <= found["weights"][0] <= 0.7
    assert found["composed"]["success_rate"] > max(alone) + 0.15
    curve = found["search"]["success_rate"]
    assert max(curve[3:8]) > max(curve[0], curve[-1]) + 0.15

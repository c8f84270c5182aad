"""Comparisons: the ratio is the median over pairs, and every row is strict JSON."""

from __future__ import annotations

import json
import math
import os

import pytest

from ctrlrl.bench.rows import Lap, compare
from ctrlrl.bench.run import table
from ctrlrl.cli import main
from ctrlrl.disk import strict_json


class Scripted:
    name = "scripted 1.0"

    def __init__(self, values, wall=1.0, cpu=1.0):
        self.values, self.wall, self.cpu = iter(values), wall, cpu

    def lap(self):
        return Lap(next(self.values), self.wall, self.cpu)


def test_the_ratio_is_the_median_of_the_pairs_and_not_the_ratio_of_medians():
    fields = compare(Scripted([10.0, 20.0, 90.0]), Scripted([1.0, 10.0, 10.0]), 3, note=lambda _: None)
    assert fields["value"] == 20.0
    assert fields["peer_value"] == 10.0
    assert fields["ratio"] == 9.0  # of 10, 2 and 9
    assert fields["spread"] == [10.0, 90.0]


def test_pairs_of_which_neither_side_arrived_have_no_ratio():
    mine, theirs = [math.inf, 2.0, 3.0], [math.inf, 8.0, math.inf]
    fields = compare(Scripted(mine), Scripted(theirs), 3, note=lambda _: None)
    assert fields["ratio"] == 0.125  # of 0.25 and 0
    fields = compare(Scripted([math.inf]), Scripted([math.inf]), 1, note=lambda _: None)
    assert fields["ratio"] is None
    row = fields | {"kind": "score", "env": "pendulum", "n_envs": 4, "unit": "seconds to target"}
    assert "nan" not in table([row])


def test_contenders_take_turns():
    order = []

    class Recorder(Scripted):
        def lap(self):
            order.append(self.name)
            return super().lap()

    ours, peer = Recorder([1.0] * 3), Recorder([1.0] * 3)
    ours.name, peer.name = "ours", "peer"
    compare(ours, peer, 3, note=lambda _: None)
    assert order == ["ours", "peer"] * 3


@pytest.mark.parametrize(("wall", "disturbed"), [(1.0, False), (2.0, True)])
def test_a_peer_that_waited_for_its_core_is_named(wall, disturbed):
    assert compare(Scripted([1.0]), Scripted([1.0], wall=wall), 1, note=lambda _: None)["disturbed"] is disturbed


def test_what_was_not_reached_is_null():
    assert json.loads(strict_json({"value": math.inf, "runs": [{"seconds": math.nan}]})) == {
        "value": None,
        "runs": [{"seconds": None}],
    }


def test_a_measurement_prints_its_row_and_appends_it(tmp_path, capsys):
    out = tmp_path / "deep" / "rows.jsonl"
    words = ["bench", "throughput", "env=cartpole", "n_envs=2048,4096", "pairs=2", "seconds=0.01", f"out={out}"]
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 0
    rows = [json.loads(text) for text in out.read_text().splitlines()]
    assert [row["n_envs"] for row in rows] == [2048, 4096]
    printed = [json.loads(text) for text in capsys.readouterr().out.splitlines() if text.startswith("{")]
    assert printed == rows
    fixed = "kind env algo n_envs threads device dtype compile value unit spread peer peer_value ratio pairs".split()
    assert {*fixed, "cpu_seconds", "wall_seconds", "versions", "commit"} <= set(rows[0])
    assert rows[0]["machine"].endswith(f", {os.cpu_count()} cores")


def test_training_to_a_score_ends_at_the_target_and_says_when_it_was_not_reached(tmp_path):
    out = tmp_path / "rows.jsonl"
    words = [
        "bench",
        "score",
        "env=pendulum",
        "pairs=1",
        "by=evaluation",
        "eval_seconds=0",
        "total_steps=8192",
        f"out={out}",
    ]
    for target in (-1e9, 1e9):
        with pytest.raises(SystemExit):
            main([*words, f"target={target}"])
    reached, missed = (json.loads(text) for text in out.read_text().splitlines())
    assert reached["value"] > 0
    assert reached["runs"][0]["env_steps"] == 8192
    assert missed["value"] is None


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["speed"], "unknown bench"),
        (["train", "env=pendulum", "vs=sb4"], "vs=sb3"),
        (["score", "env=acrobot"], "target"),
        (["score", "env=pendulum", "by=luck"], "by must be"),
        (["train", "algo=sac", "env=pendulum", "vs=sb3"], "`ctrlrl bench updates vs=sb3` compares sac and td3"),
        (["train", "algo=sac", "env=pendulum", "vs=rsl_rl"], "algo=sac is not on-policy"),
        (["score", "algo=td3", "env=pendulum", "vs=sb3"], "algo=td3 is not on-policy"),
        (["latency", "algo=sac", "env=pendulum", "vs=sb3"], "algo=sac is not on-policy"),
        (["memory", "env=pendulum", "n_envs=4,8"], "give one n_envs a command"),
        (["latency", "env=pendulum", "n_envs=4,8"], "measures the same with any number of environments"),
        (["latency", "env=pendulum", "dtype=bfloat16"], "dtype=bfloat16: predict"),
        (["latency", "env=lotsizing", "env.size=30x10"], "env.size=30x10: bench latency measures predict in the task"),
        (["throughput", "env=pendulum", "warm=3"], "warm=3: bench throughput does not read it, bench updates does"),
        (["throughput", "env=pointmass", "n_envs=4096", "vs=gymnasium"], "a task that Gymnasium has too"),
        (["throughput", "env=pendulum", "n_envs=4096", "vs=mj_step"], "e.g. env=halfcheetah, got env=pendulum"),
    ],
)
def test_a_wrong_word_ends_with_code_2_and_the_mend(words, names, capsys):
    with pytest.raises(SystemExit) as end:
        main(["bench", *words])
    assert end.value.code == 2
    assert names in capsys.readouterr().err

"""The live line: its speed where a row tells none, and what the policies are worth."""

import io

import pytest
from rich.console import Console

from ctrlrl.train.log import Progress


def test_the_speed_is_the_rows_or_the_mean_since_the_line_appeared(monkeypatch):
    now = iter([0.0, 0.0, 10.0, 20.0])
    monkeypatch.setattr("ctrlrl.train.log.time.perf_counter", lambda: next(now, 20.0))
    out = io.StringIO()
    progress = Progress("iql", 100, enabled=True, console=Console(file=out, force_terminal=True, width=200))
    with progress:
        progress.update(50, {})
        progress.update(80, {"time/steps_per_s": 7.0})
    said = out.getvalue()
    assert "5 steps/s" in said
    assert "7 steps/s" in said
    assert "0:10 left" in said


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"rollout/return": 12.34}, "return 12.3"),
        ({"eval/return_mean": -5.0}, "return -5.0"),
        ({"front/hypervolume": 1234567.0}, "hypervolume 1.235e+06"),
        ({}, "return –"),
    ],
)
def test_the_line_tells_the_return_or_a_fronts_hypervolume(row, told):
    out = io.StringIO()
    with Progress("cmorl", 100, enabled=True, console=Console(file=out, force_terminal=True, width=200)) as progress:
        progress.update(50, row)
    assert told in out.getvalue()

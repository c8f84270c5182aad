"""The live line: its speed where a row tells none."""

import io

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

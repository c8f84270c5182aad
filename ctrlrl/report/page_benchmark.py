"""The part of the page that compares algorithms over tasks."""

from __future__ import annotations

from html import escape

from ctrlrl.report.benchmark import Benchmark
from ctrlrl.report.html import MANY, folded, picture_html, table_html
from ctrlrl.report.profiles import profile_png
from ctrlrl.report.scoreboard import (
    INTERVALS,
    SEEDS_NOTE,
    TITLES,
    aggregates,
    beside,
    every_task,
    improvements,
    incomparable,
    matrix,
    sources_of,
)


def note_html(bench: Benchmark) -> str:
    """That the scores are of other data than the published ones, where they are."""
    note = incomparable(bench)
    return f'<p class="note">{escape(note)}</p>' if note else ""


def beside_html(bench: Benchmark) -> str:
    """Published scores of the same algorithms on the same data sets; empty where there are none."""
    if (table := beside(bench)) is None:
        return ""
    sources = "".join(f"<li>{escape(name)}: {escape(said)}</li>" for name, said in sources_of(table).items())
    return f'<h2>Published scores beside ours</h2>\n{table_html(table)}\n<ul class="muted">{sources}</ul>'


def compare_html(bench: Benchmark) -> str:
    """Tables of last and best, aggregates, profile, probabilities of improvement."""
    name = bench.metric.name
    parts = []
    for stage in bench.stages:
        parts.append(f"<h2>{escape(TITLES[stage].format(name))}</h2>\n{table_html(matrix(bench, stage))}")
    parts.append(_muted(SEEDS_NOTE))
    if (table := aggregates(bench)) is not None:
        parts.append(f"<h2>All tasks together</h2>\n{table_html(table)}\n{_muted(INTERVALS)}")
        caption = (
            f"Share of all runs whose last {name} lies above τ, over the tasks that every algorithm has. "
            "Bands: 95 % intervals. Higher is better."
        )
        parts.append(
            picture_html(lambda theme, narrow: profile_png(bench, theme, narrow=narrow), "Performance profile", caption)
        )
        if (table := improvements(bench)) is not None:
            parts.append(f"<h3>Probability of improvement</h3>\n{table_html(table)}\n{_muted(INTERVALS)}")
    table = every_task(bench)
    shown = table_html(table)
    if len(table.rows) > MANY:
        shown = f'<div class="runs">{folded(f"{len(table.rows)} rows", shown)}</div>'
    parts.append(f"<h2>Every task: last and best</h2>\n{shown}")
    parts += [_muted(line) for line in (*bench.left_out, *bench.not_aggregated())]
    return "\n".join(parts)


def _muted(text: str) -> str:
    return f'<p class="muted">{escape(text)}</p>'

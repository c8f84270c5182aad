"""A report as Markdown, for a README: the tables of the page, without pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ctrlrl.disk import write_named
from ctrlrl.report.benchmark import benchmark
from ctrlrl.report.curves import metric_of
from ctrlrl.report.fine_tuning import FINE_TUNING_NOTE, FINE_TUNING_TITLE, fine_tuning
from ctrlrl.report.page import write_page
from ctrlrl.report.scoreboard import (
    INTERVALS,
    SEEDS_NOTE,
    TITLES,
    aggregates,
    beside,
    improvements,
    incomparable,
    matrix,
    sources_of,
)
from ctrlrl.report.sources import read_sources, typed_alike, unfinished
from ctrlrl.report.tables import markdown, pooled_table, results_table

FORMATS = ("html", "markdown")
SUFFIXES = {".html": "html", ".htm": "html", ".md": "markdown", ".markdown": "markdown"}


def write_report(paths: Sequence[Path], out: Path, form: str | None = None) -> None:
    """Write the report; form: html or markdown, None = by the suffix of `out`."""
    if form is not None and form not in FORMATS:
        raise ValueError(f"format must be {' or '.join(FORMATS)}, got {form!r}")
    form = form or SUFFIXES.get(out.suffix)
    if form is None:
        raise ValueError(f"out={out}: must end in {', '.join(SUFFIXES)}, or give format={' or '.join(FORMATS)}")
    if form == "html":
        write_page(paths, out)
        return
    text = report_markdown(paths)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_named(out, text.encode())


def report_markdown(paths: Sequence[Path]) -> str:
    """Tasks x algorithms where there are several of either, else one row a seed."""
    runs = read_sources(paths)
    results = [run.result for run in runs]
    bench, tuned = benchmark(results), fine_tuning(runs)
    switch = [] if tuned is None else [f"**{FINE_TUNING_TITLE}**\n\n{markdown(tuned)}\n{FINE_TUNING_NOTE}"]
    missing = [*unfinished(paths), *typed_alike(runs)]
    if len(bench.algos) * len(bench.tasks) < 2:
        lines = [f"\n{line}\n" for line in missing]
        pooled = pooled_table(results, metric=metric_of(runs))
        return "\n".join([markdown(results_table(results)), markdown(pooled), *switch, *lines])
    parts = []
    for stage in bench.stages:
        parts.append(f"**{TITLES[stage].format(bench.metric.name)}**\n\n{markdown(matrix(bench, stage))}")
    parts.append(SEEDS_NOTE)
    if (table := aggregates(bench)) is not None:
        parts.append(f"**All tasks together**\n\n{markdown(table)}\n{INTERVALS}.")
        if (table := improvements(bench)) is not None:
            parts.append(markdown(table))
    parts += switch
    if (table := beside(bench)) is not None:
        sources = ". ".join(f"{name}: {said}" for name, said in sources_of(table).items())
        parts.append(f"**Published scores beside ours**\n\n{markdown(table)}\n{sources}.")
    parts += [note] if (note := incomparable(bench)) else []
    parts += [*missing, *bench.left_out, *bench.not_aggregated()]
    return "\n\n".join(part.strip() for part in parts) + "\n"

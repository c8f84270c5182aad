"""One self-contained HTML page about one or several runs: facts, curves, video, settings. It loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from ctrlrl.disk import write_named
from ctrlrl.report.benchmark import benchmark
from ctrlrl.report.curves import HYPERVOLUME, curve_png, metric_of, seeks_front, steps, write_curve
from ctrlrl.report.fine_tuning import FINE_TUNING_NOTE, FINE_TUNING_TITLE, fine_tuning
from ctrlrl.report.front_picture import front_png, front_tasks
from ctrlrl.report.html import MANY, data_uri, folded, page_html, picture_html, table_html
from ctrlrl.report.page_benchmark import beside_html, compare_html, note_html
from ctrlrl.report.published import SOURCES, Published, published_beside
from ctrlrl.report.results import algo_of
from ctrlrl.report.runs import Run
from ctrlrl.report.sources import read_sources, typed_alike, unfinished
from ctrlrl.report.stats import MIN_SEEDS
from ctrlrl.report.tables import NONE, Table, duration, front_size, number, plus_minus, pooled_table, results_table

__all__ = ["write_curve", "write_page"]


def write_page(runs: Sequence[Path], out: Path) -> None:
    """Write the report of run folders, sweep folders or files of result rows to the HTML file `out`."""
    read = read_sources(runs)
    title = _title(read)
    bench = benchmark(run.result for run in read)
    compared = len(bench.algos) * len(bench.tasks) > 1
    parts = [
        _header(read, title),
        *(f'<p class="muted">{escape(line)}</p>' for line in (*unfinished(runs), *typed_alike(read))),
        _facts(read[0]) if len(read) == 1 else "",
        note_html(bench),
        compare_html(bench) if compared else "",
        _fine_tuning(read),
        beside_html(bench),
        _curves([run for run in read if not seeks_front(run)]),
        _hypervolumes([run for run in read if seeks_front(run)]),
        _fronts(read),
        _seeds(read, pooled=not compared) if len(read) > 1 else "",
        _videos(read),
        _pictures(read, "paths.png", "Paths"),
        _pictures(read, "gap.png", "Dynamics gap"),
        _published(read),
        _settings(read),
        _machine(read),
    ]
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_named(out, page_html(title, "\n".join(part for part in parts if part), broad=compared).encode())


def _fine_tuning(runs: Sequence[Run]) -> str:
    if (table := fine_tuning(runs)) is None:
        return ""
    return f'<h2>{FINE_TUNING_TITLE}</h2>\n{table_html(table)}\n<p class="muted">{FINE_TUNING_NOTE}</p>'


def _title(runs: Sequence[Run]) -> str:
    algos = list(dict.fromkeys(algo_of(r.result).upper() for r in runs))
    envs = list(dict.fromkeys(str(r.result.get("task") or r.env) for r in runs))
    return f"{_listed(algos, 'algorithms')} on {_listed(envs, 'tasks')}"


def _listed(names: Sequence[str], noun: str) -> str:
    if len(names) > 3:
        return f"{len(names)} {noun}"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _header(runs: Sequence[Run], title: str) -> str:
    if len(runs) == 1:
        run = runs[0]
        status = str(run.result.get("status") or "unknown")
        known = status if status in ("finished", "failed") else ""
        line = (
            f'Seed {escape(run.seed)} · <span class="status {known}">{escape(status)}</span> · {escape(str(run.path))}'
        )
    else:
        finished = sum(r.result.get("status") == "finished" for r in runs)
        line = f"{len(runs)} runs, {finished} finished"
    return f'<h1>{escape(title)}</h1>\n<p class="muted">{line}</p>'


def _facts(run: Run) -> str:
    r = run.result
    offline = run.x_name == "gradient_steps"
    mean, std = r.get("final_return_mean"), r.get("final_return_std")
    tail = plus_minus(mean, std).removeprefix(number(mean))
    success = r.get("success_rate")
    facts = [
        ("Last return", number(mean), tail),
        ("Best return", number(r.get("best_return_mean")), ""),
        ("Last score", number(r.get("normalized_score"), 1), "0-100"),
        ("Best score", number(r.get("best_normalized_score"), 1), ""),
        ("Success", NONE if success is None else f"{100 * success:.0f} %", ""),
        ("Hypervolume", number(r.get("hypervolume")), ""),
        ("Expected utility", number(r.get("expected_utility")), ""),
        ("Sparsity", number(r.get("sparsity")), ""),
        ("Policies on the front", number(front_size(r)) if r.get("front") else NONE, ""),
        ("Held-out action error", number(r.get("held_out_action_error"), 4), ""),
        ("Gradient steps" if offline else "Environment steps",
         number(r.get("gradient_steps" if offline else "env_steps")), ""),
        ("Wall time", duration(r.get("wall_seconds")), f"training {duration(r.get('train_seconds'))}"),
        ("Updates per second" if offline else "Steps per second",
         number(r.get("updates_per_second" if offline else "steps_per_second"), 0), ""),
    ]  # fmt: skip
    cells = ""
    for name, value, extra in facts:
        if value != NONE:
            small = f" <small>{escape(extra.strip())}</small>" if extra else ""
            cells += f"<div><dt>{name}</dt><dd>{escape(value)}{small}</dd></div>"
    return f'<dl class="facts">{cells}</dl>'


def _seeds(runs: Sequence[Run], *, pooled: bool) -> str:
    results = [run.result for run in runs]
    table = table_html(results_table(results))
    heading = "<h2>Every seed</h2>\n"
    if len(runs) > MANY:
        heading, table = "", f'<div class="runs screen">{folded(f"Every seed: {len(runs)} runs", table)}</div>'
    text = (
        f"{heading}{table}\n"
        '<p class="muted">Last: the final evaluation, ± standard deviation over its episodes. '
        "Best: the best evaluation of the run.</p>"
    )
    if pooled:
        metric = metric_of(runs)
        text += (
            f"\n<h2>Over seeds</h2>\n{table_html(pooled_table(results, metric=metric), fit=True)}\n"
            '<p class="muted">Finished runs only. Intervals: 95 % percentile bootstrap over seeds, '
            f"from {MIN_SEEDS} seeds on.</p>"
        )
    return text


def _curves(runs: Sequence[Run]) -> str:
    if not runs:
        return ""
    trained = any(len(run.curve("rollout/return")[0]) > 1 for run in runs)
    lines = "return of training episodes" if trained else "evaluations"
    if len(runs) == 1:
        dots = "evaluation, ± standard deviation over its episodes"
        caption = f"Line: {lines}. Dots: {dots}."
    else:
        caption = (
            f"Lines: {lines}, thin for each seed, thick for their mean. "
            f"Band: 95 % bootstrap interval from {MIN_SEEDS} seeds on, else the range. Dots: evaluations."
        )
    if any(published_beside(run.result) for run in runs):
        caption += " Dashed: published end values, where near."
    drawn = picture_html(
        lambda theme, narrow: curve_png(runs, theme, narrow=narrow), f"Return against steps, {_title(runs)}", caption
    )
    return f"<h2>Learning curve</h2>\n{drawn}"


def _hypervolumes(runs: Sequence[Run]) -> str:
    if not runs:
        return ""
    drawn = picture_html(
        lambda theme, narrow: curve_png(runs, theme, narrow=narrow, column=HYPERVOLUME),
        f"Hypervolume against steps, {_title(runs)}",
        "Volume that the policies found so far dominate above the reference point, in the evaluations of the training.",
    )
    return f"<h2>Hypervolume</h2>\n{drawn}"


def _fronts(runs: Sequence[Run]) -> str:
    parts = []
    for task in front_tasks(runs):
        seen = {2: "The line bounds what a front dominates.", 3: "Beside: the same points along every axis."}
        lines = "A line is a policy, each objective on its own scale."
        if len(task.fronts) == 1:
            lines += " Its color is that of the objective that it is best at."
        caption = f"Mean returns of every policy, higher is better. {seen.get(len(task.names), lines)}"
        parts.append(
            picture_html(
                lambda theme, narrow, task=task: front_png(task.fronts, task.names, theme, narrow=narrow),  # type: ignore[misc]
                f"Front of {task.env}: {', '.join(task.names)}",
                f"{task.env}. {caption}",
            )
        )
    return "<h2>Pareto front</h2>\n" + "\n".join(parts) if parts else ""


def _videos(runs: Sequence[Run]) -> str:
    figures = []
    for run in runs:
        file = run.path / "video.mp4"
        if file.exists():
            data = data_uri("video/mp4", file.read_bytes())
            caption = escape(f"{run.algo}, {run.env}, seed {run.seed}")
            figures.append(
                f'<figure><video src="{data}" controls autoplay muted loop playsinline></video>'
                f"<figcaption>{caption}</figcaption></figure>"
            )
    return f'<h2>Video</h2>\n<div class="videos">{"".join(figures)}</div>' if figures else ""


def _pictures(runs: Sequence[Run], name: str, heading: str) -> str:
    """What runs have under a name: the paths of tasks in the plane, the gaps of those that estimate one."""
    figures = []
    for run in runs:
        file = run.path / name
        if file.exists():
            caption = escape(f"{run.algo}, {run.env}, seed {run.seed}")
            data = data_uri("image/png", file.read_bytes())
            figures.append(
                f'<figure><img src="{data}" alt="{heading}, {caption}"><figcaption>{caption}</figcaption></figure>'
            )
    return f'<h2>{heading}</h2>\n<div class="videos">{"".join(figures)}</div>' if figures else ""


def _published(runs: Sequence[Run]) -> str:
    known = dict.fromkeys(p for run in runs for p in published_beside(run.result))
    if not known:
        return ""

    def row(p: Published) -> tuple[str, ...]:
        budget = NONE if p.env_steps is None else steps(p.env_steps)
        return (p.algo, p.task, plus_minus(p.value, p.std), budget, p.source, p.note)

    columns = ("algo", "task", "return", "steps", "source", "note")
    table = Table(columns, tuple(row(p) for p in known), (False, False, True, True, False, False))
    sources = dict.fromkeys(p.source for p in known)
    listed = "".join(f"<li>{escape(name)}: {escape(SOURCES[name])}</li>" for name in sources)
    return f'<h2>Published</h2>\n{table_html(table, fit=True)}\n<ul class="muted">{listed}</ul>'


def _settings(runs: Sequence[Run]) -> str:
    parts = []
    for run in runs:
        typed = run.overrides.replace("\n", " ") or "no overrides"
        summary = f"<strong>{escape(run.path.name)}</strong> <code>{escape(typed)}</code>"
        parts.append(folded(summary, f"<pre>{escape(run.config.strip())}</pre>", opened=len(runs) == 1))
    listed = "".join(parts)
    if len(runs) > MANY:
        listed = folded(f"{len(runs)} runs", f'<div class="runs">{listed}</div>')
    return f'<h2>Settings</h2>\n<div class="runs">{listed}</div>'


def _machine(runs: Sequence[Run]) -> str:
    lines = []
    names = ("machine", "device", "dtype", "threads", "commit", *(("config_hash",) if len(runs) == 1 else ()))
    for run in runs:
        r = run.result
        facts = [f"{name} {r[name]}" for name in names if r.get(name)]
        versions = r.get("versions")
        facts += [f"{name} {version}" for name, version in versions.items()] if isinstance(versions, dict) else []
        lines.append(" · ".join(facts))
    return "".join(f'<p class="muted">{escape(line)}</p>' for line in dict.fromkeys(lines) if line)

"""One self-contained HTML page about one or several runs: facts, curves, video, settings. It loads nothing."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from ctrlrl.report.curves import DARK, LIGHT, curve_png, steps, write_curve
from ctrlrl.report.published import SOURCES, Published, published
from ctrlrl.report.runs import Run, read_run
from ctrlrl.report.stats import MIN_SEEDS
from ctrlrl.report.tables import NONE, Table, duration, number, plus_minus, pooled_table, results_table

__all__ = ["write_curve", "write_page"]

STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --muted: #6b7280; --line: #e5e7eb; --page: #fff; --soft: #f6f7f9;
  --accent: #2563eb; --good: #0f8a6d; --bad: #c2410c }
@media (prefers-color-scheme: dark) { :root { --text: #e6e8eb; --muted: #9aa3ad; --line: #2b3138; --page: #14171a;
  --soft: #1b1f24; --accent: #6ea8fe; --good: #4fd1b0; --bad: #ff9f6b } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif }
main { max-width: 60rem; margin: 0 auto; padding: 3rem 1.5rem 4rem }
h1 { font-size: 1.75rem; line-height: 1.2; letter-spacing: -.015em; margin: 0 0 .35rem; overflow-wrap: anywhere }
h2 { font-size: 1.05rem; margin: 2.75rem 0 .75rem }
p { margin: .4rem 0 }
.muted, figcaption { color: var(--muted); font-size: .85rem }
.status { font-weight: 600; color: var(--muted) } .finished { color: var(--good) } .failed { color: var(--bad) }
.facts { display: flex; flex-wrap: wrap; gap: 1px; margin: 1.75rem 0 0;
  background: var(--line); border: 1px solid var(--line); border-radius: 10px; overflow: hidden }
.facts div { flex: 1 1 9rem; background: var(--page); padding: .8rem 1rem }
.facts dt { color: var(--muted); font-size: .8rem } .facts dd { margin: .1rem 0 0; font-size: 1.3rem; font-weight: 600;
  font-variant-numeric: tabular-nums; white-space: nowrap }
.facts dd small { font-size: .85rem; font-weight: 400; color: var(--muted) }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums }
th { text-align: left; font-weight: 500; color: var(--muted); border-bottom: 1px solid var(--line);
  padding: .4rem 1.1rem .4rem 0; white-space: nowrap; vertical-align: bottom }
td { border-bottom: 1px solid var(--line); padding: .45rem 1.1rem .45rem 0; vertical-align: top }
td:not(.words) { white-space: nowrap } th.right, td.right { text-align: right } tr > :last-child { padding-right: 0 }
figure { margin: 0 } img, video { display: block; max-width: 100%; height: auto } figure img { width: 100% }
video { border-radius: 10px; background: #000; max-height: 28rem }
figcaption { margin-top: .5rem } table.fit { width: auto } table.fit th, table.fit td { padding-right: 2.25rem }
.videos { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1.25rem }
.runs { border: 1px solid var(--line); border-radius: 10px; overflow: hidden; margin: 0 0 1rem }
details + details { border-top: 1px solid var(--line) } summary { cursor: pointer; padding: .55rem 1rem }
summary code { color: var(--muted); margin-left: .5rem }
details pre { margin: 0; border-top: 1px solid var(--line); border-radius: 0 }
pre, code { font: .82rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace }
pre { background: var(--soft); padding: .9rem 1rem; overflow-x: auto; border-radius: 10px }
ul { padding-left: 1.1rem; margin: .4rem 0 } li { margin: .25rem 0; overflow-wrap: anywhere }
@media print { details { break-inside: avoid } main { padding: 0 } }
"""


def write_page(runs: Sequence[Path], out: Path) -> None:
    """Write the report of the given run folders to the HTML file `out`."""
    if not runs:
        raise ValueError("report: no run folder given; name one or more, e.g. `ctrlrl report runs/a runs/b`.")
    read = [read_run(Path(path)) for path in runs]
    title = _title(read)
    parts = [
        _header(read, title),
        _facts(read[0]) if len(read) == 1 else _seeds(read),
        _curves(read),
        _videos(read),
        _published(read),
        _settings(read),
        _machine(read),
    ]
    body = "\n".join(part for part in parts if part)
    head = f"<title>{escape(title)}</title>\n<style>{STYLE}</style>"
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{head}\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n",
        encoding="utf-8",
    )


def _title(runs: Sequence[Run]) -> str:
    algos, envs = list(dict.fromkeys(r.algo.upper() for r in runs)), list(dict.fromkeys(r.env for r in runs))
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
        ("Normalised score", number(r.get("normalized_score"), 1), ""),
        ("Success", NONE if success is None else f"{100 * success:.0f} %", ""),
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


def _seeds(runs: Sequence[Run]) -> str:
    results = [run.result for run in runs]
    return (
        f"<h2>Every seed</h2>\n{_table(results_table(results))}\n"
        '<p class="muted">Last: the final evaluation, ± standard deviation over its episodes. '
        "Best: the best evaluation of the run.</p>\n"
        f"<h2>Over seeds</h2>\n{_table(pooled_table(results), fit=True)}\n"
        '<p class="muted">Finished runs only. Intervals: 95 % percentile bootstrap over seeds, '
        f"from {MIN_SEEDS} seeds on.</p>"
    )


def _curves(runs: Sequence[Run]) -> str:
    light, dark = (_data("image/png", curve_png(runs, theme)) for theme in (LIGHT, DARK))
    title = escape(_title(runs))
    near = " Dashed: published end values, where near." if any(published(r.algo, r.env) for r in runs) else ""
    if len(runs) == 1:
        caption = "Line: return of training episodes. Dots: evaluation, ± standard deviation over its episodes."
    else:
        caption = (
            "Lines: return of training episodes, thin for each seed, thick for their mean. "
            f"Band: 95 % bootstrap interval from {MIN_SEEDS} seeds on, else the range. Dots: evaluations."
        )
    return (
        "<h2>Learning curve</h2>\n<figure><picture>"
        f'<source srcset="{dark}" media="(prefers-color-scheme: dark)">'
        f'<img src="{light}" alt="Return against steps, {title}">'
        f"</picture><figcaption>{caption}{near}</figcaption></figure>"
    )


def _videos(runs: Sequence[Run]) -> str:
    figures = []
    for run in runs:
        file = run.path / "video.mp4"
        if file.exists():
            data = _data("video/mp4", file.read_bytes())
            caption = escape(f"{run.algo}, {run.env}, seed {run.seed}")
            figures.append(
                f'<figure><video src="{data}" controls autoplay muted loop playsinline></video>'
                f"<figcaption>{caption}</figcaption></figure>"
            )
    return f'<h2>Video</h2>\n<div class="videos">{"".join(figures)}</div>' if figures else ""


def _published(runs: Sequence[Run]) -> str:
    known = dict.fromkeys(p for run in runs for p in published(run.algo, run.env))
    if not known:
        return ""

    def row(p: Published) -> tuple[str, ...]:
        budget = NONE if p.env_steps is None else steps(p.env_steps)
        return (p.algo, p.task, plus_minus(p.value, p.std), budget, p.source, p.note)

    columns = ("algo", "task", "return", "steps", "source", "note")
    table = Table(columns, tuple(row(p) for p in known), (False, False, True, True, False, False))
    sources = dict.fromkeys(p.source for p in known)
    listed = "".join(f"<li>{escape(name)}: {escape(SOURCES[name])}</li>" for name in sources)
    return f'<h2>Published</h2>\n{_table(table, fit=True)}\n<ul class="muted">{listed}</ul>'


def _settings(runs: Sequence[Run]) -> str:
    parts, opened = [], " open" if len(runs) == 1 else ""
    for run in runs:
        typed = run.overrides.replace("\n", " ") or "no overrides"
        parts.append(
            f"<details{opened}><summary><strong>{escape(run.path.name)}</strong> <code>{escape(typed)}</code></summary>"
            f"<pre>{escape(run.config.strip())}</pre></details>"
        )
    return f'<h2>Settings</h2>\n<div class="runs">{"".join(parts)}</div>'


def _machine(runs: Sequence[Run]) -> str:
    lines = []
    for run in runs:
        r = run.result
        facts = [f"{name} {r[name]}" for name in ("device", "dtype", "threads", "commit", "config_hash") if r.get(name)]
        versions = r.get("versions")
        facts += [f"{name} {version}" for name, version in versions.items()] if isinstance(versions, dict) else []
        lines.append(" · ".join(facts))
    return "".join(f'<p class="muted">{escape(line)}</p>' for line in dict.fromkeys(lines) if line)


def _table(table: Table, *, fit: bool = False) -> str:
    """fit: as wide as its text, instead of the page."""

    def line(tag: str, cells: Sequence[str]) -> str:
        out = ""
        for cell, right in zip(cells, table.numeric, strict=True):
            kind = ' class="right"' if right else ' class="words"' if len(cell) > 32 else ""
            out += f"<{tag}{kind}>{escape(cell)}</{tag}>"
        return out

    rows = "".join(f"<tr>{line('td', row)}</tr>" for row in table.rows)
    head = f"<thead><tr>{line('th', table.columns)}</tr></thead>"
    return f'<div class="wide"><table class="{"fit" if fit else ""}">{head}<tbody>{rows}</tbody></table></div>'


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"

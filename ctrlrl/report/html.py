"""Pieces of the report's page: its style, tables, pictures that follow screen, night and paper."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from html import escape

from ctrlrl.report.drawing import DARK, LIGHT, Theme
from ctrlrl.report.tables import Table

Draw = Callable[[Theme, bool], bytes | None]  # theme, narrow -> PNG

MANY = 12  # runs or rows: more are folded away

STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --muted: #6b7280; --line: #e5e7eb; --page: #fff; --soft: #f6f7f9;
  --accent: #2563eb; --good: #0f8a6d; --bad: #c2410c }
@media screen and (prefers-color-scheme: dark) { :root { --text: #e6e8eb; --muted: #9aa3ad; --line: #2b3138;
  --page: #14171a; --soft: #1b1f24; --accent: #6ea8fe; --good: #4fd1b0; --bad: #ff9f6b } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif }
main { max-width: 60rem; margin: 0 auto; padding: 3rem 1.5rem 4rem } main.broad { max-width: 80rem }
h1 { font-size: 1.75rem; line-height: 1.2; letter-spacing: -.015em; margin: 0 0 .35rem; overflow-wrap: anywhere }
h2 { font-size: 1.05rem; margin: 2.75rem 0 .75rem } h3 { font-size: .95rem; margin: 1.75rem 0 .5rem }
p { margin: .4rem 0 }
.muted, figcaption { color: var(--muted); font-size: .85rem }
.note { border-left: 3px solid var(--accent); background: var(--soft); padding: .6rem .9rem;
  border-radius: 0 8px 8px 0 }
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
tr > :first-child { position: sticky; left: 0; background: var(--page) }
figure { margin: 0 } img, video { display: block; max-width: 100%; height: auto } figure img { width: 100% }
video { border-radius: 10px; background: #000; max-height: 28rem }
figcaption { margin-top: .5rem } table.fit { width: auto } table.fit th, table.fit td { padding-right: 2.25rem }
.videos { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1.25rem }
.runs { border: 1px solid var(--line); border-radius: 10px; overflow: hidden; margin: 0 0 1rem }
details + details { border-top: 1px solid var(--line) } summary { cursor: pointer; padding: .55rem 1rem }
summary code { color: var(--muted); margin-left: .5rem; overflow-wrap: anywhere }
details pre { margin: 0; border-top: 1px solid var(--line); border-radius: 0 } details .wide { padding: 0 1rem .6rem }
pre, code { font: .82rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace }
pre { background: var(--soft); padding: .9rem 1rem; overflow-x: auto; border-radius: 10px }
ul { padding-left: 1.1rem; margin: .4rem 0 } li { margin: .25rem 0; overflow-wrap: anywhere }
@media (max-width: 600px) { main { padding: 1.5rem 1rem 3rem } h1 { font-size: 1.4rem } h2 { margin-top: 2.25rem }
  table { font-size: .82rem } th, td, table.fit th, table.fit td { padding-right: .9rem }
  td.words { min-width: 14rem } tr > :first-child { max-width: 45vw }
  tr > td:first-child { white-space: normal; overflow-wrap: break-word } }
@media print { @page { margin: 14mm } body { font-size: 10pt } main { max-width: none; padding: 0 }
  h1, h2, h3 { break-after: avoid } figure, tr, .facts, .note { break-inside: avoid }
  thead { display: table-header-group }
  .wide { overflow: visible } table { font-size: 7.5pt } th, td, table.fit th, table.fit td { padding-right: .5rem }
  th, td:not(.words) { white-space: normal } tr > :first-child { position: static }
  .videos, .screen { display: none } .runs { border: none } pre { white-space: pre-wrap; overflow-wrap: anywhere } }
"""


def page_html(title: str, body: str, *, broad: bool = False) -> str:
    """broad: for tables with many columns."""
    kind = ' class="broad"' if broad else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n"
        f"</head>\n<body>\n<main{kind}>\n{body}\n</main>\n</body>\n</html>\n"
    )


def table_html(table: Table, *, fit: bool = False) -> str:
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


def picture_html(draw: Draw, alt: str, caption: str) -> str:
    """One picture in four: for a page and a phone, by day and by night; paper has the page's by day."""
    light = draw(LIGHT, False)
    if light is None:
        return ""
    phone = "(max-width: 600px)"
    night = "screen and (prefers-color-scheme: dark)"
    others = ((f"{night} and {phone}", DARK, True), (f"screen and {phone}", LIGHT, True), (night, DARK, False))
    sources = ""
    for media, theme, narrow in others:
        content = draw(theme, narrow)
        if content is not None:
            sources += f'<source srcset="{data_uri("image/png", content)}" media="{media}">'
    image = f'<img src="{data_uri("image/png", light)}" alt="{escape(alt)}">'
    return f"<figure><picture>{sources}{image}</picture><figcaption>{escape(caption)}</figcaption></figure>"


def folded(summary: str, content: str, *, opened: bool = False) -> str:
    return f"<details{' open' if opened else ''}><summary>{summary}</summary>{content}</details>"


def data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"

"""The live table of a sweep; away from a terminal a plain line for every cell that starts or ends."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ctrlrl.report.tables import duration
from ctrlrl.sweep.records import Progress

ORDER = ("running", "failed", "interrupted", "finished", "waiting")  # who may stay where the screen is short
COLORS = {"running": "bold", "failed": "red", "interrupted": "yellow", "finished": "green", "waiting": "dim"}
FRAME = 7  # lines of the screen that are not cells


class Line(NamedTuple):
    """One cell on the board."""

    name: str
    state: str
    progress: Progress
    note: str = ""


class Board:
    """Use as a context. `show` redraws, `say` writes a line that stays."""

    def __init__(self, title: str, *, console: Console | None = None):
        self.title = title
        self.console = console or Console(stderr=True)
        self._live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None

    def __enter__(self) -> Board:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def live(self) -> bool:
        return self._live is not None

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def event(self, text: str) -> None:
        """Something that the table shows by itself."""
        if self._live is None:
            self.say(f"{time.strftime('%H:%M:%S')}  {text}")

    def show(self, lines: Sequence[Line], left: float | None) -> None:
        if self._live is not None:
            self._live.update(self.table(lines, left), refresh=True)

    def table(self, lines: Sequence[Line], left: float | None) -> Table:
        """As many cells as the screen has room for: those at work first, then failures, then the others."""
        counts = {state: sum(line.state == state for line in lines) for state in ORDER}
        said = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        room = max(self.console.size.height - FRAME, 3)
        ranked = sorted(range(len(lines)), key=lambda i: (ORDER.index(lines[i].state), i))
        kept = sorted(ranked[:room])
        more = f", {len(lines) - len(kept)} not shown" if len(kept) < len(lines) else ""
        table = Table(title=self.title, caption=f"{said}{more}  ·  about {duration(left)} left", title_justify="left")
        for name in ("cell", "state", "step", "last", "left"):
            table.add_column(name, justify="right" if name in ("step", "left") else "left", no_wrap=name != "last")
        for line in (lines[i] for i in kept):
            steps, total, score, rest = line.progress
            shown = f"{steps:,}" + (f" / {total:,}" if total else "") if steps else ""
            table.add_row(
                Text(line.name),
                Text(line.state, COLORS[line.state]),
                shown,
                Text(line.note or score),
                duration(rest) if line.state == "running" and rest is not None else "",
            )
        return table

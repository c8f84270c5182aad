"""Run a sweep to its end, or to the Ctrl-C after which the same command goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from ctrlrl.disk import write_atomic
from ctrlrl.report.page import write_page
from ctrlrl.report.tables import duration
from ctrlrl.sweep.ask import Options, Totals, check, check_files, read_options
from ctrlrl.sweep.board import Board, Line
from ctrlrl.sweep.cells import Cell, cells_of
from ctrlrl.sweep.launchers import Job, Launcher, LeftJob, make_launcher
from ctrlrl.sweep.plan import plans
from ctrlrl.sweep.process import INTERRUPTED, last_words
from ctrlrl.sweep.records import (
    Record,
    append_row,
    check_same,
    progress_of,
    read_cells,
    result_of,
    rows_of,
    score_of,
    state_of,
    write_cells,
)
from ctrlrl.train.interrupt import Interrupt

REDRAW = 1.0  # seconds


class Sweep:
    """The cells of one call and the loop that gets them done."""

    def __init__(
        self,
        options: Options,
        cells: Sequence[Cell],
        totals: Mapping[str, Totals],
        launcher: Launcher,
        board: Board,
    ):
        self.options, self.folder, self.launcher, self.board = options, options.folder, launcher, board
        self.before = read_cells(self.folder)
        check_same(self.folder, self.before, cells)
        self.records = [Record(cell, state_of(self.folder / cell.name)) for cell in cells]
        self.totals = totals
        self.jobs: dict[str, Job] = {}
        self.seconds: list[float] = []  # of the cells that finished in this call
        self.began: dict[str, float] = {}
        self.told: set[str] = set()  # to stop: a second signal would cut a checkpoint short

    def run(self) -> int:
        """0 when every cell is finished, 1 when some failed, 130 after Ctrl-C."""
        queue = [record for record in self.records if record.state != "finished"]
        for record in self.records:
            if record.state == "finished":
                self._row(record)
        done = len(self.records) - len(queue)
        if done:
            self.board.event(f"{done} of {len(self.records)} cells are finished already")
        interrupt = Interrupt(lambda _: self.board.say("stopping: every cell writes its checkpoint first"))
        drawn = 0.0
        try:
            with interrupt, self.board:
                while self.jobs or (queue and not interrupt.asked):
                    while queue and len(self.jobs) < self.launcher.jobs and not interrupt.asked:
                        self._start(queue.pop(0))
                    if interrupt.asked:
                        self._stop(at_once=False)
                    self._reap(queue, stopping=interrupt.asked)
                    if self.board.live and time.perf_counter() - drawn > REDRAW:
                        self._draw()
                        drawn = time.perf_counter()
                    if self.jobs:
                        time.sleep(self.launcher.pause)
                self._draw()
        except KeyboardInterrupt:  # the second one
            self._stop(at_once=True)
        except BaseException:
            self._stop(at_once=False)
            raise
        finally:
            self._save()
        if interrupt.asked:
            return INTERRUPTED
        return 0 if all(record.state == "finished" for record in self.records) else 1

    def _start(self, record: Record) -> None:
        cell = record.cell
        log = self.folder / "logs" / f"{cell.name}.log"
        how = "goes on" if record.state == "interrupted" else "starts"
        self.jobs[cell.name] = self.launcher.submit(cell.arguments(self.options.data_dir), self.folder / cell.name, log)
        if isinstance(self.jobs[cell.name], LeftJob):
            how = "is still at work for a sweep that was killed; waiting for it"
        record.state, record.error = "running", None
        self.began[cell.name] = time.perf_counter()
        self.board.event(f"{cell.name} {how}")
        self._save()

    def _reap(self, queue: list[Record], *, stopping: bool) -> None:
        for record in self.records:
            name = record.cell.name
            code = self.jobs[name].poll() if name in self.jobs else None
            if code is None:
                continue
            job = self.jobs.pop(name)
            if result_of(self.folder / name).get("status") == "finished":
                self._finished(record)
            elif isinstance(job, LeftJob) and not stopping:
                record.state = state_of(self.folder / name)
                queue.insert(0, record)
            elif stopping or code == INTERRUPTED:
                record.state = "interrupted"
            else:
                record.state, record.error = "failed", self._why(name, code)
                self.board.event(f"{name} failed: {record.error}")
            self._save()

    def _finished(self, record: Record) -> None:
        name = record.cell.name
        record.state = "finished"
        took = time.perf_counter() - self.began[name]
        self.seconds.append(took)
        self._row(record)
        done = sum(r.state == "finished" for r in self.records)
        score = score_of(result_of(self.folder / name))
        self.board.event(
            f"{name} finished: {score or 'no evaluation'}, {duration(took)}  "
            f"[{done}/{len(self.records)}, about {duration(self._left())} left]"
        )

    def _why(self, name: str, code: int) -> str:
        said = last_words(self.folder / "logs" / f"{name}.log")
        return f"killed by signal {-code} (out of memory?); its last words: {said}" if code < 0 else said

    def _row(self, record: Record) -> None:
        if self.options.rows is None:
            return
        with self._no_row(record):
            folder = self.folder / record.cell.name
            for row in rows_of(record.cell, folder, self.options.plan.name, self.options.data_dir):
                with self._no_row(record):
                    append_row(self.options.rows, row)

    @contextmanager
    def _no_row(self, record: Record) -> Iterator[None]:
        """What is wrong with one row is told, and the others go on."""
        try:
            yield
        except (ValueError, OSError) as error:
            self.board.event(f"{record.cell.name}: no row: {error}")

    def _left(self) -> float | None:
        """Seconds until the sweep ends, from the cells that this call finished."""
        remaining = sum(record.state in ("running", "waiting", "interrupted") for record in self.records)
        if not self.seconds:
            return None
        return remaining * sum(self.seconds) / len(self.seconds) / min(self.launcher.jobs, len(self.records))

    def _stop(self, *, at_once: bool) -> None:
        for name, job in self.jobs.items():
            if at_once or name not in self.told:
                job.stop(at_once=at_once)
                self.told.add(name)
        if at_once:
            for record in self.records:
                if record.state == "running":
                    record.state = "interrupted"

    def _draw(self) -> None:
        lines = []
        for record in self.records:
            cell = record.cell
            progress = progress_of(self.folder / cell.name, self.totals.get(cell.name, {}))
            lines.append(Line(cell.name, record.state, progress, record.error or ""))
        self.board.show(lines, self._left())

    def _save(self) -> None:
        write_cells(self.folder, self.before, self.records)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One sweep at a time works in a folder; a lock ends with its process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"sweep.dir={folder}: another sweep works in it; wait for it or name another one"
            ) from None
        yield


def main(words: Sequence[str], board: Board | None = None) -> tuple[int, str]:
    """`ctrlrl sweep`: exit code, and what to say at the end."""
    options = read_options(words)
    cells = cells_of(options.plan, options.words, options.task)
    unfinished = [cell for cell in cells if state_of(options.folder / cell.name) != "finished"]
    totals = check(unfinished, options.data_dir)
    check_files(unfinished, options.data_dir)
    launcher = make_launcher(options.launcher, options.jobs, options.settings, options.folder)
    with alone(options.folder):
        board = board or Board(f"{options.plan.name or 'sweep'}  {options.folder}")
        sweep = Sweep(options, cells, totals, launcher, board)
        write_atomic(options.folder / "sweep.yaml", _asked(options, words).encode())
        code = sweep.run()
        return code, "\n".join([*_summary(sweep, code, words), *_report(sweep, code)])


def _asked(options: Options, words: Sequence[str]) -> str:
    asked: dict[str, Any] = {"sweep": options.plan.name, "typed": list(words), "note": options.plan.note}
    return yaml.safe_dump(asked, sort_keys=False, width=1000)


def _summary(sweep: Sweep, code: int, words: Sequence[str]) -> Iterator[str]:
    counts = {s: sum(r.state == s for r in sweep.records) for s in ("finished", "failed", "interrupted", "waiting")}
    yield ", ".join(f"{n} {state}" for state, n in counts.items() if n) + f" of {len(sweep.records)} cells"
    for record in sweep.records:
        if record.state == "failed":
            yield f"failed: {record.cell.name}: {record.error} ({sweep.folder / 'logs' / record.cell.name}.log)"
    if code:
        yield f"go on with: ctrlrl sweep {' '.join(words)}"


def _report(sweep: Sweep, code: int) -> Iterator[str]:
    if code == INTERRUPTED or not any(record.state == "finished" for record in sweep.records):
        return
    out = sweep.folder / "report.html"
    try:
        write_page([sweep.folder], out)
    except (ImportError, ValueError, OSError) as error:
        yield f"no report: {error}"
    else:
        yield f"report: {out}"


def usage() -> str:
    own = "sweep=NAME|FILE sweep.dir=FOLDER task=* data_dir=data rows=FILE launcher=local launcher.KEY=VALUE jobs=N"
    return (
        f"sweeps (sweep=):       {' '.join(plans())}\nlaunchers (launcher=): local submitit ray\n"
        f"keys of sweep: {own}; every other is one of train, several values with commas between them"
    )

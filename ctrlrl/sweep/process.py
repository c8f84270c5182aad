"""A cell as a process of its own: `ctrlrl train`, new or resumed, its words into a log file that one writer holds."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctrlrl.sweep.cells import NOT_SETTINGS, key_of, merged
from ctrlrl.train.trackers import TRACES

INTERRUPTED = 130  # exit code of `ctrlrl train` after Ctrl-C: complete and resumable
LAST_WORDS = 100.0  # seconds that a stopped cell may take for its checkpoint on a cluster


def train_words(words: Sequence[str], folder: Path) -> list[str]:
    """What to type to start the cell, or to go on where its folder stands, with what was asked for since then."""
    if (folder / "config.yaml").exists():
        typed = folder / "overrides.txt"
        before = merged(typed.read_text(encoding="utf-8").splitlines()) if typed.exists() else ()
        return [f"run.resume={folder}", *(word for word in words if _may_change(key_of(word)) and word not in before)]
    if folder.is_dir() and all(p.name[0] == "." or p.name in TRACES for p in folder.iterdir()):
        shutil.rmtree(folder)  # killed before its first file was complete
    return [*words, f"run.dir={folder}"]


def _may_change(key: str) -> bool:
    """Whether a cell that goes on may be asked for another value: nothing that its numbers depend on."""
    return key == "data.path" or (key.startswith(NOT_SETTINGS) and key not in ("run.dir", "run.resume"))


def start(words: Sequence[str], folder: Path, log: Path) -> subprocess.Popen[bytes] | None:
    """The cell's process in a session of its own, so that a terminal's Ctrl-C reaches the sweep alone.

    None where another process still works on this cell: it holds the log file.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    typed = train_words(words, folder) if free(log) else None
    threads = next((word.partition("=")[2] for word in words if word.startswith("threads=")), "1")
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}
    with open(log, "ab") as out:
        if typed is None or not _hold(out):
            return None
        out.write(f"$ ctrlrl train {' '.join(typed)}\n".encode())
        out.flush()
        return subprocess.Popen(
            [sys.executable, "-m", "ctrlrl.cli", "train", *typed],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )


def free(log: Path) -> bool:
    """Whether no process writes to this log."""
    if not log.exists():
        return True
    with open(log, "ab") as file:
        return _hold(file)


def _hold(file: Any) -> bool:
    """Lock the file until every process that inherits it has ended; False where another one has it."""
    try:
        import fcntl
    except ImportError:  # Windows: a sweep that was killed there is not found out
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def last_words(log: Path) -> str:
    """The first line of the error that the last attempt ended with, as its log tells it."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "no log"
    begin = max((i for i, line in enumerate(lines) if line.startswith("$ ctrlrl train")), default=-1)
    said = [line.strip() for line in lines[begin + 1 :] if line.strip()]
    told = [line.partition(": ")[2] for line in said if line.startswith("ctrlrl train: ")]
    return (told or said or ["no word"])[-1]


class CellRun:
    """What a cluster runs for a cell: its process, stopped cleanly when the job is. Picklable."""

    def __init__(self, words: tuple[str, ...], folder: str, log: str):
        self.words, self.folder, self.log = words, folder, log
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        while True:
            self._process = start(self.words, Path(self.folder), Path(self.log))
            if self._process is not None:
                break
            time.sleep(1.0)
        try:
            return self._process.wait()
        except KeyboardInterrupt:  # Ray's cancel
            self._stop()
            return INTERRUPTED
        except BaseException:  # submitit's exit after it has queued the job again
            self._stop()
            raise

    def checkpoint(self) -> Any:
        """submitit calls this before a time-out or preemption; the job goes back into the queue and resumes."""
        from submitit.helpers import DelayedSubmission

        self._stop()
        return DelayedSubmission(CellRun(self.words, self.folder, self.log))

    def _stop(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(LAST_WORDS)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_process": None}

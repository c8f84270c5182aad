"""One process that has imported torch and forks the processes that tests kill."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Ended(NamedTuple):
    words: list[str]
    code: int  # negative: the signal that ended it


Start = Callable[..., Ended]


@pytest.fixture(scope="session")
def start() -> Iterator[Start]:
    """start(job, folder, words=3, seconds=0.01, signals=[9], **options): run a job of victims.py to its end."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("victims.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    assert json.loads(server.stdout.readline()) == {"threads": 1}

    def run(
        job: str, folder: Path, *, words: int = 0, seconds: float = 0.0, signals: Sequence[int] = (), **options: Any
    ) -> Ended:
        order = {"job": job, "folder": str(folder), "words": words, "seconds": seconds, "signals": list(signals)}
        server.stdin.write(json.dumps({**order, "options": options}) + "\n")
        server.stdin.flush()
        return Ended(**json.loads(server.stdout.readline()))

    yield run
    server.stdin.close()
    server.stdout.close()
    server.wait(timeout=30)

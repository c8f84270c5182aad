"""Processes to be killed. `python victims.py` imports torch once and forks a child for every job it reads from stdin.

A child reports what it does as words, one a line, through a pipe; its parent waits for so many of them and so many
seconds more, sends the signals asked for, and answers with all words and the exit status. The parent never computes:
a fork of a process with threads would hang.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # by the first optimiser, which a child should not pay for

from ctrlrl import cli, runs, settings  # noqa: F401 - a child must not pay for imports
from ctrlrl.algos.ppo import PPOConfig, PPOLearner  # noqa: F401
from ctrlrl.build import build
from ctrlrl.config import CheckpointConfig, EnvConfig, EvalConfig, LogConfig, TrainConfig
from ctrlrl.data.replay import ReplayBuffer
from ctrlrl.envs.classic import Pendulum  # noqa: F401
from ctrlrl.train.buffer_files import write_buffer
from ctrlrl.train.checkpoint import Checkpoint, write_folder
from ctrlrl.train.on_policy import OnPolicyLoop
from ctrlrl.types import Transition

ITERATION = 2 * 8  # environment steps
PATIENCE = 120.0  # seconds without a word until a child counts as hanging
HANGS = 1000  # the exit status then
Report = Callable[[str], None]


def config(iterations: int) -> TrainConfig:
    """Next to no training, so that most of the time goes into saving."""
    schedules: dict[str, Any] = {"lr_schedule": "linear", "normalize_obs": True, "normalize_reward": True}
    algo = PPOConfig(n_steps=8, n_minibatches=1, n_epochs=1, hidden=[4], **schedules)
    return TrainConfig(
        algo=algo,
        env=EnvConfig(name="pendulum"),
        n_envs=2,
        total_steps=iterations * ITERATION,
        device="cpu",
        eval=EvalConfig(every=8 * ITERATION, episodes=1),
        log=LogConfig(every_steps=ITERATION, progress=False),
        checkpoint=CheckpointConfig(every=0.0, every_steps=5 * ITERATION, keep=3),
    )


def checkpoint(mark: int) -> Checkpoint:
    full = torch.full((64, 64), float(mark))
    return Checkpoint({"w": full}, {"m": full.clone()}, {"mark": mark})


def replay(mark: int) -> ReplayBuffer:
    """Twenty rows of `mark`."""
    buffer, full = ReplayBuffer(32, 2, 1), torch.full((20, 2), float(mark))
    buffer.add(Transition(full, full[:, :1], full[:, 0], full, full[:, 0] < 0, {}))
    return buffer


def train(folder: Path, report: Report, iterations: int) -> None:
    trainer = build(config(iterations), folder, resume=(folder / "checkpoints").exists())
    inner = trainer.save

    def save(name: str) -> None:
        report(f"saving {name} {trainer.loop.env_steps}")
        inner(name)
        report(f"saved {name} {trainer.loop.env_steps}")

    trainer.save = save  # type: ignore[method-assign]
    trainer.train()


def save_for_ever(folder: Path, report: Report, first: int) -> None:
    for mark in itertools.count(first):
        rows = replay(mark)
        write_folder(folder / "last", checkpoint(mark), lambda new, rows=rows: write_buffer(rows, new, chunk_bytes=200))
        report(f"saved {mark}")


def command(folder: Path, report: Report, typed: list[str], stuck: bool = False) -> None:
    """The command line; `stuck`: from the second iteration on, an iteration takes a minute."""
    inner = OnPolicyLoop.iterate

    def iterate(self: OnPolicyLoop) -> Any:
        report(f"iterate {self.env_steps}")
        if stuck and self.env_steps:
            time.sleep(60)
        return inner(self)

    OnPolicyLoop.iterate = iterate  # type: ignore[method-assign]
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    cli.main(typed)


JOBS: dict[str, Callable[..., None]] = {"train": train, "save": save_for_ever, "command": command}


def child(job: dict[str, Any], pipe: int) -> None:
    def report(word: str) -> None:
        os.write(pipe, f"{word}\n".encode())

    code: Any = 1
    try:
        JOBS[job["job"]](Path(job["folder"]), report, **job["options"])
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def run(job: dict[str, Any]) -> dict[str, Any]:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        child(job, write)
    os.close(write)
    text, open_, hangs = b"", True, False

    def listen(until: Callable[[], bool]) -> None:
        nonlocal text, open_, hangs
        while open_ and not until():
            if not select.select([read], [], [], PATIENCE)[0]:
                os.kill(pid, signal.SIGKILL)
                hangs = True
            more = os.read(read, 65536)
            text, open_ = text + more, bool(more)

    for number in job["signals"]:
        listen(lambda: text.count(b"\n") >= job["words"])
        time.sleep(job["seconds"])
        if open_:
            os.kill(pid, number)
    listen(lambda: False)
    os.close(read)
    status = os.waitpid(pid, 0)[1]
    return {"words": text.decode().splitlines(), "code": HANGS if hangs else os.waitstatus_to_exitcode(status)}


def main() -> None:
    torch.set_num_threads(1)
    print(json.dumps({"threads": len(os.listdir("/proc/self/task"))}), flush=True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()

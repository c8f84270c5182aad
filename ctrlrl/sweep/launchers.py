"""Where the cells of a sweep run: processes of this machine, Slurm jobs by submitit, tasks of Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ctrlrl.registry import unknown
from ctrlrl.settings import command
from ctrlrl.sweep.process import INTERRUPTED, CellRun, free, start


class Job(Protocol):
    """A cell on its way."""

    def poll(self) -> int | None:
        """Its exit code, None while it waits or runs."""

    def stop(self, *, at_once: bool) -> None:
        """Let it write its checkpoint and end; at_once: kill it."""


class Launcher(Protocol):
    jobs: int  # cells at once
    pause: float  # seconds between two looks at the jobs

    def submit(self, words: Sequence[str], folder: Path, log: Path) -> Job: ...


class LocalJob:
    def __init__(self, process: subprocess.Popen[bytes]):
        self.process = process

    def poll(self) -> int | None:
        return self.process.poll()

    def stop(self, *, at_once: bool) -> None:
        if at_once:
            self.process.kill()
        elif os.name != "nt":  # there the console's Ctrl-C has reached the cell itself, and no signal can be sent
            self.process.send_signal(signal.SIGINT)


class LeftJob:
    """A cell that still runs for a sweep which was killed: nothing to do but to wait for it."""

    def __init__(self, log: Path):
        self.log, self.given_up = log, False

    def poll(self) -> int | None:
        return INTERRUPTED if self.given_up or free(self.log) else None

    def stop(self, *, at_once: bool) -> None:
        self.given_up = True


class LocalLauncher:
    """Processes of this machine, `jobs` at once (null: one a core)."""

    pause = 0.1

    def __init__(self, jobs: int | None):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.jobs = jobs or cores

    def submit(self, words: Sequence[str], folder: Path, log: Path) -> Job:
        process = start(words, folder, log)
        return LeftJob(log) if process is None else LocalJob(process)


@dataclass
class SubmititSettings:
    """`launcher.KEY=VALUE` with launcher=submitit."""

    cluster: str | None = None  # slurm | local | debug; null = slurm where srun is found
    timeout_min: int = 1440
    cpus_per_task: int = 1
    gpus_per_node: int = 0
    mem_gb: float | None = None
    partition: str | None = None
    qos: str | None = None
    account: str | None = None
    constraint: str | None = None
    signal_delay_s: int = 120  # before the time-out, for the checkpoint
    max_num_timeout: int = 100  # how often a job that reached its time-out goes back into the queue
    setup: list[str] = field(default_factory=list)  # shell lines before the job, e.g. ["module load cuda"]
    additional_parameters: dict[str, Any] = field(default_factory=dict)  # further sbatch options


class SubmititJob:
    def __init__(self, job: Any):
        self.job = job

    def poll(self) -> int | None:
        if not self.job.done():
            return None
        failed = self.job.exception()  # cancelled, out of memory, no node: there is no exit code
        return 1 if failed is not None else int(self.job.result())

    def stop(self, *, at_once: bool) -> None:
        self.job.cancel()


class SubmititLauncher:
    """One Slurm job a cell; all of them are queued at once unless `jobs` says fewer."""

    pause = 2.0

    def __init__(self, jobs: int | None, settings: SubmititSettings, folder: Path):
        try:
            import submitit
        except ImportError:
            raise ValueError("launcher=submitit needs the submitit package: pip install 'ctrlrl[launchers]'") from None
        self.jobs = jobs or sys.maxsize
        slurm = ("partition", "qos", "account", "constraint", "signal_delay_s", "setup", "additional_parameters")
        given = {
            f"slurm_{key}" if key in slurm else key: value
            for key, value in vars(settings).items()
            if key not in ("cluster", "max_num_timeout") and value not in (None, [], {})
        }
        self.executor = submitit.AutoExecutor(
            folder=folder / "jobs", cluster=settings.cluster, slurm_max_num_timeout=settings.max_num_timeout
        )
        self.executor.update_parameters(name="ctrlrl", tasks_per_node=1, nodes=1, **given)

    def submit(self, words: Sequence[str], folder: Path, log: Path) -> Job:
        return SubmititJob(self.executor.submit(CellRun(tuple(words), str(folder), str(log))))


@dataclass
class RaySettings:
    """`launcher.KEY=VALUE` with launcher=ray."""

    address: str | None = None  # of a running cluster, or auto; null = Ray on this machine alone
    num_cpus: float = 1.0  # a cell
    num_gpus: float = 0.0  # a cell; 0.25 lets four share one


class RayJob:
    def __init__(self, ray: Any, ref: Any):
        self.ray, self.ref = ray, ref

    def poll(self) -> int | None:
        if not self.ray.wait([self.ref], timeout=0)[0]:
            return None
        try:
            return int(self.ray.get(self.ref))
        except Exception as error:  # a lost node, a cancelled task: Ray has a class for each
            return INTERRUPTED if "cancel" in type(error).__name__.lower() else 1

    def stop(self, *, at_once: bool) -> None:
        with suppress(Exception):  # it ended by itself
            self.ray.cancel(self.ref, force=at_once)


class RayLauncher:
    """One Ray task a cell; Ray holds those back for which it has no core yet."""

    pause = 1.0

    def __init__(self, jobs: int | None, settings: RaySettings):
        try:
            import ray
        except ImportError:
            raise ValueError("launcher=ray needs the ray package: pip install 'ctrlrl[launchers]'") from None
        self.jobs, self.ray = jobs or sys.maxsize, ray
        ray.init(address=settings.address, ignore_reinit_error=True, log_to_driver=False)
        self.task = ray.remote(num_cpus=settings.num_cpus, num_gpus=settings.num_gpus, max_retries=0)(run_cell)

    def submit(self, words: Sequence[str], folder: Path, log: Path) -> Job:
        return RayJob(self.ray, self.task.remote(tuple(words), str(folder), str(log), os.getcwd()))


def run_cell(words: tuple[str, ...], folder: str, log: str, here: str) -> int:
    os.chdir(here)  # paths are as they were typed, and a worker stands in a folder of its own
    return CellRun(words, folder, log)()


LAUNCHERS = ("local", "submitit", "ray")


def make_launcher(name: str, jobs: int | None, words: Sequence[str], folder: Path) -> Launcher:
    """The launcher `launcher=name` with its `launcher.KEY=VALUE` words; ValueError for what does not fit."""
    if name not in LAUNCHERS:
        raise ValueError(unknown("launcher", name, LAUNCHERS))
    own = [word.partition(".")[2] for word in words]
    if name == "submitit":
        return SubmititLauncher(jobs, command(SubmititSettings, own), folder)
    if name == "ray":
        return RayLauncher(jobs, command(RaySettings, own))
    if own:
        raise ValueError(f"{words[0]}: launcher=local has no settings of its own but jobs=N")
    return LocalLauncher(jobs)

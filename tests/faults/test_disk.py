"""A disk that is full, read-only or not a disk at all: one line that names the place, and the last checkpoint stays."""

import ctypes
import errno
import json
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from ctrlrl import disk
from ctrlrl.algos.ppo import PPOConfig
from ctrlrl.build import build
from ctrlrl.config import CheckpointConfig, EnvConfig, EvalConfig, LogConfig, TrainConfig
from ctrlrl.train import checkpoint
from ctrlrl.train.checkpoint import Checkpoint, read_folder, write_folder
from ctrlrl.train.trainer import Trainer

ITERATION = 16
NOBODY = 65534


def trainer(folder: Path, *, resume: bool = False) -> Trainer:
    cfg = TrainConfig(
        algo=PPOConfig(n_steps=8, n_minibatches=1, n_epochs=1, hidden=[4]),
        env=EnvConfig(name="pendulum"),
        n_envs=2,
        total_steps=6 * ITERATION,
        device="cpu",
        eval=EvalConfig(every=0, episodes=1),
        log=LogConfig(every=0.0, progress=False),
        checkpoint=CheckpointConfig(every=0.0),
    )
    return build(cfg, folder, resume=resume)


def after(found: Trainer, iterations: int, do: Any) -> None:
    inner, count = found.loop.iterate, [0]

    def iterate() -> Any:
        count[0] += 1
        if count[0] == iterations + 1:
            do()
        return inner()

    found.loop.iterate = iterate  # type: ignore[method-assign]


def sample(mark: int) -> Checkpoint:
    return Checkpoint({"w": torch.full((10_000,), float(mark))}, {}, {"mark": mark})


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to let a file grow beyond this, in the middle of a write, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def mount(folder: Path, options: str, flags: int = 0) -> bool:
    """A tmpfs; False where this process may not mount."""
    folder.mkdir(exist_ok=True)
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.mount(b"none", os.fsencode(folder), b"tmpfs", flags, options.encode()) == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """64 KiB."""
    if not mount(tmp_path / "disk", "size=64k"):
        pytest.skip("may not mount a tmpfs here; RLIMIT_FSIZE plays the full disk in the test beside this one")
    yield tmp_path / "disk"
    ctypes.CDLL(None).umount2(os.fsencode(tmp_path / "disk"), 2)


def test_a_write_cut_short_names_the_file_and_leaves_the_old_checkpoint(tmp_path):
    write_folder(tmp_path / "last", sample(1))
    with largest_file(8192), pytest.raises(OSError, match="File too large") as info:
        write_folder(tmp_path / "last", sample(2))
    assert info.value.filename.endswith("model.safetensors")
    assert read_folder(tmp_path / "last").state["mark"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last"]
    write_folder(tmp_path / "last", sample(3))
    assert read_folder(tmp_path / "last").state["mark"] == 3


def test_a_real_disk_that_is_full_leaves_the_old_checkpoint(small_disk):
    """40 kB a checkpoint: the first one fits, the second one beside it does not."""
    write_folder(small_disk / "last", sample(1))
    with pytest.raises(OSError, match="No space left") as info:
        write_folder(small_disk / "last", sample(2))
    assert info.value.errno == errno.ENOSPC
    assert str(small_disk) in info.value.filename
    assert read_folder(small_disk / "last").state["mark"] == 1
    assert [p.name for p in small_disk.iterdir()] == ["last"]


def test_a_run_on_a_disk_that_fills_up_goes_on_where_there_is_room(small_disk, tmp_path):
    found = trainer(small_disk / "run")

    def fill() -> None:
        with suppress(OSError), open(small_disk / "other", "wb", buffering=0) as file:
            for _ in range(100):
                file.write(b"x" * 1024)

    after(found, 3, fill)
    with pytest.raises(OSError, match="No space left"):
        found.train()
    assert read_folder(small_disk / "run/checkpoints/last").state["env_steps"] == 3 * ITERATION
    shutil.copytree(small_disk / "run", tmp_path / "moved")
    result = trainer(tmp_path / "moved", resume=True).train()
    assert (result["status"], result["env_steps"]) == ("finished", 6 * ITERATION)


@contextmanager
def without_permission(folder: Path) -> Iterator[None]:
    """`folder` and all below may only be read. Root, who may all, becomes nobody for this time."""
    paths = [folder, *folder.rglob("*")]
    root = os.geteuid() == 0
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for path in paths:
            path.chmod(0o755 if path.is_dir() else 0o644)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that nobody can reach; pytest's own are closed to others."""
    path = Path(tempfile.mkdtemp(prefix="ctrlrl-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def test_a_folder_that_may_not_be_written_is_named_and_nothing_in_it_changes(open_folder):
    write_folder(open_folder / "last", sample(1))
    with without_permission(open_folder):
        with pytest.raises(PermissionError) as info:
            write_folder(open_folder / "last", sample(2))
        assert str(open_folder) in str(info.value)
        with pytest.raises(PermissionError):
            disk.write_atomic(open_folder / "result.json", b"{}")
        assert read_folder(open_folder / "last").state["mark"] == 1
    assert [p.name for p in open_folder.iterdir()] == ["last"]


def test_a_run_whose_folder_becomes_read_only_fails_and_can_be_resumed(open_folder):
    found = trainer(open_folder / "run")
    locked = without_permission(open_folder / "run")
    after(found, 2, locked.__enter__)
    try:
        with pytest.raises(PermissionError):
            found.train()
    finally:
        locked.__exit__(None, None, None)
    assert read_folder(open_folder / "run/checkpoints/last").state["env_steps"] == 2 * ITERATION
    assert trainer(open_folder / "run", resume=True).train()["status"] == "finished"


def test_a_read_only_file_system_is_named(tmp_path):
    if not mount(tmp_path / "disk", "size=64k", flags=1):  # MS_RDONLY
        pytest.skip("may not mount a tmpfs here; the permission tests beside this one play it")
    try:
        with pytest.raises(OSError, match="Read-only file system") as info:
            write_folder(tmp_path / "disk/last", sample(1))
        assert str(tmp_path / "disk") in str(info.value.filename)
    finally:
        ctypes.CDLL(None).umount2(os.fsencode(tmp_path / "disk"), 2)


def test_a_file_where_the_checkpoints_should_be_is_named(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoints").write_text("")
    with pytest.raises(OSError, match="checkpoints"):
        trainer(tmp_path / "run").train()
    assert json.loads((tmp_path / "run/result.json").read_text())["status"] == "failed"


def test_nothing_gets_its_name_before_it_is_on_the_disk_nor_goes_before_its_heir_is(tmp_path, monkeypatch):
    """The order that a loss of power needs: contents, names, swap, names, and only then the old one away."""
    write_folder(tmp_path / "last", sample(1))
    log: list[str] = []

    def noted(word: str, do: Any, name: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            log.append(f"{word} {name(args[0])}")
            return do(*args, **kwargs)

        return call

    monkeypatch.setattr(os, "fsync", noted("sync", os.fsync, lambda fd: Path(os.readlink(f"/proc/self/fd/{fd}")).name))
    monkeypatch.setattr(os, "rename", noted("rename", os.rename, lambda path: Path(path).name))
    monkeypatch.setattr(disk.shutil, "rmtree", noted("remove", shutil.rmtree, lambda path: Path(path).name))
    write_folder(tmp_path / "last", sample(2))
    assert log == [
        *(f"sync {name}" for name in checkpoint.FILES),
        "sync .last.new",
        "rename last",
        "rename .last.new",
        f"sync {tmp_path.name}",
        "remove .last.old",
    ]

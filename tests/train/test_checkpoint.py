"""Checkpoints: the same bits back, damage told in one line, and always something loadable left by a crash."""

import errno
import io
import json
import os
import pickle
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from ctrlrl import disk
from ctrlrl.disk import write_atomic
from ctrlrl.train import checkpoint as module
from ctrlrl.train.checkpoint import (
    FILES,
    Checkpoint,
    exists,
    random_state,
    read_folder,
    read_zip,
    remove_folder,
    restore_random_state,
    same_spec,
    spec_values,
    write_folder,
    write_zip,
)
from ctrlrl.types import EnvSpec, ObsPart


def sample(mark: float = 0.0) -> Checkpoint:
    torch.manual_seed(0)
    model = {"w": torch.randn(5, 3) + mark, "half": torch.randn(4).bfloat16(), "count": torch.tensor(7)}
    training = {"rng/cpu": torch.get_rng_state(), "flags": torch.tensor([True, False]), "x": torch.randn(2).double()}
    return Checkpoint(model, training, {"algo": "ppo", "best": None, "mark": mark, "nested": {"a": [1, 2.5]}})


def same(a: Checkpoint, b: Checkpoint) -> bool:
    def equal(x: dict[str, Any], y: dict[str, Any]) -> bool:
        return x.keys() == y.keys() and all(x[k].dtype == y[k].dtype and torch.equal(x[k], y[k]) for k in x)

    fields = {k: v for k, v in b.state.items() if k != "format"}
    return equal(a.model, b.model) and equal(a.training, b.training) and a.state == fields


def test_a_folder_gives_back_the_same_bits(tmp_path):
    write_folder(tmp_path / "last", sample())
    assert same(sample(), read_folder(tmp_path / "last"))
    assert sorted(p.name for p in (tmp_path / "last").iterdir()) == sorted(FILES)
    assert [p.name for p in tmp_path.iterdir()] == ["last"]


@pytest.mark.parametrize("name", ["model", "model.zip", "deep/er/model"])
def test_a_zip_gives_back_the_same_bits_with_or_without_its_suffix(tmp_path, name):
    write_zip(tmp_path / name, sample())
    assert same(sample(), read_zip(tmp_path / name))
    assert same(sample(), read_zip(str(tmp_path / name).removesuffix(".zip")))
    assert (tmp_path / name).with_name("model.zip").is_file()


def test_a_zip_goes_into_any_binary_file():
    file = io.BytesIO()
    write_zip(file, sample())
    file.seek(0)
    assert same(sample(), read_zip(file))


def test_views_and_shared_tensors_are_stored_whole():
    base = torch.arange(6.0)
    file = io.BytesIO()
    write_zip(file, Checkpoint({"a": base[2:4], "b": base.view(2, 3).T}, {}, {}))
    file.seek(0)
    model = read_zip(file).model
    assert torch.equal(model["a"], base[2:4])
    assert torch.equal(model["b"], base.view(2, 3).T)


def one_line(info: pytest.ExceptionInfo[ValueError], *words: str) -> None:
    text = str(info.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(tmp_path, name):
    write_folder(tmp_path / "last", sample())
    (tmp_path / "last" / name).unlink()
    with pytest.raises(ValueError) as info:  # noqa: PT011
        read_folder(tmp_path / "last")
    one_line(info, str(tmp_path / "last"), name)


def test_a_missing_folder_or_zip_is_named(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint there") as info:
        read_folder(tmp_path / "none")
    one_line(info, "none")
    with pytest.raises(ValueError, match="no such file") as info:
        read_zip(tmp_path / "none")
    one_line(info, "none")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_damage(tmp_path, name, keep):
    write_folder(tmp_path / "last", sample())
    file = tmp_path / "last" / name
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(ValueError, match="damaged checkpoint") as info:
        read_folder(tmp_path / "last")
    one_line(info, str(tmp_path / "last"))


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_byte_anywhere_is_damage(tmp_path, name):
    write_folder(tmp_path / "last", sample())
    file = tmp_path / "last" / name
    data = file.read_bytes()
    for at in {0, 7, 40, len(data) // 2, len(data) - 3, len(data) - 1}:
        file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(ValueError, match=r"damaged|format") as info:
            read_folder(tmp_path / "last")
        one_line(info)
    file.write_bytes(data)
    assert same(sample(), read_folder(tmp_path / "last"))


@pytest.mark.parametrize(
    ("found", "mend"), [(99, "Upgrade ctrlrl"), (0, "the ctrlrl that wrote it"), (None, "the ctrlrl that wrote it")]
)
def test_another_format_is_refused_with_both_numbers_and_the_mend(tmp_path, found, mend):
    write_folder(tmp_path / "last", sample())
    file = tmp_path / "last" / "state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": found}))
    with pytest.raises(ValueError, match=f"format {found}, this version reads 1") as info:
        read_folder(tmp_path / "last")
    one_line(info, str(tmp_path / "last"), mend)


SPEC = EnvSpec(5, 2, 0, 1, 4, 200, torch.device("cpu"), obs_parts=(ObsPart("eye", (1, 2, 2), True), ObsPart("a", (1,))))


def test_a_spec_survives_json_and_equals_itself(tmp_path):
    write_folder(tmp_path / "last", sample()._replace(state={"spec": spec_values(SPEC)}))
    state = read_folder(tmp_path / "last").state
    same_spec(state, SPEC, "x", but=())
    same_spec(state, SPEC._replace(device=torch.device("meta")), "x", but=())
    same_spec(state, SPEC._replace(n_envs=1), "x", but=("n_envs",))


@pytest.mark.parametrize(
    "change",
    [
        {"obs_dim": 6},
        {"action_dim": 3},
        {"n_actions": 2},
        {"nvec": (2, 3)},
        {"reward_dim": 2},
        {"episode_length": 100},
        {"n_envs": 5},
        {"obs_parts": (ObsPart("eye", (1, 2, 2), True), ObsPart("b", (1,)))},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_spec_is_refused_in_one_line_that_names_the_difference(change):
    with pytest.raises(ValueError, match="was trained on an environment with") as info:
        same_spec({"spec": spec_values(SPEC)}, SPEC._replace(**change), "runs/a/checkpoints/last", but=())
    one_line(info, "runs/a/checkpoints/last", f"{next(iter(change))}=")


def test_a_removed_checkpoint_is_gone_whole_or_not_at_all(tmp_path, monkeypatch):
    for name in ("step_1", "step_2"):
        write_folder(tmp_path / name, sample())
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)  # killed before a file was deleted
    remove_folder(tmp_path / "step_1")
    assert not exists(tmp_path / "step_1")
    monkeypatch.undo()
    remove_folder(tmp_path / "step_2")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_zip_is_refused(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"certainly no archive")
    with pytest.raises(ValueError, match="not a ctrlrl model"):
        read_zip(tmp_path / "x")
    with pytest.raises(ValueError, match="not a ctrlrl model"):
        read_zip(tmp_path)


def test_nothing_is_pickled_or_unpickled(tmp_path, monkeypatch):
    def forbidden(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("pickle")

    for owner, name in (
        *((pickle, n) for n in ("load", "loads", "dump", "dumps", "Unpickler", "Pickler")),
        (torch, "load"),
        (torch, "save"),
    ):
        monkeypatch.setattr(owner, name, forbidden)
    write_folder(tmp_path / "last", sample())
    assert same(sample(), read_folder(tmp_path / "last"))
    write_zip(tmp_path / "m", sample())
    assert same(sample(), read_zip(tmp_path / "m"))


class Crash(BaseException):
    """The power is gone: no handler of the code runs to its end."""


@pytest.mark.parametrize("step", range(8))
def test_a_crash_between_any_two_steps_leaves_the_old_or_the_new_checkpoint(tmp_path, monkeypatch, step):
    """Steps on the disk: three files and their names, two renames and their names, the old one away."""
    folder = tmp_path / "last"
    write_folder(folder, sample(1.0))
    left = [step]

    def dying(do: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if left[0] == 0:
                raise Crash
            left[0] -= 1
            return do(*args, **kwargs)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_flushed", dying(module.write_flushed))
        patch.setattr(disk, "sync_folder", dying(disk.sync_folder))
        patch.setattr(os, "rename", dying(os.rename))
        patch.setattr(shutil, "rmtree", dying(shutil.rmtree))
        with suppress(Crash):
            write_folder(folder, sample(2.0))
        assert left[0] == 0, "every step of the parameters is one that is taken"
    found = read_folder(folder)
    assert any(same(sample(mark), found) for mark in (1.0, 2.0))
    write_folder(folder, sample(3.0))  # and the next one succeeds
    assert same(sample(3.0), read_folder(folder))
    assert [p.name for p in tmp_path.iterdir()] == ["last"]


@pytest.mark.parametrize("call", ["fsync", "open"])
def test_a_full_disk_names_the_file_and_leaves_the_old_checkpoint(tmp_path, monkeypatch, call):
    folder = tmp_path / "last"
    write_folder(folder, sample(1.0))
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync", full) if call == "fsync" else ("builtins.open", full)))
        with pytest.raises(OSError, match="No space left") as info:
            write_folder(folder, sample(2.0))
        assert "model.safetensors" in str(info.value.filename)
        with pytest.raises(OSError, match="No space left"):
            write_atomic(tmp_path / "result.json", b"{}")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["last"]
    assert same(sample(1.0), read_folder(folder))


def test_write_atomic_keeps_the_old_content_when_it_fails(tmp_path, monkeypatch):
    file: Path = tmp_path / "a.json"
    write_atomic(file, b"old")

    def fail(*args: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="Read-only"):
        write_atomic(file, b"new")
    assert file.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_generators_go_on_where_they_were():
    state = random_state(torch.device("cpu"))
    first = torch.randn(4)
    restore_random_state(state, torch.device("cpu"))
    assert torch.equal(torch.randn(4), first)

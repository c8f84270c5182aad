"""Files from strangers: refused in one line, nothing executed, nothing outside the folder touched, memory bounded."""

import io
import json
import os
import pickle
import stat
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ctrlrl.algos.ppo import PPOConfig
from ctrlrl.build import build
from ctrlrl.cli import main
from ctrlrl.config import EnvConfig, EvalConfig, LogConfig, TrainConfig
from ctrlrl.disk import write_atomic
from ctrlrl.runs import load_run
from ctrlrl.train import checkpoint as module
from ctrlrl.train.checkpoint import FILES, Checkpoint, read_folder, read_zip, write_folder, write_zip

MEGABYTE = 2**20


class Bomb:
    """Unpickled, it writes a file."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


def good() -> dict[str, bytes]:
    return module._encode(Checkpoint({"w": torch.arange(4.0)}, {"m": torch.ones(2)}, {"env_steps": 3}))


def sealed(files: dict[str, bytes], **state: Any) -> dict[str, bytes]:
    """With the checksum that a stranger would write."""
    values = {**json.loads(files["state.json"]), **state}
    del values["checksum"]
    checksum = module._checksum(files["model.safetensors"], files["optimizer.safetensors"], values)
    return {**files, "state.json": json.dumps({**values, "checksum": checksum}).encode()}


def with_model(data: bytes) -> dict[str, bytes]:
    return sealed({**good(), "model.safetensors": data})


def tensors(header: Any, data: bytes = b"\0" * 16) -> dict[str, bytes]:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return with_model(struct.pack("<Q", len(text)) + text + data)


def entry(*shape: int, begin: int = 0, end: int = 16, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def torch_file(canary: Path) -> bytes:
    file = io.BytesIO()
    torch.save({"w": Bomb(canary)}, file)
    return file.getvalue()


def deep(canary: Path) -> dict[str, bytes]:
    return {**good(), "state.json": b'{"format": 1, "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"}


twice = b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
FILES_OF: dict[str, Callable[[Path], dict[str, bytes]]] = {
    "a pickle for a model": lambda canary: with_model(pickle.dumps(Bomb(canary))),
    "a torch file for a model": lambda canary: with_model(torch_file(canary)),
    "a pickle for state.json": lambda canary: {**good(), "state.json": pickle.dumps(Bomb(canary))},
    "a header of 2**60 bytes": lambda _: with_model(struct.pack("<Q", 2**60) + b"{}"),
    "a header longer than the file": lambda _: with_model(struct.pack("<Q", 1000) + b"{}"),
    "no header": lambda _: with_model(b""),
    "a tensor of 2**60 elements": lambda _: tensors({"w": entry(2**30, 2**30)}),
    "a size that overflows": lambda _: tensors({"w": entry(2**32, 2**32, 4)}),
    "a tensor outside the file": lambda _: tensors({"w": entry(4, begin=2**40, end=2**40 + 16)}),
    "offsets backwards": lambda _: tensors({"w": entry(4, begin=16, end=0)}),
    "a negative shape": lambda _: tensors({"w": entry(-4)}),
    "tensors over each other": lambda _: tensors({"w": entry(4), "v": entry(4)}),
    "a hole": lambda _: tensors({"w": entry(2, end=8), "v": entry(1, begin=12, end=16)}),
    "bytes that no tensor owns": lambda _: tensors({"w": entry(4)}, b"\0" * 64),
    "an unknown dtype": lambda _: tensors({"w": entry(4, dtype="PICKLE")}),
    "a tensor twice": lambda _: tensors(twice),
    "a header that is a list": lambda _: tensors([1, 2]),
    "a deep header": lambda _: tensors(b"[" * 100_000 + b"]" * 100_000),
    "deep JSON": deep,
    "a name twice in state.json": lambda _: {**good(), "state.json": b'{"format": 1, "format": 1}'},
    "state.json as a list": lambda _: {**good(), "state.json": b"[]"},
    "state.json as a number": lambda _: {**good(), "state.json": b"NaN"},
    "a number of 5000 digits": lambda _: {**good(), "state.json": b'{"format": ' + b"1" * 5000 + b"}"},
    "format true": lambda _: {**good(), "state.json": b'{"format": true}'},
    "format as a list": lambda _: {**good(), "state.json": b'{"format": [1]}'},
    "no UTF-8": lambda _: {**good(), "state.json": b"\xff\xfe\x00"},
    "an endless state.json": lambda _: {**good(), "state.json": b" " * (module.STATE_LIMIT + 1)},
}


def refused(read: Callable[[], Any], *, memory: int = 8 * MEGABYTE) -> str:
    """Runs `read`; returns its one line. Files that stand in memory already do not count."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError) as info:  # noqa: PT011
            read()
        assert tracemalloc.get_traced_memory()[1] < memory
    finally:
        tracemalloc.stop()
    text = str(info.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


@pytest.mark.parametrize("name", FILES_OF)
def test_a_hostile_folder_is_refused(tmp_path, name):
    canary = tmp_path / "canary"
    (tmp_path / "last").mkdir()
    for file, data in FILES_OF[name](canary).items():
        (tmp_path / "last" / file).write_bytes(data)
    assert str(tmp_path / "last") in refused(lambda: read_folder(tmp_path / "last"))
    assert not canary.exists()


@pytest.mark.parametrize("name", FILES_OF)
def test_a_hostile_zip_is_refused(tmp_path, name):
    canary = tmp_path / "canary"
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        for file, data in FILES_OF[name](canary).items():
            archive.writestr(file, data)
    size = (tmp_path / "m.zip").stat().st_size
    assert str(tmp_path / "m") in refused(lambda: read_zip(tmp_path / "m"), memory=8 * MEGABYTE + size)
    assert not canary.exists()


def test_the_seal_of_these_tests_is_what_the_reader_wants(tmp_path):
    """Else every file above would be refused for its checksum alone."""
    (tmp_path / "last").mkdir()
    for file, data in tensors({"w": entry(4)}).items():
        (tmp_path / "last" / file).write_bytes(data)
    assert torch.equal(read_folder(tmp_path / "last").model["w"], torch.zeros(4))


# what is not a file ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kind", ["link", "pipe", "endless", "folder"])
def test_only_plain_files_are_opened(tmp_path, file, kind):
    write_folder(tmp_path / "last", Checkpoint({"w": torch.ones(1)}, {}, {}))
    path = tmp_path / "last" / file
    data = path.read_bytes()
    path.unlink()
    if kind == "link":
        (tmp_path / "secret").write_bytes(data)
        path.symlink_to(tmp_path / "secret")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    assert file in refused(lambda: read_folder(tmp_path / "last"))


def test_a_file_longer_than_its_header_says_is_refused_before_it_is_read(tmp_path):
    write_folder(tmp_path / "last", Checkpoint({"w": torch.ones(4)}, {}, {}))
    os.truncate(tmp_path / "last/model.safetensors", 2**41)
    said = refused(lambda: read_folder(tmp_path / "last"), memory=MEGABYTE)
    assert "damaged checkpoint (model.safetensors has 2199023255552 bytes, more than the" in said


def test_a_file_that_memory_does_not_hold_is_a_damaged_checkpoint(tmp_path, monkeypatch):
    def full(*_: Any, **__: Any) -> bytes:
        raise MemoryError

    write_folder(tmp_path / "last", Checkpoint({"w": torch.ones(4)}, {}, {}))
    monkeypatch.setattr(module, "read_plain", full)
    assert "damaged checkpoint (MemoryError)" in refused(lambda: read_folder(tmp_path / "last"))


def test_saving_writes_through_no_link(tmp_path):
    """A run folder from a stranger: names that saving uses may lead elsewhere."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("mine")
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (".last.new", ".last.old", "last", ".gone"):
        (folder / name).symlink_to(outside)
    (folder / ".a.json.tmp").symlink_to(outside / "precious")
    (folder / "a.json").symlink_to(outside / "precious")
    write_folder(folder / "last", Checkpoint({"w": torch.ones(1)}, {}, {}))
    write_folder(folder / "last", Checkpoint({"w": torch.ones(1)}, {}, {}))
    write_atomic(folder / "a.json", b"{}")
    module.remove_folder(folder / "last")
    assert [p.name for p in outside.iterdir()] == ["precious"]
    assert (outside / "precious").read_text() == "mine"
    assert (folder / "a.json").read_bytes() == b"{}"


# zip archives ---------------------------------------------------------------------------------------------------------


def archive(path: Path, members: list[tuple[Any, bytes]], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as out:
        for name, data in members:
            out.writestr(name, data)


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize("name", ["../escaped", "/tmp/ctrlrl-escaped", "a/../../escaped", "C:\\escaped", "x.pth"])
def test_a_member_of_another_name_is_refused_and_written_nowhere(tmp_path, name):
    (tmp_path / "in").mkdir()
    archive(tmp_path / "in/m.zip", [*good().items(), (name, b"x")])
    assert "members" in refused(lambda: read_zip(tmp_path / "in/m"))
    assert [p.name for p in tmp_path.rglob("*")] == ["in", "m.zip"]
    assert not Path("/tmp/ctrlrl-escaped").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_twice_is_refused(tmp_path):
    archive(tmp_path / "m.zip", [*good().items(), ("state.json", b"{}")])
    assert "members" in refused(lambda: read_zip(tmp_path / "m"))


def test_a_link_in_a_zip_is_refused(tmp_path):
    files = good()
    (tmp_path / "secret").write_bytes(files.pop("model.safetensors"))
    archive(tmp_path / "m.zip", [*files.items(), (link("model.safetensors"), str(tmp_path / "secret").encode())])
    assert "not a plain file" in refused(lambda: read_zip(tmp_path / "m"))


def test_a_zip_bomb_is_refused_before_it_grows(tmp_path):
    files = {**good(), "optimizer.safetensors": b"\0" * (64 * MEGABYTE)}
    archive(tmp_path / "m.zip", list(files.items()), zipfile.ZIP_DEFLATED)
    del files
    assert (tmp_path / "m.zip").stat().st_size < MEGABYTE
    assert "compressed" in refused(lambda: read_zip(tmp_path / "m"), memory=MEGABYTE)


def test_a_declared_size_of_gigabytes_is_refused(tmp_path):
    archive(tmp_path / "m.zip", list(good().items()))
    data = bytearray((tmp_path / "m.zip").read_bytes())
    at = data.index(b"PK\x01\x02")  # the first entry of the central directory: compressed and real size at 20 and 24
    data[at + 20 : at + 28] = struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0)
    (tmp_path / "m.zip").write_bytes(data)
    assert "longer than the archive" in refused(lambda: read_zip(tmp_path / "m"), memory=MEGABYTE)


def test_every_cut_of_a_zip_is_refused(tmp_path):
    write_zip(tmp_path / "m", Checkpoint({"w": torch.arange(4.0)}, {"m": torch.ones(2)}, {"env_steps": 3}))
    data = (tmp_path / "m.zip").read_bytes()
    for cut in range(0, len(data), 7):
        (tmp_path / "m.zip").write_bytes(data[:cut])
        refused(lambda: read_zip(tmp_path / "m"))


# run folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a finished run."""
    folder = tmp_path_factory.mktemp("run") / "a"
    words = (
        "train algo=ppo env=pendulum experiment=none n_envs=2 total_steps=16 algo.n_steps=8 algo.n_minibatches=1 "
        "algo.n_epochs=1 algo.hidden=[4] eval.episodes=1 log.progress=false run.report=false device=cpu"
    ).split()
    with pytest.raises(SystemExit) as info:
        main([*words, f"run.dir={folder}"])
    assert info.value.code == 0
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def folder(run: dict[str, bytes], tmp_path: Path) -> Path:
    for name, data in run.items():
        path = tmp_path / "a" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "a"


def says(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the command line answers to input that is wrong: exit code 2 and one or two lines."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as info:
        main(words)
    err = capsys.readouterr().err
    assert info.value.code == 2, err
    assert 1 <= len(err.strip().splitlines()) <= 2, err
    return err


def laughs(text: str) -> str:
    """A billion laughs."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    return "\n".join(lines) + "\n" + text


CONFIGS: dict[str, Callable[[str, Path], str]] = {
    "python/object": lambda t, c: t + f"evil: !!python/object/apply:os.mkdir ['{c}']\n",
    "python/name": lambda t, c: t.replace("seed: 0", "seed: !!python/name:os.system"),
    "_target_": lambda t, c: t + f"_target_: os.mkdir\npath: {c}\n",
    "_target_ in env": lambda t, c: t.replace("env:\n", f"env:\n  _target_: os.mkdir\n  path: {c}\n", 1),
    "_target_ in algo": lambda t, c: t.replace("algo:\n", f"algo:\n  _target_: os.mkdir\n  path: {c}\n", 1),
    "interpolation": lambda t, c: t.replace("id: null", "id: ${oc.env:HOME}"),
    "billion laughs": lambda t, c: laughs(t),
    "deep": lambda t, c: t + "x: " + "[" * 5000 + "]" * 5000,
    "a list": lambda t, c: "- 1\n- 2\n",
    "a word": lambda t, c: "hello",
    "empty": lambda t, c: "",
    "binary": lambda t, c: "\x00\x01\x02",
    "huge": lambda t, c: t + "#" * 10**6,
    "another algorithm": lambda t, c: t.replace("name: ppo", "name: os.system"),
    "a key twice": lambda t, c: t + "seed: 1\n",
    "a wrong type": lambda t, c: t.replace("total_steps: 16", "total_steps: [1, 2]"),
    "not a number": lambda t, c: t.replace("total_steps: 16", "total_steps: .nan"),
    "no environment": lambda t, c: t.replace("name: pendulum", "name: null"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_hostile_config_is_refused_by_eval_and_resume(folder, tmp_path, capsys, name):
    canary = tmp_path / "canary"
    text = (folder / "config.yaml").read_text()
    changed = CONFIGS[name](text, canary)
    assert changed != text
    (folder / "config.yaml").write_text(changed)
    said = says(capsys, "eval", f"run={folder}")
    says(capsys, "train", f"run.resume={folder}")
    assert not canary.exists()
    assert name != "deep" or "nested too deeply" in said


STATES: dict[str, dict[str, Any]] = {
    "a word for a count": {"env_steps": "16"},
    "a fraction for a count": {"gradient_steps": 1.5},
    "a count below zero": {"env_steps": -1},
    "NaN seconds": {"train_seconds": float("nan")},
    "infinite best": {"best": float("inf")},
    "a list of metrics": {"metrics": [1]},
    "a word for a metric": {"metrics": {"metrics": "b"}},
    "a list of versions": {"versions": ["torch"]},
    "400 digits": {"env_steps": 10**400},
    "true for a count": {"next_eval": True},
    "another action size": {"spec": {"action_dim": 3}},
    "a spec of nothing": {"spec": 7},
}


@pytest.mark.parametrize("name", STATES)
def test_a_state_with_wrong_values_is_refused_by_resume(folder, capsys, name):
    last = folder / "checkpoints/last"
    files = sealed({n: (last / n).read_bytes() for n in FILES}, **STATES[name])
    (last / "state.json").write_bytes(files["state.json"])
    text = says(capsys, "train", f"run.resume={folder}")
    assert str(last) in text
    assert (
        next(iter(STATES[name])).split("_")[0] in text
        or "_dim" in text
        or "int too large" in text
        or "data type" in text
    ), text


@pytest.mark.parametrize("part", ["", "learner/", "loop/env/"], ids=["model", "learner", "env"])
@pytest.mark.parametrize("change", ["missing", "shape", "dtype"])
def test_tensors_that_do_not_fit_are_named(folder, capsys, part, change):
    last = folder / "checkpoints/last"
    model, training, state = read_folder(last)
    tensors_of = training if part else model
    name = next(n for n, t in tensors_of.items() if n.startswith(part) and t.dtype == torch.float32 and t.ndim)
    tensor = tensors_of.pop(name)
    if change != "missing":
        tensors_of[name] = tensor.unsqueeze(0) if change == "shape" else tensor.double()
    write_folder(last, Checkpoint(model, training, {k: v for k, v in state.items() if k != "format"}))
    assert "does not fit" in says(capsys, "train", f"run.resume={folder}")
    if not part:
        assert "does not fit" in says(capsys, "eval", f"run={folder}")


@pytest.mark.parametrize("name", ["../../outside", "/etc", "..", ".", "nothing"])
def test_eval_reads_no_checkpoint_outside_the_run(folder, capsys, name):
    (folder / "checkpoints/last").rename(folder.parent / "outside")
    said = says(capsys, "eval", f"run={folder}", f"checkpoint={name}")
    assert "no checkpoint there" in said
    assert name != "nothing" or "there are best" in said


@pytest.mark.parametrize("text", ["env_steps\nmany\n", "a,b\n1,2\n", "env_steps\n1,2,3\n", "env_steps\n\x00\n"])
def test_a_progress_csv_that_is_none_is_named(folder, capsys, text):
    (folder / "progress.csv").write_text(text)
    assert "progress.csv" in says(capsys, "train", f"run.resume={folder}")


def test_an_unharmed_run_is_not_refused(folder):
    """The fixture is sound: every refusal above is of what the test changed."""
    load_run(folder)
    cfg = TrainConfig(
        algo=PPOConfig(n_steps=8, n_minibatches=1, n_epochs=1, hidden=[4]),
        env=EnvConfig(name="pendulum"),
        n_envs=2,
        total_steps=16,
        device="cpu",
        eval=EvalConfig(episodes=1),
        log=LogConfig(progress=False),
    )
    assert build(cfg, folder, resume=True).train()["status"] == "finished"

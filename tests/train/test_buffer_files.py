"""A replay buffer comes back from the disk as it was, or not at all."""

import json
import os

import pytest
import torch

from ctrlrl.data.replay import ReplayBuffer
from ctrlrl.train.buffer_files import load_buffer, save_buffer
from ctrlrl.types import Transition


def filled(rows: int, capacity: int = 50) -> ReplayBuffer:
    buffer = ReplayBuffer(capacity, 3, 2, extras={"next_action": 2})
    torch.manual_seed(rows)
    for n in [7] * (rows // 7) + [rows % 7]:
        extras = {"next_action": torch.randn(n, 2)}
        ended = torch.rand(n) < 0.3
        buffer.add(Transition(torch.randn(n, 3), torch.randn(n, 2), torch.randn(n), torch.randn(n, 3), ended, extras))
    return buffer


@pytest.mark.parametrize("rows", [0, 10, 50, 123])
def test_what_was_saved_comes_back_and_the_ring_goes_on(rows, tmp_path):
    saved, empty = filled(rows), ReplayBuffer(50, 3, 2, extras={"next_action": 2})
    save_buffer(saved, tmp_path / "replay", chunk_bytes=400)
    load_buffer(empty, tmp_path / "replay")
    assert len(empty) == len(saved) == min(rows, 50)
    assert torch.equal(empty.table.rows[: len(empty)], saved.table.rows[: len(saved)])
    more = Transition(torch.ones(3, 3), torch.ones(3, 2), torch.ones(3), torch.ones(3, 3), torch.ones(3) > 0, {})
    for buffer in (saved, empty):
        buffer.add(more)
    assert empty.added == saved.added
    assert torch.equal(empty.table["reward"][: len(empty)], saved.table["reward"][: len(saved)])


def test_no_file_is_larger_than_a_chunk(tmp_path):
    save_buffer(filled(50), tmp_path / "replay", chunk_bytes=500)
    sizes = [file.stat().st_size for file in (tmp_path / "replay").glob("rows_*")]
    assert len(sizes) > 3
    assert max(sizes) < 500 + 200  # safetensors' header


def test_a_failed_save_leaves_the_old_one(tmp_path, monkeypatch):
    folder = tmp_path / "replay"
    save_buffer(filled(20), folder)

    def full(path, data):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("ctrlrl.train.buffer_files.write_flushed", full)
    with pytest.raises(OSError, match="No space"):
        save_buffer(filled(30), folder)
    monkeypatch.undo()
    back = ReplayBuffer(50, 3, 2, extras={"next_action": 2})
    load_buffer(back, folder)
    assert len(back) == 20
    assert [p.name for p in tmp_path.iterdir()] == ["replay"]


def test_another_shape_is_refused_by_its_name(tmp_path):
    save_buffer(filled(20), tmp_path / "replay")
    with pytest.raises(ValueError, match="capacity=50"):
        load_buffer(ReplayBuffer(60, 3, 2, extras={"next_action": 2}), tmp_path / "replay")
    with pytest.raises(ValueError, match="columns"):
        load_buffer(ReplayBuffer(50, 4, 2, extras={"next_action": 2}), tmp_path / "replay")


@pytest.mark.parametrize("victim", ["buffer.json", "rows_00000.safetensors"])
def test_damage_is_refused_in_one_line(victim, tmp_path):
    folder = tmp_path / "replay"
    save_buffer(filled(50), folder)
    file = folder / victim
    whole = file.read_bytes()
    for broken in (whole[:-3], whole[:20] + bytes([whole[20] ^ 1]) + whole[21:], b""):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match="replay") as caught:
            load_buffer(ReplayBuffer(50, 3, 2, extras={"next_action": 2}), folder)
        assert "\n" not in str(caught.value)
    file.unlink()
    os.symlink("/etc/hostname", file)
    with pytest.raises(ValueError, match="replay"):
        load_buffer(ReplayBuffer(50, 3, 2, extras={"next_action": 2}), folder)


def test_a_buffer_that_is_refused_leaves_the_rows_that_are_there(tmp_path):
    save_buffer(filled(50), tmp_path / "replay", chunk_bytes=400)
    last = sorted((tmp_path / "replay").glob("rows_*"))[-1]
    last.write_bytes(last.read_bytes()[:-1])
    mine = filled(40)
    before = mine.table.rows.clone()
    with pytest.raises(ValueError, match=f"checksum of {last.name}"):
        load_buffer(mine, tmp_path / "replay")
    assert torch.equal(mine.table.rows, before)


def test_a_folder_of_other_files_is_not_replaced(tmp_path):
    kept = tmp_path / "outdir" / "model.zip"
    kept.parent.mkdir()
    kept.write_text("precious")
    for folder, told in ((kept.parent, "model.zip"), (kept, "a file")):
        with pytest.raises(ValueError, match=f"holds {told}, which is no replay buffer's"):
            save_buffer(filled(10), folder)
    assert kept.read_text() == "precious"
    (tmp_path / "empty").mkdir()
    save_buffer(filled(10), tmp_path / "empty")


def test_counts_that_lie_are_refused(tmp_path):
    folder = tmp_path / "replay"
    save_buffer(filled(50), folder)
    told = json.loads((folder / "buffer.json").read_text())
    for change in ({"added": 10**12, "sums": []}, {"added": -1}, {"added": 1.5}, {"per_chunk": 0}, {"sums": None}):
        (folder / "buffer.json").write_text(json.dumps(told | change))
        with pytest.raises(ValueError, match="replay"):
            load_buffer(ReplayBuffer(50, 3, 2, extras={"next_action": 2}), folder)

import threading

import numpy as np
import pytest

from ctrlrl.core.cached import cached, fingerprint

ARRAYS = {"index": np.arange(6, dtype=np.int32).reshape(2, 3), "squared": np.linspace(0, 1, 6, dtype=np.float32)}
KEY = fingerprint("k")


def refuse() -> dict[str, np.ndarray]:
    raise AssertionError("computed again")


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a)


def test_arrays_are_computed_once_and_read_ever_after(tmp_path):
    folder = tmp_path / "deep" / "cache"
    first = cached(folder, "lists", KEY, lambda: ARRAYS)
    again = cached(folder, "lists", KEY, refuse)
    assert same(first, ARRAYS)
    assert same(again, ARRAYS)
    assert [p.suffix for p in folder.iterdir()] == [".npz"]


def test_the_file_has_the_rights_of_any_new_one(tmp_path):
    cached(tmp_path, "lists", KEY, lambda: ARRAYS)
    (path,) = tmp_path.iterdir()
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def test_another_key_is_another_file(tmp_path):
    cached(tmp_path, "lists", KEY, lambda: ARRAYS)
    other = {"index": ARRAYS["index"] + 1}
    assert same(cached(tmp_path, "lists", fingerprint("other"), lambda: other), other)
    assert same(cached(tmp_path, "lists", KEY, refuse), ARRAYS)


@pytest.mark.parametrize("harm", ["cut", "flip", "empty", "foreign", "locked", "packed"])
def test_a_damaged_file_is_never_believed_and_is_written_anew(tmp_path, harm):
    cached(tmp_path, "lists", KEY, lambda: ARRAYS)
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    if harm == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif harm == "empty":
        path.write_bytes(b"")
    elif harm in ("locked", "packed"):
        at = data.index(b"PK\x01\x02")  # the list of members: flags at 8, compression at 10
        data[at + (8 if harm == "locked" else 10)] = 1 if harm == "locked" else 99
        path.write_bytes(data)
    elif harm == "foreign":
        np.savez(path, **{name: column * 2 for name, column in ARRAYS.items()})
    else:
        at = data.index(ARRAYS["squared"].tobytes())
        data[at + 8] ^= 1
        path.write_bytes(data)
    assert same(cached(tmp_path, "lists", KEY, lambda: ARRAYS), ARRAYS)
    assert same(cached(tmp_path, "lists", KEY, refuse), ARRAYS)


def test_a_folder_that_cannot_be_written_gives_a_warning_and_the_arrays(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="cannot keep lists here"):
        arrays = cached(tmp_path / "file", "lists", KEY, lambda: ARRAYS)
    assert same(arrays, ARRAYS)


def test_a_folder_whose_owner_took_the_right_away_stays_as_it_is_even_for_root(tmp_path):
    tmp_path.chmod(0o555)
    try:
        with pytest.warns(UserWarning, match="Permission denied"):
            arrays = cached(tmp_path / ".ctrlrl", "lists", KEY, lambda: ARRAYS)
        assert same(arrays, ARRAYS)
        assert list(tmp_path.iterdir()) == []
    finally:
        tmp_path.chmod(0o755)


def test_without_a_folder_nothing_is_kept():
    assert same(cached(None, "lists", KEY, lambda: ARRAYS), ARRAYS)


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.warns(UserWarning, match="No space left"):
        cached(tmp_path, "lists", KEY, lambda: ARRAYS)
    assert list(tmp_path.iterdir()) == []


def test_several_writers_at_once_end_in_one_whole_file(tmp_path):
    writers = [threading.Thread(target=cached, args=(tmp_path, "lists", KEY, lambda: ARRAYS)) for _ in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(list(tmp_path.iterdir())) == 1
    assert same(cached(tmp_path, "lists", KEY, refuse), ARRAYS)


def test_a_fingerprint_sees_type_shape_and_every_number():
    x = np.arange(6.0)
    prints = [fingerprint(y) for y in (x, x.reshape(2, 3), x.astype(np.float32), x + 1e-9, np.flip(x))]
    prints += [fingerprint(x, 1), fingerprint(x, 2)]
    assert len(set(prints)) == len(prints)
    assert fingerprint(x[::2]) == fingerprint(x[::2].copy())

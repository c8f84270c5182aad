"""The Monitor file: SB3's own readers take it, and it says what was written."""

import csv
import json

import pytest

from ctrlrl.envs.monitor import MonitorWriter, episode_info

EPISODES = [{"r": 1.5, "l": 3, "t": 0.25}, {"r": -200.125, "l": 200, "t": 1.75}, {"r": 0.0, "l": 1, "t": 2.0}]


def write(path, **options):
    writer = MonitorWriter(path, env_id="Pendulum", **options)
    for episode in EPISODES:
        writer.write(episode)
    return writer


def test_the_file_is_a_json_line_a_header_and_a_row_an_episode(tmp_path):
    writer = write(tmp_path / "x.monitor.csv", start=1000.0)
    first, *rows = (tmp_path / "x.monitor.csv").read_text().splitlines()  # on the disk before it is closed
    assert first[0] == "#"
    assert json.loads(first[1:]) == {"t_start": 1000.0, "env_id": "Pendulum"}
    assert rows[0] == "r,l,t"
    assert [{k: float(v) for k, v in row.items()} for row in csv.DictReader(rows)] == EPISODES
    writer.close()


def test_extra_columns_follow_and_unknown_ones_are_refused(tmp_path):
    writer = MonitorWriter(tmp_path / "x.monitor.csv", env_id="a", extra_keys=("is_success",))
    writer.write(EPISODES[0] | {"is_success": True})
    with pytest.raises(ValueError, match="speed"):
        writer.write(EPISODES[0] | {"speed": 1})
    writer.close()
    assert (tmp_path / "x.monitor.csv").read_text().splitlines()[1:] == ["r,l,t,is_success", "1.5,3,0.25,True"]


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("a.monitor.csv", "a.monitor.csv"),
        ("monitor.csv", "monitor.csv"),
        ("run.1", "run.1.monitor.csv"),
        ("new/deep/a", "new/deep/a.monitor.csv"),
        ("", "monitor.csv"),
    ],
)
def test_file_names_end_as_load_results_looks_for_them(tmp_path, given, written):
    writer = write(tmp_path / given)
    writer.close()
    assert writer.path == tmp_path / written
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [tmp_path / written]


def test_the_episode_of_an_info_is_rounded_plain_numbers():
    info = episode_info(1.23456789, 7, 0.0)
    assert (info["r"], info["l"]) == (1.234568, 7)
    assert [type(x) for x in info.values()] == [float, int, float]


def test_sb3_reads_it(tmp_path):
    monitor = pytest.importorskip("stable_baselines3.common.monitor")
    write(tmp_path / "late", start=2000.0).close()
    write(tmp_path / "early", start=1000.0).close()
    names = {p.rpartition("/")[2] for p in monitor.get_monitor_files(str(tmp_path))}
    assert names == {"late.monitor.csv", "early.monitor.csv"}
    pytest.importorskip("pandas", reason="load_results needs pandas")
    from stable_baselines3.common.results_plotter import ts2xy

    frame = monitor.load_results(str(tmp_path))
    assert frame.r.tolist() == [e["r"] for e in EPISODES] * 2  # sorted by time
    steps, returns = ts2xy(frame, "timesteps")
    assert steps.tolist() == [3, 203, 204, 207, 407, 408]
    assert returns.tolist() == frame.r.tolist()

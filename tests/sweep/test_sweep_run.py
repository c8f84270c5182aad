"""The loop over cells with a launcher of this file's own, which writes run folders without training anything."""

import fcntl
import json
import os
import signal

import pytest
from rich.console import Console

from ctrlrl.sweep import run as sweep_run
from ctrlrl.sweep.board import Board, Line
from ctrlrl.sweep.process import free, last_words, start, train_words
from ctrlrl.sweep.records import Progress, append_row, progress_of, read_cells, score_of, state_of

HEADER = "env_steps,gradient_steps,wall_seconds,eval/return_mean,eval/normalized_score\n"
ASKED = ["algo=ppo,bpo", "env=pendulum", "total_steps=64", "seed=0,1", "sweep.dir=s"]


def finish(folder, *, algo="ppo", seed=0, status="finished", score=40.0):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("n_envs: 1\n")
    (folder / "progress.csv").write_text(HEADER + "32,0,1.5,-900,20\n64,0,3.0,-800,40\n")
    result = {"algo": algo, "env": "pendulum", "data": "d/x.npz", "seed": seed, "status": status, "env_steps": 64}
    result |= {"final_return_mean": -800.0, "best_return_mean": -800.0, "normalized_score": score, "gradient_steps": 0}
    (folder / "result.json").write_text(json.dumps(result))


class Job:
    def __init__(self, code):
        self.code, self.stopped = code, []

    def poll(self):
        return self.code

    def stop(self, *, at_once):
        self.stopped.append(at_once)
        self.code = 130


class Stage:
    """A launcher: `plays` says what becomes of a cell; finished is what the others become."""

    jobs, pause = 1, 0.0

    def __init__(self, plays=()):
        self.plays, self.started, self.on_their_way = dict(plays), [], []

    def submit(self, words, folder, log):
        name = folder.name
        self.started.append(name)
        play = self.plays.get(name)
        if play is None:
            finish(folder, algo=name.split("-")[0], seed=int(name[-1]))
            return Job(0)
        return play(folder, log)


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep_run, "check", lambda *_: {})  # composing and drawing are tested elsewhere
    monkeypatch.setattr(sweep_run, "write_page", lambda *_: None)

    def call(stage, *words):
        monkeypatch.setattr(sweep_run, "make_launcher", lambda *_: stage)
        with open(os.devnull, "w") as nowhere:
            return sweep_run.main([*ASKED, *words], Board("t", console=Console(file=nowhere)))

    return call


def test_all_cells_run_seed_by_seed_and_none_runs_twice(sweep, tmp_path):
    first, again = Stage(), Stage()
    code, said = sweep(first)
    assert (code, said.splitlines()[0]) == (0, "4 finished of 4 cells")
    names = ["ppo-pendulum-s0", "bpo-pendulum-s0", "ppo-pendulum-s1", "bpo-pendulum-s1"]
    assert first.started == names
    assert sweep(again)[0] == 0
    assert again.started == []
    wider = Stage()
    assert sweep(wider, "seed=0,1,2")[0] == 0
    assert wider.started == ["ppo-pendulum-s2", "bpo-pendulum-s2"]
    assert list(read_cells(tmp_path / "s")) == [*names, *wider.started]
    assert "typed:" in (tmp_path / "s" / "sweep.yaml").read_text()


def test_a_failed_cell_is_recorded_with_its_error_and_log_and_the_sweep_goes_on(sweep, tmp_path):
    def fail(folder, log):
        log.parent.mkdir(exist_ok=True)
        log.write_text("$ ctrlrl train seed=0\nsteps\nctrlrl train: data.path=x: no such file\nsecond line\n")
        return Job(2)

    stage = Stage({"ppo-pendulum-s0": fail})
    code, said = sweep(stage)
    assert code == 1
    assert len(stage.started) == 4
    assert "failed: ppo-pendulum-s0: data.path=x: no such file (s/logs/ppo-pendulum-s0.log)" in said.splitlines()
    assert f"go on with: ctrlrl sweep {' '.join(ASKED)}" in said.splitlines()
    entry = read_cells(tmp_path / "s")["ppo-pendulum-s0"]
    assert (entry["state"], entry["error"]) == ("failed", "data.path=x: no such file")
    assert entry["log"] == "logs/ppo-pendulum-s0.log"
    again = Stage()
    assert sweep(again)[0] == 0
    assert again.started == ["ppo-pendulum-s0"]


def test_a_cell_that_cells_json_has_not_is_known_by_the_words_in_its_folder(sweep, tmp_path):
    assert sweep(Stage(), "total_steps=100")[0] == 0
    typed = tmp_path / "s" / "ppo-pendulum-s0" / "overrides.txt"
    typed.write_text("algo=ppo\nenv=pendulum\nseed=0\ntotal_steps=50\nrun.dir=x\n")
    (tmp_path / "s" / "cells.json").unlink()
    with pytest.raises(ValueError, match="ppo-pendulum-s0 was made with total_steps=50, now total_steps=100"):
        sweep(Stage(), "total_steps=100")
    typed.write_text("algo=ppo\nenv=pendulum\nseed=0\ntotal_steps=100\nrun.dir=x\nthreads=3\n")
    assert sweep(Stage(), "total_steps=100")[0] == 0


def test_a_killed_cell_says_by_which_signal(sweep):
    code, said = sweep(Stage({"ppo-pendulum-s0": lambda *_: Job(-9)}))
    assert code == 1
    assert "killed by signal 9" in said


def test_ctrl_c_tells_every_cell_once_starts_no_more_and_gives_130(sweep, tmp_path):
    class Slow(Job):
        looks = 0

        def poll(self):
            self.looks += bool(self.stopped)
            return 130 if self.looks > 3 else None

    jobs = []

    def press(folder, log):
        (folder).mkdir(parents=True)
        (folder / "config.yaml").write_text("")
        jobs.append(Slow(None))
        signal.raise_signal(signal.SIGINT)
        return jobs[0]

    stage = Stage({"ppo-pendulum-s0": press})
    code, said = sweep(stage)
    assert (code, stage.started) == (130, ["ppo-pendulum-s0"])
    assert jobs[0].stopped == [False]
    assert said.splitlines()[0] == "1 interrupted, 3 waiting of 4 cells"
    assert read_cells(tmp_path / "s")["ppo-pendulum-s0"]["state"] == "interrupted"
    assert sweep(Stage())[0] == 0


def test_a_second_ctrl_c_kills(sweep):
    job = Job(None)
    job.poll = lambda: signal.raise_signal(signal.SIGINT)  # the first in the first look, the second in the next
    code, _ = sweep(Stage({"ppo-pendulum-s0": lambda *_: job}))
    assert code == 130
    assert job.stopped[-1] is True


def test_other_settings_under_the_same_name_are_refused(sweep):
    sweep(Stage())
    with pytest.raises(
        ValueError, match=r"ppo-pendulum-s0 was made with total_steps=64, now total_steps=65\. Use anoth"
    ):
        sweep(Stage(), "total_steps=65")
    with pytest.raises(ValueError, match=r"n_envs=\(default\), now n_envs=3"):
        sweep(Stage(), "n_envs=3")
    assert sweep(Stage(), "log.every=3", "threads=2")[0] == 0  # nothing that changes numbers


def test_one_sweep_at_a_time_works_in_a_folder(sweep, tmp_path):
    with sweep_run.alone(tmp_path / "s"), pytest.raises(ValueError, match="another sweep works in it"):
        sweep(Stage())


def test_a_missing_data_set_or_folder_stops_the_sweep_and_not_every_cell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep_run, "check", lambda *_: {})
    (tmp_path / "mine.yaml").write_text('tasks: {x: [data=file, "data.path={data_dir}/x.npz", env=hopper-v4]}\n')
    with pytest.raises(ValueError, match="data_dir=d: no such folder"):
        sweep_run.main(["sweep=mine.yaml", "algo=bc", "seed=0", "data_dir=d", "sweep.dir=s"])
    (tmp_path / "d").mkdir()
    with pytest.raises(ValueError, match=r"data_dir=d: no x.npz in it"):
        sweep_run.main(["sweep=mine.yaml", "algo=bc", "seed=0", "data_dir=d", "sweep.dir=s"])
    assert not (tmp_path / "s").exists()


def test_rows_hold_a_finished_cell_once_and_no_folder_of_this_machine(sweep, tmp_path):
    def fail(folder, log):
        return Job(1)

    words = ("rows=r.jsonl", "data_dir=d")
    sweep(Stage({"bpo-pendulum-s1": fail}), *words)
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [row["cell"] for row in rows] == ["ppo-pendulum-s0", "bpo-pendulum-s0", "ppo-pendulum-s1"]
    assert (rows[0]["task"], rows[0]["data"], rows[0]["normalized_score"]) == ("pendulum", "{data_dir}/x.npz", 40.0)
    assert rows[0]["evaluations"] == [[32.0, -900.0, 20.0], [64.0, -800.0, 40.0]]
    assert rows[0]["command"].startswith("ctrlrl train ")
    sweep(Stage(), *words)
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 4


def test_a_damaged_cell_costs_its_row_and_no_other(sweep, tmp_path):
    def damaged(folder, log):
        finish(folder)
        (folder / "progress.csv").write_text("no header of ours\n1\n")
        (folder / "result.json").write_text('{"status": "finished"}')
        return Job(0)

    code, said = sweep(Stage({"ppo-pendulum-s0": damaged}), "rows=r.jsonl", "data_dir=d")
    assert (code, said.splitlines()[0]) == (0, "4 finished of 4 cells")
    rows = [json.loads(line)["cell"] for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert rows == ["bpo-pendulum-s0", "ppo-pendulum-s1", "bpo-pendulum-s1"]


def test_a_row_that_a_crash_cut_short_is_replaced_and_damage_is_named(tmp_path):
    row = {"sweep": None, "cell": "a", "command": "x", "seed": 0, "value": 1}
    file = tmp_path / "deep" / "r.jsonl"
    assert append_row(file, row)
    with open(file, "a") as f:
        f.write('{"sweep": nul')
    assert append_row(file, {**row, "cell": "b"})
    assert not append_row(file, {**row, "new": 2})
    with pytest.raises(ValueError, match="line 1 holds another result of it, of commit None; remove that line"):
        append_row(file, {**row, "value": 2})
    assert append_row(file, {**row, "seed": 1})
    assert [json.loads(line)["cell"] for line in file.read_text().splitlines()] == ["a", "b", "a"]
    file.write_text("{\n")
    with pytest.raises(ValueError, match=r"r.jsonl: line 1 is not JSON"):
        append_row(file, row)


def test_a_result_stands_once_in_what_order_its_words_were_typed_and_however_it_was_logged(tmp_path):
    row = {"sweep": None, "cell": "a", "command": "ctrlrl train threads=1 algo=ppo env=pendulum", "seed": 0}
    assert append_row(tmp_path / "r.jsonl", row)
    for words in ("env=pendulum algo=ppo", "algo=ppo env=pendulum log.tensorboard=true threads=2"):
        assert not append_row(tmp_path / "r.jsonl", {**row, "command": f"ctrlrl train {words}"})
    assert append_row(tmp_path / "r.jsonl", {**row, "command": "ctrlrl train algo=ppo env=pendulum algo.gamma=0.9"})


def test_a_cell_that_another_process_works_on_is_left_alone_and_taken_up_when_it_ends(sweep, tmp_path):
    log = tmp_path / "logs" / "x.log"
    log.parent.mkdir()
    log.write_text("")
    with open(log) as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert not free(log)
        assert start(["seed=0"], tmp_path / "x", log) is None
    assert free(log)

    def left(folder, log):
        stage.plays.clear()
        return sweep_run.LeftJob(log)

    stage = Stage({"ppo-pendulum-s0": left})
    assert sweep(stage)[0] == 0
    assert stage.started[:2] == ["ppo-pendulum-s0", "ppo-pendulum-s0"]


def test_a_cell_starts_anew_or_goes_on_by_what_its_folder_holds(tmp_path):
    folder = tmp_path / "a"
    assert train_words(["seed=0"], folder) == ["seed=0", f"run.dir={folder}"]
    folder.mkdir()
    (folder / ".config.yaml.tmp").write_text("cut sho")
    assert train_words(["seed=0"], folder) == ["seed=0", f"run.dir={folder}"]
    assert not folder.exists()
    folder.mkdir()
    (folder / "config.yaml").write_text("")
    assert (train_words(["seed=0"], folder), state_of(folder)) == ([f"run.resume={folder}"], "interrupted")
    asked = ["seed=0", "threads=2", "log.tensorboard=true", "data.path=/new/hopper.npz", "run.report=false"]
    (folder / "overrides.txt").write_text("seed=0\nthreads=2\ndata.path=/old/hopper.npz\nrun.report=false\n")
    goes_on = [f"run.resume={folder}", "log.tensorboard=true", "data.path=/new/hopper.npz"]
    assert train_words(asked, folder) == goes_on
    (folder / "overrides.txt").write_text("threads=2\nthreads=1\n" + "\n".join(goes_on[1:]))
    assert train_words(asked, folder) == [f"run.resume={folder}", "threads=2", "run.report=false"]
    (folder / "result.json").write_text('{"status": "finished"}')
    assert state_of(folder) == "finished"
    mine = tmp_path / "b"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    train_words(["seed=0"], mine)
    assert (mine / "notes.txt").exists()


def test_last_words_are_the_last_attempts(tmp_path):
    log = tmp_path / "x.log"
    assert last_words(log) == "no log"
    log.write_text("$ ctrlrl train a\nctrlrl train: old\n$ ctrlrl train b\n")
    assert last_words(log) == "no word"
    log.write_text(log.read_text() + "Traceback\n  x\nKilledError: hm\n")
    assert last_words(log) == "KilledError: hm"


@pytest.mark.parametrize(
    ("result", "told"),
    [
        ({"normalized_score": 40.0, "final_return_mean": 1.0}, "score 40.0"),
        ({"success_rate": 0.5, "final_return_mean": 1.0}, "success 50 %"),
        ({"final_return_mean": 1234.5}, "return 1,234.5"),
        ({"final_return_mean": None, "hypervolume": 1234567.0}, "hypervolume 1.235e+06"),
        ({}, ""),
    ],
)
def test_a_cell_is_told_by_its_score_or_else_by_what_there_is(result, told):
    assert score_of(result) == told


def test_progress_is_read_off_the_last_whole_row_of_the_clock_that_ticks(tmp_path):
    totals = {"env_steps": 128, "gradient_steps": 40}
    assert progress_of(tmp_path, totals) == Progress(total=40)
    finish(tmp_path)
    with open(tmp_path / "progress.csv", "a") as file:
        file.write("96,0,9")
    assert progress_of(tmp_path, totals) == Progress(64, 128, "score 40.0", 3.0)
    (tmp_path / "progress.csv").write_text(HEADER + "0,10,2.0,,\n")
    assert progress_of(tmp_path, totals)[:2] == (10, 40)
    assert progress_of(tmp_path, totals).left == pytest.approx(6.0)


def test_the_board_shows_who_works_and_who_failed_first_and_lines_off_a_terminal(tmp_path):
    lines = [Line(f"c{i}", "finished", Progress(5, 5, "score 1.0")) for i in range(40)]
    lines[30] = Line("bad", "failed", Progress(), "no such file")
    lines[35] = Line("busy", "running", Progress(1000, 5000, "score 7.0", 75.0))
    with open(tmp_path / "screen", "w+") as file:
        screen = Console(file=file, force_terminal=True, width=100, height=12, _environ={})
        with Board("mine", console=screen) as board:
            board.show(lines, 60.0)
        file.seek(0)
        shown = file.read()
    for words in ("bad", "no such file", "busy", "1,000 / 5,000", "1 min 15 s", "38 finished", "35 not shown"):
        assert words in shown, words
    with open(tmp_path / "plain", "w+") as file:
        with Board("mine", console=Console(file=file, width=20)) as board:
            board.show(lines, 60.0)
            board.event("busy [starts] and does not wrap at all")
        file.seek(0)
        assert file.read()[10:] == "busy [starts] and does not wrap at all\n"

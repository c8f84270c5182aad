"""Reports of run folders written by hand: what stands on the page, and what is said of a damaged folder."""

import builtins
import errno
import html.parser
import json
import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from ctrlrl import disk
from ctrlrl.report import drawing
from ctrlrl.report.benchmark import benchmark
from ctrlrl.report.curves import curve_png, steps
from ctrlrl.report.drawing import LIGHT
from ctrlrl.report.markdown import write_report
from ctrlrl.report.page import write_curve, write_page
from ctrlrl.report.runs import read_run
from ctrlrl.report.sources import read_sources
from ctrlrl.report.tables import pooled_table

HEADER = "env_steps,gradient_steps,wall_seconds,rollout/return,eval/return_mean,eval/return_std\n"
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def _coarse(monkeypatch):
    """A quarter of the points a line: pictures take most of the time here."""
    monkeypatch.setattr(drawing, "DPI", 50)


def folder(path, *, seed=0, algo="ppo", env="halfcheetah", rows=None, config="n_envs: 64\n", **facts):
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(config)
    (path / "overrides.txt").write_text(f"algo={algo}\nseed={seed}\n")
    if rows is None:
        rows = [f"{1000 * i},{i},{i}.5,{10 * i + seed},{11 * i if i % 3 == 0 else ''},{2 if i % 3 == 0 else ''}"
                for i in range(1, 10)]  # fmt: skip
    (path / "progress.csv").write_text(HEADER + "".join(f"{row}\n" for row in rows))
    result = {
        "algo": algo, "env": env, "seed": seed, "status": "finished", "env_steps": 9000, "gradient_steps": 9,
        "final_return_mean": 99.0 + seed, "final_return_std": 2.0, "best_return_mean": 101.0, "wall_seconds": 61.0,
        "train_seconds": 59.0, "steps_per_second": 150.0, "device": "cpu", "versions": {"torch": "2.13.0"}, **facts,
    }  # fmt: skip
    (path / "result.json").write_text(json.dumps(result))
    return path


class Page(html.parser.HTMLParser):
    """Collects tags, their links and the text; an unclosed or crossed tag is an error."""

    VOID = {"meta", "img", "source", "br", "link"}  # noqa: RUF012

    def __init__(self, content):
        super().__init__()
        self.open, self.tags, self.links, self.words = [], [], [], []
        self.feed(content)
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)


def page_of(runs, tmp_path):
    write_page(runs, tmp_path / "out" / "report.html")
    return Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))


def test_a_single_run_shows_its_facts_curve_settings_and_video(tmp_path):
    run = folder(tmp_path / "run")
    (run / "video.mp4").write_bytes(b"not really a video")
    page = page_of([run], tmp_path)
    for words in ("PPO on halfcheetah", "finished", "99.0 ± 2.0", "101.0", "9,000", "1 min 01 s", "n_envs: 64",
                  "algo=ppo seed=0", "torch 2.13.0", "5,728 ± 712", "DLR-RM/rl-trained-agents"):  # fmt: skip
        assert words in page.text, words
    assert page.tags.count("video") == 1
    assert len(page.links) == 5  # page and phone by day and by night, video
    assert all(link.startswith("data:") for link in page.links)  # nothing is loaded from outside


def test_text_from_the_run_is_escaped(tmp_path):
    bad = "<script>alert(1)</script>"
    run = folder(tmp_path / "run", config=f"note: {bad}\n", env=f"x{bad}", status=bad, commit=bad)
    page = page_of([run, folder(tmp_path / "other", algo=bad)], tmp_path)
    assert "script" not in page.tags
    assert f"note: {bad}" in page.text
    page = page_of([run], tmp_path)
    assert "script" not in page.tags


def test_several_runs_are_listed_by_seed_and_not_pooled_below_five(tmp_path):
    runs = [folder(tmp_path / f"s{seed}", seed=seed) for seed in range(3)]
    page = page_of(runs, tmp_path)
    assert "3 runs, 3 finished" in page.text
    assert "99.0, 100.0, 101.0 n<5: no interval" in page.text
    assert "video" not in page.tags
    runs += [folder(tmp_path / f"s{seed}", seed=seed) for seed in (3, 4)]
    page = page_of(runs, tmp_path)
    assert "101.0 [99.8, 102.2]" in page.text  # mean of 99 ... 103
    assert "no interval" not in page.text


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("algo.hidden=[16, 16]", "algo.hidden=[16, 64]"),
        ("iterations=1", "iterations=3"),
        ("algo.x='a b'", "algo.x='a c'"),
    ],
)
def test_words_with_spaces_and_lengths_tell_runs_apart(tmp_path, one, other):
    for seed, word in enumerate((one, other)):
        run = folder(tmp_path / "runs" / f"s{seed}", seed=seed, config_hash=word)
        (run / "overrides.txt").write_text(f"algo=ppo\n{word}\nseed={seed}\n")
    found = [row[0] for row in pooled_table(run.result for run in read_sources([tmp_path / "runs"])).rows]
    assert found == [f"ppo {word.removeprefix('algo.')}" for word in (one, other)]


def test_runs_of_other_settings_are_variants_and_no_seeds_of_one_algorithm(tmp_path):
    words = {"a": "", "b": "algo.gamma=0.9\n"}
    for name, more in words.items():
        for seed in range(5):
            run = folder(tmp_path / "runs" / f"{name}{seed}", seed=seed, config_hash=name, data="d.npz")
            (run / "overrides.txt").write_text(f"algo=ppo\n{more}seed={seed}\nrun.dir={run}\nthreads={seed + 1}\n")
    runs = read_sources([tmp_path / "runs"])
    assert [row[:3] for row in pooled_table(run.result for run in runs).rows] == [
        ("ppo", "halfcheetah \u00b7 d.npz", "5"),
        ("ppo gamma=0.9", "halfcheetah \u00b7 d.npz", "5"),
    ]
    bench = benchmark(run.result for run in runs)
    assert (bench.algos, bench.left_out) == (["ppo", "ppo gamma=0.9"], [])
    assert "PPO and PPO GAMMA=0.9 on halfcheetah" in page_of([tmp_path / "runs"], tmp_path).text


def test_runs_typed_alike_are_taken_together_and_their_hashes_told(tmp_path):
    for seed in range(5):
        folder(tmp_path / "runs" / f"s{seed}", seed=seed, config_hash=f"h{seed // 3}")
    page = page_of([tmp_path / "runs"], tmp_path)
    assert "101.0 [99.8, 102.2]" in page.text
    assert "ppo: runs typed alike are taken together, though their config_hash differs" in page.text
    assert "do not hold the same" not in page.text
    folder(tmp_path / "runs" / "s5", seed=5, config_hash="h1", data_checksum="aa")
    folder(tmp_path / "runs" / "s6", seed=6, config_hash="h2", data_checksum="bb")
    said = page_of([tmp_path / "runs"], tmp_path).text
    assert "ppo: runs typed alike are taken together, though their data sets do not hold the same" in said


def test_runs_from_python_are_told_apart_by_their_hash(tmp_path):
    for name in "ab":
        (folder(tmp_path / "runs" / name, config_hash=name) / "overrides.txt").unlink()
    runs = read_sources([tmp_path / "runs"])
    assert [row[0] for row in pooled_table(run.result for run in runs).rows] == [
        "ppo config_hash=a",
        "ppo config_hash=b",
    ]


def test_curve_is_a_picture_of_the_data(tmp_path):
    write_curve(folder(tmp_path / "a"), tmp_path / "a.png")
    write_curve(folder(tmp_path / "b"), tmp_path / "b.png")
    rising = (tmp_path / "a.png").read_bytes()
    assert rising.startswith(PNG)
    assert rising == (tmp_path / "b.png").read_bytes()
    flat = folder(tmp_path / "c", rows=[f"{1000 * i},{i},{i},50,," for i in range(1, 10)])
    write_curve(flat, tmp_path / "c.png")
    image = pytest.importorskip("matplotlib.image").imread(tmp_path / "c.png")
    blue = (image[..., 2] > 0.8) & (image[..., 0] < 0.3)
    rows = np.flatnonzero(blue.sum(1) > image.shape[1] // 2)
    assert 0 < len(rows) < 12  # one thin horizontal line


@pytest.mark.parametrize(
    "rows", [[], ["1000,1,1.0,,,"], ["0,5,1.0,,3.0,1.0", "0,9,2.0,,4.0,1.0"], ["9,1,1,nan,nan,nan"]]
)
def test_short_and_offline_runs_draw_too(tmp_path, rows):
    runs = [folder(tmp_path / "one", rows=rows), folder(tmp_path / "two"), folder(tmp_path / "three", env="swimmer")]
    assert page_of(runs[:1], tmp_path).tags.count("img") == 1
    assert page_of(runs, tmp_path).tags.count("img") == 1


def test_scores_are_drawn_alone_and_by_environment_steps_where_one_run_began_on_data(tmp_path, monkeypatch):
    from ctrlrl.report import curves

    header = "env_steps,gradient_steps,wall_seconds,rollout/return,eval/normalized_score"
    offline = ["0,1000,1,,5,1000", "0,2000,2,,7,2000", "500,2500,3,900,,2500", "1000,3000,4,950,8,3000"]
    online = ["500,500,1,800,1", "1000,1000,2,850,3"]
    paths = [folder(tmp_path / name, algo=name, data="x.npz") for name in ("iql", "rlpd")]
    for path, rows in zip(paths, ([f"{header},steps", *offline], [header, *online]), strict=True):
        (path / "progress.csv").write_text("\n".join(rows) + "\n")
    seen = []

    def keep(draw, *args, **more):
        return drawing.picture(lambda figure: (draw(figure), seen.append(figure)), *args, **more)

    monkeypatch.setattr(curves, "picture", keep)
    curve_png([read_run(path) for path in paths], LIGHT)
    (ax,) = seen[0].axes
    lines = {tuple(zip(*line.get_data(), strict=True)) for line in ax.lines}
    assert lines == {((0.0, 7.0), (1000.0, 8.0)), ((500.0, 1.0), (1000.0, 3.0))}, "no return of a training episode"
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_xlim()[1]) == ("environment steps", "normalised score", 1020.0)
    assert [text.get_text() for text in seen[0].legends[0].get_texts()] == ["iql", "rlpd"]
    curve_png([read_run(paths[0])], LIGHT)
    assert seen[1].axes[0].get_xlabel() == "offline gradient steps, then environment steps"
    assert {len(line.get_xdata()) for line in seen[1].axes[0].lines} == {3}


def test_the_spread_of_an_evaluation_stands_where_its_mean_does(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    header = "env_steps,gradient_steps,wall_seconds,rollout/return,eval/return_mean,eval/return_std"
    begun = [f"{header},steps", "0,2000,1,,5,1,2000", "500,2500,2,,6,2,2500", "1000,3000,3,,7,3,3000"]
    online = [header, "500,500,1,,1,4", "1000,1000,2,,3,5"]
    paths = [folder(tmp_path / name, algo=name, data="x.npz") for name in ("iql", "rlpd")]
    for path, rows in zip(paths, (begun, online), strict=True):
        (path / "progress.csv").write_text("\n".join(rows) + "\n")
    drawn = []
    monkeypatch.setattr(Axes, "errorbar", lambda ax, x, y, yerr, **look: drawn.append([*map(list, (x, y, yerr))]))
    curve_png([read_run(path) for path in paths], LIGHT)
    assert drawn == [[[0, 500, 1000], [5, 6, 7], [1, 2, 3]], [[500, 1000], [1, 3], [4, 5]]]


def test_seeds_without_a_common_range_have_no_mean(tmp_path):
    early = folder(tmp_path / "early", rows=["1000,1,1,5,,", "2000,2,2,6,,"])
    late = folder(tmp_path / "late", seed=1, rows=["3000,1,1,5,,", "4000,2,2,6,,"])
    assert page_of([early, late], tmp_path).tags.count("img") == 1


def test_offline_runs_count_gradient_steps_and_unmeasured_rows_are_left_out(tmp_path):
    run = read_run(folder(tmp_path / "run", rows=["0,5,1.0,,3.0,1.0", "0,7,1.5,,,", "0,9,2.0,,4.0,1.0"]))
    x, y = run.curve("eval/return_mean")
    assert (x.tolist(), y.tolist()) == ([5.0, 9.0], [3.0, 4.0])
    assert run.curve("no/such")[0].size == 0


def test_a_row_still_being_written_is_left_out(tmp_path):
    run = folder(tmp_path / "run")
    with open(run / "progress.csv", "a") as file:
        file.write("10000,10,1")
    assert read_run(run).progress["env_steps"][-1] == 9000


@pytest.mark.parametrize("name", ["config.yaml", "progress.csv"])
def test_missing_files_are_named(tmp_path, name):
    run = folder(tmp_path / "run")
    (run / name).unlink()
    with pytest.raises(ValueError, match=f"run/{name}: cannot be read") as raised:
        write_page([run], tmp_path / "report.html")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "report.html").exists()


def test_a_run_without_an_evaluation_is_told_in_a_folder_and_by_itself(tmp_path):
    begun = folder(tmp_path / "runs" / "begun")
    (begun / "result.json").unlink()
    (tmp_path / "runs" / "notes").mkdir()
    for path in (begun, tmp_path / "runs"):
        with pytest.raises(ValueError, match=r"runs/begun: no evaluation yet, no result\.json to report$"):
            read_sources([path])
    folder(tmp_path / "runs" / "done")
    assert f"{begun}: no evaluation yet" in page_of([tmp_path / "runs"], tmp_path).text


def test_a_folder_of_runs_holds_seeds_trained_together_and_sweeps_too(tmp_path):
    folder(tmp_path / "runs" / "alone", seed=9)
    together = folder(tmp_path / "runs" / "together", seeds=[{"seed": 0}, {"seed": 1}])
    for seed in (0, 1):
        folder(together / f"seed_{seed}", seed=seed)
    sweep = tmp_path / "runs" / "sweep"
    folder(sweep / "a", seed=5)
    cells = [{"name": n, "task": "t", "variant": "", "state": s} for n, s in (("a", "finished"), ("b", "waiting"))]
    (sweep / "cells.json").write_text(json.dumps(cells))
    runs = read_sources([tmp_path / "runs"])
    assert [run.path.relative_to(tmp_path / "runs").as_posix() for run in runs] == [
        "alone", "sweep/a", "together/seed_0", "together/seed_1",
    ]  # fmt: skip
    assert [run.result.get("task") for run in runs] == [None, "t", None, None]
    assert "sweep: 1 cell has no result yet" in page_of([tmp_path / "runs"], tmp_path).text


def test_a_run_that_is_named_twice_is_listed_once(tmp_path, monkeypatch):
    runs = [folder(tmp_path / "runs" / name) for name in "ab"]
    monkeypatch.chdir(tmp_path)
    assert len(read_sources([runs[0], Path("runs/a"), runs[1], Path("runs")])) == 2


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("result.json", b'{"algo": "ppo",', r"result.json: damaged, not JSON \(line 1"),
        ("result.json", b'{"algo": "ppo"}', "result.json: damaged, env, seed missing"),
        ("result.json", b"[]", "result.json: damaged, algo, env, seed missing"),
        ("config.yaml", b"\xff\xfe\x00", "config.yaml: damaged, not UTF-8"),
        ("progress.csv", b"", "progress.csv: damaged, column env_steps missing"),
        ("progress.csv", HEADER.encode() + b"1,1,1,1,1\n", "progress.csv: damaged, line 2 has 5 cells, the header 6"),
        ("progress.csv", HEADER.encode() + b"1,1,1,1,x,\n", "line 2, column eval/return_mean: 'x' is no number"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, said):
    run = folder(tmp_path / "run")
    (run / name).write_bytes(content)
    with pytest.raises(ValueError, match=said) as raised:
        write_page([run], tmp_path / "report.html")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_a_report_that_cannot_be_written_leaves_the_former_one_whole(tmp_path, monkeypatch, name):
    run = folder(tmp_path / "a")
    write_report([run], tmp_path / name)
    former = (tmp_path / name).read_bytes()

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk.os, "fsync", full)
    with pytest.raises(OSError, match=name):
        write_report([run], tmp_path / name)
    assert (tmp_path / name).read_bytes() == former
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", name]


def test_a_report_goes_through_links_and_into_devices(tmp_path):
    run = folder(tmp_path / "a")
    link, nowhere = tmp_path / "latest.md", tmp_path / "nowhere.md"
    link.symlink_to("report.md")
    nowhere.symlink_to(os.devnull)
    for out in (link, nowhere):
        write_report([run], out)
        assert out.is_symlink()
    assert (tmp_path / "report.md").read_bytes()
    assert not Path(os.devnull).is_file()


def test_no_run_folder(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such run folder"):
        write_page([tmp_path / "nowhere"], tmp_path / "report.html")
    with pytest.raises(ValueError, match="no run folder given"):
        write_page([], tmp_path / "report.html")


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    genuine = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return genuine(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'ctrlrl\[report\]'"):
        write_curve(folder(tmp_path / "run"), tmp_path / "curve.png")


def test_steps_for_people():
    assert [steps(x) for x in (0, 500, 250_000, 1_500_000, 2e9)] == ["0", "500", "250k", "1.5M", "2B"]


# sweeps and offline runs ---------------------------------------------------------------------------------------------

OFFLINE = "env_steps,gradient_steps,wall_seconds,eval/return_mean,eval/return_std,eval/normalized_score\n"


def offline(path, *, algo="iql", data="hopper-medium-v2", seed=0, score=50.0, **facts):
    run = folder(path, algo=algo, env="hopper-v4", seed=seed, data=data, env_steps=0, gradient_steps=200,
                 normalized_score=score, updates_per_second=900.0, **facts)  # fmt: skip
    rows = [f"0,{100 * i},{i},{30 * score + i},1,{score - 2 + i}\n" for i in (1, 2)]
    (run / "progress.csv").write_text(OFFLINE + "".join(rows))
    return run


def sweep_folder(path, data=("hopper-medium-v2", "hopper-medium-replay-v2"), n_seeds=3):
    cells = []
    for algo, bonus in (("iql", 0.0), ("td3bc", 7.0)):
        for task in data:
            for seed in range(n_seeds):
                name = f"{algo}-{task.replace('/', '_')}-s{seed}"
                offline(path / name, algo=algo, data=task, seed=seed, score=40.0 + bonus + seed)
                cells.append({"name": name, "task": task, "variant": ""})
    cells.append({"name": "never-started", "task": "x", "variant": ""})
    cells.append({"name": "fell", "task": "x", "variant": "", "state": "failed", "error": "x.npz: no such file"})
    (path / "cells.json").write_text(json.dumps(cells))
    return path


def test_an_offline_run_shows_scores_and_what_is_published_for_its_data_set_alone(tmp_path):
    page = page_of([offline(tmp_path / "run")], tmp_path)
    for words in ("Last score 50.0", "Best score 50.0", "Gradient steps 200", "67.5 ± 3.8", "tinkoff-ai/CORL"):
        assert words in page.text, words
    other = page_of([offline(tmp_path / "other", data="x/hopper-medium.npz")], tmp_path)
    assert "67.5" not in other.text
    assert "no published score is of the same task" in other.text
    assert "SB3" not in page_of([offline(tmp_path / "sac", algo="sac", data="x/hopper.npz")], tmp_path).text


def test_a_sweep_folder_is_compared_over_tasks_with_names_intervals_and_seeds(tmp_path):
    page = page_of([sweep_folder(tmp_path / "s")], tmp_path)
    for words in ("IQL and TD3BC on hopper-medium-v2 and hopper-medium-replay-v2", "12 runs, 12 finished",
                  "Last score: the final evaluation", "Best score: the best evaluation of each run",
                  "40.0 · 41.0 · 42.0", "2 x 3", "last: IQM", "optimality gap", "Probability of improvement",
                  "1.00 [1.00, 1.00]", "Published scores beside ours", "97.4 ± 6.4"):  # fmt: skip
        assert words in page.text, words
    assert page.tags.count("img") == 2  # curves and profile
    assert "1 cell has no result yet" in page.text
    assert "fell failed: x.npz: no such file" in page.text


def test_many_runs_are_folded_away_and_paper_does_without_what_only_a_screen_can_unfold(tmp_path):
    few = page_of([sweep_folder(tmp_path / "few", n_seeds=2)], tmp_path)
    many = page_of([sweep_folder(tmp_path / "many", n_seeds=4)], tmp_path)
    assert "Every seed: 16 runs" in many.text
    assert few.tags.count("details") == 8
    assert many.tags.count("details") == 16 + 2
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for rule in ("@media print", "@media (max-width: 600px)", ".screen { display: none }"):
        assert rule in text


def test_a_folder_of_run_folders_is_all_of_them(tmp_path):
    for seed in range(2):
        folder(tmp_path / "runs" / f"s{seed}", seed=seed)
    assert "2 runs, 2 finished" in page_of([tmp_path / "runs"], tmp_path).text


def test_a_phone_gets_a_picture_of_half_the_width_with_letters_of_the_same_size(tmp_path):
    image = pytest.importorskip("matplotlib.image")
    runs = [read_run(folder(tmp_path / "a")), read_run(folder(tmp_path / "b", env="swimmer"))]
    for narrow, width in ((False, 420), (True, 210)):
        (tmp_path / "x.png").write_bytes(curve_png(runs, LIGHT, narrow=narrow))
        assert image.imread(tmp_path / "x.png").shape[1] == width

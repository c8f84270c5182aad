"""Benchmarks as tables: what is compared, what is left out, and what may stand beside it."""

import json

import numpy as np
import pytest

from ctrlrl.report.benchmark import BEST, LAST, RETURN, SCORE, SUCCESS, benchmark
from ctrlrl.report.fine_tuning import fine_tuning
from ctrlrl.report.markdown import report_markdown, write_report
from ctrlrl.report.published_offline import SOURCES, d4rl_id, offline_scores, published_score
from ctrlrl.report.results import data_of, is_offline, task_of
from ctrlrl.report.runs import read_run
from ctrlrl.report.scoreboard import (
    aggregates,
    beside,
    every_task,
    improvements,
    incomparable,
    matrix,
    seeds_text,
)
from ctrlrl.report.sources import read_sources
from ctrlrl.report.tables import NONE, results_table

TASKS = ("hopper-medium-v2", "walker2d-medium-v2")


def result(algo="iql", task=TASKS[0], seed=0, score=50.0, **facts):
    return {
        "algo": algo, "env": task.split("-")[0] + "-v4", "data": task, "task": task, "seed": seed, "status": "finished",
        "env_steps": 0, "gradient_steps": 100, "final_return_mean": 30 * score, "final_return_std": 2.0,
        "best_return_mean": 31 * score, "normalized_score": score, "best_normalized_score": score + 10,
        "evaluations": [[50, 900.0, score - 5], [100, 30 * score, score]], "clock": "gradient_steps", "cell": "c",
        **facts,
    }  # fmt: skip


def two_by_two(n_seeds, algos=("iql", "td3bc")):
    return [
        result(algo, task, seed, 10.0 * i + 40 * j + seed)
        for i, algo in enumerate(algos)
        for j, task in enumerate(TASKS)
        for seed in range(n_seeds)
    ]


def rows(table):
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def test_last_and_best_stand_under_their_names_and_three_seeds_have_no_mean():
    bench = benchmark(two_by_two(3))
    last, best = rows(matrix(bench, LAST)), rows(matrix(bench, BEST))
    assert last[0] == {"task": TASKS[0], "iql": "0.0 · 1.0 · 2.0", "td3bc": "10.0 · 11.0 · 12.0"}
    assert best[1] == {"task": TASKS[1], "iql": "50.0 · 51.0 · 52.0", "td3bc": "60.0 · 61.0 · 62.0"}
    full = rows(every_task(bench))[0]
    assert (full["last score"], full["best score"]) == ("0.0 · 1.0 · 2.0", "10.0 · 11.0 · 12.0")
    assert (full["last return"], full["best return"]) == ("0.0 · 30.0 · 60.0", "0.0 · 31.0 · 62.0")


def test_five_seeds_have_mean_and_population_deviation_with_their_number():
    assert seeds_text([1.0, 2.0, 3.0, 4.0, 5.0]) == "3.0 ± 1.4 (5)"
    assert seeds_text([1.0, 2.0, 3.0, 4.0]) == "1.0 · 2.0 · 3.0 · 4.0"
    assert seeds_text([1234.5, -8.0]) == "1,234 · -8"
    assert seeds_text([]) == "\u2013"


def test_seeds_keep_their_order_as_numbers():
    bench = benchmark([result(seed=s, score=float(s)) for s in (10, 2, 0)])
    assert bench.values("iql", TASKS[0], "normalized_score") == [0.0, 2.0, 10.0]


def test_aggregates_carry_their_number_of_tasks_and_seeds():
    bench = benchmark(two_by_two(3))
    first, second = rows(aggregates(bench))
    assert first["tasks x seeds"] == second["tasks x seeds"] == "2 x 3"
    assert first["last: IQM"].startswith("21.0 [")  # of 0 1 2 40 41 42: the middle four
    assert second["best: IQM"].startswith("41.0 [")
    assert first["last: optimality gap"].startswith("79.0 [")
    table = rows(improvements(bench))
    assert table[0]["td3bc"] == "0.00 [0.00, 0.00]"
    assert table[1]["iql"] == "1.00 [1.00, 1.00]"


def test_only_tasks_and_seeds_that_are_complete_are_aggregated():
    results = two_by_two(3)
    results = [r for r in results if (r["algo"], r["task"], r["seed"]) != ("td3bc", TASKS[1], 2)]
    bench = benchmark([*results, result("iql", "extra-v2", 0)])
    tasks, found = bench.matrices("normalized_score")
    assert tasks == list(TASKS)
    assert (found["iql"].shape, found["td3bc"].shape) == ((3, 2), (2, 2))
    np.testing.assert_array_equal(found["td3bc"], [[10, 50], [11, 51]])


def test_an_algorithm_with_few_tasks_is_left_out_and_named_instead_of_the_others_tasks():
    more = [result("awac", TASKS[0], seed) for seed in range(3)]
    four = [result(algo, f"more-{i}", seed) for algo in ("iql", "td3bc") for i in range(2) for seed in range(3)]
    bench = benchmark([*two_by_two(3), *four, *more, result("iql", TASKS[0], 3)])
    tasks, found = bench.matrices("normalized_score")
    assert (len(tasks), set(found)) == (4, {"iql", "td3bc"})
    assert bench.not_aggregated() == [
        "iql: 3 of 4 seeds have all tasks, the others are left out",
        "awac: 1 of 4 tasks, left out of all tasks together",
    ]
    assert "not every algorithm has extra" in benchmark([*two_by_two(3), result("iql", "extra")]).not_aggregated()[0]


def test_runs_of_other_settings_are_not_taken_for_one():
    low = result(score=1.0, dtype="bfloat16")
    assert benchmark([result(), low]).algos == ["iql", "iql bfloat16"]
    twice = benchmark([result(config_hash="a"), result(config_hash="b")])
    assert twice.left_out == [f"iql, {TASKS[0]}, seed 0: two runs with different settings, the earlier left out"]


def test_unfinished_runs_are_left_out_by_name():
    bench = benchmark([result(), result(seed=1, status="failed"), result(seed=2, final_return_mean=None)])
    assert list(bench.runs["iql"][TASKS[0]]) == ["0"]
    assert bench.left_out == [
        f"iql, {TASKS[0]}, seed 1: failed, left out",
        f"iql, {TASKS[0]}, seed 2: finished, left out",
    ]


def test_returns_are_compared_where_a_run_has_no_score_but_never_averaged_over_tasks():
    bench = benchmark([*two_by_two(2), result("bc", score=1.0, normalized_score=None)])
    assert bench.metric is RETURN
    assert benchmark(two_by_two(2)).metric is SCORE
    assert aggregates(bench) is None
    one = benchmark([result(score=s, seed=int(s), normalized_score=None) for s in (1.0, 2.0)])
    assert list(rows(aggregates(one))[0]) == ["algo", "tasks x seeds", "last: IQM", "best: IQM"]


def test_tasks_without_a_score_are_compared_and_averaged_by_success_in_percent(tmp_path):
    """OGBench's metric; its published numbers are 100 times the rate."""
    found = [
        result(algo, task, seed, normalized_score=None, success_rate=0.25 * seed + share, best_success_rate=1.0)
        for algo, share in (("iql", 0.0), ("fql", 0.5))
        for task in TASKS
        for seed in range(3)
    ]
    bench = benchmark(found)
    assert bench.metric is SUCCESS
    assert rows(matrix(bench, LAST))[0] == {"task": TASKS[0], "iql": "0.0 · 25.0 · 50.0", "fql": "50.0 · 75.0 · 100.0"}
    assert rows(matrix(bench, BEST))[1]["iql"] == "100.0 · 100.0 · 100.0"
    assert rows(aggregates(bench))[1]["last: mean"].startswith("75.0 [")
    assert rows(every_task(bench))[0]["last success in %"] == "0.0 · 25.0 · 50.0"
    assert benchmark([*found, result(normalized_score=None)]).metric is RETURN
    unknown = write_rows(tmp_path / "r.jsonl", [{**r, "best_success_rate": None} for r in found])
    assert "Last success in %" in report_markdown([unknown])
    assert "Best success" not in report_markdown([unknown])
    assert benchmark([result(success_rate=0.5)]).metric is SCORE


def test_variants_of_an_algorithm_are_told_apart():
    bench = benchmark([result(), result(variant="expectile=0.9")])
    assert bench.algos == ["iql", "iql expectile=0.9"]


def test_published_scores_stand_beside_the_same_data_set_only():
    table = rows(beside(benchmark(two_by_two(3))))
    assert table[0] == {
        "task": "hopper-medium-v2", "algo": "iql", "source": "CORL", "ours, last": "0.0 · 1.0 · 2.0",
        "published, last": "67.5 ± 3.8", "ours, best": "10.0 · 11.0 · 12.0", "published, best": "80.5 ± 3.1",
    }  # fmt: skip
    others = [result(data="{data_dir}/hopper-medium.npz", task="hopper-medium"), result(algo="unheard-of")]
    assert beside(benchmark(others)) is None


def test_the_best_tenth_stands_beside_ten_percent_bc_and_other_settings_beside_nothing():
    task = "halfcheetah-medium-expert-v2"
    tenth = [result("bc", task, seed=s, best_fraction=0.1) for s in range(3)]
    assert rows(beside(benchmark(tenth)))[0]["published, last"] == "90.1 ± 2.5"
    assert rows(results_table(tenth[:1]))[0]["published"] == "score 90.1 CORL"
    assert "56.0 CORL" in rows(results_table([result("bc", task, best_fraction=1.0)]))[0]["published"]
    for other in (result("bc", task, best_fraction=0.2), result("td3bc", task, variant="alpha=10")):
        assert "published" not in rows(results_table([other]))[0]
        assert beside(benchmark([other])) is None


def test_a_run_that_went_on_in_the_environment_stands_beside_published_ones_that_did():
    went_on = [result("iql", "antmaze-umaze-v2", seed=s, env_steps=1_000_000) for s in range(3)]
    (row,) = rows(beside(benchmark(went_on)))
    assert (row["published, last"], row["published, best"]) == ("96.5 ± 1.1", "–")
    (shown,) = rows(results_table(went_on[:1]))
    assert (shown["published"], shown["steps"]) == ("score 96.5 CORL", "1,000,000")
    assert beside(benchmark([*went_on[:2], result("iql", "antmaze-umaze-v2", seed=2)])) is None


def test_scores_of_other_data_are_marked_as_not_comparable():
    ours = [result(a, t, data=f"d/{t}.npz") for a in ("iql", "bc") for t in ("hopper-medium", "hopper-mixed")]
    said = incomparable(benchmark(ours))
    assert "these tasks are not D4RL's" in said
    assert "no published score" in said
    assert incomparable(benchmark(two_by_two(2))) == ""
    mixed = incomparable(benchmark([*two_by_two(2), *ours]))
    assert "hopper-medium, hopper-mixed are not D4RL's" in mixed
    assert incomparable(benchmark([result(normalized_score=None)])) == ""


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("hopper-medium-v2", "hopper-medium-v2"),
        ("x/hopper-medium-v2.hdf5", None),  # its loader gave no id: the file says that it is of another simulator
        ("x/hopper-medium.npz", None),
        ("hopper-medium", None),
        ("mujoco/hopper/medium-v0", None),
        ("D4RL/pen/human-v2", None),
        ("cube-double-play-singletask-v0", None),
        (None, None),
    ],
)
def test_a_data_set_is_d4rls_by_its_full_id_alone(data, name):
    assert d4rl_id({"data": data}) == name


def test_the_packed_scores_are_whole():
    scores = offline_scores()
    assert len(scores) == 954
    assert {p.source for p in scores} == set(SOURCES)
    assert len({(p.source, p.task, p.algo, p.stage) for p in scores}) == 954
    (p,) = published_score("rebrac", "walker2d-medium-replay-v2", "last")
    assert (p.mean, p.printed) == (84.25, "ReBRAC")
    assert [p.source for p in published_score("td3bc", "hopper-medium-v0", "best")] == ["d3rlpy"]
    assert [p.mean for p in published_score("calql", "antmaze-large-play-v2", "after")] == [97.25]


def test_tasks_are_named_by_their_sweep_or_by_environment_and_file():
    assert task_of(result()) == TASKS[0]
    assert task_of(result() | {"task": None, "data": "/a/b/hopper-medium.npz"}) == "hopper-v4 · hopper-medium.npz"
    assert data_of(result(data="D4RL/pen/human-v2")) == "D4RL/pen/human-v2"
    assert is_offline(result())
    assert not is_offline({"algo": "ppo", "env_steps": 10, "gradient_steps": 5})


# sources and Markdown ------------------------------------------------------------------------------------------------


def write_rows(path, results):
    path.write_text("".join(json.dumps(r) + "\n" for r in results))
    return path


def test_rows_are_runs_whose_curves_are_their_evaluations(tmp_path):
    (run,) = read_sources([write_rows(tmp_path / "r.jsonl", [result(score=50.0)])])
    x, y = run.curve("eval/normalized_score")
    assert (x.tolist(), y.tolist(), run.x_name, run.offline) == ([50.0, 100.0], [45.0, 50.0], "gradient_steps", True)
    assert run.result["best_normalized_score"] == 60.0
    bare = result(evaluations=[[1, 2.0, None]], best_normalized_score=None)
    (run,) = read_sources([write_rows(tmp_path / "r.jsonl", [bare])])
    assert run.curve("eval/return_mean")[1].tolist() == [2.0]
    assert run.curve("eval/normalized_score")[1].size == 0


def test_the_best_of_a_curve_joins_the_result_of_its_folder(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    bare = result(best_normalized_score=None, success_rate=0.25)
    (tmp_path / "result.json").write_text(json.dumps(bare))
    (tmp_path / "progress.csv").write_text(
        "env_steps,gradient_steps,wall_seconds,eval/success_rate,eval/normalized_score\n0,1,1,0.5,7\n0,2,2,0.25,3\n"
    )
    found = read_run(tmp_path).result
    assert (found["best_success_rate"], found["best_normalized_score"], found["success_rate"]) == (0.5, 7.0, 0.25)


def test_what_became_of_the_offline_score_is_told_for_runs_that_went_on(tmp_path):
    curve = [[100, 900.0, 40.0], [200, 1200.0, 50.0], [5200, 600.0, 30.0], [10200, 900.0, 45.0], [20200, 0.0, 20.0]]
    went_on = {"clock": "steps", "env_steps": 20_000, "gradient_steps": 20_200, "evaluations": curve, "regret": 0.25}
    seeds = [
        result(**went_on),
        result(seed=1, **went_on | {"evaluations": [*curve[:2], [5200, 1.0, 60.0], *curve[3:]]}),
    ]
    stopped = result(seed=2, status="interrupted", **went_on)
    late = result("awac", **went_on | {"evaluations": [curve[0], curve[1], curve[-1]]})
    file = write_rows(tmp_path / "r.jsonl", [*seeds[::-1], seeds[1], stopped, late, result("bc")])
    row, second = rows(fine_tuning(read_sources([file])))
    assert (second["algo"], second["worst"], second["last"]) == ("awac", NONE, "20.0")
    assert (row["before"], row["worst"], row["worst / before"]) == ("50.0 · 50.0", "30.0 · 45.0", "60 % · 90 %")
    assert (row["last"], row["regret"]) == ("20.0 · 20.0", "0.250 · 0.250")
    assert "From the data set to the environment" in report_markdown([file])
    assert fine_tuning(read_sources([write_rows(tmp_path / "o.jsonl", [result()])])) is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no result row in it"),
        ("{\n", "line 1 is no result row"),
        ("[]\n", "line 1 is no result row"),
        ('{"algo": "iql", "env": "x"}\n', "line 1 is no result row, seed missing"),
        ('{"algo": "a", "env": "x", "seed": 0, "evaluations": "no"}\n', "line 1 is no result row"),
    ],
)
def test_damaged_rows_are_named_in_one_line(tmp_path, content, said):
    file = tmp_path / "r.jsonl"
    file.write_text(content)
    with pytest.raises(ValueError, match=said) as raised:
        read_sources([file])
    assert "\n" not in str(raised.value)


def test_a_sweep_without_results_and_an_empty_folder_are_named(tmp_path):
    with pytest.raises(ValueError, match="an empty folder, no run to report"):
        read_sources([tmp_path])
    (tmp_path / "cells.json").write_text('[{"name": "a", "task": "t", "variant": ""}]')
    with pytest.raises(ValueError, match="no cell of this sweep has a result yet"):
        read_sources([tmp_path])
    (tmp_path / "cells.json").write_text('[{"name": "a"}]')
    with pytest.raises(ValueError, match=r"cells\.json: damaged"):
        read_sources([tmp_path])


def test_markdown_holds_every_table_and_the_warnings(tmp_path):
    rows_file = write_rows(tmp_path / "r.jsonl", [*two_by_two(3), result(seed=9, status="failed")])
    text = report_markdown([rows_file])
    for words in ("**Last score", "**Best score", "| hopper-medium-v2 | 0.0 · 1.0 · 2.0 | 10.0 · 11.0 · 12.0 |",
                  "2 x 3", "P(row > column)", "67.5 ± 3.8", "fewer there is no mean", "seed 9: failed"):  # fmt: skip
        assert words in text, words
    assert all(line.startswith("|") == line.endswith("|") for line in text.splitlines())
    write_report([rows_file], tmp_path / "deep" / "t.md")
    assert (tmp_path / "deep" / "t.md").read_text() == text
    write_report([rows_file], tmp_path / "t.out", "markdown")
    assert (tmp_path / "t.out").read_text() == text
    with pytest.raises(ValueError, match="format must be html or markdown, got 'pdf'"):
        write_report([rows_file], tmp_path / "t.pdf", "pdf")
    with pytest.raises(ValueError, match=r"t.pdf: must end in .html, .htm, .md, .markdown, or give format="):
        write_report([rows_file], tmp_path / "t.pdf")


def test_one_task_of_one_algorithm_is_listed_seed_by_seed(tmp_path):
    text = report_markdown([write_rows(tmp_path / "r.jsonl", [result(seed=s) for s in range(2)])])
    assert text.splitlines()[0].startswith("| algo | task | env |")
    assert "n<5: no interval" in text


def test_a_single_seed_has_no_interval():
    bench = benchmark(two_by_two(1))
    assert rows(aggregates(bench))[0]["last: IQM"] == "20.0"
    assert rows(improvements(bench))[1]["iql"] == "1.00"

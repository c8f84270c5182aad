"""Tables of results: what is shown, what is pooled and what is not."""

import pytest

from ctrlrl.report.published import PUBLISHED, SOURCES, published, published_beside, task_key
from ctrlrl.report.tables import duration, grouped, markdown, number, pooled_table, results_table, text


def result(seed=0, last=100.0, **facts):
    return {
        "algo": "ppo", "env": "halfcheetah", "data": None, "seed": seed, "status": "finished", "env_steps": 1_000_000,
        "gradient_steps": 9000, "final_return_mean": last, "final_return_std": 12.0, "best_return_mean": 120.0,
        "success_rate": None, "normalized_score": None, "wall_seconds": 131.2, "steps_per_second": 9420.5,
        "updates_per_second": 71.0, **facts,
    }  # fmt: skip


def test_one_row_a_seed_and_no_empty_columns():
    table = results_table([result(0), result(1, last=4321.0)])
    assert table.columns == (
        "algo", "env", "seed", "steps", "last return", "best return", "wall time", "steps/s", "published",
    )  # fmt: skip
    assert table.rows[1] == (
        "ppo", "halfcheetah", "1", "1,000,000", "4,321 ± 12", "120.0", "2 min 11 s", "9,420", "5,728 SB3 zoo",
    )  # fmt: skip


def test_columns_appear_when_a_run_fills_them():
    rows = [result(0), result(1, status="failed", normalized_score=41.26, success_rate=0.5, final_return_mean=None)]
    table = results_table(rows)
    cells = dict(zip(table.columns, table.rows[1], strict=True))
    assert (cells["status"], cells["last score"], cells["success"], cells["last return"]) == (
        "failed",
        "41.3",
        "50 %",
        "\u2013",
    )


def test_offline_runs_count_gradient_steps():
    table = results_table([result(env_steps=0, data="hopper-medium.npz", gradient_steps=50_000)])
    cells = dict(zip(table.columns, table.rows[0], strict=True))
    assert (cells["steps"], cells["steps/s"], cells["data"]) == ("50,000", "71", "hopper-medium.npz")


def test_fewer_than_five_seeds_are_not_pooled():
    table = pooled_table([result(i, last=float(100 * i)) for i in range(4)])
    assert table.rows == (("ppo", "halfcheetah", "4", "0.000, 100.0, 200.0, 300.0", "n<5: no interval"),)


def test_copies_of_one_result_are_no_seeds():
    rows = [result(i % 3, last=float(i % 3), config_hash=f"h{i % 3}") for i in range(9)]
    assert pooled_table(rows).rows == (("ppo", "halfcheetah", "3", "0.000, 1.00, 2.00", "n<5: no interval"),)


def test_five_seeds_give_mean_and_iqm_with_intervals():
    table = pooled_table([result(i, last=v) for i, v in enumerate([1000.0, 2000.0, 3000.0, 4000.0, 9000.0])])
    _, _, n, mean, middle = table.rows[0]
    assert n == "5"
    assert mean.startswith("3,800 [")
    assert middle.startswith("3,000 [")
    low, high = (float(part.replace(",", "")) for part in mean[7:-1].split(", "))
    assert 1000 < low < 3800 < high < 9000


def test_unfinished_runs_are_not_pooled_and_groups_keep_data_apart():
    rows = [result(i, last=1.0) for i in range(5)] + [result(5, last=1e6, status="interrupted")]
    assert pooled_table(rows).rows[0][2:4] == ("5", "1.00 [1.00, 1.00]")
    assert list(grouped([result(data="a"), result(data="b")])) == [
        ("ppo", "halfcheetah · a"),
        ("ppo", "halfcheetah · b"),
    ]


def test_stacked_runs_are_expanded():
    stacked = result(seeds=[{"seed": i, "final_return_mean": 10.0 * i} for i in range(3)])
    assert [row[2] for row in results_table([stacked]).rows] == ["0", "1", "2"]


def test_markdown_and_text():
    table = results_table([result(0, env="a|b")])
    lines = markdown(table).splitlines()
    assert lines[0].startswith("| algo | env | seed | steps |")
    assert lines[1].startswith("| --- | --- | --- | ---: |")
    assert "a\\|b" in lines[2]
    plain = text(table).splitlines()
    assert len(plain) == 3
    assert plain[2].index("1,000,000") + 9 == plain[0].index("steps") + 5  # numbers end where their header ends


@pytest.mark.parametrize(
    ("x", "shown"),
    [
        (None, "\u2013"),
        (float("nan"), "\u2013"),
        (12345.6, "12,346"),
        (-165.67, "-165.7"),
        (1.5, "1.50"),
        (0.0125, "0.013"),
    ],
)
def test_numbers(x, shown):
    assert number(x) == shown


def test_durations():
    assert [duration(s) for s in (None, 3.21, 48.2, 185, 7620)] == [
        "\u2013",
        "3.2 s",
        "48 s",
        "3 min 05 s",
        "2 h 07 min",
    ]


def test_published_returns_are_of_the_robot_as_it_is():
    run = {"algo": "ppo", "env": "halfcheetah", "seed": 0, "env_steps": 1}
    assert [p.value for p in published_beside(run)] == [5728.1]
    assert published_beside(run | {"dynamics": {"training": {"gravity_scale": 2.0}, "evaluation": {}}}) == []
    assert published_beside(run | {"data": "halfcheetah-medium-v2"}) == []


def test_published_numbers_are_found_under_every_name_of_a_task():
    for env in ("halfcheetah", "halfcheetah-v4", "HalfCheetah-v5", "ns/HalfCheetah-v3"):
        assert [p.value for p in published("ppo", env)] == [5728.1]
    assert task_key("mountaincar_continuous") == task_key("MountainCarContinuous-v0")
    assert {(p.source, p.value) for p in published("PPO", "hopper")} == {("SB3 zoo", 2334.9), ("BPO paper", 2400.0)}
    assert [p.value for p in published("bpo", "Ant-v5")] == [5000.0]
    assert published("ppo", "lqr") == []
    assert all(p.source in SOURCES for p in PUBLISHED)

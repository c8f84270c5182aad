"""Fronts on the report's page: which runs share a picture, what is drawn, and what stands beside it."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from ctrlrl.report import drawing
from ctrlrl.report.curves import HYPERVOLUME, curve_png
from ctrlrl.report.drawing import DARK, LIGHT, picture
from ctrlrl.report.front_picture import Front, front_png, front_tasks
from ctrlrl.report.page import write_curve, write_page
from ctrlrl.report.runs import read_run

BEATEN = [5.0, -4.0]
DST = [[0.7, -1.0], [8.2, -3.0], [23.7, -19.0]]


@pytest.fixture(autouse=True)
def _coarse(monkeypatch):
    monkeypatch.setattr(drawing, "DPI", 50)


def folder(
    path, front, *, algo="cmorl", seed=0, env="deep_sea_treasure", objectives=("treasure", "time"), column=HYPERVOLUME
):
    path.mkdir(parents=True)
    (path / "config.yaml").write_text("n_envs: 8\n")
    with open(path / "progress.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["env_steps", "gradient_steps", "wall_seconds", column])
        rows.writerows([[1000 * i, i, i, 100 + 10 * i + seed] for i in range(1, 6)])
    facts = {"algo": algo, "env": env, "seed": seed, "status": "finished", "env_steps": 5000, "hypervolume": 401.8,
             "expected_utility": 7.167, "sparsity": 15.4, "front": front,
             "objectives": None if objectives is None else list(objectives)}  # fmt: skip
    (path / "result.json").write_text(json.dumps(facts))
    return path


def test_fronts_of_one_task_share_a_picture_and_others_have_their_own(tmp_path):
    runs = [
        read_run(folder(tmp_path / "a", DST)),
        read_run(folder(tmp_path / "b", DST[:2], algo="scalarized_ppo", seed=1)),
        read_run(folder(tmp_path / "c", [[1.0, 2.0, 3.0]], env="gym_task", objectives=None)),
        read_run(folder(tmp_path / "d", [], env="empty")),
    ]
    tasks = front_tasks(runs)
    assert [(t.env, t.names, len(t.fronts)) for t in tasks] == [
        ("deep_sea_treasure", ("treasure", "time"), 2),
        ("gym_task", ("objective 1", "objective 2", "objective 3"), 1),
    ]
    np.testing.assert_array_equal(tasks[0].fronts[1].points, DST[:2])


def drawn(monkeypatch, fronts, names, theme=LIGHT, **words):
    """The figure that front_png hands to the canvas, and the PNG."""
    from ctrlrl.report import front_picture

    seen = []

    def keep(draw, theme, size, **more):
        def body(figure):
            draw(figure)
            seen.append(figure)

        return picture(body, theme, size, **more)

    monkeypatch.setattr(front_picture, "picture", keep)
    png = front_png(fronts, names, theme, **words)
    return seen[0], png


def test_two_objectives_are_a_plane_with_every_policy_as_a_dot(monkeypatch):
    fronts = [Front("cmorl", "0", np.array([*DST, BEATEN])), Front("ppo", "0", np.array(DST[:1]))]
    figure, png = drawn(monkeypatch, fronts, "ab")
    ax = figure.axes[0]
    dots = [line.get_xydata() for line in ax.lines if line.get_marker() not in ("None", None, "")]
    np.testing.assert_array_equal(np.concatenate(dots), [*DST, BEATEN, *DST[:1]])
    border = next(line for line in ax.lines if line.get_drawstyle() == "steps-pre")
    np.testing.assert_array_equal(border.get_xydata(), DST)
    assert ax.get_xlabel() == "return: a"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["cmorl, seed 0: 4 policies", "ppo, seed 0: 1 policy"]
    assert png.startswith(b"\x89PNG")


def test_three_objectives_are_seen_in_depth_and_along_every_axis(monkeypatch):
    points = np.random.default_rng(0).random((12, 3))
    figure, _ = drawn(monkeypatch, [Front("cmorl", "0", points)], ("x", "y", "z"), DARK, narrow=True)
    assert [ax.name for ax in figure.axes] == ["3d", "rectilinear", "rectilinear", "rectilinear"]
    assert [(ax.get_xlabel(), ax.get_ylabel()) for ax in figure.axes[1:]] == [("x", "y"), ("x", "z"), ("y", "z")]


def test_nine_objectives_are_parallel_coordinates_each_on_its_own_scale(monkeypatch):
    points = np.random.default_rng(0).random((30, 9)) * 10.0 ** np.arange(9)
    points[:, 4] = 2.0  # all agree
    figure, _ = drawn(monkeypatch, [Front("cmorl", "0", points)], [f"field {i}" for i in range(9)])
    (ax,) = figure.axes
    lines = np.array([line.get_ydata() for line in ax.lines if len(line.get_ydata()) == 9])
    assert lines.shape == (30, 9)
    varied = [0, 1, 2, 3, 5, 6, 7, 8]
    np.testing.assert_allclose(lines[:, varied].min(0), 0.0, atol=1e-12)
    np.testing.assert_allclose(lines[:, varied].max(0), 1.0, atol=1e-12)
    np.testing.assert_allclose(lines[:, 4], 0.0)


def test_a_policy_for_all_preferences_is_curved_by_its_evaluations(tmp_path, monkeypatch):
    from ctrlrl.report import curves

    runs = [
        read_run(folder(tmp_path / "a", DST)),
        read_run(folder(tmp_path / "b", DST, algo="capql", seed=7, column="eval/hypervolume")),
    ]
    seen = []

    def keep(draw, theme, size, **more):
        def body(figure):
            draw(figure)
            seen.append(figure)

        return picture(body, theme, size, **more)

    monkeypatch.setattr(curves, "picture", keep)
    curve_png(runs, LIGHT, column=HYPERVOLUME)
    ax = seen[0].axes[0]
    assert ax.get_ylabel() == "hypervolume"
    heights = {tuple(line.get_ydata()) for line in ax.lines if len(line.get_ydata()) == 5}
    assert heights == {(110, 120, 130, 140, 150), (117, 127, 137, 147, 157)}


def test_the_page_shows_hypervolume_and_front_in_the_place_of_a_return(tmp_path):
    run = folder(tmp_path / "a", DST)
    write_page([run], tmp_path / "one.html")
    one = (tmp_path / "one.html").read_text()
    for wanted in ("<h2>Hypervolume</h2>", "<h2>Pareto front</h2>", "401.8", "Expected utility", "treasure, time"):
        assert wanted in one
    assert "Learning curve" not in one
    write_page([run, folder(tmp_path / "b", DST, seed=1)], tmp_path / "two.html")
    two = (tmp_path / "two.html").read_text()
    assert "hypervolume: mean [95 %], or each seed" in two
    assert ">policies</th>" in two
    judged = folder(tmp_path / "c", DST, algo="capql", column="eval/hypervolume")
    write_page([run, judged], tmp_path / "three.html")
    assert "Learning curve" not in (tmp_path / "three.html").read_text()
    write_curve(run, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 2000

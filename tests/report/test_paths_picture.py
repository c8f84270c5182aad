"""The picture of paths: walls, goals and paths where they belong, in the goals' colours."""

import io

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
from matplotlib.image import imread

from ctrlrl.report import drawing
from ctrlrl.report.paths_picture import paths_png
from ctrlrl.types import Scene

WALL = (2.0, 4.0, -4.0, 4.0)
SCENE = Scene((-4.0, 4.0, -4.0, 4.0), torch.tensor([[0.0, 3.0], [0.0, -3.0]]), 0.5, walls=(WALL,))


def rgb(text):
    return np.array([int(text[i : i + 2], 16) for i in (1, 3, 5)]) / 255


def seen(scene, ends, reached):
    """Straight paths from the origin, as pixels below the title: [y from above, x, rgb]."""
    paths = torch.linspace(0, 1, 50)[:, None, None] * torch.tensor(ends)[None]
    data = paths_png("ppo on nothing", scene, paths, torch.tensor(reached))
    image = imread(io.BytesIO(data))[..., :3]
    return image[len(image) // 10 :]


def has(pixels, color, tolerance=0.12):
    return bool((np.abs(pixels - color).max(-1) < tolerance).any())


@pytest.fixture(autouse=True)
def _coarse(monkeypatch):
    monkeypatch.setattr(drawing, "DPI", 80)


def test_paths_have_the_colour_of_the_goal_they_reached_and_grey_where_they_reached_none():
    image = seen(SCENE, [[0.0, 3.0], [-3.0, 0.0]], [0, -1])
    height, width, _ = image.shape
    upper, left = image[: height // 2, width // 3 : 2 * width // 3], image[:, : width // 3]
    first, second = (rgb(c) for c in drawing.LIGHT.series[:2])
    assert has(upper, first)
    assert not has(upper, second)
    assert has(left, rgb(drawing.LIGHT.muted))
    assert not has(left, first)
    assert has(image[height // 2 :], second), "a goal that nobody reached is drawn too"


def test_walls_fill_their_boxes():
    image = seen(SCENE, [[0.0, 1.0]], [-1])
    open_ground = seen(SCENE._replace(walls=()), [[0.0, 1.0]], [-1])
    changed = np.abs(image - open_ground).max(-1) > 0.05
    height, width = changed.shape
    assert changed[height // 4 : 3 * height // 4, int(0.8 * width) : int(0.95 * width)].mean() > 0.95
    assert changed[:, : width // 2].mean() < 0.01


def test_two_hundred_paths_are_drawn_and_all_are_counted():
    ends = [[0.0, 3.0]] * 200 + [[-3.0, 0.0]] * 200
    few = seen(SCENE, ends[:200], [0] * 200)
    many = seen(SCENE, ends, [0] * 200 + [-1] * 200)
    assert few.shape == many.shape
    assert not has(many[:, : many.shape[1] // 3], rgb(drawing.LIGHT.muted))
    assert np.abs(few - many).max() > 0.3, "100 % and 50 % stand beside the goal"

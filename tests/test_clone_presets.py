"""The presets that clone real tasks: one task, several algorithms, and chunks as they are meant."""

from __future__ import annotations

import pytest

from ctrlrl.settings import train_config, typed
from ctrlrl.sweep.cells import cells_of
from ctrlrl.sweep.plan import read_plan

TASKS = {"metaworld": ("gym", "Meta-World/reach-v3"), "adroit_door": ("gym", "AdroitHandDoor-v1")}
TASKS["furniture"] = ("none", None)


@pytest.mark.parametrize("algo", ["bc", "diffusion", "flow"])
@pytest.mark.parametrize("task", TASKS)
def test_a_cloned_task_takes_every_cloning_algorithm(task, algo):
    cfg = typed(train_config([f"experiment=clone/{task}", f"algo={algo}", "data.path=mine.npz"]))
    assert (cfg.algo.name, cfg.env.name, cfg.env.id) == (algo, *TASKS[task])
    assert (cfg.data.name, cfg.data.path, cfg.gradient_steps) == ("file", "mine.npz", 20_000)
    assert (cfg.algo.hidden, cfg.algo.learning_rate, cfg.algo.batch_size) == ([256] * 3, 1e-3, 128)
    assert cfg.data.clip_actions == (1.0 if task == "adroit_door" else None)
    if algo != "bc":
        assert cfg.algo.window == (2, 16, 8)


@pytest.mark.parametrize("robot", ["halfcheetah", "hopper", "walker2d"])
@pytest.mark.parametrize("algo", ["diffusion", "flow"])
def test_a_runner_plans_anew_at_every_step(robot, algo):
    cfg = typed(train_config([f"algo={algo}", f"env={robot}-v4", "data=file", "data.path=x.npz"]))
    assert (cfg.experiment, cfg.algo.window) == (f"{algo}/{robot}-v4", (1, 4, 1))


def test_the_sweep_of_meta_world_is_four_tasks_two_algorithms_and_three_seeds():
    cells = cells_of(read_plan("metaworld"), [])
    assert len(cells) == 24
    for cell in cells:
        if cell.seed != "0":
            continue
        words = [word for word in cell.arguments("/demos") if not word.startswith("data_dir=")]
        cfg = typed(train_config(words))
        assert (cfg.env.id, cfg.data.path) == (f"Meta-World/{cell.task}", f"/demos/{cell.task}.npz")
        assert (cfg.eval.episodes, cfg.eval.every, cfg.eval.seed) == (50, 0, 100_000)
        assert getattr(cfg.algo, "prediction", "data") == "data"

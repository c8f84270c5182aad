"""C-MORL on the quadratic bandit, whose front is known: both barriers cover it, one of them keeps its floors."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ctrlrl.config import TrainConfig
from ctrlrl.loops import training_loop
from ctrlrl.settings import train_config, typed


def preset(ipo: str, *words: str) -> TrainConfig:
    name = "mo_bandit" if ipo == "paper" else "mo_bandit_released"
    return typed(train_config([f"experiment=cmorl/{name}", "device=cpu", *words]))


def played(team: Any) -> Tensor:
    """[S, 2] returns of what the members do, in closed form."""
    action = team.act(torch.zeros(team.size, 1), deterministic=True).action.clamp(-1.0, 1.0)
    return -torch.stack((action.square().sum(1), (action - torch.tensor([1.0, 0.0])).square().sum(1)), 1)


def learned(cfg: TrainConfig) -> tuple[Any, Tensor]:
    """The learner, and how far every iterate of every extension was above its floors, least first."""
    loop: Any = training_loop(cfg)
    margins = [torch.zeros(0)]
    while not loop.done:
        loop.iterate()
        team = loop.learner.team
        if team.extends:
            margins.append((played(team) - team.floor)[team.others.bool()])
    return loop.learner, torch.cat(margins).sort().values


@pytest.mark.parametrize("ipo", ["paper", "released"])
def test_only_the_papers_extensions_keep_their_floors_and_they_do_so_all_along_the_front(ipo):
    """From both ends and the middle. At an end a return is nearly 0, and so is the room that a tenth of it leaves."""
    steps = 3 * 25 * 512  # of stage one: too few for an exact end
    words = [f"algo.init_steps={steps}", f"total_steps={steps + 3 * 2 * 12 * 512}", "algo.extension_updates=12"]
    learner, margins = learned(preset(ipo, *words, "algo.n_extended=3", "algo.learning_rate=3e-3", "algo.n_epochs=4"))
    assert len(margins) == 3 * 2 * 12
    front = learner.archive.returns
    if ipo == "paper":
        assert float(margins[0]) > -1e-6  # float32's rounding
        assert len(front) > 20  # and yet they have moved
    else:
        assert float(margins[0]) < -0.2
        assert float((margins < -0.01).float().mean()) > 0.2


@pytest.mark.slow
@pytest.mark.parametrize(("ipo", "seed"), [("paper", 0), ("paper", 1), ("paper", 2), ("released", 2)])
def test_the_presets_cover_the_front(ipo, seed):
    """5/6 is all of it; the three policies of stage one alone have 0.5625, and 0.59 with what they were on the way."""
    learner, margins = learned(preset(ipo, f"seed={seed}"))
    assert float(learner.front["front/hypervolume"]) >= 0.82
    assert (float(margins[0]) > -1e-6) == (ipo == "paper")

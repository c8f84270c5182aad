"""LunarLander through Gymnasium's vector environment, with the preset that needs it."""

import pytest
import torch

from ctrlrl.loops import training_loop
from ctrlrl.settings import train_config, typed

pytest.importorskip("Box2D", reason="pip install 'ctrlrl[box2d]'")


@pytest.mark.parametrize("routing", ["decoupled", "attention", "error"])
def test_the_preset_trains_on_lunarlander(routing):
    words = ["experiment=mtppo/lunarlander", f"algo.routing={routing}", "algo.n_steps=64", "total_steps=1024"]
    loop = training_loop(typed(train_config(words)))
    assert (loop.env.spec.obs_dim, loop.env.spec.n_actions, loop.env.spec.n_envs) == (8, 4, 8)
    while not loop.done:
        metrics = loop.iterate()
    assert all(torch.isfinite(value) for value in metrics.values())
    assert loop.episode_metrics()["rollout/episodes"] > 0
    assert ("policy/hack_rate" in metrics) == (routing != "decoupled")

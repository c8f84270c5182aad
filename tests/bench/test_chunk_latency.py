"""`bench latency` of policies that predict chunks: every engine decides the same; the rows say what ran."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium import spaces

from ctrlrl.algos.generative_bc import DiffusionConfig
from ctrlrl.bench import chunks
from ctrlrl.cli import main
from ctrlrl.envs.spaces import Spaces
from ctrlrl.envs.spec import Array

TINY = {"hidden": [8, 8], "sampling_steps": 2, "horizon": 4, "n_action_steps": 2}


def decisions(engine: str, **settings) -> Array:
    algo = DiffusionConfig(**(TINY | settings))
    both = chunks._spaces(None, [5, 2])
    return chunks.engine(engine, chunks.untrained(algo, both), algo, both)()


@pytest.mark.parametrize("engine", [pytest.param("compile", marks=pytest.mark.slow), "onnx"])
def test_the_engines_decide_the_same(engine):
    wanted = decisions("eager")
    assert wanted.shape == (1, 2, 2)
    np.testing.assert_allclose(decisions(engine), wanted, rtol=0, atol=1e-5)


def test_sizes_are_two_numbers():
    with pytest.raises(ValueError, match=r"sizes must be two numbers, of observation and action, got \[5\]"):
        chunks._spaces(None, [5])


@pytest.mark.parametrize("settings", [{}, {"prediction": "v", "spacing": "trailing", "n_levels": 20}])
def test_the_peer_decides_the_same(settings):
    pytest.importorskip("diffusers")
    algo = DiffusionConfig(**(TINY | settings))
    module = chunks.untrained(algo, chunks._spaces(None, [5, 2]))
    name, decide = chunks.peer_loop("diffusers", module, algo)
    assert name.startswith("diffusers ")
    np.testing.assert_allclose(decide(), decisions("eager", **settings), rtol=0, atol=1e-4)


class Standing:
    """In the place of diffusers' scheduler: one level, after which x is what it was."""

    def __init__(self, **settings):
        self.timesteps = [torch.tensor(0)]

    def set_timesteps(self, n):
        pass

    def step(self, said, k, x):
        return SimpleNamespace(prev_sample=x)


def test_the_peer_sees_observations_of_several_parts(monkeypatch):
    monkeypatch.setattr(chunks, "version", lambda name: "0")
    for name in ("diffusers", "diffusers.schedulers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "diffusers.schedulers.scheduling_ddim", SimpleNamespace(DDIMScheduler=Standing))
    box = spaces.Box(-1.0, 1.0, (2,), np.float32)
    both, algo = Spaces(spaces.Dict({"a": box, "b": box}), box), DiffusionConfig(**TINY)
    module = chunks.untrained(algo, both)
    assert chunks.peer_loop("diffusers", module, algo)[1]().shape == (1, 2, 2)


def called(*words: str) -> int:
    with pytest.raises(SystemExit) as done:
        main(["bench", "latency", *words, "experiment=none", "pairs=2", "seconds=0.01"])
    return int(done.value.code or 0)


def test_there_is_a_row_an_engine_and_number_of_steps(capsys):
    words = ["algo=flow", "sizes=[5,2]", "engines=[eager]", "steps=[2,3]", "algo.hidden=[8,8]", "algo.sampler=midpoint"]
    assert called(*words) == 0
    out = capsys.readouterr().out.splitlines()
    rows = [json.loads(line) for line in out[-2:]]
    assert [row["network_calls"] for row in rows] == [4, 6]
    for row in rows:
        assert (row["kind"], row["unit"], row["engine"], row["compile"]) == ("latency", "ms", "eager", "eager")
        assert (row["head"], row["sampler"], row["pairs"], row["env"], row["peer"]) == (
            "mlp",
            "midpoint",
            2,
            None,
            None,
        )
        assert (row["obs_dim"], row["action_dim"]) == (5, 2)
        assert 0.01 < row["value"] < 1e4
    assert out[1].startswith("mlp midpoint 2 eager")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["vs=diffusers", "algo=diffusion"], "vs=diffusers needs diffusers: pip install diffusers"),
        (["vs=diffusers", "algo=flow"], "vs=diffusers compares algo.sampler=ddim, got euler"),
        (["vs=diffusers", "algo=beso"], "vs=diffusers compares algo.schedule=cosine, got beso"),
        (["vs=diffusers", "algo=diffusion", "algo.schedule=vp"], "compares algo.schedule=cosine, got vp"),
        (["vs=sb3", "algo=diffusion"], "latency of plans compares with vs=diffusers, got sb3"),
        (["engines=[onxx]", "algo=diffusion"], "engines must be among eager, compile, onnx, got 'onxx'"),
    ],
)
def test_wrong_words_are_one_line(words, said, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers.schedulers.scheduling_ddim", None)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert called(*words, "sizes=[5,2]", "algo.hidden=[8,8]") == 2
    assert said in capsys.readouterr().err

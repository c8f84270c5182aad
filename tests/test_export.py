"""Exported policies decide as the library does, say what they are, and are not left behind where they do not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from ctrlrl import PPO, deploy, deployed
from ctrlrl.algos.expo import EXPOConfig
from ctrlrl.algos.parl import PARLConfig
from ctrlrl.algos.ppo import PPOConfig
from ctrlrl.cli import main
from ctrlrl.envs.spaces import Spaces
from ctrlrl.loops import make_learner

onnxruntime = pytest.importorskip("onnxruntime")
ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
IMAGE = spaces.Box(0, 255, (40, 36, 3), np.uint8)
MIXED = spaces.Dict(
    {
        "view": IMAGE,
        "inner": spaces.Dict({"pose": spaces.Box(-np.inf, np.inf, (2, 2), np.float64)}),
        "gear": spaces.Discrete(3, start=1),
        "action": spaces.MultiBinary(2),
    }
)
BOX = spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([3.0, 0.5], np.float32))


def model_of(observation, action, **settings):
    """As much of an agent as export asks for, with weights that make actions leave their bounds."""
    both = Spaces(observation, action)
    learner = make_learner(PPOConfig(**settings), both.env_spec(CPU))
    with torch.no_grad():
        for p in learner.nets.parameters():
            p.mul_(1.5).add_(0.1 * torch.randn_like(p))
    if settings.get("normalize_obs"):
        learner.normalizer.merge(torch.randn(50, both.obs_codec.dim) * 3.0 + 1.0)
    return SimpleNamespace(
        learner=learner, observation_space=observation, action_space=action, algo="ppo", cfg=learner.cfg
    )


def samples(observation, n):
    observation.seed(7)
    return [observation.sample() for _ in range(n)]


def predict(model, obs):
    both = Spaces(model.observation_space, model.action_space)
    return both.predict(lambda rows: model.learner.act(rows, deterministic=True).action, obs, CPU)


CASES = {
    "vector": (spaces.Box(-5.0, 5.0, (3,), np.float64), BOX, {"normalize_obs": True}),
    "discrete": (spaces.MultiDiscrete([2, 3]), spaces.Discrete(5, start=2), {}),
    "image": (IMAGE, spaces.MultiDiscrete([3, 4]), {"features_extractor": "cnn", "features_dim": 8}),
    "dict": (MIXED, spaces.Box(-2.0, 2.0, (2, 1), np.float64), {"features_extractor": "cnn", "features_dim": 8}),
}


@pytest.mark.parametrize("suffix", ["onnx", "pt"])
@pytest.mark.parametrize("case", CASES)
def test_the_file_decides_as_the_model_does(case, suffix, tmp_path):
    observation, action, settings = CASES[case]
    model = model_of(observation, action, **settings)
    path = deploy.export(model, tmp_path / f"policy.{suffix}")
    for n in (1, 5):
        obs = samples(observation, n)
        wanted = np.stack([predict(model, o) for o in obs])
        inputs = _inputs(observation, obs)
        if suffix == "onnx":
            got = onnxruntime.InferenceSession(path).run(None, inputs)[0]
        else:
            order = json.loads(path.with_suffix(".json").read_text())["inputs"]
            got = _torchscript(path)(*(torch.from_numpy(inputs[name]) for name in order)).numpy()
        assert (got.dtype, got.shape) == (action.dtype, (n, *action.shape))
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)
        assert all(action.contains(a) for a in got)


def _inputs(observation, obs):
    if observation is not MIXED:
        return {"obs": np.stack([np.asarray(o) for o in obs])}
    take = {"gear": lambda o: o["gear"], "inner.pose": lambda o: o["inner"]["pose"], "action": lambda o: o["action"]}
    take["view"] = lambda o: o["view"]
    return {name: np.stack([np.asarray(get(o)) for o in obs]) for name, get in take.items()}


def _torchscript(path):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.load(str(path))


def test_a_file_that_decides_otherwise_is_not_left_behind(tmp_path, monkeypatch):
    row = deployed._row
    monkeypatch.setattr(deployed, "_row", lambda part, x, start: row(part, x, start) + 0.01)
    model = model_of(*CASES["vector"][:2])
    with pytest.raises(RuntimeError, match="was not written: it does not act as the policy does"):
        deploy.export(model, tmp_path / "policy.pt")
    assert list(tmp_path.iterdir()) == []


def test_the_model_itself_is_left_as_it_was(tmp_path):
    model = model_of(*CASES["vector"][:2])
    model.learner.set_dtype("bfloat16")
    deploy.export(model, tmp_path / "policy.pt")
    assert model.learner._bf16
    assert model.learner.nets["policy"] is model.learner.policy
    before = predict(model, np.ones(3))
    model.learner.opt["actor_critic"](model.learner.policy.mean[0].weight.sum() * 1e3)
    assert (predict(model, np.ones(3)) != before).any()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "x"
    words = ["algo=ppo", "env=pendulum", "experiment=none", "n_envs=8", "total_steps=64", "algo.n_steps=8"]
    words += [
        "algo.n_minibatches=2",
        "algo.normalize_obs=true",
        "eval.episodes=1",
        "run.report=false",
        f"run.dir={folder}",
    ]
    with pytest.raises(SystemExit) as done:
        main(["train", *words, "log.progress=false"])
    assert done.value.code == 0
    return folder


def called(words):
    with pytest.raises(SystemExit) as done:
        main(["export", *words])
    return done.value.code


def test_a_run_is_exported_with_what_it_is_and_the_example_runs_it(run, tmp_path, capsys):
    out = tmp_path / "deep" / "policy.onnx"
    assert called([f"run={run}", "format=onnx", f"out={out}"]) == 0
    assert str(out) in capsys.readouterr().out
    meta = onnxruntime.InferenceSession(out).get_modelmeta().custom_metadata_map
    result = json.loads((run / "result.json").read_text())
    assert (meta["algo"], meta["env"], meta["config_hash"]) == ("ppo", "pendulum", result["config_hash"])
    assert json.loads(meta["versions"])["torch"] == torch.__version__
    env = gym.make("Pendulum-v1")
    said = [json.loads(meta["observation_space"]), json.loads(meta["action_space"])]
    assert Spaces.from_json(said, "file") == (env.observation_space, env.action_space)
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "deploy_onnx.py", out, "Pendulum-v1"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"return {_return(env, out):.1f}\n"


def _return(env, out):
    policy = onnxruntime.InferenceSession(out)
    (obs, _), total, truncated = env.reset(seed=0), 0.0, False
    while not truncated:
        obs, reward, _, truncated, _ = env.step(policy.run(None, {"obs": obs[None]})[0][0])
        total += reward
    return total


def test_a_torchscript_has_its_facts_beside_it(run, tmp_path):
    assert called([f"run={run}", f"out={tmp_path / 'policy.pt'}", "checkpoint=best"]) == 0
    facts = json.loads((tmp_path / "policy.json").read_text())
    assert (facts["checkpoint"], facts["inputs"], facts["env"]) == ("best", ["obs"], "pendulum")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["out=p.onnx"], "export needs run="),
        (["run=nowhere", "out=p.onnx"], "nowhere/config.yaml: no such file"),
        (["run={run}", "out=p.txt"], "out=p.txt: must be onnx"),
        (["run={run}", "out=p.pt", "format=onnx"], "format=onnx needs a name that ends in .onnx"),
        (["run={run}", "out=p.onnx", "format=tflite"], "format=tflite: must be"),
        (["run={run}", "out=p.onnx", "checkpoint=third"], "no checkpoint there"),
        (["run={run}", "out=p.onnx", "opset=18"], "unknown key opset"),
    ],
)
def test_wrong_words_are_one_line_and_exit_code_2(words, said, run, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert called([w.format(run=run) for w in words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_one_line_that_names_the_extra(run, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert called([f"run={run}", f"out={tmp_path / 'p.onnx'}"]) == 2
    assert "format=onnx needs onnxruntime: pip install 'ctrlrl[onnx]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_agent_exports_itself(tmp_path):
    model = PPO("MlpPolicy", "Pendulum-v1", n_steps=16, batch_size=8)
    assert model.export(tmp_path / "policy.pt") == tmp_path / "policy.pt"
    obs = model.observation_space.sample()
    got = _torchscript(tmp_path / "policy.pt")(torch.from_numpy(obs[None])).numpy()
    np.testing.assert_allclose(got[0], model.predict(obs, deterministic=True)[0], rtol=0, atol=1e-5)


def test_facts_are_json_of_every_reader_and_an_output_has_a_name_of_its_own(tmp_path):
    box = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    model = model_of(spaces.Dict({"action": box, "next_action": box}), BOX)
    deploy.export(model, tmp_path / "policy.pt")

    def refuse(name):
        raise ValueError(name)

    facts = json.loads((tmp_path / "policy.json").read_text(), parse_constant=refuse)
    assert facts["inputs"] == ["action", "next_action"]
    assert facts["output"] == "next_next_action"


def test_half_precision_actions_are_compared_at_their_own_rounding(tmp_path):
    half = spaces.Box(np.array([-1.0, 0.0], np.float16), np.array([3.0, 0.5], np.float16), dtype=np.float16)
    assert deploy.export(model_of(spaces.Box(-5.0, 5.0, (3,), np.float32), half), tmp_path / "policy.pt").is_file()


def test_a_policy_that_climbs_while_it_acts_is_refused_and_one_that_samples_in_steps_has_room_for_them(tmp_path):
    both = Spaces(spaces.Box(-5.0, 5.0, (3,), np.float32), BOX)
    small = {"hidden": [8], "base_hidden": [8], "n_samples": 2}
    made = [make_learner(PARLConfig(**small, n_kept=1), both.env_spec(CPU))]
    made.append(make_learner(EXPOConfig(hidden=[8], base_hidden=[8]), both.env_spec(CPU)))
    parl, expo = (
        SimpleNamespace(learner=x, observation_space=both.observation, action_space=BOX, algo=x.cfg.name, cfg=x.cfg)
        for x in made
    )
    with pytest.raises(ValueError, match=r"algo=parl climbs its critic's gradient while it acts.*algo.n_climbs=0"):
        deploy.export(parl, tmp_path / "policy.pt")
    assert deployed.Deployed(expo.learner, both.observation, BOX).tolerance == 1e-4


@pytest.mark.parametrize("ending", ["pt", "onnx"])
@pytest.mark.parametrize(
    "cfg",
    [
        EXPOConfig(hidden=[8], base_hidden=[8], n_samples=2, n_edits=0),
        EXPOConfig(hidden=[8], base_hidden=[8], n_samples=2, n_edits=2),
        PARLConfig(hidden=[8], base_hidden=[8], n_samples=2, n_kept=1, n_climbs=0),
    ],
    ids=["expo without edits", "expo", "parl without climbs"],
)
def test_policies_over_a_cloned_base_are_exported_for_any_number_of_observations(cfg, ending, tmp_path):
    spaces_ = Spaces(spaces.Box(-5.0, 5.0, (3,), np.float32), BOX)
    learner = make_learner(cfg, spaces_.env_spec(CPU))
    model = SimpleNamespace(
        learner=learner, observation_space=spaces_.observation, action_space=BOX, algo=cfg.name, cfg=cfg
    )
    path = deploy.export(model, tmp_path / f"policy.{ending}")  # checked against the policy there
    assert path.stat().st_size > 0

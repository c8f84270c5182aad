"""Exported plans: sampler and normalisers inside, noise as an input, equal to the policy's own loop."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium import spaces

from ctrlrl import deploy, deployed
from ctrlrl.algos.beso import BESOConfig
from ctrlrl.algos.generative_bc import DiffusionConfig, FlowConfig
from ctrlrl.algos.gpc import GPCConfig, GPCLearner
from ctrlrl.envs.spaces import Spaces
from ctrlrl.loops import make_learner

onnxruntime = pytest.importorskip("onnxruntime")
OBSERVATION = spaces.Box(-np.inf, np.inf, (5,), np.float64)
ACTION = spaces.Box(np.array([0.0, -3.0], np.float32), np.array([512.0, 1.0], np.float32))
HEADS = {
    "gpt": {"head": "gpt", "hidden": [8, 8], "n_heads": 2},
    "mlp": {"head": "mlp", "hidden": [32, 32]},
    "residual": {"head": "residual", "hidden": [32, 32]},
    "unet": {"head": "unet", "hidden": [8, 16], "embed_dim": 8},
    "transformer": {"head": "transformer", "hidden": [16, 16], "n_heads": 2},
}
SIZES = {"horizon": 8, "n_obs_steps": 3, "n_action_steps": 4, "sampling_steps": 2}  # a file is traced step by step


CONFIGS = {"diffusion": DiffusionConfig, "flow": FlowConfig, "beso": BESOConfig}


def model_of(algo: str = "diffusion", head: str = "mlp", **settings):
    """As much of an agent as export asks for, with weights of some size and fitted normalisers."""
    both = Spaces(OBSERVATION, ACTION)
    config = CONFIGS[algo]
    if algo == "diffusion":
        settings = {"prediction": "noise"} | settings  # of an untrained network that predicts data, all plans are alike
    torch.manual_seed(0)
    learner = make_learner(config(**(SIZES | HEADS[head] | settings)), both.env_spec(torch.device("cpu")))
    policy = learner.nets.policy
    with torch.no_grad():
        for p in policy.head.parameters():
            p.add_(0.1 * torch.randn_like(p))
    policy.obs_normalizer.fit(3.0 * torch.randn(50, 5) + 1.0)
    policy.action_normalizer.fit(torch.tensor([[-0.7, -1.0], [0.9, 0.6]]))
    return SimpleNamespace(
        learner=learner, observation_space=OBSERVATION, action_space=ACTION, algo=algo, cfg=learner.cfg
    )


def session(path: Path):
    return onnxruntime.InferenceSession(path)


def inputs(policy, n: int, **shapes: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    found = {"obs": random.standard_normal((n, policy.window.n_obs, 5))}
    chunk = (policy.window.horizon, 2)
    found |= {k: random.standard_normal((n, *m, *chunk)).astype(np.float32) for k, m in shapes.items()}
    return found


def by_hand(policy, obs: np.ndarray, plan: torch.Tensor) -> np.ndarray:
    """Plans [n, H, A] in [-1, 1] to what is executed of them, in the space's units: written out once more."""
    rows = plan.double()[:, 2:6]
    shift, scale = policy.action_normalizer.shift.double(), policy.action_normalizer.scale.double()
    unit = ((rows / scale + shift).clamp(-1, 1) + 1) / 2
    low, high = torch.from_numpy(ACTION.low).double(), torch.from_numpy(ACTION.high).double()
    return (low + (high - low) * unit).numpy()


QUICK = [("mlp", "flow"), ("residual", "diffusion")]
CASES = [
    pytest.param(head, algo, marks=[] if (head, algo) in QUICK else pytest.mark.slow)
    for head in HEADS
    if head != "gpt"
    for algo in ("diffusion", "flow")
]


@pytest.mark.parametrize(("head", "algo"), CASES)
def test_the_file_plans_as_the_policy_does_from_the_same_noise(head, algo, tmp_path):
    model = model_of(algo, head)
    policy = model.learner.nets.policy.eval()
    file = session(deploy.export(model, tmp_path / "policy.onnx"))
    for n in (1, 7):
        given = inputs(policy, n, noise=())
        action, plan = file.run(None, given)
        obs = torch.from_numpy(given["obs"]).float()
        with torch.no_grad():
            wanted = policy.process.sample(policy.predictor(obs), torch.from_numpy(given["noise"]), torch.zeros_like)
        np.testing.assert_allclose(plan, wanted.numpy(), rtol=0, atol=1e-4)
        assert (action.dtype, action.shape) == (np.float32, (n, 4, 2))
        np.testing.assert_allclose(action, by_hand(policy, given["obs"], wanted), rtol=1e-4, atol=1e-4)
        assert np.ptp(action, axis=0).max() > 0 or n == 1, "plans differ with the noise"


def test_the_ancestral_sampler_takes_what_it_draws_from_outside(tmp_path):
    model = model_of(sampler="ddpm", n_levels=4)
    policy = model.learner.nets.policy.eval()
    file = session(deploy.export(model, tmp_path / "policy.onnx"))
    given = inputs(policy, 5, noise=(), draws=(3,))
    drawn = iter(torch.from_numpy(given["draws"]).unbind(1))
    obs = torch.from_numpy(given["obs"]).float()
    with torch.no_grad():
        wanted = policy.process.sample(
            policy.predictor(obs), torch.from_numpy(given["noise"]), noise=lambda x: next(drawn)
        )
    assert next(drawn, None) is None, "none at the last level"
    np.testing.assert_allclose(file.run(["plan"], given)[0], wanted.numpy(), rtol=0, atol=1e-4)
    still = given | {"draws": np.zeros_like(given["draws"])}
    assert np.abs(file.run(["plan"], still)[0] - wanted.numpy()).max() > 1e-2


def test_a_warm_start_is_a_second_file_that_goes_on_from_the_former_plan(tmp_path):
    model = model_of("flow", warm_start=[0.5, 0.8], n_action_steps=1, switches=[1], switch_guess=0.1)
    policy = model.learner.nets.policy.eval()
    first = session(deploy.export(model, tmp_path / "policy.onnx"))
    later = session(tmp_path / "policy.warm.onnx")
    given = inputs(policy, 4, noise=())
    action, plan = first.run(None, given)
    assert np.isin(action[..., 1], [action[..., 1].min(), action[..., 1].max()]).all(), "a switch is one of two"
    np.testing.assert_allclose(np.abs(plan[..., 1]), 0.1, rtol=0, atol=1e-6)
    after = later.run(None, {"obs": given["obs"], "former_plan": plan})[1]
    guess = np.concatenate((plan[:, 1:], plan[:, -1:]), 1)
    with torch.no_grad():
        obs = torch.from_numpy(given["obs"]).float()
        wanted = policy.process.resume(policy.predictor(obs), torch.from_numpy(guess), torch.zeros_like).numpy()
    np.testing.assert_allclose(after[..., 0], wanted[..., 0], rtol=0, atol=1e-4)
    calls = [int(f.get_modelmeta().custom_metadata_map["network_calls"]) for f in (first, later)]
    assert calls == [2, 2]


def test_a_file_that_plans_otherwise_is_not_left_behind(tmp_path, monkeypatch):
    model = model_of("flow")
    rows = deployed.DeployedChunks.rows
    monkeypatch.setattr(deployed.DeployedChunks, "rows", lambda self, arrays: rows(self, arrays) + 0.01)
    with pytest.raises(RuntimeError, match="was not written: it does not act as the policy does"):
        deploy.export(model, tmp_path / "policy.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_torchscript_plans_too_and_says_what_it_wants(tmp_path):
    model = model_of("flow", "unet")
    policy = model.learner.nets.policy.eval()
    path = deploy.export(model, tmp_path / "policy.pt")
    facts = json.loads(path.with_suffix(".json").read_text())
    assert (facts["inputs"], facts["output"], facts["plan"]) == (["obs", "noise"], "action", "plan")
    assert [facts[k] for k in ("n_obs_steps", "horizon", "n_action_steps", "network_calls")] == [3, 8, 4, 2]
    given = inputs(policy, 3, noise=())
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", DeprecationWarning)
        plan = torch.jit.load(str(path))(*(torch.from_numpy(x) for x in given.values()))[1]
        obs = torch.from_numpy(given["obs"]).float()
        wanted = policy.process.sample(policy.predictor(obs), torch.from_numpy(given["noise"]), torch.zeros_like)
    torch.testing.assert_close(plan, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("suffix", [".pt", pytest.param(".onnx", marks=pytest.mark.slow)])
@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_goals_and_guidance_are_in_the_file_whatever_the_batch(suffix, sampler, tmp_path):
    """An export compares plans of one row and of many with the policy's own."""
    settings = {"goal_columns": [0, 1], "goal": [0.5, -0.5], "guidance": 2.0, "n_goals": 2, "n_action_steps": 1}
    model = model_of("beso", "gpt", horizon=3, sampler=sampler, **settings)
    path = deploy.export(model, tmp_path / f"policy{suffix}")
    assert path.exists()
    if suffix == ".pt":
        facts = json.loads(path.with_suffix(".json").read_text())
        draws = ["draws"] if sampler == "ancestral" else []
        assert facts["inputs"] == ["obs", "noise", *draws]
        assert facts["network_calls"] == 4, "two levels, with and without the goal"


def test_a_composed_policy_is_not_exported(tmp_path):
    parents = [(name, model_of(name).learner) for name in ("diffusion", "flow")]
    model = SimpleNamespace(**vars(model_of()) | {"learner": GPCLearner(GPCConfig(), parents)})
    with pytest.raises(ValueError, match="composed policies are not exported"):
        deploy.export(model, tmp_path / "policy.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_plan_exported_anew_does_not_lie_beside_the_warm_one_of_another(tmp_path):
    deploy.export(model_of("flow", warm_start=[0.5, 0.8], n_action_steps=1), tmp_path / "policy.pt")
    warm = {"policy.warm.pt", "policy.warm.json"}
    assert {file.name for file in tmp_path.iterdir()} == {"policy.pt", "policy.json"} | warm
    deploy.export(model_of("flow"), tmp_path / "policy.pt")
    assert {file.name for file in tmp_path.iterdir()} == {"policy.pt", "policy.json"}

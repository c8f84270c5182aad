"""Two equally good actions for every observation: a generative policy must keep both, a regression means them away."""

import time
from typing import Any

import pytest
import torch
from torch import Tensor

from ctrlrl.loops import make_learner
from ctrlrl.registry import ALGORITHMS, lookup
from ctrlrl.types import EnvSpec, Transition

SPEC = EnvSpec(1, 2, 0, 1, 1, 1, torch.device("cpu"))
UPDATES, BATCH, SAMPLES = 3000, 256, 20_000
COMMON: dict[str, Any] = {"horizon": 1, "n_obs_steps": 1, "n_action_steps": 1, "batch_size": BATCH} | {
    "hidden": [128, 128, 128],
    "learning_rate": 1e-3,
    "warmup_steps": 0,
    "betas": [0.9, 0.999],
    "embed_dim": 16,
}
EDM = {"head": "mlp", "sigma_min": 0.01, "sigma_max": 5.0, "levels": "karras"}
SETTINGS: dict[str, dict[str, Any]] = {
    "diffusion": {"n_levels": 50, "prediction": "noise"},
    "flow": {},
    "beso": {**EDM, "goal_dropout": 1.0},
}


def demonstrations(n: int) -> tuple[Tensor, Tensor]:
    """Observations c ~ U(-1, 1) [n, 1] and actions (+-0.6, 0.4 c) + 0.1 z [n, 2]."""
    c = 2.0 * torch.rand(n, 1) - 1.0
    mode = torch.where(torch.rand(n, 1) < 0.5, 0.6, -0.6)
    return c, torch.cat((mode, 0.4 * c), 1) + 0.1 * torch.randn(n, 2)


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    """Model states of the learners after the specification's 3000 updates."""
    states = {}
    for algo, settings in SETTINGS.items():
        torch.manual_seed(0)
        learner: Any = make_learner(lookup(ALGORITHMS, algo, "algorithm").config(**COMMON, **settings), SPEC)
        data, begin = rows(*demonstrations(100_000)), time.perf_counter()
        learner.prefit(data)
        for update in range(UPDATES):
            learner.set_progress(update / UPDATES)
            chosen = torch.randint(len(data.obs), (BATCH,))
            obs = data.obs[chosen].unsqueeze(1)
            batch = data._replace(obs=obs, action=data.action[chosen].unsqueeze(1), extras={"goal": obs})
            learner.update(batch)
        states[algo] = learner.model_state(), time.perf_counter() - begin
    return states


def rows(obs: Tensor, action: Tensor) -> Transition:
    n = len(obs)
    return Transition(obs, action, torch.zeros(n), obs, torch.zeros(n, dtype=torch.bool), {})


def judged(trained: dict[str, Any], algo: str, **sampler: Any) -> dict[str, float]:
    config = lookup(ALGORITHMS, algo, "algorithm").config
    learner: Any = make_learner(config(**{**COMMON, **SETTINGS[algo], **sampler}), SPEC)
    learner.load_model_state(trained[algo][0])
    torch.manual_seed(1)
    obs, data = demonstrations(SAMPLES)
    action = learner.act(obs).action
    centre = torch.cat((0.6 * action[:, :1].sign(), 0.4 * obs), 1)
    off = action - centre
    joint = torch.cat((obs, action), 1)[:4000], torch.cat((obs, data), 1)[4000:8000]
    return {
        "share": float((action[:, 0] > 0).float().mean()),
        "out": float((off.abs() > 0.3).any(1).float().mean()),
        "std": float(off[:, 0].std()),
        "energy": energy_distance(*joint),
        "seconds": trained[algo][1],
    }


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|, rows independent; 0 where the laws are one."""
    n = len(x)
    within = (torch.cdist(x, x).sum() + torch.cdist(y, y).sum()) / (n * (n - 1))
    return float(2.0 * torch.cdist(x, y).mean() - within)


CASES: list[tuple[str, dict[str, Any]]] = [
    ("diffusion", {"sampler": "ddpm"}),
    ("diffusion", {"sampler": "ddim", "sampling_steps": 20, "spacing": "leading"}),
    ("diffusion", {"sampler": "ddim", "sampling_steps": 20, "spacing": "trailing"}),
    ("flow", {"sampler": "euler", "sampling_steps": 20}),
    ("flow", {"sampler": "midpoint", "sampling_steps": 10}),
    ("beso", {"sampler": "ddim", "sampling_steps": 10}),
    ("beso", {"sampler": "ddim", "sampling_steps": 20}),
    ("beso", {"sampler": "heun", "sampling_steps": 10}),
    ("beso", {"sampler": "ancestral", "sampling_steps": 20}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("algo", "sampler"), CASES)
def test_both_modes_are_kept_in_equal_shares(trained, algo, sampler, record_property):
    found = judged(trained, algo, **sampler)
    for name, value in found.items():
        record_property(name, value)
    assert 0.45 < found["share"] < 0.55, found
    assert found["out"] < 0.08, found
    assert found["energy"] < 0.006, found  # what shares of .45 and .55 alone would cost: 2 * .05^2 * 1.2


@pytest.mark.slow
def test_the_midpoint_rule_is_better_than_euler_in_as_many_steps(trained):
    euler, midpoint = (judged(trained, "flow", sampler=name, sampling_steps=10) for name in ("euler", "midpoint"))
    assert abs(midpoint["std"] - 0.1) < abs(euler["std"] - 0.1)
    assert midpoint["out"] < euler["out"]


@pytest.mark.slow
def test_one_euler_step_gives_the_mean_of_the_modes(trained):
    """The flow's velocity at pure noise is the conditional mean less the noise."""
    found = judged(trained, "flow", sampling_steps=1)
    assert found["out"] > 0.5, "most lies between the modes"

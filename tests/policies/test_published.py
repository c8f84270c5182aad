"""Weight files of other libraries: the formula by hand, sampling, and files that do not hold a policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ctrlrl.policies.published import PublishedPolicy
from ctrlrl.types import EnvSpec

SPEC = EnvSpec(3, 2, 0, 1, 1, 0, torch.device("cpu"))


def saved(folder: Path, **changes: Any) -> Path:
    rng = np.random.default_rng(0)
    arrays = {
        "W0": rng.normal(size=(5, 3)), "b0": rng.normal(size=5),
        "W1": rng.normal(size=(4, 5)), "b1": rng.normal(size=4),
        "W_out": rng.normal(size=(2, 4)), "b_out": rng.normal(size=2), "n_hidden": 2, "activation": "tanh",
    }  # fmt: skip
    arrays |= changes
    path = folder / "policy.npz"
    np.savez(path, **{k: np.asarray(v) for k, v in arrays.items() if v is not None})
    return path


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("squash", [False, True])
def test_the_formula_by_hand(tmp_path, activation, squash):
    more = {"in_mean": [1.0, 2.0, 3.0], "in_std": [0.5, 1.0, 2.0], "in_clip": 1.5, "out_scale": [0.3, 0.2]}
    path = saved(tmp_path, activation=activation, squash=squash, out_shift=[0.1, -0.1], **more)
    obs = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
    with np.load(path) as f:
        h = np.clip((obs - f["in_mean"]) / f["in_std"], -1.5, 1.5)
        for i in range(2):
            h = h @ f[f"W{i}"].T + f[f"b{i}"]
            h = np.tanh(h) if activation == "tanh" else np.maximum(h, 0)
        m = (h @ f["W_out"].T + f["b_out"]) * f["out_scale"] + f["out_shift"]
    wanted = np.clip(np.tanh(m) if squash else m, -1, 1)
    policy = PublishedPolicy(path)
    np.testing.assert_allclose(policy.act(torch.from_numpy(obs)).numpy(), wanted, atol=1e-5)
    policy.check(SPEC, "toy")
    assert policy.width == 5


@pytest.mark.parametrize("kind", ["constant", "by state"])
def test_samples_have_the_files_own_spread_around_its_mean(tmp_path, kind):
    zero = {"W_out": np.zeros((2, 4)), "b_out": [0.2, -0.1]}
    noise = {"log_std": np.log([0.1, 0.2])}
    if kind == "by state":
        noise = {"W_log_std": np.zeros((2, 4)), "b_log_std": np.log([0.1, 0.2])}
    policy = PublishedPolicy(saved(tmp_path, **zero, **noise))
    assert policy.stochastic
    drawn = policy.sample(torch.zeros(20_000, 3))
    torch.testing.assert_close(drawn.mean(0), torch.tensor([0.2, -0.1]), atol=0.006, rtol=0)
    torch.testing.assert_close(drawn.std(0), torch.tensor([0.1, 0.2]), atol=0.006, rtol=0)
    assert not PublishedPolicy(saved(tmp_path)).stochastic


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"W_out": None}, "no 'W_out'"),
        ({"activation": "gelu"}, "tanh or relu, got 'gelu'"),
        ({"n_hidden": 3}, "n_hidden is 3, but there is no 'W2'"),
        ({"n_hidden": 0}, "n_hidden is 0"),
        ({"n_hidden": "two"}, "n_hidden must be one count, got 'two'"),
        ({"n_hidden": np.nan}, "n_hidden must be one count, got 'nan'"),
        ({"squash": [0, 1]}, "squash must be one count"),
        ({"W0": np.zeros(3)}, r"W0 has shape \(3,\), wanted \(5, 3\)"),
        ({"W0": 0.0}, r"W0 has shape \(\), wanted \(5, 0\)"),
        ({"W1": np.zeros((4, 6))}, r"W1 has shape \(4, 6\), wanted \(4, 5\)"),
        ({"b_out": "x"}, "b_out holds no numbers"),
        ({"in_mean": np.zeros(3)}, "in_mean and in_std belong together, only in_mean is there"),
        ({"in_mean": np.zeros(3), "in_std": np.ones(2)}, r"in_std has shape \(2,\), wanted \(3,\)"),
        ({"in_mean": np.zeros(3), "in_std": np.array([1.0, 0.0, 1.0])}, "in_std must be above zero everywhere"),
        ({"in_mean": np.zeros(3), "in_std": np.nan}, "in_std must be above zero everywhere"),
        ({"out_scale": np.ones(2)}, "out_scale and out_shift belong together"),
        ({"W_log_std": np.zeros((2, 4))}, "W_log_std and b_log_std belong together"),
        ({"log_std": np.zeros(3)}, r"log_std has shape \(3,\), wanted \(2,\)"),
        ({"in_clip": np.ones(4)}, r"in_clip has shape \(4,\), wanted \(3,\)"),
    ],
)
def test_a_file_that_is_no_policy_is_named(tmp_path, changes, said):
    with pytest.raises(ValueError, match=rf"policy=.*policy\.npz: .*({said})"):
        PublishedPolicy(saved(tmp_path, **changes))


def test_other_sizes_and_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"takes 3 numbers and gives 2, env=hopper has 11 and 2"):
        PublishedPolicy(saved(tmp_path)).check(SPEC._replace(obs_dim=11), "hopper")
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(ValueError, match=r"x\.npz cannot be read"):
        PublishedPolicy(tmp_path / "x.npz")

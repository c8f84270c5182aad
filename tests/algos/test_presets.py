"""Presets against the tables of the papers' codes: what each changes of the data and of the algorithm, and no more."""

import math
from typing import Any

import pytest
from omegaconf import OmegaConf

from ctrlrl.algos.policyflow import PolicyFlowConfig
from ctrlrl.algos.ppo import PPOConfig
from ctrlrl.envs.multigoal import MultiGoal, MultiGoalConfig
from ctrlrl.registry import ALGORITHMS, lookup
from ctrlrl.settings import CONFIG_DIR, train_config
from ctrlrl.sweep.cells import cells_of
from ctrlrl.sweep.plan import read_plan

MUJOCO = ("halfcheetah", "hopper", "walker2d")
CLIP = {"clip_actions": 0.99999}
SHIFT, SCALED = {"reward_shift": -1.0}, {"reward_scale": 10.0, "reward_shift": -5.0}
MEDIUM: dict[str, Any] = {
    "a2pr": {
        "halfcheetah": {"alpha": 40.0},
        "hopper": {"pull_coef": 0.4, "gamma": 0.995},
        "walker2d": {"vae_weight": 1.5},
    },
    "prdc": {"halfcheetah": {"alpha": 40.0}},
}
MIN = {"target_q": "min"}
TABLE: dict[str, tuple[Any, Any]] = {
    "td3bc/antmaze": (SHIFT, None),
    "awac/antmaze": (SHIFT, {"temperature": 0.1}),
    "awac/adroit": (None, {"temperature": 0.1}),
    "awac/maze2d": (None, {"temperature": 0.1}),
    "prdc/antmaze": ({"reward_scale": 10000.0, "reward_shift": -1.0}, {"alpha": 7.5, "beta": 7.5}),
    "iql/antmaze": (SHIFT | CLIP, {"expectile": 0.9, "inverse_temperature": 10.0}),
    "iql/adroit": (CLIP, {"inverse_temperature": 0.5, "policy_dropout": 0.1}),
    "iql/kitchen": (CLIP, {"inverse_temperature": 0.5, "policy_dropout": 0.1}),
    "cql/hopper_medium": ({"return_range": True}, None),
    "cql/adroit": (None, {"learning_rate": 1e-4, "conservative_coef": 1.0}),
    "cql/maze2d": (None, {"target_gap": 5.0}),
    "cql/antmaze": (
        SCALED,
        {"learning_rate": 1e-4, "conservative_coef": 5.0, "target_gap": 0.8, "gap_min": -200.0}
        | {"max_target_backup": True, "critic_hidden": 5 * [256], "normalize_obs": False},
    ),
    "calql/antmaze": (SCALED | CLIP, {"target_gap": 0.8, "critic_hidden": 4 * [256]}),
    "calql/adroit_binary": (
        {"reward_scale": 10.0, "reward_shift": 5.0} | CLIP,
        {"conservative_coef": 1.0, "hidden": 2 * [512], "critic_hidden": 3 * [512]},
    ),
    "rlpd/antmaze": (SHIFT | CLIP, {"n_min": 1, "backup_entropy": False, "hidden": 3 * [256]}),
    "rlpd/adroit_binary": (CLIP, {"backup_entropy": False, "hidden": 3 * [256]}),
    "fql/antmaze": (SHIFT | CLIP, {"alpha": 10.0}),
    "fql/adroit": (CLIP, {"alpha": 10000.0} | MIN),
    "fql/ogbench_antmaze_large": (CLIP, {"alpha": 10.0} | MIN),
    "fql/ogbench_antmaze_giant": (CLIP, {"alpha": 10.0, "gamma": 0.995} | MIN),
    "fql/ogbench_humanoidmaze": (CLIP, {"alpha": 30.0, "gamma": 0.995}),
    "fql/ogbench_antsoccer": (CLIP, {"alpha": 10.0, "gamma": 0.995}),
    "fql/ogbench_cube": (CLIP, {"alpha": 300.0}),
    "fql/ogbench_puzzle": (CLIP, {"alpha": 1000.0}),
}
SMALL, LARGE, HUGE = 2 * [256], 3 * [256], 4 * [512]  # layers
DEFAULTS: dict[str, dict[str, Any]] = {
    "bc": {"hidden": SMALL, "normalize_obs": True},
    "td3bc": {"hidden": SMALL, "alpha": 2.5, "normalize_obs": True},
    "prdc": {"hidden": SMALL, "alpha": 2.5, "beta": 2.0, "normalize_obs": True},
    "a2pr": {"hidden": LARGE, "critic_hidden": 4 * [256], "vae_hidden": 2 * [750], "alpha": 2.5, "normalize_obs": True},
    "iql": {"hidden": SMALL, "expectile": 0.7, "inverse_temperature": 3.0, "log_std_min": -5.0, "normalize_obs": False},
    "awac": {"hidden": LARGE, "temperature": 0.3333, "max_weight": 100.0, "normalize_obs": True},
    "rebrac": {"hidden": LARGE, "learning_rate": 1e-3, "batch_size": 1024, "normalize_obs": False},
    "cql": {"hidden": LARGE, "learning_rate": 3e-5, "critic_learning_rate": 3e-4, "conservative_coef": 10.0}
    | {"n_samples": 10, "target_gap": None, "max_target_backup": False, "normalize_obs": True},
    "calql": {"hidden": SMALL, "learning_rate": 1e-4, "critic_learning_rate": 3e-4, "conservative_coef": 5.0}
    | {"n_samples": 10, "target_gap": None, "max_target_backup": True, "normalize_obs": False},
    "fql": {"hidden": HUGE, "flow_steps": 10, "target_q": "mean", "normalize_q": False, "normalize_obs": False},
}
SHARED = {"learning_rate": 3e-4, "batch_size": 256, "gamma": 0.99, "tau": 0.005}
DELAYED = {"policy_delay": 2, "target_noise": 0.2, "target_noise_clip": 0.5}  # td3bc, prdc, a2pr, rebrac
UPDATES = {"fql/antmaze": 500_000, "fql/adroit": 500_000, "calql/adroit_binary": 20_000}


def preset(name: str) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / "experiment" / f"{name}.yaml"))  # type: ignore[return-value]


@pytest.mark.parametrize("algo", DEFAULTS)
def test_the_defaults_are_the_published_ones(algo):
    cfg = lookup(ALGORITHMS, algo, "algorithm").config()
    expected = {**SHARED, **(DELAYED if hasattr(cfg, "policy_delay") else {}), **DEFAULTS[algo]}
    if algo == "bc":
        expected = {key: value for key, value in expected.items() if key not in ("gamma", "tau")}
    assert {key: getattr(cfg, key) for key in expected} == expected


@pytest.mark.parametrize("name", TABLE)
def test_a_preset_holds_the_published_setting(name):
    found = preset(name)
    assert (found.get("data"), found.get("algo"), found.get("gradient_steps")) == (*TABLE[name], UPDATES.get(name))


@pytest.mark.parametrize("algo", ["a2pr", "iql", "prdc", "rebrac", "rlpd", "sac", "td3"])
def test_the_rules_of_v4_and_v5_take_the_same_preset(algo):
    for task in MUJOCO:
        if algo == "prdc" and task != "halfcheetah":
            continue  # the defaults
        old, new = preset(f"{algo}/{task}-v4"), preset(f"{algo}/{task}")
        environments = [
            {word["override /env"] for word in p.pop("defaults") if "override /env" in word} for p in (old, new)
        ]
        assert environments == [{f"{task}-v4"}, {task}]
        assert old == new
        if algo in MEDIUM:
            assert old == {"algo": MEDIUM[algo][task]}
        if algo == "iql":
            assert old == {"data": {"return_range": True} | CLIP}


def test_cql_scales_the_rewards_of_one_mujoco_set_alone():
    cells = cells_of(read_plan("d4rl_mujoco"), ["algo=cql", "seed=0"])
    scaled = [cell for cell in cells if "experiment=cql/hopper_medium" in cell.words]
    assert len(cells) == 9
    assert [cell.settings()["data.id"] for cell in scaled] == ["hopper-medium-v2"]


def test_multi_timescale_ppo_and_its_baseline_differ_in_the_discounts_alone():
    """arXiv:2604.13517, experiment 6; the squared error has no factor 0.5 here, so vf_coef has it."""
    ours, baseline = preset("mtppo/lunarlander"), preset("ppo/lunarlander")
    assert [ours.pop("defaults")[0], baseline.pop("defaults")[0]] == [{"override /algo": a} for a in ("mtppo", "ppo")]
    assert ours == baseline
    published = {"n_steps": 256, "n_minibatches": 8, "n_epochs": 10, "learning_rate": 2.5e-4, "lr_schedule": "linear"}
    published |= {"gamma": 0.999, "gae_lambda": 0.95, "ent_coef": 0.01, "vf_coef": 0.25, "clip_range_vf": 0.2}
    assert ours["algo"] == published | {"bootstrap_truncated": False}
    assert (ours["n_envs"], ours["total_steps"]) == (8, 1_000_000)
    defaults = lookup(ALGORITHMS, "mtppo", "algorithm").config()
    assert ([*defaults.aux_gammas, defaults.gamma], defaults.hidden) == ([0.5, 0.9, 0.99, 0.999], [64, 64])
    assert (defaults.max_grad_norm, defaults.adam_eps, defaults.clip_range, defaults.activation) == (
        0.5,
        1e-5,
        0.2,
        "tanh",
    )


@pytest.mark.parametrize("algo", ["mtppo", "ppo"])
def test_a_preset_names_its_gymnasium_id(algo):
    cfg = train_config([f"experiment={algo}/lunarlander"])
    assert (cfg.algo.name, cfg.env.name, cfg.env.id, cfg.algo.gamma) == (algo, "gym", "LunarLander-v3", 0.999)


def test_multigoal_is_the_authors_run_but_for_its_size_and_the_gaussian_beside_it_differs_in_the_policy_alone():
    """Their multigoal_env_cfg.yaml and the specification's table 3.A.6; theirs: brownian_coef 0.25, n_envs 4096,
    and a learning rate that follows the KL from 2e-4."""
    flow, gaussian = preset("policyflow/multigoal"), preset("ppo/multigoal")
    task = MultiGoalConfig()
    assert (task.n_goals, task.dt, task.episode_length, task.max_acceleration) == (6, 0.1, 50, 5.0)
    assert (task.goal_weight, task.action_weight, MultiGoal.bound) == (1.0, -0.01, 8.0)
    assert (flow["n_envs"], flow["total_steps"]) == (gaussian["n_envs"], gaussian["total_steps"]) == (1024, 9_000_000)
    own = {"ent_coef": 0.001, "brownian_coef": 0.35, "hidden": [256, 128, 64], "n_steps": 32}
    rate = {"learning_rate": 7e-4, "lr_schedule": "linear", "desired_kl": None}
    assert (own | rate).items() <= flow["algo"].items()
    shared = set(flow["algo"]) & set(gaussian["algo"])
    assert {k: flow["algo"][k] for k in shared} == {k: gaussian["algo"][k] for k in shared}
    defaults, beside = PolicyFlowConfig(), PPOConfig(**gaussian["algo"])
    for name in ("vf_coef", "clip_range", "clip_range_vf", "max_grad_norm", "weight_decay", "adam_eps"):
        assert getattr(beside, name) == getattr(defaults, name), name
    assert math.exp(beside.log_std_init) * flow["algo"]["action_scale"] == pytest.approx(1.0, rel=1e-3)

"""What every on-policy learner promises. A new line in registry.ALGORITHMS is tested here without a change."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import ctrlrl
from ctrlrl.build import build
from ctrlrl.config import CheckpointConfig, EnvConfig, EvalConfig, LogConfig, TrainConfig
from ctrlrl.core.learner import Learner
from ctrlrl.envs.sim import BatchedSim
from ctrlrl.loops import make_learner, training_loop
from ctrlrl.registry import ALGORITHMS, SIMULATORS, lookup
from ctrlrl.settings import load_config, typed
from ctrlrl.tasks import make_env
from ctrlrl.train.checkpoint import read_folder
from ctrlrl.train.rollout import Collector
from ctrlrl.types import Rollout, tree_map

SMALL = {"n_steps": 8, "n_minibatches": 2, "n_epochs": 2, "hidden": [8]}
TASKS = ("pendulum", "cartpole")

ON_POLICY = [name for name in ALGORITHMS if lookup(ALGORITHMS, name, "algorithm").loop == "on_policy"]

CONTINUOUS_ONLY = [name for name in ON_POLICY if lookup(ALGORITHMS, name, "algorithm").continuous_only]
on_every_algo = pytest.mark.parametrize("algo", ON_POLICY)
on_every_task = pytest.mark.parametrize(
    ("algo", "task"), [(a, t) for a in ON_POLICY for t in TASKS if t == "pendulum" or a not in CONTINUOUS_ONLY]
)


def task_of(algo: str, task: str = "pendulum") -> str:
    """In place of the usual tasks, for an algorithm that needs more of a step: the first and last that tell it."""
    needs = lookup(ALGORITHMS, algo, "algorithm").needs
    able = [n for n in SIMULATORS if needs <= set(lookup(SIMULATORS, n, "environment").extras)]
    return task if task in able else able[-(task == "cartpole")]


def sim_of(algo: str, task: str = "pendulum") -> Any:
    return lookup(SIMULATORS, task_of(algo, task), "environment")()


def settings(algo: str, **changes: Any) -> Any:
    return lookup(ALGORITHMS, algo, "algorithm").config(**{**SMALL, **changes})


def learner_and_rollout(algo: str, task: str = "pendulum", **changes: Any) -> tuple[Learner, Rollout]:
    torch.manual_seed(0)
    env = BatchedSim(sim_of(algo, task), 4, seed=0, episode_length=6)
    learner = make_learner(settings(algo, **changes), env.spec)
    collector = Collector(env, learner, 8)  # type: ignore[arg-type]
    collector.reset(0)
    return learner, tree_map(torch.clone, collector.collect())


def state(learner: Learner) -> dict[str, torch.Tensor]:
    both = {**learner.model_state(), **learner.training_state()}
    return {k: v.detach().clone() for k, v in both.items()}


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


@on_every_algo
def test_the_class_declares_its_loop_and_config(algo):
    kind = lookup(ALGORITHMS, algo, "algorithm")
    assert kind.loop in ("on_policy", "off_policy", "hybrid", "tokens")
    assert kind.config().name == algo, "the config's name is the registry key"


@on_every_task
def test_metrics_are_finite_0_dim_tensors_and_the_weights_move(algo, task):
    learner, rollout = learner_and_rollout(algo, task, normalize_obs=True, normalize_reward=True)
    before = state(learner)
    metrics = learner.update(rollout)
    for name, value in metrics.items():
        assert value.ndim == 0, name
        assert torch.isfinite(value), name
        assert "/" in name
    assert any(not torch.equal(before[k], v) for k, v in state(learner).items() if "policy" in k)


@on_every_task
def test_state_round_trip_continues_bit_for_bit(algo, task):
    learner, rollout = learner_and_rollout(algo, task, normalize_obs=True, normalize_reward=True, desired_kl=0.01)
    learner.update(rollout)
    model, training = (
        {k: v.clone() for k, v in part.items()} for part in (learner.model_state(), learner.training_state())
    )
    copy, _ = learner_and_rollout(algo, task, normalize_obs=True, normalize_reward=True, desired_kl=0.01)
    copy.load_model_state(model)
    copy.load_training_state(training)
    assert_equal(state(learner), state(copy))
    for one in (learner, copy):
        torch.manual_seed(4)
        one.update(rollout)
    assert_equal(state(learner), state(copy))


@on_every_algo
def test_acting_is_deterministic_on_request_and_random_otherwise(algo):
    learner, rollout = learner_and_rollout(algo)
    obs = rollout.obs[0]
    assert torch.equal(learner.act(obs, deterministic=True).action, learner.act(obs, deterministic=True).action)
    assert not torch.equal(learner.act(obs).action, learner.act(obs).action)
    assert not learner.act(obs).action.requires_grad


@on_every_algo
def test_model_state_alone_restores_the_acting_policy(algo):
    learner, rollout = learner_and_rollout(algo, normalize_obs=True)
    learner.update(rollout)
    torch.manual_seed(9)
    other = make_learner(settings(algo, normalize_obs=True), BatchedSim(sim_of(algo), 4, seed=0).spec)
    other.load_model_state(learner.model_state())
    obs = rollout.obs[0]
    assert torch.equal(learner.act(obs, deterministic=True).action, other.act(obs, deterministic=True).action)


@on_every_algo
def test_learning_is_deterministic_given_the_seed_and_differs_between_seeds(algo):
    results = []
    for seed in (0, 0, 1):
        learner, rollout = learner_and_rollout(algo)
        torch.manual_seed(seed)
        learner.update(rollout)
        results.append(state(learner))
    assert_equal(results[0], results[1])
    assert any(not torch.equal(results[0][k], results[2][k]) for k in results[0])


@on_every_algo
def test_the_config_survives_yaml_with_every_field(algo, tmp_path: Path):
    cfg = TrainConfig(algo=settings(algo, gamma=0.123, target_kl=0.5), env=EnvConfig(name="pendulum"), seed=7)
    file = tmp_path / "config.yaml"
    file.write_text(OmegaConf.to_yaml(OmegaConf.structured(cfg)))
    back = typed(load_config(file))
    assert type(back.algo) is type(cfg.algo)
    assert dataclasses.asdict(back) == dataclasses.asdict(cfg)


def run(algo: str, folder: Path, *, total: int, resume: bool = False) -> None:
    cfg = TrainConfig(
        algo=settings(algo, normalize_obs=True, normalize_reward=True),
        env=EnvConfig(name=task_of(algo)),
        n_envs=4,
        total_steps=128,
        device="cpu",
        eval=EvalConfig(every=0, episodes=1),
        log=LogConfig(progress=False),
        checkpoint=CheckpointConfig(every=0.0),
    )
    trainer = build(cfg, folder, resume=resume)
    if total < 128:
        inner = trainer.loop.iterate

        def iterate() -> Any:
            trainer._stop = trainer.loop.env_steps + 32 >= total
            return inner()

        trainer.loop.iterate = iterate  # type: ignore[method-assign]
    trainer.train()


@on_every_algo
def test_resumed_equals_uninterrupted(algo, tmp_path: Path):
    run(algo, tmp_path / "whole", total=128)
    run(algo, tmp_path / "parts", total=64)
    run(algo, tmp_path / "parts", total=128, resume=True)
    whole, parts = (read_folder(tmp_path / name / "checkpoints" / "last") for name in ("whole", "parts"))
    assert_equal(whole.model, parts.model)
    assert_equal(whole.training, parts.training)


@pytest.mark.gpu
@on_every_task
def test_an_update_does_not_read_the_device(algo, task):
    """Between two log points the host waits for nothing; CUDA's sync debug mode raises where it would."""
    env = BatchedSim(sim_of(algo, task), 64, seed=0, device="cuda")
    learner = make_learner(settings(algo), env.spec)
    collector = Collector(env, learner, 8)  # type: ignore[arg-type]
    collector.reset(0)
    learner.update(collector.collect())
    torch.cuda.set_sync_debug_mode("error")
    try:
        learner.update(collector.collect())
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("algo", CONTINUOUS_ONLY)
def test_discrete_actions_are_refused_by_name_before_anything_is_built(algo):
    """A million million environments would not fit."""
    cfg = TrainConfig(algo=settings(algo), env=EnvConfig(name="cartpole"), n_envs=2**40, device="cpu")
    with pytest.raises(ValueError, match=f"algo={algo} is for continuous actions"):
        training_loop(cfg)
    with pytest.raises(ValueError, match=f"algo={algo} is for continuous actions"):
        make_learner(cfg.algo, make_env(cfg.env, 1, seed=0).spec)


@pytest.mark.parametrize(
    ("model", "named"),
    [(name, "is for continuous actions") for name in ("PolicyFlow", "FPO", "SAC", "TD3")]
    + [("PDPPO", "algo=pdppo needs post_obs, reward_split of every step, which env=cartpole does not tell")],
)
def test_the_python_classes_refuse_before_anything_is_built_too(model, named):
    with pytest.raises(ValueError, match=named):
        getattr(ctrlrl, model)("MlpPolicy", "cartpole", n_envs=2**46)

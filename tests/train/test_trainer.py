"""Whole runs: resuming equals not stopping, evaluation changes nothing, and every end leaves a usable folder."""

import csv
import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from ctrlrl.algos.ppo import PPOConfig
from ctrlrl.build import build
from ctrlrl.config import CheckpointConfig, EnvConfig, EvalConfig, LogConfig, TrainConfig
from ctrlrl.train import checkpoint
from ctrlrl.train.checkpoint import read_folder
from ctrlrl.train.trainer import Trainer

N_ENVS, N_STEPS = 4, 32
ITERATION = N_ENVS * N_STEPS


def config(env: str = "pendulum", *, iterations: int = 10, eval_every: int = 0, **changes: Any) -> TrainConfig:
    algo = PPOConfig(
        n_steps=N_STEPS,
        n_minibatches=4,
        n_epochs=2,
        hidden=[8],
        learning_rate=1e-3,
        lr_schedule="linear",
        normalize_obs=True,
        normalize_reward=True,
    )
    values: dict[str, Any] = {
        "algo": algo,
        "env": EnvConfig(name=env),
        "n_envs": N_ENVS,
        "total_steps": iterations * ITERATION,
        "device": "cpu",
        "eval": EvalConfig(every=eval_every, episodes=2),
        "log": LogConfig(every=0.0, progress=False),
    }
    return TrainConfig(**(values | changes))


def stop_after(trainer: Trainer, iterations: int) -> None:
    """Ctrl-C in the middle of an iteration."""
    inner, count = trainer.loop.iterate, [0]

    def iterate() -> Any:
        count[0] += 1
        if count[0] == iterations:
            os.kill(os.getpid(), signal.SIGINT)
        return inner()

    trainer.loop.iterate = iterate  # type: ignore[method-assign]


def weights(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    found = read_folder(folder / "checkpoints" / name)
    return {**found.model, **found.training}


def rows(folder: Path) -> list[dict[str, str]]:
    """progress.csv without what the clock says."""
    with open(folder / "progress.csv", newline="") as f:
        return [
            {k: v for k, v in row.items() if k not in ("wall_seconds", "time/steps_per_s")} for row in csv.DictReader(f)
        ]


def assert_same_run(a: Path, b: Path, name: str = "last") -> None:
    first, second = weights(a, name), weights(b, name)
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key


@pytest.mark.parametrize("env", ["pendulum", "halfcheetah"])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, env):
    if env == "halfcheetah":
        pytest.importorskip("mujoco")
    every = 3 * ITERATION
    build(config(env, eval_every=every), tmp_path / "whole").train()
    trainer = build(config(env, eval_every=every), tmp_path / "parts")
    stop_after(trainer, 5)
    assert trainer.train()["status"] == "interrupted"
    result = build(config(env, eval_every=every), tmp_path / "parts", resume=True).train()
    assert result["status"] == "finished"
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts", "best")
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    whole = json.loads((tmp_path / "whole" / "result.json").read_text())
    for key in ("env_steps", "gradient_steps", "final_return_mean", "best_return_mean"):
        assert result[key] == whole[key]


def test_a_gymnasium_run_resumes_with_fresh_episodes(tmp_path):
    """Its environments cannot be saved: learner, counters and rows go on, episodes start anew."""
    cfg = config()
    cfg.env = EnvConfig(name="pendulum", backend="gymnasium")
    trainer = build(cfg, tmp_path / "run")
    stop_after(trainer, 7)  # 224 steps a lane: one whole episode each
    trainer.train()
    before = weights(tmp_path / "run")
    again = build(cfg, tmp_path / "run", resume=True)
    assert again.loop.episode_metrics()["rollout/episodes"] == N_ENVS
    state = {**again.learner.model_state(), **{f"learner/{k}": v for k, v in again.learner.training_state().items()}}
    assert all(torch.equal(before[k], state[k]) for k in state)
    assert again.train()["status"] == "finished"
    assert [int(r["env_steps"]) for r in rows(tmp_path / "run")] == [ITERATION * k for k in range(1, 11)]


def test_training_after_the_last_checkpoint_is_forgotten_and_repeated(tmp_path):
    """A killed run: progress.csv is ahead of checkpoints/last."""
    build(config(), tmp_path / "whole").train()
    trainer = build(config(checkpoint=CheckpointConfig(every=1e9)), tmp_path / "killed")
    inner, count = trainer.loop.iterate, [0]

    def iterate() -> Any:
        count[0] += 1
        if count[0] == 4:
            trainer.save("last")
        if count[0] == 7:
            raise MemoryError
        return inner()

    trainer.loop.iterate = iterate  # type: ignore[method-assign]
    with pytest.raises(MemoryError):
        trainer.train()
    assert json.loads((tmp_path / "killed" / "result.json").read_text())["status"] == "failed"
    assert len(rows(tmp_path / "killed")) == 6
    build(config(), tmp_path / "killed", resume=True).train()
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")


def test_evaluating_more_often_never_changes_training(tmp_path):
    for name, every in (("never", 0), ("often", 1)):
        build(config(iterations=4, eval_every=every), tmp_path / name).train()
    assert_same_run(tmp_path / "never", tmp_path / "often")
    training = [
        [{k: v for k, v in r.items() if "eval" not in k} for r in rows(tmp_path / n)] for n in ("never", "often")
    ]
    assert training[0] == training[1]
    assert sum(bool(r["eval/return_mean"]) for r in rows(tmp_path / "often")) == 4


def test_evaluations_come_when_they_are_due(tmp_path):
    build(config(iterations=10, eval_every=3 * ITERATION), tmp_path / "run").train()
    at = [int(r["env_steps"]) // ITERATION for r in rows(tmp_path / "run") if r["eval/return_mean"]]
    assert at == [3, 6, 9, 10]


def test_every_row_stands_once_and_steps_grow(tmp_path):
    trainer = build(config(iterations=6), tmp_path / "run")
    stop_after(trainer, 3)
    trainer.train()
    assert [int(r["env_steps"]) for r in rows(tmp_path / "run")] == [ITERATION * k for k in (1, 2, 3)]
    build(config(iterations=6), tmp_path / "run", resume=True).train()
    assert [int(r["env_steps"]) for r in rows(tmp_path / "run")] == [ITERATION * k for k in range(1, 7)]
    with open(tmp_path / "run" / "progress.csv") as f:
        assert f.readline().startswith("env_steps,gradient_steps,wall_seconds,")


def test_ctrl_c_finishes_the_iteration_and_gives_the_handlers_back(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    trainer = build(config(), tmp_path / "run")
    stop_after(trainer, 2)
    result = trainer.train()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert result["status"] == "interrupted"
    assert result["env_steps"] == 2 * ITERATION
    assert read_folder(tmp_path / "run" / "checkpoints" / "last").state["env_steps"] == 2 * ITERATION


def test_ctrl_c_during_an_evaluation_ends_the_run_after_it(tmp_path):
    trainer = build(config(eval_every=ITERATION), tmp_path / "run")
    inner = trainer.evaluate

    def evaluate() -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return inner()

    trainer.evaluate = evaluate
    result = trainer.train()
    assert (result["status"], result["env_steps"], result["eval_episodes"]) == ("interrupted", ITERATION, 2)
    assert len(rows(tmp_path / "run")) == 1


def test_a_second_ctrl_c_ends_at_once_and_the_last_checkpoint_stays(tmp_path):
    trainer = build(config(checkpoint=CheckpointConfig(every=0.0)), tmp_path / "run")
    inner, count = trainer.loop.iterate, [0]

    def iterate() -> Any:
        count[0] += 1
        if count[0] == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return inner()

    trainer.loop.iterate = iterate  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "interrupted"
    assert build(config(), tmp_path / "run", resume=True).loop.env_steps == 2 * ITERATION


def test_a_disk_that_fills_up_fails_the_run_and_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    trainer = build(config(checkpoint=CheckpointConfig(every=0.0)), tmp_path / "run")
    inner, count = trainer.loop.iterate, [0]

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def iterate() -> Any:
        count[0] += 1
        if count[0] == 3:
            monkeypatch.setattr(checkpoint.os, "fsync", full)
        return inner()

    trainer.loop.iterate = iterate  # type: ignore[method-assign]
    with pytest.raises(OSError, match="No space left") as info:
        trainer.train()
    assert "model.safetensors" in str(info.value.filename)
    monkeypatch.undo()
    assert build(config(), tmp_path / "run", resume=True).loop.env_steps == 2 * ITERATION


def test_resuming_with_another_network_is_refused_in_one_line(tmp_path):
    build(config(iterations=1), tmp_path / "run").train()
    other = config(iterations=1)
    other.algo.hidden = [16]
    with pytest.raises(ValueError, match=r"checkpoints/last does not fit this configuration") as info:
        build(other, tmp_path / "run", resume=True)
    assert "\n" not in str(info.value)


def test_resuming_a_finished_run_changes_no_weight(tmp_path):
    build(config(iterations=2), tmp_path / "run").train()
    before = weights(tmp_path / "run")
    result = build(config(iterations=2), tmp_path / "run", resume=True).train()
    assert result["status"] == "finished"
    after = weights(tmp_path / "run")
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert len(rows(tmp_path / "run")) == 2


def test_result_json_has_the_fields_of_the_interface(tmp_path):
    build(config(iterations=2), tmp_path / "run").train()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    fields = (
        "algo env data seed status env_steps gradient_steps final_return_mean final_return_std best_return_mean "
        "eval_episodes success_rate normalized_score train_seconds wall_seconds steps_per_second updates_per_second "
        "device dtype threads versions data_checksum config_hash commit"
    )
    assert set(fields.split()) <= set(result)
    assert (result["algo"], result["env"], result["seed"], result["status"]) == ("ppo", "pendulum", 0, "finished")
    assert (result["env_steps"], result["gradient_steps"]) == (2 * ITERATION, 2 * 4 * 2)
    assert result["eval_episodes"] == 2
    assert result["wall_seconds"] >= result["train_seconds"] > 0
    assert result["success_rate"] is None
    assert result["best_return_mean"] == result["final_return_mean"]
    assert result["versions"]["torch"] == torch.__version__


def test_the_best_checkpoint_is_the_one_with_the_highest_return(tmp_path):
    trainer = build(config(iterations=4, eval_every=ITERATION), tmp_path / "run")
    inner, scores = trainer.evaluate, iter([1.0, 5.0, 3.0, 4.0])

    def evaluate() -> Any:
        found = inner()
        return found._replace(returns=torch.full_like(found.returns, next(scores)))

    trainer.evaluate = evaluate
    result = trainer.train()
    assert result["best_return_mean"] == 5.0
    assert result["final_return_mean"] == 4.0
    assert read_folder(tmp_path / "run" / "checkpoints" / "best").state["env_steps"] == 2 * ITERATION


def test_the_config_hash_is_of_what_determines_the_numbers(tmp_path):
    from ctrlrl.build import config_hash

    assert config_hash(config()) == config_hash(config(seed=3, log=LogConfig(every=9.0)))
    assert config_hash(config()) != config_hash(config(n_envs=5))
    other = config()
    other.algo.gamma = 0.5
    assert config_hash(config()) != config_hash(other)

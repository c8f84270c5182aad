"""Whole runs: resuming equals not stopping, evaluation changes nothing, and every end leaves a usable folder."""

import csv
import errno
import json
import os
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ctrlrl.algos.bpo import BPOConfig
from ctrlrl.algos.ppo import PPOConfig
from ctrlrl.build import build
from ctrlrl.config import CheckpointConfig, DataConfig, EnvConfig, EvalConfig, LogConfig, TrainConfig
from ctrlrl.train import checkpoint
from ctrlrl.train import trainer as trainer_module
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


def result(folder: Path) -> dict[str, Any]:
    """result.json without what the clock, or a commit meanwhile, says."""
    times = ("commit", "train_seconds", "wall_seconds", "checkpoint_seconds", "steps_per_second", "updates_per_second")
    found = json.loads((folder / "result.json").read_text())
    return {k: v for k, v in found.items() if k not in times}


def in_parts(folder: Path, make: Any, stops: tuple[int, ...]) -> None:
    """A run that Ctrl-C ends in these iterations, resumed each time, and then to its end."""
    done = 0
    for stop in stops:
        trainer = build(make(), folder, resume=done > 0)
        stop_after(trainer, stop - done)
        assert trainer.train()["status"] == "interrupted"
        done = stop
    assert build(make(), folder, resume=True).train()["status"] == "finished"


TASKS: dict[str, tuple[EnvConfig, Any]] = {
    "ppo torch": (EnvConfig("pendulum"), PPOConfig(lr_schedule="linear", normalize_obs=True, normalize_reward=True)),
    "ppo discrete, adapted rate": (EnvConfig("cartpole"), PPOConfig(desired_kl=0.01, normalize_reward=True)),
    "ppo MuJoCo": (EnvConfig("halfcheetah"), PPOConfig(lr_schedule="linear", normalize_obs=True)),
    "ppo MuJoCo, contact forces": (EnvConfig("humanoid"), PPOConfig(normalize_reward=True, clip_range_vf=0.2)),
    "bpo torch": (EnvConfig("pendulum"), BPOConfig(lr_schedule="linear", normalize_reward=True)),
    "bpo torch, new returns": (
        EnvConfig("pendulum"),
        BPOConfig(recompute_returns=True, median="value", target_kl=0.05),
    ),
    "bpo MuJoCo, exact": (EnvConfig("hopper", exact=True), BPOConfig(desired_kl=0.01, normalize_obs=True)),
}


WAYS = [*((task, (4, 5, 9)) for task in TASKS if "contact" not in task), ("ppo torch", (1,)), ("ppo MuJoCo", (6,))]
LONG = pytest.param("ppo MuJoCo, contact forces", (4, 5, 9), marks=pytest.mark.slow)


@pytest.mark.parametrize(("task", "stops"), [*WAYS, LONG, ("ppo MuJoCo, contact forces", (6,))], ids=str)
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, task, stops, monkeypatch):
    env, algo = TASKS[task]
    if "MuJoCo" in task:
        pytest.importorskip("mujoco")
        from ctrlrl.envs.mjcf_tasks import get_task

        monkeypatch.setattr("ctrlrl.envs.mujoco_cpu.get_task", lambda name: replace(get_task(name), episode_length=100))
    algo = replace(algo, n_steps=N_STEPS, n_minibatches=4, n_epochs=2, hidden=[8])

    def make() -> TrainConfig:
        return replace(config(eval_every=3 * ITERATION, algo=replace(algo)), env=replace(env))

    build(make(), tmp_path / "whole").train()
    in_parts(tmp_path / "parts", make, stops)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts", "best")
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    assert result(tmp_path / "whole") == result(tmp_path / "parts")


def test_rows_by_steps_are_the_same_rows_however_often_a_run_stops(tmp_path):
    def make() -> TrainConfig:
        return config(log=LogConfig(every=0.0, every_steps=2 * ITERATION + 1, progress=False), eval_every=5 * ITERATION)

    build(make(), tmp_path / "whole").train()
    in_parts(tmp_path / "parts", make, (1, 3, 7))
    at = [int(r["env_steps"]) // ITERATION for r in rows(tmp_path / "whole")]
    assert at == [3, 5, 7, 9, 10]  # the first iteration at or after every multiple; 5 is the evaluation's
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")


def test_rows_by_the_clock_agree_wherever_both_runs_have_one(tmp_path):
    def make() -> TrainConfig:
        return config(log=LogConfig(every=1e9, progress=False), eval_every=3 * ITERATION)

    build(config(eval_every=3 * ITERATION), tmp_path / "all").train()
    in_parts(tmp_path / "parts", make, (4, 8))
    every, some = ({r["env_steps"]: r for r in rows(tmp_path / name)} for name in ("all", "parts"))
    assert [int(n) // ITERATION for n in some] == [3, 4, 6, 8, 9, 10]
    assert all(every[n] == row for n, row in some.items())


def test_a_run_that_is_resumed_and_stopped_at_once_keeps_its_last_evaluation(tmp_path):
    trainer = build(config(eval_every=2 * ITERATION), tmp_path / "run")
    stop_after(trainer, 3)
    before = trainer.train()
    again = build(config(eval_every=2 * ITERATION), tmp_path / "run", resume=True)
    stop_after(again, 1)
    after = again.train()
    assert (after["status"], after["env_steps"]) == ("interrupted", 4 * ITERATION)
    again = build(config(eval_every=0), tmp_path / "run", resume=True)
    stop_after(again, 1)
    now = again.train()
    for key in ("final_return_mean", "final_return_std", "eval_episodes", "best_return_mean"):
        assert now[key] == after[key]
        assert before[key] is not None
    assert now["eval_episodes"] == 2


@pytest.mark.parametrize("name", ["result", "row"])
def test_a_run_killed_between_its_last_checkpoint_and_its_last_row_still_gets_it(tmp_path, name):
    build(config(), tmp_path / "whole").train()
    trainer = build(config(), tmp_path / "killed")

    def die(*args: Any) -> None:
        if trainer.loop.done:
            raise MemoryError

    if name == "row":
        inner = trainer.folder.write_row
        trainer.folder.write_row = lambda row: die() or inner(row)  # type: ignore[method-assign, func-returns-value]
    else:
        trainer._evaluate = lambda status: die() or {}  # type: ignore[method-assign]
    with pytest.raises(MemoryError):
        trainer.train()
    assert len(rows(tmp_path / "killed")) == 9
    build(config(), tmp_path / "killed", resume=True).train()
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_row_that_a_crash_cut_short_is_dropped_on_resume(tmp_path):
    trainer = build(config(), tmp_path / "run")
    stop_after(trainer, 3)
    trainer.train()
    whole = rows(tmp_path / "run")
    with open(tmp_path / "run/progress.csv", "a") as f:
        f.write("3,")  # of 384: without its end it would pass for a row of step 3
    build(config(), tmp_path / "run", resume=True)
    assert rows(tmp_path / "run") == whole


def test_a_run_does_not_go_on_with_another_data_set(tmp_path):
    trainer = build(config(), tmp_path)
    trainer.facts |= {"data": "x.npz", "data_checksum": "0123456789abcdef"}
    trainer.save("last")
    trainer.resume()
    trainer.facts |= {"data_checksum": "fedcba9876543210"}
    with pytest.raises(ValueError, match=r"checksum 0123456789ab, that of x\.npz is fedcba987654 now"):
        trainer.resume()


def test_a_run_killed_before_its_first_checkpoint_starts_from_the_beginning(tmp_path, capsys):
    build(config(), tmp_path / "whole").train()
    (tmp_path / "killed/checkpoints/.last.new").mkdir(parents=True)
    build(config(), tmp_path / "killed", resume=True).train()
    assert "from the beginning" in " ".join(capsys.readouterr().err.split())  # the line may be broken
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    build(config(), tmp_path / "lost").train()
    shutil.rmtree(tmp_path / "lost/checkpoints")
    with pytest.raises(ValueError, match="no checkpoint there"):  # it had trained: nothing may be overwritten
        build(config(), tmp_path / "lost", resume=True)


def test_numbered_checkpoints_come_by_steps_and_the_oldest_go(tmp_path):
    def make(keep: int = 3) -> TrainConfig:
        return config(checkpoint=CheckpointConfig(every=1e9, every_steps=2 * ITERATION, keep=keep))

    build(make(), tmp_path / "whole").train()
    in_parts(tmp_path / "parts", make, (3, 5))
    names = sorted(p.name for p in (tmp_path / "parts/checkpoints").iterdir())
    assert names == ["best", "last", *sorted(f"step_{n * ITERATION}" for n in (6, 8, 10))]
    for name in names:
        assert_same_run(tmp_path / "whole", tmp_path / "parts", name)
    build(make(keep=0), tmp_path / "none").train()
    assert sorted(p.name for p in (tmp_path / "none/checkpoints").iterdir()) == ["best", "last"]


def test_a_run_that_dies_at_any_of_its_saves_ends_with_the_same_checkpoints(tmp_path):
    def make() -> TrainConfig:
        return config(iterations=4, checkpoint=CheckpointConfig(every=1e9, every_steps=2 * ITERATION, keep=2))

    def dying(trainer: Trainer, left: int) -> list[str]:
        inner, done = trainer.save, []

        def save(name: str) -> None:
            if len(done) == left:
                raise MemoryError
            inner(name)
            done.append(name)

        trainer.save = save  # type: ignore[method-assign]
        with suppress(MemoryError):
            trainer.train()
        return done

    saves = dying(build(make(), tmp_path / "whole"), -1)
    assert {"last", "best", f"step_{2 * ITERATION}", f"step_{4 * ITERATION}"} == set(saves)
    for left in range(len(saves)):
        folder = tmp_path / f"died-{left}"
        assert dying(build(make(), folder), left) == saves[:left]
        build(make(), folder, resume=True).train()
        assert {p.name for p in (folder / "checkpoints").iterdir()} == set(saves)
        for name in set(saves):
            assert_same_run(tmp_path / "whole", folder, name)
        assert rows(folder) == rows(tmp_path / "whole")


def test_resumed_from_an_older_checkpoint_new_numbered_ones_are_not_taken_for_the_oldest(tmp_path):
    keep = {"checkpoint": CheckpointConfig(every=1e9, every_steps=ITERATION, keep=2)}
    folder = tmp_path / "run/checkpoints"
    trainer = build(config(**keep), tmp_path / "run")
    stop_after(trainer, 4)
    trainer.train()
    shutil.copytree(folder / "last", tmp_path / "fourth")
    build(config(**keep), tmp_path / "run", resume=True).train()
    before = weights(tmp_path / "run")
    shutil.rmtree(folder / "last")
    shutil.copytree(tmp_path / "fourth", folder / "last")
    trainer = build(config(**keep), tmp_path / "run", resume=True)
    stop_after(trainer, 1)
    trainer.train()
    assert {p.name for p in folder.glob("step_*")} == {f"step_{n * ITERATION}" for n in (5, 9, 10)}
    build(config(**keep), tmp_path / "run", resume=True).train()
    assert {p.name for p in folder.glob("step_*")} == {f"step_{n * ITERATION}" for n in (9, 10)}
    after = weights(tmp_path / "run")
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_checkpoints_by_the_clock_are_numbered_where_no_steps_are_named(tmp_path):
    build(config(iterations=4, checkpoint=CheckpointConfig(every=0.0, keep=2)), tmp_path / "run").train()
    names = sorted(p.name for p in (tmp_path / "run/checkpoints").glob("step_*"))
    assert names == sorted(f"step_{n * ITERATION}" for n in (3, 4))


def test_other_versions_give_one_notice_and_no_error(tmp_path, capsys):
    trainer = build(config(iterations=2), tmp_path / "run")
    trainer.facts["versions"] = {**trainer.facts["versions"], "torch": "1.0.0", "numpy": "1.0.0"}
    stop_after(trainer, 1)
    trainer.train()
    capsys.readouterr()
    build(config(iterations=2), tmp_path / "run", resume=True)
    said = capsys.readouterr().err
    assert "torch 1.0.0 is now" in said
    assert "not bit for bit" in " ".join(said.split())
    assert "numpy" not in said


def test_resuming_with_another_number_of_environments_is_refused_by_name(tmp_path):
    build(config(iterations=1), tmp_path / "run").train()
    with pytest.raises(ValueError, match="n_envs=4, this one has n_envs=8"):
        build(config(iterations=1, n_envs=8), tmp_path / "run", resume=True)


def test_the_time_that_saving_takes_is_in_the_result(tmp_path, monkeypatch):
    trainer = build(config(iterations=2), tmp_path / "run")
    write = trainer_module.write_folder

    def slow(*args: Any) -> None:
        time.sleep(0.05)
        write(*args)

    monkeypatch.setattr(trainer_module, "write_folder", slow)
    stop_after(trainer, 1)
    first = trainer.train()["checkpoint_seconds"]
    assert 0.1 <= first < trainer.wall_seconds  # at the start and at the end
    again = build(config(iterations=3), tmp_path / "run", resume=True)
    again.checkpoint_seconds = 1000.0  # of the sessions before
    stop_after(again, 1)
    again.train()
    assert build(config(iterations=3), tmp_path / "run", resume=True).checkpoint_seconds >= 1000.0


def test_a_gymnasium_run_resumes_with_fresh_episodes(tmp_path, capsys):
    """Its environments cannot be saved: learner, counters and rows go on, episodes start anew."""
    cfg = config()
    cfg.env = EnvConfig(name="pendulum", backend="gymnasium")
    trainer = build(cfg, tmp_path / "run")
    stop_after(trainer, 7)  # 224 steps a lane: one whole episode each
    trainer.train()
    before = weights(tmp_path / "run")
    first = build(cfg, tmp_path / "other").loop.collector.obs
    again = build(cfg, tmp_path / "run", resume=True)
    assert "seeds of their own" in " ".join(capsys.readouterr().err.split())
    assert not torch.equal(again.loop.collector.obs, first), "the run's first episodes came again"
    twice = build(cfg, tmp_path / "run", resume=True).loop.collector.obs
    assert torch.equal(again.loop.collector.obs, twice), "the same point gives the same seeds"
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


def test_a_ctrl_c_that_also_ends_the_compiler_interrupts_the_run_and_does_not_fail_it(tmp_path):
    trainer = build(config(), tmp_path / "run")

    def compiling() -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError("CppCompileError: C++ compile error")

    trainer.loop.iterate = compiling  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "interrupted"


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
    assert str(tmp_path / "run") in str(info.value.filename)
    monkeypatch.undo()
    assert build(config(), tmp_path / "run", resume=True).loop.env_steps == 2 * ITERATION


def test_resuming_with_another_network_is_refused_in_one_line(tmp_path):
    build(config(iterations=1), tmp_path / "run").train()
    other = config(iterations=1)
    other.algo.hidden = [16]
    with pytest.raises(ValueError, match=r"checkpoints/last does not fit this configuration") as info:
        build(other, tmp_path / "run", resume=True)
    assert "\n" not in str(info.value)


def test_resuming_a_finished_run_changes_no_weight_and_says_so(tmp_path, capsys):
    build(config(iterations=2), tmp_path / "run").train()
    before = weights(tmp_path / "run")
    capsys.readouterr()
    again = build(config(iterations=2), tmp_path / "run", resume=True)
    assert "total_steps=... above that goes on" in " ".join(capsys.readouterr().err.split())
    result = again.train()
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
        "machine device dtype threads versions data_checksum config_hash commit"
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
    from ctrlrl.provenance import config_hash

    assert config_hash(config()) == config_hash(config(seed=3, log=LogConfig(every=9.0)))
    assert config_hash(config()) != config_hash(config(n_envs=5))
    here, there = (config(data=DataConfig("file", path=path)) for path in ("a.npz", "/data/a.npz"))
    assert config_hash(here) != config_hash(there)
    assert config_hash(here, "aa") == config_hash(there, "aa") != config_hash(there, "bb")
    other = config()
    other.algo.gamma = 0.5
    assert config_hash(config()) != config_hash(other)


def test_regret_is_what_evaluations_after_the_first_environment_step_fall_short_of_100_by(tmp_path):
    """And it goes on over a resume: scores 80, 60 before it, 10 after it."""
    scores = iter([80.0, 60.0])

    def scored(resume: bool = False, iterations: int = 3) -> Trainer:
        trainer = build(config(iterations=iterations, eval_every=ITERATION), tmp_path, resume=resume)
        value = [0.0]
        inner = trainer.evaluate

        def evaluate() -> Any:
            value[0] = next(scores)
            return inner()

        trainer.evaluate, trainer.score = evaluate, lambda _: value[0]
        return trainer

    first = scored()
    stop_after(first, 2)
    first.train()
    assert first.result("x")["regret"] == pytest.approx((0.2 + 0.4) / 2)
    scores = iter([10.0])
    assert scored(resume=True).train()["regret"] == pytest.approx((0.2 + 0.4 + 0.9) / 3)
    scores = iter([100.0])
    assert scored(resume=True).train()["regret"] == pytest.approx((0.2 + 0.4 + 0.9) / 3), "a finished run, seen again"
    trainer = build(config(iterations=1), tmp_path / "none")
    assert trainer.train()["regret"] is None


def test_a_resumed_run_is_judged_as_often_as_is_asked_for_now(tmp_path):
    first = build(config(iterations=5, eval_every=100 * ITERATION), tmp_path)
    stop_after(first, 1)
    first.train()
    again = build(config(iterations=5, eval_every=ITERATION), tmp_path, resume=True)
    judged, inner = [], again.evaluate
    again.evaluate = lambda: judged.append(again.steps // ITERATION) or inner()
    again.train()
    assert judged == [2, 3, 4, 5]

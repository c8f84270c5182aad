"""Drive a loop to its end: log, evaluate, checkpoint, stop on request. It knows no algorithm and no environment."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor

from ctrlrl.core.learner import Learner
from ctrlrl.train.checkpoint import Checkpoint, random_state, read_folder, restore_random_state, write_folder
from ctrlrl.train.evaluate import Evaluation
from ctrlrl.train.log import Progress, RunFolder
from ctrlrl.types import Metrics


class Loop(Protocol):
    """What the trainer needs of `OnPolicyLoop` and of any other loop."""

    learner: Any
    env_steps: int
    gradient_steps: int
    total_steps: int

    @property
    def done(self) -> bool: ...
    def iterate(self) -> Metrics: ...
    def episode_metrics(self) -> dict[str, float]: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


class Trainer:
    """facts: what result.json says of the run besides its results (algo, env, seed, versions, ...)."""

    def __init__(
        self,
        loop: Loop,
        folder: RunFolder,
        *,
        evaluate: Callable[[], Evaluation],
        eval_every: int,
        log_every: float,
        checkpoint_every: float,
        device: torch.device,
        facts: dict[str, Any],
        progress: bool = True,
    ):
        self.loop, self.folder, self.device, self.facts = loop, folder, device, facts
        self.evaluate, self.eval_every = evaluate, eval_every
        self.log_every, self.checkpoint_every = log_every, checkpoint_every
        self.progress = Progress(f"{facts['algo']} {facts['env']}", loop.total_steps, enabled=progress)
        self.learner: Learner = loop.learner
        self.train_seconds = 0.0  # collecting and learning alone
        self.wall_before = 0.0  # of the sessions before a resume
        self.best: float | None = None
        self.evaluation: Evaluation | None = None
        self.next_eval = eval_every
        self._started = time.perf_counter()
        self._stop = False

    @property
    def wall_seconds(self) -> float:
        return self.wall_before + time.perf_counter() - self._started

    def train(self) -> dict[str, Any]:
        """Run to the end of the budget, or to the iteration in which Ctrl-C arrived; returns the result."""
        loop, metrics = self.loop, {}
        logged = saved = time.perf_counter()
        steps_logged, seconds_logged = loop.env_steps, self.train_seconds  # at the last row
        status = "running"
        restore = self._catch_signals()
        try:
            with self.progress:
                if not self.checkpoints.exists():
                    self.save("last")  # resumable from the first second on
                while not loop.done and not self._stop:
                    begin = time.perf_counter()
                    metrics = loop.iterate()
                    now = time.perf_counter()
                    self.train_seconds += now - begin
                    due = self.eval_every > 0 and loop.env_steps >= self.next_eval
                    if not loop.done and (due or now - logged >= self.log_every):  # the last row stands below
                        speed = (loop.env_steps - steps_logged) / max(self.train_seconds - seconds_logged, 1e-9)
                        row = self._row(metrics, speed)
                        if due:
                            row |= self._evaluate("running")
                            self.next_eval += self.eval_every * (
                                1 + (loop.env_steps - self.next_eval) // self.eval_every
                            )
                        self.folder.write_row(row)
                        self.progress.update(loop.env_steps, row)
                        logged, steps_logged, seconds_logged = time.perf_counter(), loop.env_steps, self.train_seconds
                    if now - saved >= self.checkpoint_every:
                        self.save("last")
                        saved = time.perf_counter()
                status = "finished" if loop.done else "interrupted"
                self.save("last")
                new = loop.env_steps > steps_logged
                row = self._row(metrics, loop.env_steps / max(self.train_seconds, 1e-9)) if new else {}
                if loop.done:
                    row |= self._evaluate(status)
                    self.save("last")  # with the final evaluation and the clock that includes it
                if new:
                    self.folder.write_row(row)
        except BaseException as error:
            with suppress(OSError):  # a full disk: the first error is the one to report
                self.folder.write_result(
                    self.result("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
                )
            raise
        finally:
            restore()
            self.folder.close()
        result = self.result(status)
        self.folder.write_result(result)
        return result

    def _row(self, metrics: Metrics, speed: float) -> dict[str, float]:
        loop = self.loop
        row = {
            "env_steps": loop.env_steps,
            "gradient_steps": loop.gradient_steps,
            "wall_seconds": round(self.wall_seconds, 3),
            "time/steps_per_s": round(speed, 1),
            **loop.episode_metrics(),
        }
        return row | {name: float(value) for name, value in metrics.items()}

    def _evaluate(self, status: str) -> dict[str, float]:
        self.evaluation = self.evaluate()
        returns = self.evaluation.returns
        mean = returns.mean().item()
        if self.best is None or mean > self.best:
            self.best = mean
            self.save("best")
        self.folder.write_result(self.result(status))
        self.progress.evaluation(
            f"{self.loop.env_steps:>12,} steps  evaluation return {mean:.1f} ± {returns.std(unbiased=False).item():.1f}"
        )
        row = {
            "eval/return_mean": mean,
            "eval/return_std": returns.std(unbiased=False).item(),
            "eval/length_mean": self.evaluation.lengths.double().mean().item(),
        }
        if self.evaluation.success is not None:
            row["eval/success_rate"] = self.evaluation.success.nanmean().item()
        return row

    def result(self, status: str) -> dict[str, Any]:
        loop, last = self.loop, self.evaluation
        returns = last.returns if last is not None else None
        success = last.success if last is not None else None
        return {
            **self.facts,
            "status": status,
            "env_steps": loop.env_steps,
            "gradient_steps": loop.gradient_steps,
            "final_return_mean": None if returns is None else returns.mean().item(),
            "final_return_std": None if returns is None else returns.std(unbiased=False).item(),
            "best_return_mean": self.best,
            "eval_episodes": 0 if returns is None else len(returns),
            "success_rate": None if success is None else success.nanmean().item(),
            "normalized_score": None,
            "train_seconds": round(self.train_seconds, 3),
            "wall_seconds": round(self.wall_seconds, 3),
            "steps_per_second": round(loop.env_steps / max(self.train_seconds, 1e-9), 1),
            "updates_per_second": round(loop.gradient_steps / max(self.train_seconds, 1e-9), 1),
        }

    def save(self, name: str) -> None:
        """Write checkpoints/<name>; the one before stays loadable until the new one is complete."""
        loop = self.loop
        training = {f"learner/{k}": v for k, v in self.learner.training_state().items()}
        training |= {f"loop/{k}": v for k, v in loop.state_dict().items()} | random_state(self.device)
        state = {
            "env_steps": loop.env_steps,
            "gradient_steps": loop.gradient_steps,
            "train_seconds": self.train_seconds,
            "wall_seconds": self.wall_seconds,
            "best": self.best,
            "next_eval": self.next_eval,
            **self.facts,
        }
        write_folder(self.checkpoints / name, Checkpoint(self.learner.model_state(), training, state))

    @property
    def checkpoints(self) -> Path:
        return self.folder.path / "checkpoints"

    def resume(self) -> None:
        """Go on bit for bit from checkpoints/last."""
        model, training, state = read_folder(self.checkpoints / "last")
        parts: dict[str, dict[str, Tensor]] = {"learner": {}, "loop": {}, "rng": {}}
        for key, tensor in training.items():
            part, _, name = key.partition("/")
            parts[part][name] = tensor
        try:
            self.learner.load_model_state(model)
            self.learner.load_training_state(parts["learner"])
        except (RuntimeError, KeyError) as error:
            first = str(error).splitlines()[0]
            raise ValueError(f"{self.checkpoints}/last does not fit this configuration ({first}).") from None
        self.loop.env_steps, self.loop.gradient_steps = state["env_steps"], state["gradient_steps"]
        self.loop.load_state_dict(parts["loop"])
        self.train_seconds, self.wall_before = state["train_seconds"], state["wall_seconds"]
        self.best, self.next_eval = state["best"], state["next_eval"]
        self.folder.resume(self.loop.env_steps)
        if not any(name.startswith("env/") for name in parts["loop"]):
            self.progress.note("this environment cannot be restored: its episodes start anew")
        restore_random_state({f"rng/{k}": v for k, v in parts["rng"].items()}, self.device)

    def _catch_signals(self) -> Callable[[], None]:
        """Ctrl-C and SIGTERM end the run after the current iteration; a second Ctrl-C ends it at once."""
        if threading.current_thread() is not threading.main_thread():
            return lambda: None

        def stop(number: int, frame: FrameType | None) -> None:
            if self._stop:
                raise KeyboardInterrupt
            self._stop = True
            self.progress.note("stopping after this iteration; the run folder will be resumable")

        before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        return restore

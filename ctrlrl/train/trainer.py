"""Drive a loop to its end: log, evaluate, checkpoint, stop on request. It knows no algorithm and no environment."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ctrlrl.core.learner import Learner
from ctrlrl.train.checkpoint import (
    Checkpoint,
    exists,
    fit,
    number,
    random_state,
    read_folder,
    remove_folder,
    restore_random_state,
    same_spec,
    spec_values,
    table,
    write_folder,
)
from ctrlrl.train.disk import remove
from ctrlrl.train.evaluate import Evaluation
from ctrlrl.train.interrupt import Interrupt
from ctrlrl.train.log import Progress, RunFolder
from ctrlrl.types import EnvSpec, Metrics

EXACT = ("ctrlrl", "torch", "mujoco")  # packages whose versions decide the last bits of a run


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
    """facts: what result.json says of the run besides its results (algo, env, seed, versions, ...).

    log_every, checkpoint_every are seconds; eval_every, log_steps and checkpoint_steps environment steps. With
    log_steps the clock writes no rows. keep: how many numbered checkpoints stay.
    """

    def __init__(
        self,
        loop: Loop,
        folder: RunFolder,
        *,
        spec: EnvSpec,
        evaluate: Callable[[], Evaluation],
        eval_every: int,
        log_every: float,
        checkpoint_every: float,
        device: torch.device,
        facts: dict[str, Any],
        log_steps: int | None = None,
        checkpoint_steps: int | None = None,
        keep: int = 0,
        progress: bool = True,
    ):
        self.loop, self.folder, self.spec, self.device, self.facts = loop, folder, spec, device, facts
        self.evaluate, self.eval_every = evaluate, eval_every
        self.log_every, self.log_steps = log_every, log_steps
        self.checkpoint_every, self.checkpoint_steps, self.keep = checkpoint_every, checkpoint_steps, keep
        self.progress = Progress(f"{facts['algo']} {facts['env']}", loop.total_steps, enabled=progress)
        self.learner: Learner = loop.learner
        self.metrics: Metrics = {}  # of the last iteration
        self.train_seconds = 0.0  # collecting and learning alone
        self.checkpoint_seconds = 0.0
        self.wall_before = 0.0  # of the sessions before a resume
        self.best: float | None = None
        self.evaluation: Evaluation | None = None
        self.next_eval = eval_every
        self._started = time.perf_counter()

    @property
    def wall_seconds(self) -> float:
        return self.wall_before + time.perf_counter() - self._started

    def train(self) -> dict[str, Any]:
        """Run to the end of the budget, or to the iteration in which Ctrl-C arrived; returns the result."""
        loop = self.loop
        logged = saved = time.perf_counter()
        steps_logged, seconds_logged = loop.env_steps, self.train_seconds  # at the last row
        interrupt = Interrupt(self.progress.note)
        try:
            with interrupt, self.progress:
                if not exists(self.checkpoints / "last"):
                    self.save("last")  # resumable from the first second on
                while not loop.done and not interrupt.asked:
                    begin, before = time.perf_counter(), loop.env_steps
                    self.metrics = loop.iterate()
                    now = time.perf_counter()
                    self.train_seconds += now - begin
                    due = self.eval_every > 0 and loop.env_steps >= self.next_eval
                    timed = self.log_steps is None and now - logged >= self.log_every
                    if not loop.done and (due or timed or self._passed(before, self.log_steps)):
                        speed = (loop.env_steps - steps_logged) / max(self.train_seconds - seconds_logged, 1e-9)
                        row = self._row(speed)
                        if due:
                            late = (loop.env_steps - self.next_eval) // self.eval_every
                            self.next_eval += self.eval_every * (1 + late)
                            row |= self._evaluate("running")
                        self.folder.write_row(row)
                        self.progress.update(loop.env_steps, row)
                        logged, steps_logged, seconds_logged = time.perf_counter(), loop.env_steps, self.train_seconds
                    by_steps = self._passed(before, self.checkpoint_steps)
                    if by_steps or now - saved >= self.checkpoint_every:
                        if self.keep and (by_steps or self.checkpoint_steps is None):
                            self._save_numbered()  # first: a run killed between the two comes by here again
                        self.save("last")
                        saved = time.perf_counter()
                self._finish()
        except BaseException as error:
            with suppress(OSError):  # a full disk: the first error is the one to report
                self.folder.write_result(
                    self.result("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
                )
            raise
        finally:
            self.folder.close()
        result = self.result("finished" if loop.done else "interrupted")
        self.folder.write_result(result)
        return result

    def _finish(self) -> None:
        """The last row, the last evaluation, the last checkpoint."""
        loop = self.loop
        row = self._row(loop.env_steps / max(self.train_seconds, 1e-9))
        new = loop.env_steps > self.folder.last_step  # killed before its row was written, a resumed run writes it
        if loop.done:
            self.save("last")  # before the evaluation, which may take long
            row |= self._evaluate("finished")
        if new and (loop.done or self.log_steps is None):
            self.folder.write_row(row)
        self.save("last")

    def _passed(self, before: int, every: int | None) -> bool:
        """Whether the last iteration, from `before` on, reached a multiple of `every`."""
        return every is not None and self.loop.env_steps // every > before // every

    def _row(self, speed: float) -> dict[str, float]:
        loop = self.loop
        row = {
            "env_steps": loop.env_steps,
            "gradient_steps": loop.gradient_steps,
            "wall_seconds": round(self.wall_seconds, 3),
            "time/steps_per_s": round(speed, 1),
            **loop.episode_metrics(),
        }
        return row | {name: float(value) for name, value in self.metrics.items()}

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
            "checkpoint_seconds": round(self.checkpoint_seconds, 3),
            "steps_per_second": round(loop.env_steps / max(self.train_seconds, 1e-9), 1),
            "updates_per_second": round(loop.gradient_steps / max(self.train_seconds, 1e-9), 1),
        }

    def save(self, name: str) -> None:
        """Write checkpoints/<name>; the one before stays loadable until the new one is complete."""
        begin = time.perf_counter()
        loop = self.loop
        training = {f"learner/{k}": v for k, v in self.learner.training_state().items()}
        training |= {f"loop/{k}": v for k, v in loop.state_dict().items()} | random_state(self.device)
        if self.evaluation is not None:
            training |= {f"eval/{k}": v for k, v in self.evaluation._asdict().items() if v is not None}
        state = {
            **self.facts,
            "env_steps": loop.env_steps,
            "gradient_steps": loop.gradient_steps,
            "train_seconds": self.train_seconds,
            "checkpoint_seconds": self.checkpoint_seconds,
            "wall_seconds": self.wall_seconds,
            "best": self.best,
            "next_eval": self.next_eval,
            "metrics": {k: float(v) for k, v in self.metrics.items()},
            "spec": spec_values(self.spec),
        }
        self.folder.sync()  # rows first: a checkpoint is never ahead of its log
        write_folder(self.checkpoints / name, Checkpoint(self.learner.model_state(), training, state))
        self.checkpoint_seconds += time.perf_counter() - begin

    def _save_numbered(self) -> None:
        """checkpoints/step_<n>, and away with what came `keep` numbered ones before."""
        self.save(f"step_{self.loop.env_steps}")
        for left in self.checkpoints.glob(".step_*.new"):
            remove(left)  # of a save that was killed
        steps = [name[5:] for path in self.checkpoints.glob("step_*") if (name := path.name)[5:].isdecimal()]
        # after a resume from an older checkpoint there may be later ones: training will come by and replace them
        before = sorted(int(n) for n in steps if int(n) <= self.loop.env_steps)
        for n in before[: -self.keep]:
            remove_folder(self.checkpoints / f"step_{n}")

    @property
    def checkpoints(self) -> Path:
        return self.folder.path / "checkpoints"

    def resume(self) -> None:
        """Go on bit for bit from checkpoints/last; from the beginning if the run was ended before it wrote one."""
        last = self.checkpoints / "last"
        if not exists(last) and not self.folder.has_rows():
            self.progress.note(f"{last}: the run ended before its first checkpoint; it starts from the beginning")
            return
        checkpoint = read_folder(last)
        same_spec(checkpoint.state, self.spec, str(last), lanes=True)
        try:
            self._restore(*checkpoint)
        except (RuntimeError, KeyError, ValueError, TypeError, OverflowError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{last} does not fit this configuration ({first}).") from None
        self.folder.resume(self.loop.env_steps)
        if not any(name.startswith("loop/env/") for name in checkpoint.training):
            self.progress.note("this environment cannot be restored: its episodes start anew, with seeds of their own")

    def _restore(self, model: dict[str, Tensor], training: dict[str, Tensor], state: dict[str, Any]) -> None:
        parts: dict[str, dict[str, Tensor]] = {"learner": {}, "loop": {}, "rng": {}, "eval": {}}
        for key, tensor in training.items():
            part, _, name = key.partition("/")
            parts.setdefault(part, {})[name] = tensor
        loop = self.loop
        fit(model, self.learner.model_state())
        fit(parts["learner"], self.learner.training_state())
        if any(name.startswith("env/") for name in parts["loop"]):
            fit(parts["loop"], loop.state_dict())
        loop.env_steps, loop.gradient_steps = (number(state, k, integer=True) for k in ("env_steps", "gradient_steps"))
        self.next_eval = number(state, "next_eval", integer=True)
        self.train_seconds, self.wall_before = number(state, "train_seconds"), number(state, "wall_seconds")
        self.checkpoint_seconds = number({"checkpoint_seconds": 0.0} | state, "checkpoint_seconds")
        self.best = None if state["best"] is None else number(state, "best")
        self.metrics = {k: torch.tensor(v, dtype=torch.float64) for k, v in table(state, "metrics").items()}
        if parts["eval"]:
            self.evaluation = Evaluation(**{"success": None} | parts["eval"])  # type: ignore[arg-type]
        self.learner.load_model_state(model)
        self.learner.load_training_state(parts["learner"])
        loop.load_state_dict(parts["loop"])
        restore_random_state({f"rng/{k}": v for k, v in parts["rng"].items()}, self.device)
        was, now = table(state, "versions"), self.facts["versions"]
        changed = [f"{n} {was[n]} is now {now.get(n, 'missing')}" for n in EXACT if n in was and was[n] != now.get(n)]
        if changed:
            self.progress.note(f"{', '.join(changed)}: the run goes on, but not bit for bit as it would have")

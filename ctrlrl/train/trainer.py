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
from ctrlrl.data.replay import ReplayBuffer
from ctrlrl.disk import remove
from ctrlrl.train.buffer_files import has_buffer, load_buffer, write_buffer
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
from ctrlrl.train.evaluate import Evaluation
from ctrlrl.train.interrupt import Interrupt
from ctrlrl.train.log import Progress, RunFolder
from ctrlrl.train.outcome import Score, eval_row, exceeds, merit, outcome, summary
from ctrlrl.types import EnvSpec, Metrics

EXACT = ("ctrlrl", "torch", "mujoco")  # packages whose versions decide the last bits of a run


class Loop(Protocol):
    """What the trainer needs of `OnPolicyLoop` and of any other loop."""

    learner: Any
    env: Any  # None where it learns from a data set
    clock: str  # "env_steps", "gradient_steps", or "steps" for both: what total_steps counts, and eval, log, checkpoint
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

    log_every, checkpoint_every are seconds; eval_every, log_steps and checkpoint_steps steps of the loop's clock. With
    log_steps the seconds write no rows. keep: how many numbered checkpoints stay. keep_buffer: a loop's replay buffer
    belongs to checkpoints/last.
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
        keep_buffer: bool = True,
        progress: bool = True,
        score: Score = lambda _: None,
    ):
        self.loop, self.folder, self.spec, self.device, self.facts = loop, folder, spec, device, facts
        self.evaluate, self.eval_every, self.score = evaluate, eval_every, score
        self.log_every, self.log_steps = log_every, log_steps
        self.checkpoint_every, self.checkpoint_steps, self.keep = checkpoint_every, checkpoint_steps, keep
        self.buffer: ReplayBuffer | None = getattr(loop, "buffer", None) if keep_buffer else None
        self.learner: Learner = loop.learner
        self.ranks = self.learner.ranks
        first = self.ranks.index == 0
        title = f"{facts['algo']} {facts['env']}"
        self.progress = Progress(title, loop.total_steps, unit=loop.clock, enabled=progress and first)
        self.progress.console.quiet = not first
        self.metrics: Metrics = {}  # of the last iteration
        self.train_seconds = 0.0  # collecting and learning alone
        self.checkpoint_seconds = 0.0
        self.wall_before = 0.0  # of the sessions before a resume
        self.best: Any = None  # the best evaluation's merit, its mean return where there is an environment
        self.evaluation: Evaluation | None = None
        self.next_eval = eval_every
        self.scored_at = 0  # steps at the last of them
        self.shortfall, self.n_scored = 0.0, 0  # sum of 1 - score / 100 over evaluations after environment steps
        self._started = time.perf_counter()

    @property
    def wall_seconds(self) -> float:
        return self.wall_before + time.perf_counter() - self._started

    @property
    def steps(self) -> int:
        """What the loop's clock shows."""
        return getattr(self.loop, self.loop.clock)

    @property
    def best_shown(self) -> float | None:
        """What result.json gives as the best."""
        return self.best

    def train(self) -> dict[str, Any]:
        """Run to the end of the budget, or to the iteration in which Ctrl-C arrived; returns the result."""
        loop, ranks = self.loop, self.ranks
        logged = saved = time.perf_counter()
        steps_logged, seconds_logged = self.steps, self.train_seconds  # at the last row
        interrupt = Interrupt(self.progress.note)
        try:
            with interrupt, self.progress:
                if not ranks.of_first(lambda: exists(self.checkpoints / "last")):
                    self.save("last")  # resumable from the first second on
                while not loop.done and not ranks.any(interrupt.asked):
                    begin, before = time.perf_counter(), self.steps
                    self.metrics = loop.iterate()
                    now = time.perf_counter()
                    self.train_seconds += now - begin
                    due = self.eval_every > 0 and self.steps >= self.next_eval
                    timed = self.log_steps is None and now - logged >= self.log_every
                    if not loop.done and (due or timed or self._passed(before, self.log_steps)):
                        speed = (self.steps - steps_logged) / max(self.train_seconds - seconds_logged, 1e-9)
                        row = self._row(speed)
                        if due:
                            late = (self.steps - self.next_eval) // self.eval_every
                            self.next_eval += self.eval_every * (1 + late)
                            row |= self._evaluate("running")
                        self.write_row(row)
                        logged, steps_logged, seconds_logged = time.perf_counter(), self.steps, self.train_seconds
                    by_steps = self._passed(before, self.checkpoint_steps)
                    if by_steps or ranks.any(now - saved >= self.checkpoint_every):
                        if self.keep and (by_steps or self.checkpoint_steps is None):
                            self._save_numbered()  # first: a run killed between the two comes by here again
                        self.save("last")
                        saved = time.perf_counter()
                self._finish()
        except BaseException as error:
            # a terminal's Ctrl-C reaches the compiler's processes too
            cut = interrupt.asked and "CompileError" in f"{type(error).__name__}: {error}"
            with suppress(OSError):  # a full disk: the first error is the one to report
                self.write_result("interrupted" if cut or isinstance(error, KeyboardInterrupt) else "failed")
            if cut:
                raise KeyboardInterrupt from None
            raise
        finally:
            self.folder.close()
        return self.write_result("finished" if loop.done else "interrupted")

    def _finish(self) -> None:
        """The last row, the last evaluation, the last checkpoint."""
        loop = self.loop
        row = self._row(self.steps / max(self.train_seconds, 1e-9))
        new = self.steps > self.folder.last_step  # killed before its row was written, a resumed run writes it
        if loop.done:
            self.save("last")  # before the evaluation, which may take long
            row |= self._evaluate("finished")
        if new and (loop.done or self.log_steps is None):
            self.write_row(row)
        self.save("last")

    def _passed(self, before: int, every: int | None) -> bool:
        """Whether the last iteration, from `before` on, reached a multiple of `every`."""
        return every is not None and self.steps // every > before // every

    def write_row(self, row: dict[str, Any]) -> None:
        self.folder.write_row(row)
        self.progress.update(self.steps, row)

    def write_result(self, status: str) -> dict[str, Any]:
        result = self.result(status)
        self.folder.write_result(result)
        return result

    def _row(self, speed: float) -> dict[str, Any]:
        loop = self.loop
        row = {
            "env_steps": loop.env_steps,
            "gradient_steps": loop.gradient_steps,
            "wall_seconds": round(self.wall_seconds, 3),
            "time/steps_per_s": round(speed, 1),
            **loop.episode_metrics(),
            loop.clock: self.steps,
        }
        return row | _plain(self.metrics)

    def _evaluate(self, status: str) -> dict[str, Any]:
        self.evaluation = self.ranks.of_first(self.evaluate)
        row = eval_row(self.evaluation, self.score)
        if exceeds(merit(row), self.best):
            self.best = merit(row)
            self.save("best")
        if self.loop.env_steps and "eval/normalized_score" in row and self.steps > self.scored_at:
            self.scored_at = self.steps  # a finished run that is resumed is evaluated again
            self.shortfall, self.n_scored = (
                self.shortfall + 1.0 - row["eval/normalized_score"] / 100.0,
                self.n_scored + 1,
            )
        self.write_result(status)
        self.progress.evaluation(f"{self.steps:>12,} steps  evaluation {summary(row)}")
        return row

    def result(self, status: str) -> dict[str, Any]:
        loop = self.loop
        return {
            **self.facts,
            "status": status,
            "env_steps": loop.env_steps,
            "gradient_steps": loop.gradient_steps,
            **outcome(self.evaluation, self.best_shown, self.score),
            **getattr(loop, "results", dict)(),
            "regret": self.shortfall / self.n_scored if self.n_scored else None,
            "train_seconds": round(self.train_seconds, 3),
            "wall_seconds": round(self.wall_seconds, 3),
            "checkpoint_seconds": round(self.checkpoint_seconds, 3),
            "steps_per_second": round(loop.env_steps / max(self.train_seconds, 1e-9), 1),
            "updates_per_second": round(loop.gradient_steps / max(self.train_seconds, 1e-9), 1),
        }

    def save(self, name: str) -> None:
        """Write checkpoints/<name>; the one before stays loadable until the new one is complete."""
        begin = time.perf_counter()
        others = self.ranks.to_first(self._own_state())[1:] if self.ranks.size > 1 else []
        if self.ranks.index == 0:
            self.folder.sync()  # rows first: a checkpoint is never ahead of its log
            found = self._checkpoint(self.learner, random_state(self.device), self.evaluation, self._state())
            for index, own in enumerate(others, start=1):
                found.training.update({f"rank{index}/{key}": tensor for key, tensor in own.items()})
            # before the environment's first step a buffer holds what the loop puts there at its start
            buffer = self.buffer if name == "last" and self.loop.env_steps else None
            more = None if buffer is None else lambda new: write_buffer(buffer, new)
            write_folder(self.checkpoints / name, found, more)
        self.checkpoint_seconds += time.perf_counter() - begin

    def _own_state(self) -> dict[str, Tensor]:
        """What this rank's part of the training state has of its own: environments and random numbers."""
        learner = self.learner.training_state()
        own = {f"learner/{name}": tensor for name, tensor in learner.items() if name.startswith(self.learner.lanes)}
        return own | {f"loop/{k}": v for k, v in self.loop.state_dict().items()} | random_state(self.device)

    def _checkpoint(
        self, learner: Learner, random: dict[str, Tensor], last: Evaluation | None, state: dict[str, Any]
    ) -> Checkpoint:
        training = {f"learner/{k}": v for k, v in learner.training_state().items()}
        training |= {f"loop/{k}": v for k, v in self.loop.state_dict().items()} | random
        if last is not None:
            training |= {f"eval/{k}": v for k, v in last.tensors().items()}
        return Checkpoint(learner.model_state(), training, state)

    def _state(self) -> dict[str, Any]:
        loop = self.loop
        return {
            **self.facts,
            "env_steps": loop.env_steps,
            "gradient_steps": loop.gradient_steps,
            "train_seconds": self.train_seconds,
            "checkpoint_seconds": self.checkpoint_seconds,
            "wall_seconds": self.wall_seconds,
            "best": self.best,
            "next_eval": self.next_eval,
            "shortfall": self.shortfall,
            "n_scored": self.n_scored,
            "scored_at": self.scored_at,
            "metrics": _plain(self.metrics),
            "clock": loop.clock,
            "spec": spec_values(self.spec),
        }

    def _save_numbered(self) -> None:
        """checkpoints/step_<n>, and away with what came `keep` numbered ones before."""
        self.save(f"step_{self.steps}")
        if self.ranks.index > 0:
            return
        for left in self.checkpoints.glob(".step_*.new"):
            remove(left)  # of a save that was killed
        steps = [name[5:] for path in self.checkpoints.glob("step_*") if (name := path.name)[5:].isdecimal()]
        # after a resume from an older checkpoint there may be later ones: training will come by and replace them
        before = sorted(int(n) for n in steps if int(n) <= self.steps)
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
        if (were := checkpoint.state.get("ranks", 1)) != self.ranks.size:
            raise ValueError(
                f"{last}: {were!r:.20} processes trained it together, here are {self.ranks.size}. Go on with as many: "
                "torchrun --nproc-per-node=N -m ctrlrl.cli train run.resume=..."
            )
        was, now = checkpoint.state.get("clock", self.loop.clock), self.loop.clock
        if was != now:
            raise ValueError(f"{last}: the run counts {was} and would now count {now}; begin a new run instead")
        same_spec(checkpoint.state, self.spec, str(last), but=())
        self._same_data(checkpoint.state, last)
        try:
            self._restore(*checkpoint)
        except (RuntimeError, KeyError, ValueError, TypeError, OverflowError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{last} does not fit this configuration ({first}).") from None
        self._restore_buffer(last)
        self.folder.resume(self.steps)
        if self.loop.done:
            key = "gradient_steps" if self.loop.clock == "gradient_steps" else "total_steps"
            self.progress.note(f"{last}: the run is at its end, {self.steps:,} steps; {key}=... above that goes on")
        if self.loop.env is not None and not any(name.startswith("loop/env/") for name in checkpoint.training):
            self.progress.note("this environment cannot be restored: its episodes start anew, with seeds of their own")

    def _restore_buffer(self, last: Path) -> None:
        if self.buffer is not None and has_buffer(last):
            load_buffer(self.buffer, last)
        elif self.loop.env_steps and hasattr(self.loop, "buffer"):
            self.progress.note(f"{last} holds no replay buffer (checkpoint.buffer=false?): it fills anew")

    def _same_data(self, state: dict[str, Any], last: Path) -> None:
        """ValueError where the data set is not the one that the run began with."""
        was, now = (facts.get("data_checksum") for facts in (state, self.facts))
        if was is not None and was != now:
            raise ValueError(
                f"{last}: learned from a data set with checksum {str(was)[:12]}, that of {self.facts['data']} is "
                f"{str(now)[:12]} now. Put the old one back, or begin a new run."
            )

    def _read_best(self, state: dict[str, Any]) -> Any:
        return None if state["best"] is None else number(state, "best")

    def _restore(self, model: dict[str, Tensor], training: dict[str, Tensor], state: dict[str, Any]) -> None:
        parts: dict[str, dict[str, Tensor]] = {"learner": {}, "loop": {}, "rng": {}, "eval": {}}
        mine = f"rank{self.ranks.index}/"
        training = training | {key.removeprefix(mine): t for key, t in training.items() if key.startswith(mine)}
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
        older = {"shortfall": 0.0, "n_scored": 0, "scored_at": 0}  # written before checkpoints held it
        self.shortfall, self.n_scored = (
            number(older | state, "shortfall"),
            number(older | state, "n_scored", integer=True),
        )
        self.scored_at = number(older | state, "scored_at", integer=True)
        self.best = self._read_best(state)
        self.metrics = {k: torch.tensor(v, dtype=torch.float64) for k, v in table(state, "metrics").items()}
        if parts["eval"]:
            self.evaluation = Evaluation.of(parts["eval"])
        self.learner.load_model_state(model)
        self.learner.resume(parts["learner"])
        loop.load_state_dict(parts["loop"])
        if self.eval_every:  # which may be finer than before
            self.next_eval = min(self.next_eval, (self.steps // self.eval_every + 1) * self.eval_every)
        restore_random_state({f"rng/{k}": v for k, v in parts["rng"].items()}, self.device)
        was, now = table(state, "versions"), self.facts["versions"]
        changed = [f"{n} {was[n]} is now {now.get(n, 'missing')}" for n in EXACT if n in was and was[n] != now.get(n)]
        if changed:
            self.progress.note(f"{', '.join(changed)}: the run goes on, but not bit for bit as it would have")


def _plain(metrics: Metrics) -> dict[str, Any]:
    """Numbers, or lists of one a seed."""
    return {name: float(value) if value.ndim == 0 else value.tolist() for name, value in metrics.items()}

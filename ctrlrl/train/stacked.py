"""Runs of several seeds in one process: one clock and one checkpoint, but rows, results and policies of every seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctrlrl.core.learner import Learner
from ctrlrl.train.checkpoint import number, write_folder
from ctrlrl.train.evaluate import Evaluation
from ctrlrl.train.log import RunFolder
from ctrlrl.train.outcome import eval_row, exceeds, merit, outcome, summary
from ctrlrl.train.trainer import Loop, Trainer


class StackedTrainer(Trainer):
    """The folder's own checkpoint resumes all seeds; <folder>/seed_<n> is what the run of seed n alone would leave.

    evaluate_seed: the evaluation of the seed at a place 0 ... S - 1.
    single: of that seed the learner as its own run would have it now, and the state of its generators.
    trackers, settings: as of RunFolder; every seed is a run of its own there.
    options: as of Trainer.
    """

    def __init__(
        self,
        loop: Loop,
        folder: RunFolder,
        *,
        seeds: Sequence[int],
        evaluate_seed: Callable[[int], Evaluation],
        single: Callable[[int], tuple[Learner, dict[str, Tensor]]],
        trackers: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
        **options: Any,
    ):
        places = range(len(seeds))
        super().__init__(loop, folder, evaluate=lambda: _joined([evaluate_seed(i) for i in places]), **options)
        self.seeds, self.single = list(seeds), single
        self.best = [None for _ in seeds]
        paths = [seed_folder(folder.path, seed) for seed in seeds]
        self.folders = [
            RunFolder(path, trackers=trackers, settings={**(settings or {}), "seed": seed}, clock=loop.clock)
            for path, seed in zip(paths, seeds, strict=True)
        ]

    def train(self) -> dict[str, Any]:
        try:
            return super().train()
        finally:
            for folder in self.folders:
                folder.close()

    def write_row(self, row: dict[str, Any]) -> None:
        for place, seed in enumerate(self.seeds):
            own = {k: v[place] if isinstance(v, list) else v for k, v in row.items()}
            self.folders[place].write_row(own)
            self.folder.write_row({**own, "seed": seed})
        shown = {k: sum(v) / len(v) if isinstance(v, list) else v for k, v in row.items()}
        self.progress.update(self.steps, shown)

    def write_result(self, status: str) -> dict[str, Any]:
        result = super().write_result(status)
        for folder, own in zip(self.folders, result["seeds"], strict=True):
            folder.write_result({k: v for k, v in result.items() if k != "seeds"} | own)
        return result

    def result(self, status: str) -> dict[str, Any]:
        """The run's own returns and scores are means over the seeds."""
        each = [{"seed": seed, **outcome(self._of(i), self.best[i], self.score)} for i, seed in enumerate(self.seeds)]
        return super().result(status) | {"seeds": each}

    @property
    def best_shown(self) -> float | None:
        return None if None in self.best else sum(self.best) / len(self.best)

    def _of(self, place: int) -> Evaluation | None:
        if self.evaluation is None:
            return None
        return Evaluation.of({name: x[place] for name, x in self.evaluation.tensors().items()})

    def _evaluate(self, status: str) -> dict[str, Any]:
        self.evaluation = self.evaluate()
        rows = [eval_row(self._of(place), self.score) for place in range(len(self.seeds))]  # type: ignore[arg-type]
        for place, row in enumerate(rows):
            if exceeds(merit(row), self.best[place]):
                self.best[place] = merit(row)
                self._save_seed(place, "best")
            self._save_seed(place, "last")
        self.write_result(status)
        self.progress.evaluation(f"{self.steps:>12,} steps  evaluation {'  '.join(map(summary, rows))}")
        return {name: [row[name] for row in rows] for name in rows[0]}

    def _finish(self) -> None:
        super()._finish()
        for place in range(len(self.seeds)):
            self._save_seed(place, "last")

    def _save_seed(self, place: int, name: str) -> None:
        learner, random = self.single(place)
        state = self._state()
        metrics = {k: v[place] if isinstance(v, list) else v for k, v in state["metrics"].items()}
        state |= {"seed": self.seeds[place], "best": self.best[place], "metrics": metrics}
        folder = self.folders[place]
        folder.sync()
        write_folder(folder.path / "checkpoints" / name, self._checkpoint(learner, random, self._of(place), state))

    def resume(self) -> None:
        super().resume()
        for folder in self.folders:
            folder.resume(self.steps)

    def _read_best(self, state: dict[str, Any]) -> Any:
        found = state["best"]
        if not isinstance(found, list) or len(found) != len(self.seeds):
            raise ValueError(f"state.json: best is {found!r:.40}, wanted a list of {len(self.seeds)} returns")
        return [None if value is None else number({"best": value}, "best") for value in found]


def seed_folder(folder: Path, seed: int) -> Path:
    """The run folder of one seed inside that of a stacked run."""
    return folder / f"seed_{seed}"


def _joined(each: Sequence[Evaluation]) -> Evaluation:
    """[S, episodes] of everything, [S] of what is one number; None where a seed has none."""
    columns = [None if any(x is None for x in column) else torch.stack(column) for column in zip(*each, strict=True)]
    return Evaluation(*columns)  # type: ignore[arg-type]

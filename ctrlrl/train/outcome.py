"""What an evaluation amounts to: a row of progress.csv, result.json's figures, a line for people, and which is best."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ctrlrl.train.evaluate import Evaluation

Score = Callable[[float], float | None]  # a return as the task's normalised score, or None where it has none


def eval_row(evaluation: Evaluation, score: Score) -> dict[str, float]:
    """The row of progress.csv that an evaluation makes."""
    row = {f"eval/{name}": value for name, value in (_held_out(evaluation) | _worth(evaluation)).items()}
    returns = evaluation.returns
    if not returns.numel():
        return row
    row |= {
        "eval/return_mean": returns.mean().item(),
        "eval/return_std": returns.std(unbiased=False).item(),
        "eval/length_mean": evaluation.lengths.double().mean().item(),
    }
    if evaluation.success is not None:
        row["eval/success_rate"] = evaluation.success.double().nanmean().item()
    if (points := score(row["eval/return_mean"])) is not None:
        row["eval/normalized_score"] = points
    return row


def outcome(last: Evaluation | None, best: float | None, score: Score) -> dict[str, Any]:
    """What result.json says of the last evaluation and of the best mean return."""
    returns = last.returns if last is not None and last.returns.numel() else None
    success = last.success if last is not None else None
    best = None if returns is None else best
    return {
        "final_return_mean": None if returns is None else returns.mean().item(),
        "final_return_std": None if returns is None else returns.std(unbiased=False).item(),
        "best_return_mean": best,
        "eval_episodes": 0 if returns is None else returns.numel(),
        "success_rate": None if success is None else success.double().nanmean().item(),
        "normalized_score": None if returns is None else score(returns.mean().item()),
        "best_normalized_score": None if best is None else score(best),
        **({} if last is None else _held_out(last) | _worth(last)),
        **({} if last is None or last.front is None else {"front": last.front["returns"].tolist()}),
    }


def merit(row: dict[str, float]) -> float | None:
    """By what evaluations are compared: the return, else a front's hypervolume, else the error on what was held out."""
    if "eval/return_mean" in row:
        return row["eval/return_mean"]
    if "eval/hypervolume" in row:
        return row["eval/hypervolume"]
    return -row["eval/held_out_action_error"] if "eval/held_out_action_error" in row else None


def exceeds(value: float | None, best: float | None) -> bool:
    return value is not None and (best is None or value > best)


def summary(row: dict[str, float]) -> str:
    parts = []
    if "eval/return_mean" in row:
        parts.append(f"return {row['eval/return_mean']:.1f} ± {row['eval/return_std']:.1f}")
    if "eval/hypervolume" in row:
        utility = row["eval/expected_utility"]
        parts.append(f"hypervolume {row['eval/hypervolume']:.6g}, expected utility {utility:.4g}")
    if "eval/held_out_action_error" in row:
        parts.append(f"held-out action error {row['eval/held_out_action_error']:.4g}")
    return ", ".join(parts) or "of nothing: give an environment, or data.holdout"


def _held_out(evaluation: Evaluation) -> dict[str, float]:
    """held_out_action_error and held_out_loss, where there are any; of several seeds the mean."""
    named = {k: v for k, v in evaluation._asdict().items() if k.startswith("held_out_")}
    return {name: value.mean().item() for name, value in named.items() if value is not None}


def _worth(evaluation: Evaluation) -> dict[str, float]:
    """hypervolume, expected_utility and sparsity of an evaluated set of policies."""
    return {name: value.item() for name, value in (evaluation.front or {}).items() if value.ndim == 0}

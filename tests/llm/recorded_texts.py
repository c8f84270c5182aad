"""A small file of labelled responses, and a model that reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

QUESTIONS = ["1+1?", "zwölf?"]
SOLUTIONS = ["2", "3", "zwölf", "", "2 of course"]
PROMPT, CORRECT = [0, 0, 1, 1, 0], [True, False, True, False, True]


def packed(**columns: list[str]) -> dict[str, Any]:
    """Texts as the arrays of a file."""
    found: dict[str, Any] = {}
    for name, texts in columns.items():
        raw = [text.encode() for text in texts]
        found[f"{name}_utf8"], found[f"{name}_offsets"] = (
            np.frombuffer(b"".join(raw), np.uint8),
            np.cumsum([0, *map(len, raw)]),
        )
    return found


def arrays() -> dict[str, Any]:
    labels = {"solution_question_index": np.array(PROMPT), "solution_is_correct": np.array(CORRECT)}
    return labels | packed(question=QUESTIONS, solution=SOLUTIONS)


def sums(folder: Path, n: int = 20) -> Path:
    """n questions with a right and a wrong answer each; the right ones end alike, so that they can be told apart."""
    questions = [f"{i}+?" for i in range(n)]
    solutions = [text for i in range(n) for text in (f"{i} yes", f"{i} no")]
    labels = {
        "solution_question_index": np.repeat(np.arange(n), 2),
        "solution_is_correct": np.tile([True, False], n),
    }
    np.savez(folder / "sums.npz", **labels, **packed(question=questions, solution=solutions))
    return folder / "sums.npz"

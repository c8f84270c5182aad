"""Names in a result (result.json, or a row of results): its algorithm, its task, its seeds."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Result = Mapping[str, Any]


def algo_of(r: Result) -> str:
    """Algorithm with its variant in a sweep, and a precision other than float32: "td3bc alpha=10", "iql bfloat16"."""
    dtype = r.get("dtype", "float32")
    words = [r["algo"], r.get("variant"), None if dtype == "float32" else dtype]
    return " ".join(str(word) for word in words if word)


def task_of(r: Result) -> str:
    """The task's name in its sweep, else its environment with its data set."""
    if r.get("task"):
        return str(r["task"])
    return f"{r['env']} · {data_of(r)}" if r.get("data") else str(r["env"])


def data_of(r: Result) -> str:
    """The data set's id, or its file's name without the way there."""
    name = str(r.get("data") or "")
    return Path(name).name if Path(name).suffix in (".npz", ".hdf5", ".h5") else name


def is_offline(r: Result) -> bool:
    """Learned from a data set, and not known as anything published for training in the environment."""
    return bool(r.get("data")) or bool(not r.get("env_steps") and r.get("gradient_steps"))


def typed_words(text: str) -> list[str]:
    """The key=value words of a command or of overrides.txt; a value may hold spaces: "algo.hidden=[16, 16]"."""
    return re.split(r"\s+(?=[+~]*[\w./@-]+=)", text.strip()) if text.strip() else []


def expand(results: Iterable[Result]) -> list[Result]:
    """Stacked runs hold one entry a seed under "seeds": make each a result of its own."""
    return [{**r, **one} if isinstance(one, Mapping) else r for r in results for one in r.get("seeds") or [r]]


def measured(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)
